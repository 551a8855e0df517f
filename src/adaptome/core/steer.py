"""Steering: per-sample or per-task facts that adapters read, without changing any model's signature.

    with ad.steer(task="depth"):
        model(x)
    with ad.steer(quality=scores):          # scores [batch], read by adapters that mix per sample
        model(x)

Contexts nest: the inner one adds to, or replaces, the outer's facts. The facts live in one process-wide mapping that
torch.compile guards on. Under gradient checkpointing the backward must run inside the context too, for the forward is run again there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adaptome.core.errors import StateError

_facts: dict[str, Any] = {}


@contextmanager
def steer(**facts: Any) -> Iterator[None]:
    """Make facts known to the adapters for the time of the block."""
    before = dict(_facts)
    _facts.update(facts)
    try:
        yield
    finally:
        _facts.clear()
        _facts.update(before)


def steered(name: str, default: Any = None) -> Any:
    """The fact called `name`, or the default."""
    return _facts.get(name, default)


def require(name: str, asking: str) -> Any:
    """The fact called `name`.

    Raises:
        StateError: when no context tells it.
    """
    if name not in _facts:
        raise StateError(
            f"{asking} needs to know {name!r}: run the model inside `with ad.steer({name}=...):`. Known now: {sorted(_facts) or 'nothing'}."
        )
    return _facts[name]
