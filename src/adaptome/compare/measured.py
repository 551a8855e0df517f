"""A few real steps of a recipe on this machine, as its own trainer takes them, in a process of their own."""

from __future__ import annotations

import logging
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback

from adaptome.compare.shapes import size
from adaptome.recipe import MethodSection, Recipe
from adaptome.training.allocator import keep_freed_memory
from adaptome.training.building import attach, base_model, prepared
from adaptome.training.memory import PeakMemory
from adaptome.training.objectives import assembled
from adaptome.training.trainers import trainer_of


@dataclass(frozen=True)
class Measured:
    """Some real steps.

    Attributes:
        steps: what each held (as `shapes.size` counts) and its seconds. largest: the largest batch among them.
        peak: bytes, from before the base was loaded, as `training.memory` counts them: of the process, or of the accelerator.
    """

    steps: list[tuple[int, float]]
    largest: int
    peak: int


class _Clock(TrainerCallback):
    """Times every optimizer step and adds up what its batches held."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, float]] = []
        self.held = self.largest = 0
        self.since = 0.0

    def see(self, held: int) -> None:
        self.held, self.largest = self.held + held, max(self.largest, held)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _wait()
        self.held, self.since = 0, time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _wait()
        self.steps.append((self.held, time.perf_counter() - self.since))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measured_steps(recipe: Recipe, methods: Sequence[MethodSection], steps: int) -> Measured:
    """Takes some optimizer steps, one before them to warm up, and forgets what was learned.

    A process begun for it takes them: the memory of one that has done other things before says little.

    Args:
        recipe: of a run. methods: that are attached, together. steps: how many.
    """
    training = recipe.training.model_copy(update={"max_steps": steps + 1, "report_to": []})
    one = recipe.model_copy(update={"methods": list(methods), "training": training})
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_carried_out, one, torch.get_num_threads()).result()


def _carried_out(recipe: Recipe, threads: int) -> Measured:
    torch.set_num_threads(threads)
    logging.disable(logging.WARNING)  # the process that asked has said it all
    with tempfile.TemporaryDirectory() as folder:
        one = recipe.model_copy(update={"output": recipe.output.model_copy(update={"folder": folder})})
        peak = PeakMemory()
        if one.training.device == "cpu" or not torch.cuda.is_available():
            keep_freed_memory()  # as a run does
        task, processor, _, data = prepared(one)
        model, terms, also = base_model(one, task, processor)
        attach(one, task, model, also)
        loss, clock = assembled(one, task, processor, model, terms), _Clock()
        trainer = trainer_of(one, task, processor, data, model, [clock], loss, only="train")
        given = trainer.training_step

        def step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            clock.see(size(inputs))
            return given(model, inputs, *args, **kwargs)

        trainer.training_step = step  # type: ignore[method-assign]
        trainer.train()
        return Measured(clock.steps[1:], clock.largest, peak.bytes())
