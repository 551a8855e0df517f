"""Optimizer groups: LoRA+'s faster B, and weight decay only where it makes sense; and a course of the learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from adaptome.core.model import parameters_of


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    ratio: float | None = None,
    rates: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """The trainable parameters in groups for any torch optimizer; each parameter once.

    LoRA+ (Hayou et al. 2024, arXiv:2402.12354) trains the output-side factor `B` with `ratio` times the
    learning rate of the input-side `A`. Vectors (biases, norms, scales, magnitudes) are not decayed.

    Args:
        model: with its adapters attached.
        lr: learning rate of everything but `B`.
        weight_decay: of matrices.
        ratio: learning rate of parameters named `B` over `lr`; None for 1.
        rates: adapter's name -> its learning rate in place of `lr`.

    Returns:
        Groups with `params`, `param_names`, `lr` and `weight_decay`, without empty ones, in an order that
        depends on the names alone, so that a resumed run builds the same groups.

    Raises:
        StateError: rates names an adapter that is not attached.
    """
    own = {id(p): name for name in rates or {} for p in parameters_of(model, name).values()}
    groups: dict[tuple[str, bool, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():  # tied parameters come once
        if parameter.requires_grad:
            fast = ratio is not None and name.rsplit(".", 1)[-1] == "B"
            groups.setdefault((own.get(id(parameter), ""), fast, parameter.ndim > 1), []).append(
                (name, parameter)
            )
    return [
        {
            "params": [parameter for _, parameter in sorted(members, key=lambda m: m[0])],
            "param_names": sorted(name for name, _ in members),
            "lr": (rates or {}).get(adapter, lr) * (ratio if fast and ratio is not None else 1),
            "weight_decay": weight_decay if matrix else 0.0,
        }
        for (adapter, fast, matrix), members in sorted(groups.items())
    ]


#: its name among the schedulers of recipes
POWER = "power"


@dataclass(frozen=True)
class PowerCourse:
    """A learning rate that rises linearly, then falls as a power of what is left: PeftCD's (arXiv:2509.09572), with power 3.

        factor = max(floor, step / warmup)  while step < warmup,  else  max(floor, (1 - (step - warmup) / (steps - warmup))^power)

    The floor holds in the warm-up too, as in the authors' code.
    """

    power: float = 3.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.power < 0 or not 0 <= self.floor <= 1:
            raise ValueError(f"power={self.power}, floor={self.floor}")

    def factor(self, step: int, warmup: int, steps: int) -> float:
        """Of the peak's learning rate, at a step."""
        if step < warmup:
            return max(self.floor, step / warmup)
        left = 1 - (step - warmup) / max(steps - warmup, 1)
        return float(max(self.floor, max(left, 0.0) ** self.power))

    def scheduler(self, optimizer: Any, warmup: int, steps: int) -> Any:
        """A torch scheduler of it."""
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.factor(step, warmup, steps))
