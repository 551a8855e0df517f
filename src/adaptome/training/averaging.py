"""The running mean of what trains (EMA), which takes its place at the end.

m <- d m + (1 - d) w,    d = min(decay, (1 + n) / (10 + n)) after n steps
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from adaptome.core.errors import RecipeError
from adaptome.recipe import Recipe


class Averaged(TrainerCallback):
    """Keeps the mean over steps of every parameter that trains; checkpoints hold it, and the run ends with it.

    Args:
        decay: of the mean, below 1.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.means: dict[str, Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        now = _trained(model)
        if set(self.means) != set(now):  # else they came from a checkpoint
            self.means = {name: value.detach().float().clone() for name, value in now.items()}
        self.means = {name: mean.to(now[name].device) for name, mean in self.means.items()}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        n = state.global_step
        decay = min(self.decay, (1 + n) / (10 + n))
        with torch.no_grad():
            for name, value in _trained(model).items():
                self.means[name].lerp_(value.detach().float(), 1 - decay)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        with torch.no_grad():
            for name, value in _trained(model).items():
                value.copy_(self.means[name])

    def kept(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        return dict(self.means)

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Undo `kept`."""
        self.means = dict(kept)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def averaging(recipe: Recipe, validated: bool) -> list[TrainerCallback]:
    """The callback of a recipe that asks for it.

    Args:
        validated: whether there is a split by which a best checkpoint is chosen.

    Raises:
        RecipeError: settings that do not go with it.
    """
    if recipe.training.ema is None:
        return []
    if recipe.training.fsdp:
        raise RecipeError(
            "training.ema keeps whole parameters, which a sharded run has not: leave ema or fsdp out."
        )
    if validated and recipe.training.keep_best:
        raise RecipeError(
            "training.ema ends with the mean over steps, training.keep_best with the best of them: write keep_best=false, or leave ema out."
        )
    return [Averaged(recipe.training.ema)]
