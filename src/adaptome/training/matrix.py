"""A row of a stream's matrices: every task seen so far, scored as the strategy predicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction

from adaptome.continual import Strategy
from adaptome.continual.loop import Loop, masked
from adaptome.core.errors import RecipeError
from adaptome.data import Splits
from adaptome.recipe import Recipe
from adaptome.tasks import Prepared, Task
from adaptome.training.arguments import stream_metric
from adaptome.training.measuring import measured
from adaptome.training.predicting import predict_by
from adaptome.training.predictions import predictions_on
from adaptome.training.stream_data import chosen, only
from adaptome.training.trainers import trainer_of


class Scorer:
    """Scores the tasks of a stream on one split.

    Args:
        splits: as they were read, for tasks that judge readable predictions.
        split: the one to score on.
    """

    def __init__(
        self, recipe: Recipe, task: Task, processor: Any, splits: Splits, data: Prepared, split: str, loop: Loop, strategy: Strategy
    ):  # fmt: skip
        self.task, self.data, self.split, self.loop, self.strategy = task, data, split, loop, strategy
        self.processor, self.splits = processor, splits
        self.metric, _ = stream_metric(recipe, task)
        every = only(data, split, range(len(data[split])))
        self.trainer: Any = trainer_of(recipe, task, processor, every, loop.model, [], None, only=split)
        if loop.stream.kind == "class":
            self.trainer.preprocess_logits_for_metrics = self.trainer.compute_metrics = None

    def row(self) -> dict[str, Any]:
        """`rows`: scenario -> the score on every task, None for those to come; `whole`: over all seen rows together, no task told."""
        loop, parts = self.loop, self.loop.stream.parts
        seen = {n for r in loop.rounds[: loop.at + 1] for n in r}
        rows: dict[str, list[float | None]] = {}
        pooled: list[EvalPrediction] = []
        now = loop.values()
        for number in sorted(seen):
            self.strategy.place(loop, number)
            for scenario, metrics in self._scores(number, pooled).items():
                if self.metric not in metrics:
                    raise RecipeError(f"training.metric={self.metric}: the task has {', '.join(metrics)}.")
                rows.setdefault(scenario, [None] * len(parts))[number] = float(metrics[self.metric])
        loop.put(now)
        whole = None
        if pooled:
            logits, labels = (np.concatenate([getattr(p, k) for p in pooled]) for k in ("predictions", "label_ids"))  # fmt: skip
            whole = float(self.task.metrics(EvalPrediction(logits, labels))[self.metric])
        return {"rows": rows, "whole": whole}

    def _scores(self, number: int, pooled: list[EvalPrediction]) -> dict[str, dict[str, float]]:
        """Metrics on a task, by scenario; what no task was told for goes to `pooled` too."""
        strategy, part = self.strategy, self.loop.stream.parts[number]
        if self.loop.stream.kind == "domain":
            rows = chosen(self.data, self.split, part.test)
            found = measured(self.trainer, self.task, rows, self.split)
            if self.metric not in found and self.task.judges:
                found |= self._judged(part.test)
            return {"domain": found}
        metrics = {}
        untold = None if strategy.task_known else self._predicted(part.test, None)
        if untold is not None:
            metrics["class"] = self.task.metrics(untold)
            pooled.append(untold)
        told = self._predicted(part.test, number) if untold is None or strategy.routed else untold
        metrics["task"] = self._among(told, part.classes)
        return metrics

    def _judged(self, rows: Sequence[int]) -> dict[str, float]:
        """What the task says of readable predictions on these rows."""
        split, size = self.splits[self.split].select(list(rows)), self.trainer.args.per_device_eval_batch_size
        told = predictions_on(self.task, self.loop.model, self.processor, split, None, size)
        return self.task.judge(split, told)

    def _predicted(self, rows: Sequence[int], part: int | None) -> EvalPrediction:
        handle = predict_by(self.loop, self.strategy, part)
        try:
            made = self.trainer.predict(chosen(self.data, self.split, rows))
        finally:
            handle.remove()
        return EvalPrediction(made.predictions, made.label_ids)

    def _among(self, made: EvalPrediction, classes: Sequence[int]) -> dict[str, float]:
        near = masked(torch.as_tensor(made.predictions), classes).numpy()
        return self.task.metrics(EvalPrediction(near, made.label_ids))
