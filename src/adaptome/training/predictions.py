"""Every prediction on a split, with its truth and its place in the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from adaptome.core.errors import RecipeError
from adaptome.core.files import write_atomic
from adaptome.data import Split
from adaptome.data.sound import Sounds
from adaptome.tasks import Task
from adaptome.tasks.showing import plain

_TRUTHS = ("label", "tags", "completion", "answer", "output")


def predictions_on(
    task: Task, model: nn.Module, processor: Any, split: Split, prepared: Any, batch_size: int
) -> list[Any]:
    """The task's prediction for each row of a split.

    Raises:
        RecipeError: the rows hold nothing that the task predicts from.
    """
    rows = prepared if task.trainer == "sft" else split.rows
    return task.predict(model, processor, inputs_for(task, rows), batch_size)


def inputs_for(task: Task, rows: Any) -> list[Any]:
    """What `Task.predict` takes of these rows.

    Raises:
        RecipeError: they hold nothing that the task predicts from.
    """
    inputs = task.inputs(rows)
    return inputs_of(rows) if inputs is None else inputs


def write_predictions(path: Path, task: Task, split: Split, prepared: Any, found: list[Any]) -> Path:
    """Write one JSON line for each row: where it stands, its truth where it has one, and the prediction."""
    truths = truths_of(task, split, prepared)
    lines = [
        json.dumps({"where": split.where(row), "truth": truth, "prediction": plain(made)}, ensure_ascii=False)
        for row, (truth, made) in enumerate(zip(truths, found, strict=True))
    ]
    return write_atomic(path, "".join(f"{line}\n" for line in lines))


def truths_of(task: Task, split: Split, prepared: Any) -> list[Any]:
    """What would have been right for each row; None where the rows do not say."""
    rows = prepared if task.trainer == "sft" else split.rows
    told = task.truths(rows)
    if told is not None:
        return told
    for column in _TRUTHS:
        if column in rows.column_names:
            return _named(list(rows[column]), rows.features[column])
    return [None] * len(rows)


def _named(values: list[Any], feature: Any) -> list[Any]:
    """Numbers of a data set's own label names as these names."""
    names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    if names is None:
        return values
    return [names[v] if isinstance(v, int) else [names[n] for n in v] for v in values]


def inputs_of(rows: Any) -> list[Any]:
    """What `Task.predict` takes, from rows with a task's columns."""
    there = rows.column_names
    if "text_pair" in there:
        return list(zip(rows["text"], rows["text_pair"], strict=True))
    if "audio" in there:
        return list(Sounds(rows))
    for column in ("tokens", "image", "prompt", "text"):
        if column in there:
            return list(rows[column])
    if "messages" in there:
        return [_unanswered(messages) for messages in rows["messages"]]
    raise RecipeError(
        f"evaluation.predictions: nothing to predict from among the columns {', '.join(there)}."
    )


def _unanswered(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A chat up to the assistant's last answer."""
    last = max(
        (i for i, message in enumerate(messages) if message["role"] == "assistant"), default=len(messages)
    )
    return messages[:last]
