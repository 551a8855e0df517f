"""The data of a recipe's stream: read, joined where it is of several sources, made ready, and cut into tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from adaptome.continual import Stream
from adaptome.continual.joining import joined, own_labels
from adaptome.continual.loop import ROW
from adaptome.continual.stream import by_column, by_labels, with_classes
from adaptome.core.errors import RecipeError
from adaptome.data import Splits, load_splits
from adaptome.recipe import Recipe, load_recipe
from adaptome.tasks import Prepared, Task
from adaptome.training.building import read


def stream_splits(recipe: Recipe, task: Task) -> tuple[Splits, str, Stream | None]:
    """The train split and the one to score on, that one's name, and the stream; None for one by labels, which the prepared data tells.

    Raises:
        RecipeError, DataError: the data cannot be had, or is no stream.
    """
    assert recipe.continual is not None
    section = recipe.continual.stream
    if section.by in ("data", "recipes"):
        named = _tasks(recipe, task)
        split = _scored(recipe, named[0][1]) if named else "test"
        splits, stream = joined(named, split)
    else:
        found = read(recipe, task)
        if "train" not in found:
            raise RecipeError("the data has no train split: give data.train, or a data set that has one.")
        split = _scored(recipe, found)
        splits = Splits({name: found[name] for name in ("train", split)}, found.notes)
        if section.by == "labels":
            return splits, split, None
        stream = by_column(splits["train"], splits[split], str(section.column), section.order, section.seed)
    if section.labels == "own":
        splits = own_labels(splits, stream, split)
    return splits, split, stream


def stream_of(recipe: Recipe, task: Task, splits: Splits, data: Prepared, split: str, cut: Stream | None) -> Stream:  # fmt: skip
    """The stream, once the data is prepared and its labels are numbers.

    Args:
        cut: what `stream_splits` gave.

    Raises:
        RecipeError, DataError: examples are no rows, or the rows' labels do not go with the stream.
    """
    assert recipe.continual is not None
    section = recipe.continual.stream
    for name in ("train", split):
        if len(data[name]) != len(splits[name]):
            raise RecipeError(
                f"continual: the task {task.name} makes {len(data[name])} examples of {len(splits[name])} rows of {name}, and the "
                "stream is told apart by rows.\n  Turn off what joins or leaves out rows, e.g. task.packing=false."
            )
    if cut is not None and section.labels == "shared":
        return cut
    if not task.labels or "labels" not in getattr(data["train"], "column_names", ()):
        raise RecipeError(
            f"continual.stream: tasks that bring labels need rows with a label each; those of {task.name} have none."
        )
    train, test = (data[name].with_format(None)["labels"] for name in ("train", split))
    if cut is not None:
        return with_classes(cut, train, test, task.labels)
    groups = None if section.groups is None else [[str(label) for label in group] for group in section.groups]
    order: Any = section.order
    return by_labels(train, test, task.labels, section.size, groups, order, section.seed, section.overlap)


def _tasks(recipe: Recipe, task: Task) -> list[tuple[str, Splits]]:
    assert recipe.continual is not None
    section = recipe.continual.stream
    told = [(one.name, one.data) for one in section.tasks]
    for source in section.recipes:
        one = load_recipe(source)
        if one.task.name != task.name:
            raise RecipeError(
                f"continual.stream.recipes: {source} is of the task {one.task.name}, the stream's is {task.name}."
            )
        told.append((Path(source).stem, one.data))
    named = []
    for name, data in told:
        found = load_splits(
            **data.model_dump(), prefer=task.prefer, texts=task.texts, files=task.files, chats=task.chats
        )
        named.append((name, task.shaped(found)))
    return named


def _scored(recipe: Recipe, splits: Splits) -> str:
    asked = recipe.evaluation.split
    if asked == "none":
        raise RecipeError(
            "evaluation.split=none: a stream is scored after each task. Give test or validation."
        )
    found = asked or next((name for name in ("test", "validation") if name in splits), None)
    if found is None or found not in splits:
        raise RecipeError(
            f"continual: there is no {found or 'test or validation'} split to score on. Splits: {', '.join(splits)}."
        )
    return found


# -- some of the rows --------------------------------------------------------------------------------------------------


def chosen(data: Prepared, split: str, rows: Sequence[int]) -> Any:
    """Rows of a split, in this order."""
    whole = data[split]
    if hasattr(whole, "select"):
        return whole.select(list(rows))
    return torch.utils.data.Subset(whole, list(rows))


def only(data: Prepared, split: str, rows: Sequence[int], in_order: bool = False, numbered: bool = False) -> Prepared:  # fmt: skip
    """The data with these rows of one split alone.

    Args:
        in_order: they are trained on as they stand.
        numbered: their numbers in the split stand aside in each batch, as `loop.ROW`.

    Raises:
        RecipeError: numbers are asked for, and the task leaves making batches to its trainer.
    """
    picked = chosen(data, split, rows)
    made = replace(data, splits={split: picked}, in_order=in_order)
    if not numbered:
        return made
    if data.collator is None:
        raise RecipeError("continual.strategy: it needs a task that labels rows, such as text-classification.")  # fmt: skip
    return replace(made, splits={split: Numbered(picked, rows)}, collator=_Numbers(data.collator), aside=(*data.aside, ROW))  # fmt: skip


class Numbered(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows with their numbers."""

    def __init__(self, rows: Any, numbers: Sequence[int]):
        self.rows, self.numbers = rows, list(numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, at: int) -> dict[str, Any]:
        return {**self.rows[at], ROW: self.numbers[at]}


class _Numbers:
    """A collator of rows with numbers, from one that knows nothing of them."""

    def __init__(self, collator: Any):
        self.collator = collator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        plain = [{k: v for k, v in row.items() if k != ROW} for row in rows]
        batch = dict(self.collator(plain))
        return batch | {ROW: torch.tensor([row[ROW] for row in rows])}
