"""Steering: per-sample or per-task facts that adapters read, without changing any model's signature.

    with ad.steer(task="depth"):
        model(x)
    with ad.steer(quality=scores):          # scores [batch], read by adapters that mix per sample
        model(x)

Contexts nest: the inner one adds to, or replaces, the outer's facts. The facts are those of the thread that entered them, in a mapping that
torch.compile guards on, so that threads may steer one model differently: enter the context in the thread that runs the model.

Gradient checkpointing runs the forward again within the backward. It knows the forward's facts with `context_fn=ad.steered_again` and
use_reentrant=False; else the backward must run inside the context too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from adaptome.core.errors import StateError

KEY = "adaptome.steer"


class _Here(threading.local):
    """The facts of one thread. Autograd hands the mapping on to the threads of devices, in which it runs a backward."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        if not torch._C._is_key_in_tls(KEY):
            torch._C._stash_obj_in_tls(KEY, self.facts)


_here = _Here()


def _facts() -> dict[str, Any]:
    """What is known in this thread; in one of autograd's, what is known where the backward was called."""
    facts = _here.facts
    # a compiled function reads, and guards on, its own thread's alone
    if facts or torch.compiler.is_compiling() or not torch._C._is_key_in_tls(KEY):
        return facts
    handed_on: dict[str, Any] = torch._C._get_obj_in_tls(KEY)
    return handed_on


def facts() -> dict[str, Any]:
    """All that is known in this thread."""
    return dict(_facts())


@contextmanager
def steer(**facts: Any) -> Iterator[None]:
    """Make facts known to the adapters for the time of the block, in this thread."""
    own, known = _here.facts, _facts()
    before = dict(own)
    own.update({**known, **facts})
    try:
        yield
    finally:
        own.clear()
        own.update(before)


def steered(name: str, default: Any = None) -> Any:
    """The fact called `name`, or the default."""
    return _facts().get(name, default)


def is_steered() -> bool:
    """Whether any fact is known now."""
    return bool(_facts())


def steered_again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Gradient checkpointing's `context_fn`: what is steered now is steered again when the forward is repeated.

    model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": ad.steered_again})
    """
    return nullcontext(), steer(**_facts())


def require(name: str, asking: str) -> Any:
    """The fact called `name`.

    Raises:
        StateError: when no context tells it.
    """
    facts = _facts()
    if name not in facts:
        raise StateError(
            f"{asking} needs to know {name!r}: run the model inside `with ad.steer({name}=...):`. Known now: {sorted(facts) or 'nothing'}."
        )
    return facts[name]
