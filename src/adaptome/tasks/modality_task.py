"""The base of tasks whose inputs come in several modalities: see `modality_sets`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from adaptome.core.errors import DataError, RecipeError
from adaptome.data.splits import Split
from adaptome.models import load_composite
from adaptome.tasks.base import ModelSpec, Prepared, Task
from adaptome.tasks.modality_sets import AVAILABLE, SetOptions, SetRows, facts_of, given_by_name
from adaptome.tasks.showing import Given


class ModalityTask(Task):
    """A subclass says how rows are read and collated, scored and predicted."""

    options: SetOptions

    @abstractmethod
    def collator(self, processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Rows with the sets that they are seen with -> a batch, with `available` [batch, modalities]."""

    def facts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return facts_of(batch[AVAILABLE], self.options.modalities)

    def given(self, words: Sequence[str]) -> list[Given]:
        return given_by_name(words, self.options)

    def head_patterns(self, model: nn.Module) -> list[str]:
        """None: the head is the whole model's, and stays with it while a method adapts; `train` of the method names it where it is to train."""
        return []

    def with_sets(
        self,
        splits: Mapping[str, Split],
        processor: Any,
        read: Callable[[str, Split], Callable[..., dict[str, Any]]],
    ) -> Prepared:
        """The splits with sets, ready for the Trainer.

        Args:
            read: a split's name and the split -> what gives its rows by number.

        Raises:
            DataError: a modality has no column, or a row lacks what is required.
        """
        made, notes = dict[str, Any](), list[str]()
        for name, split in splits.items():
            require_columns(split, name, self.options.modalities)
            made[name] = SetRows(split, self.options, read(name, split), name == "train")
            notes += made[name].notes(name)
        return Prepared(
            made, self.collator(processor), self.labels, remove_unused_columns=False, notes=notes,
            aside=(AVAILABLE,), label_names=("labels", AVAILABLE),
        )  # fmt: skip

    def matching(self, model: ModelSpec, kind: str, setting: str, labels: int) -> nn.Module:
        """The composite model of this kind, whose modalities must be the task's.

        Raises:
            RecipeError: they are not; `setting` of the model says which they are.
        """
        made: Any = load_composite(model, kind, labels=labels)
        if made.modalities != self.options.modalities:
            raise RecipeError(
                f"task.modalities is {self.options.modalities}, and model.{setting} are of {made.modalities}, in this order. Make them the same."
            )
        found: nn.Module = made
        return found


def require_columns(split: Split, name: str, columns: Sequence[str]) -> None:
    """Every modality is a column, though a row may lack it.

    Raises:
        DataError: there is no such column.
    """
    for column in columns:
        if column not in split.rows.column_names:
            raise DataError(
                f"{split.source}: the {name} split has no column {column!r}. Columns there: {', '.join(split.rows.column_names)}.\n"
                "  Name those that there are: task.modalities; or say which one it is: data.columns."
            )
