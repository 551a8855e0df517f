"""A few real steps of a recipe on this machine, as its own trainer takes them."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from adaptome.compare.shapes import Data, size
from adaptome.recipe import MethodSection, Recipe
from adaptome.training.building import attach, base_model
from adaptome.training.objectives import assembled
from adaptome.training.runs import trainer_of


class _Clock(TrainerCallback):
    """Times every optimizer step and adds up what its batches held."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, float]] = []
        self.held = 0
        self.since = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _wait()
        self.held, self.since = 0, time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _wait()
        self.steps.append((self.held, time.perf_counter() - self.since))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measured_steps(recipe: Recipe, data: Data, methods: Sequence[MethodSection], steps: int) -> list[tuple[int, float]]:  # fmt: skip
    """What each of some optimizer steps held (as `shapes.size` counts) and how many seconds it took; one before them warms up.

    Args:
        recipe: is trained in a folder that is thrown away; its base is loaded.
        data: read already. methods: that are attached, together. steps: how many.
    """
    if data.prepared is None:
        return []
    with tempfile.TemporaryDirectory() as folder:
        training = recipe.training.model_copy(update={"max_steps": steps + 1, "report_to": []})
        output = recipe.output.model_copy(update={"folder": folder})
        update = {"methods": list(methods), "training": training, "output": output}
        one = recipe.model_copy(update=update)
        model, terms, also = base_model(one, data.task, data.processor)
        attach(one, data.task, model, also)
        loss, clock = assembled(one, data.task, data.processor, model, terms), _Clock()
        trainer = trainer_of(one, data.task, data.processor, data.prepared, model, [clock], loss, only="train")  # fmt: skip
        given = trainer.training_step

        def step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            clock.held += size(inputs)
            return given(model, inputs, *args, **kwargs)

        trainer.training_step = step  # type: ignore[method-assign]
        trainer.train()
    del trainer, model, loss, given
    gc.collect()
    return clock.steps[1:]
