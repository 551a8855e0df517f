"""Gradient caching: a batch that is run in parts, whose loss is of all of it, with the gradients of the whole and the memory of a part.

    o_c = model(part c)            without keeping activations
    L = terms([o_1; o_2; ...])     dL/do_c
    o_c = model(part c) again      with them, and the same random numbers, one part after another: dL/do_c do_c/dtheta

This is GradCache's two passes (Gao et al. 2021, arXiv:2101.06983) written as one checkpoint around each part: autograd runs a part again when its
backward begins, and lets go of it before the next. Random states are drawn again by the checkpoint, so that dropout is the same in both. What a method adds to
the loss by itself (`ad.penalty`) is of the last part alone where it looks at activations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from adaptome.core.errors import TrainingError
from adaptome.objectives import Terms


def require_cacheable(terms: Terms | None) -> None:
    """Raise TrainingError when a loss cannot be put together from the outputs of a batch's parts."""
    asking = "training.gradient_cache"
    if terms is None:
        raise TrainingError(
            f"{asking} needs terms that see the whole batch, such as info-nce; the model's own loss is a mean over the rows it sees.\n"
            "  Use training.gradient_accumulation, or give an objective."
        )
    for term, need in zip(terms.terms, terms.needs, strict=True):
        if term.objective.name == "model":
            raise TrainingError(
                f"{asking}: the term 'model' is the model's own loss, a mean over the rows that it sees at once.\n  Name the loss: next-token, cross-entropy."
            )
        wanted = [n for n in ("hidden_states", "watch", "second", "teacher") if getattr(need, n)]
        if wanted:
            raise TrainingError(f"{asking}: the objective {term.name!r} looks at more than outputs ({wanted[0]}), which the parts do not keep.")  # fmt: skip


def in_parts(
    model: Callable[..., Any], inputs: Mapping[str, Any], size: int, around: Callable[[int, int], Any]
) -> dict[str, Tensor]:
    """The model's outputs on a batch, run `size` rows at a time; those with a row an example, one part's under another's.

    Args:
        inputs: columns with a row for each example.
        around: first and last row -> a context in which the part runs, both times.

    Raises:
        TrainingError: a column of another length; names it.
    """
    count = _rows(inputs)

    def part(start: int, stop: int) -> dict[str, Tensor]:
        with around(start, stop):
            made = model(**{key: value[start:stop] for key, value in inputs.items()})
        found = {key: made[key] for key in made if isinstance(made[key], Tensor)}
        return {key: value for key, value in found.items() if value.dim() and len(value) == stop - start}

    starts = range(0, count, size)
    each = [
        checkpoint(part, start, min(start + size, count), use_reentrant=False, preserve_rng_state=True)
        for start in starts
    ]
    return {key: torch.cat([one[key] for one in each]) for key in each[0]}


def _rows(inputs: Mapping[str, Any]) -> int:
    counts = {
        key: len(value) if isinstance(value, Tensor) and value.dim() else None
        for key, value in inputs.items()
    }
    count = next(iter(counts.values()))
    odd = [key for key, n in counts.items() if n is None or n != count]
    if odd or count is None:
        name = odd[0] if odd else next(iter(counts))
        raise TrainingError(
            f"training.gradient_cache parts a batch by its rows, and the column {name!r} has no row for each of the {count} examples.\n"
            "  Leave gradient_cache out for this task."
        )
    return count
