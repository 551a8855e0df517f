"""The hook of strategies that change a step's gradient: between the backward, once clipped, and the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from adaptome.continual.loop import Loop, flat_gradient, put_gradient


class Projected(TrainerCallback):
    """Replaces the gradient of what trains.

    Args:
        project: the gradient as one vector, and the step's number -> the gradient to step by.
    """

    def __init__(self, loop: Loop, project: Callable[[Tensor, int], Tensor]):
        self.loop, self.project = loop, project

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parameters = list(self.loop.parameters.values())
        put_gradient(parameters, self.project(flat_gradient(parameters), state.global_step))
