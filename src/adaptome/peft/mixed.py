"""Of PEFT's interface: an adapter for every row of a batch, and adapters made of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

import adaptome as ad
from adaptome.core.errors import MethodError, StateError
from adaptome.core.state import attachment_of, state_of
from adaptome.peft.configs import LoraConfig

BASE = "__base__"


class MixedBatchError(StateError, ValueError):
    """The adapters named for the rows of a batch do not fit."""


def rows_of(
    model: Any, names: Sequence[str] | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> AbstractContextManager[None]:
    """Where names are given: run each row of the batch with the adapter that it names.

    Args:
        model: a PeftModel.
        names: of adapters, "__base__" for none.
        args, kwargs: what the model is called with; the first tensor tells the number of rows.

    Raises:
        MixedBatchError: in training, with merged adapters, for unknown names or another number of them.
    """
    if names is None:
        return nullcontext()
    if model.training:
        raise MixedBatchError("Cannot pass `adapter_names` when the model is in training mode.")
    if model.base_model.merged_adapters:
        raise MixedBatchError(
            "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
        )
    unknown = sorted({name for name in names if name != BASE and name not in model.peft_config})
    if unknown:
        raise MixedBatchError(
            f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}\n  There are {', '.join(model.peft_config)}."
        )
    rows = next((len(v) for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim()), len(names))
    if rows != len(names):
        raise MixedBatchError(
            f"Length of `adapter_names` should be the same as the number of inputs, but got {len(names)} and {rows} respectively."
        )
    base = model.base_model.model
    if state_of(base).disabled:
        return nullcontext()
    return ad.per_row(base, [None if name == BASE else name for name in names])


def add_weighted(
    tuner: Any, adapters: Sequence[str], weights: Sequence[float], name: str, how: str, rank: int | None
) -> None:
    """Attach a LoRA made of others on the tuner's model; see `Tuner.add_weighted_adapter`."""
    configs = [tuner.peft_config[n] for n in adapters]
    if len(adapters) != len(weights) or not adapters:
        raise StateError(
            f"add_weighted_adapter: {len(adapters)} adapters and {len(weights)} weights; name one weight for each."
        )
    if not all(isinstance(c, LoraConfig) and c.kind == "LORA" and not c.use_dora for c in configs):
        raise MethodError(
            "add_weighted_adapter is of LoRA's adapters here; ad.combine(model, {...}, name) is of every method that changes weights."
        )
    if how not in _HOW:
        raise MethodError(
            f"combination_type={how!r} is not here; there are {', '.join(_HOW)}.\n  TIES, DARE and pruning are ad.combine(model, {{...}}, name, how='ties')."
        )
    running = tuner.active_adapters
    ranks = {c.r for c in configs}
    if how == "linear" and (len(ranks) > 1 or any(c.rank_pattern for c in configs)):
        raise StateError(
            f"combination_type='linear' adds factors, which have ranks {sorted(ranks)} here: take 'cat' or 'svd'."
        )
    cut = None if how == "cat" else rank or max(ranks)
    made = ad.combine(tuner.model, dict(zip(adapters, weights, strict=True)), name, rank=cut)
    if how == "linear":
        _linear(tuner.model, adapters, weights, name)
    r = max(made.ranks.values())
    targets = sorted({path for path in made.ranks})
    tuner.peft_config[name] = LoraConfig(
        r=r, lora_alpha=r, target_modules=targets, task_type=configs[0].task_type, base_model_name_or_path=configs[0].base_model_name_or_path,
        rank_pattern={f"^{p}": k for p, k in made.ranks.items() if k != r}, alpha_pattern={f"^{p}": k for p, k in made.ranks.items() if k != r},
    )  # fmt: skip
    ad.activate(tuner.model, running)


@torch.no_grad()
def _linear(model: Any, adapters: Sequence[str], weights: Sequence[float], name: str) -> None:
    """PEFT's rule: the factors themselves are added, each by the root of its weight and scale, a sign in A."""
    new = attachment_of(model, name)
    for path, adapter in new.adapters.items():
        own: Any = adapter
        A, B = torch.zeros_like(own.A), torch.zeros_like(own.B)
        for other, weight in zip(adapters, weights, strict=True):
            part: Any = attachment_of(model, other).adapters.get(path)
            if part is None:
                continue
            share = weight * part.scale
            A += abs(share) ** 0.5 * (1 if share >= 0 else -1) * part.A
            B += abs(share) ** 0.5 * part.B
        own.A.copy_(A)
        own.B.copy_(B)


_HOW: tuple[str, ...] = ("svd", "cat", "linear")
