"""A trained model measured by its task, and its base alone beside it."""

from __future__ import annotations

from typing import Any

from torch import nn

import adaptome as ad
from adaptome.tasks import Task
from adaptome.training.predictions import predictions_on
from adaptome.training.trainer import AdapterCheckpoints


def measured(trainer: AdapterCheckpoints, task: Task, data: Any, split: str) -> dict[str, float]:
    """The task's metrics on a split, with the loss, without prefixes."""
    if task.trainer == "sft":
        # the trainer's own loss is a mean over batches; this one is over tokens, however they fall into batches
        return dict(task.score(trainer.model, trainer.get_eval_dataloader()))  # type: ignore[attr-defined]
    found = trainer.evaluate(data, metric_key_prefix=split)
    timing = ("_runtime", "_per_second", "_time")
    plain = {key.removeprefix(f"{split}_"): value for key, value in found.items() if not key.endswith(timing)}
    return {key: float(value) for key, value in plain.items() if key != "epoch"}


def without_adapters(trainer: AdapterCheckpoints, task: Task, data: Any, split: str) -> dict[str, float]:
    """The same metrics of the base alone, as it was before training: <metric>_before; without the task's asking, what the terms measure."""
    with ad.disabled(trainer.model):
        found = measured(trainer, task, data, split)
    return {f"{k}_before": v for k, v in found.items() if task.measures_before or k in trainer.measures}


def judged_without(
    task: Task, model: nn.Module, processor: Any, split: Any, prepared: Any, found: list[Any], size: int
) -> dict[str, float]:
    """What the base alone predicts, judged as <metric>_before, and how it differs from what was found."""
    with ad.disabled(model):
        before = predictions_on(task, model, processor, split, prepared, size)
    told = {f"{name}_before": value for name, value in task.judge(split, before).items()}
    return told | task.contrast(split, found, before)
