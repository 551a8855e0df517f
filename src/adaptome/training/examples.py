"""Some rows of a split with their predictions, and the curves of all its scores: what a run keeps for its report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from adaptome.core.errors import RecipeError
from adaptome.core.files import atomic_folder, remove_folder, write_atomic
from adaptome.data.splits import Split
from adaptome.report import Ranked, Shown, Span
from adaptome.tasks import Task
from adaptome.tasks.scores import Scores
from adaptome.training.folder import EXAMPLES, PICTURES, SCORES
from adaptome.training.predictions import inputs_for, truths_of

#: pixels of the longer side of a picture that is kept
SIDE = 512
#: of several right answers, so many are named
NAMED = 20


class Scored:
    """`compute_metrics` of a Trainer, which keeps the task's scores beside its metrics."""

    def __init__(self, task: Task):
        self.task = task
        self.scores: Scores | None = None

    def __call__(self, result: Any) -> dict[str, float]:
        self.scores = self.task.scores(result)
        return self.task.metrics(result)


@dataclass(frozen=True)
class Example:
    """A row with its prediction, the truth in words where there is one, and whether they agree where that can be told."""

    shown: Shown
    truth: str | None = None
    right: bool | None = None


def examples_of(
    count: int,
    task: Task,
    model: nn.Module,
    processor: Any,
    split: Split,
    prepared: Any,
    found: Sequence[Any] | None = None,
) -> list[Example]:
    """At most `count` rows, spread evenly over the split; none where the rows hold nothing that the task predicts from.

    Args:
        found: the predictions for all rows, where they were made already.
    """
    size = len(prepared) if task.shows_prepared else len(split)
    places = np.unique(np.linspace(0, size - 1, min(count, size)).round().astype(int)).tolist()
    if task.shows_prepared:
        rows = prepared.select(places)
        inputs = inputs_for(task, rows)
        shown = zip(inputs, task.predict(model, processor, inputs), task.truths(rows) or [None] * len(rows), strict=True)  # fmt: skip
        return [_example(task, *each) for each in shown]
    chosen = split.select(places)
    rows = prepared.select(places) if task.trainer == "sft" else chosen.rows
    try:
        inputs = inputs_for(task, rows)
    except RecipeError:
        return []
    made = task.predict(model, processor, inputs) if found is None else [found[place] for place in places]
    truths = truths_of(task, chosen, rows)
    return [_example(task, *each) for each in zip(inputs, made, truths, strict=True)]


def _example(task: Task, one: Any, prediction: Any, truth: Any) -> Example:
    return Example(task.shown(one, prediction), _told(truth, prediction), _agrees(truth, prediction))


def _told(truth: Any, prediction: Any) -> str | None:
    """The truth in words: of tags those that are not O, each behind its word."""
    if isinstance(truth, list) and isinstance(prediction, Mapping) and "tokens" in prediction:
        tagged = zip(prediction["tokens"], truth, strict=False)
        return ", ".join(f"{word} {tag}" for word, tag in tagged if tag != "O") or "-"
    if isinstance(truth, list):
        named = [_told(part, None) or "" for part in truth]
        more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
        return ", ".join(named[:NAMED]) + more or "-"
    if isinstance(truth, Mapping):
        return str(truth.get("content", dict(truth)))
    return None if truth is None else str(truth)


def _agrees(truth: Any, prediction: Any) -> bool | None:
    """Whether a prediction is right: as the task judged it, or by its label, labels or tags; None where neither tells."""
    if not isinstance(prediction, Mapping) or truth is None:
        return None
    if "right" in prediction:
        return bool(prediction["right"])
    if "label" in prediction:
        return str(prediction["label"]) == str(truth)
    if "labels" in prediction:
        return sorted(map(str, truth)) == sorted(prediction["labels"])
    return list(truth) == prediction["tags"] if "tags" in prediction else None


# -- files ---------------------------------------------------------------------------------------------------------------


def write_scores(folder: Path, scores: Scores | None) -> None:
    """Write scores.json, or remove one that an earlier run left."""
    if scores is None:
        (folder / SCORES).unlink(missing_ok=True)
    else:
        write_atomic(folder / SCORES, json.dumps(scores.to_dict()))


def write_examples(folder: Path, examples: Sequence[Example]) -> None:
    """Write examples.json with the pictures beside it, or remove those that an earlier run left."""
    if (folder / PICTURES).is_dir():
        remove_folder(folder / PICTURES)
    (folder / EXAMPLES).unlink(missing_ok=True)
    if not examples:
        return
    pictures: dict[str, Any] = {}
    told = [_to_dict(example, number, pictures) for number, example in enumerate(examples, 1)]
    if pictures:
        with atomic_folder(folder / PICTURES) as staging:
            for name, image in pictures.items():
                image.save(staging / name)
    write_atomic(folder / EXAMPLES, json.dumps(told, ensure_ascii=False))


def _to_dict(example: Example, number: int, pictures: dict[str, Any]) -> dict[str, Any]:
    """As JSON values; its pictures are put into `pictures` by their file names."""
    shown, names = example.shown, {}
    given = {} if shown.picture is None else {"": shown.picture}
    for kind, image in {**given, **shown.made}.items():
        names[kind] = f"{number}{'-' * bool(kind)}{kind}.png"
        small = image.convert("RGB")
        small.thumbnail((SIDE, SIDE))
        pictures[names[kind]] = small
    told = {key: getattr(shown, key) for key in ("answer", "text", "spans", "ranked", "bounded")}
    return {**told, "pictures": names, "truth": example.truth, "right": example.right}


def read_examples(folder: Path) -> list[Example]:
    """What `write_examples` wrote; none where it wrote nothing."""
    if not (folder / EXAMPLES).is_file():
        return []
    return [_from_dict(folder, told) for told in json.loads((folder / EXAMPLES).read_text(encoding="utf-8"))]


def _from_dict(folder: Path, told: Mapping[str, Any]) -> Example:
    pictures = {}
    for kind, name in told["pictures"].items():
        from PIL import Image

        with Image.open(folder / PICTURES / Path(name).name) as opened:
            pictures[kind] = opened.convert("RGB")
    shown = Shown(
        told["answer"],
        told["text"],
        tuple(Span(*span) for span in told["spans"]),
        pictures.pop("", None),
        pictures,
        tuple(Ranked(*item) for item in told["ranked"]),
        told["bounded"],
    )
    return Example(shown, told["truth"], told["right"])
