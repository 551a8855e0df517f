"""Pictures of what the model makes as training goes, for the report: <output.folder>/samples/step-000100.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from adaptome.core.files import atomic_folder, write_atomic
from adaptome.tasks import Task
from adaptome.tasks.showing import png_bytes
from adaptome.training.folder import SAMPLES
from adaptome.training.rng import random_state, set_random_state


class Sketches(TrainerCallback):
    """Asks the task for a picture before the first step, every so many steps, and at the end.

    Args:
        folder: of the run.
        every: steps between two; None for a quarter of the run.
    """

    def __init__(self, task: Task, processor: Any, folder: Path, every: int | None):
        self.task, self.processor, self.folder, self.every = task, processor, folder, every
        self._last = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._draw(state, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        every = self.every or max(1, state.max_steps // 4)
        if state.global_step % every == 0:
            self._draw(state, model)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._draw(state, model, again=True)  # an average may have taken the weights' place

    def _draw(self, state: Any, model: Any, again: bool = False) -> None:
        if not state.is_world_process_zero or (self._last == state.global_step and not again):
            return
        self._last = state.global_step
        before = random_state([])
        picture = self.task.sketch(model, self.processor)
        set_random_state(before, [])
        if picture is None:
            return
        place = self.folder / SAMPLES
        if not place.is_dir():
            with atomic_folder(place):
                pass
        write_atomic(place / f"step-{state.global_step:06}.png", png_bytes(picture))


def sketches(task: Task, processor: Any, folder: Path) -> list[TrainerCallback]:
    """The callback of a task that has such pictures."""
    if type(task).sketch is Task.sketch or not getattr(task.options, "samples", None):
        return []
    return [Sketches(task, processor, folder, getattr(task.options, "sample_every", None))]


def read_sketches(folder: Path) -> dict[str, Any]:
    """The pictures of a run by what they are called, in order."""
    from PIL import Image

    found = {}
    for file in sorted((folder / SAMPLES).glob("step-*.png")):
        with Image.open(file) as opened:
            found[f"step {int(file.stem.removeprefix('step-'))}"] = opened.convert("RGB")
    return found
