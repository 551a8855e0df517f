"""The task's contract and its registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from adaptome.core.errors import DataError, MergeError
from adaptome.core.parts import Parts, checked
from adaptome.report.shown import Shown
from adaptome.tasks.scores import Scores
from adaptome.tasks.showing import Given, gathered, shown


class ModelSpec(Protocol):
    """What a task reads of a recipe's `model` section."""

    @property
    def name(self) -> str | None: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def from_config(self) -> dict[str, Any] | None: ...
    @property
    def tokenizer(self) -> str | None: ...
    @property
    def dtype(self) -> str: ...
    @property
    def attention(self) -> str | None: ...
    @property
    def quantization(self) -> Any: ...


class TaskOptions(BaseModel):
    """A task's options in a recipe; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Gallery:
    """What inputs are ranked against.

    folder: its files. kept: where what the model made of them is kept between calls. stamp: says which model made it. top: items told of each.
    """

    folder: Path
    kept: Path
    stamp: str
    top: int = 5


@dataclass
class Prepared:
    """A task's data, ready for the Trainer.

    splits: tokenised data sets by name. collator: rows -> padded batch; None leaves it to the trainer.
    length_column: rows' lengths, for length-grouped batches. remove_unused_columns: as in TrainingArguments.
    notes: what preparing changed, for the user to read.
    aside: the batch's columns that objectives and `Task.facts` read, and the model does not take.
    label_names: the batch's columns that `Task.metrics` gets as label_ids; None for what the model calls labels.
    in_order: train on the rows as they stand, without shuffling them.
    only_asked: splits that have no loss: what `predict` gives for their rows is judged, and nothing else.
    lossless: splits that the model runs on and that have no loss: their labels are not those of train.
    """

    splits: dict[str, Any]
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]] | None
    labels: list[str] | None = None
    length_column: str | None = None
    remove_unused_columns: bool = True
    notes: list[str] = field(default_factory=list)
    aside: tuple[str, ...] = ()
    label_names: tuple[str, ...] | None = None
    in_order: bool = False
    only_asked: frozenset[str] = frozenset()
    lossless: frozenset[str] = frozenset()

    def __getitem__(self, split: str) -> Any:
        return self.splits[split]

    def get(self, split: str) -> Any | None:
        return self.splits.get(split)


class Task(ABC):
    """What to learn: how data becomes batches, which model class learns it, and how it is measured.

    A subclass sets the class variables and writes the abstract methods. Its state is its options and, once
    `prepare` has seen the data, its labels; `to_dict` and `task_from_dict` carry both to another process.
    """

    name: ClassVar[str] = ""
    Options: ClassVar[type[TaskOptions]] = TaskOptions
    trainer: ClassVar[Literal["trainer", "sft"]] = "trainer"  # transformers' Trainer or TRL's SFTTrainer
    greater_is_better: ClassVar[bool] = True
    files: ClassVar[str | None] = None  # the column of sound files that tables name, if the task reads such
    prefer: ClassVar[Mapping[str, str]] = {}  # what an ending's format means here, e.g. {"tsv": "conll"}
    texts: ClassVar[tuple[str, ...]] = ()  # columns read as text, numbers written out: see `data.load_splits`
    chats: ClassVar[tuple[str, ...]] = ()  # columns that may hold chats, whose contents are read as text
    later_options: ClassVar[tuple[str, ...]] = ()  # options that evaluation and prediction alone read
    judges: ClassVar[bool] = False  # scores need readable predictions too: see `judge`
    takes: ClassVar[frozenset[str]] = frozenset()  # endings of the files that `predict` takes; empty: texts
    ahead: ClassVar[int] = 0  # positions that a logit stands before its label: 1 in a causal language model
    measures_before: ClassVar[bool] = False  # a run measures the base too, as <metric>_before
    shows_prepared: ClassVar[bool] = (
        False  # reports show examples of the prepared rows, not of the data's own
    )

    def __init__(self, options: TaskOptions, labels: Sequence[str] | None = None):
        self.options = options
        self.labels: list[str] | None = list(labels) if labels is not None else None
        self.new_modules: list[str] = []  # modules that the checkpoint had no weights for
        self.loading_notes: list[str] = []  # what loading the model found, for the user to read

    @property
    @abstractmethod
    def primary_metric(self) -> str:
        """The metric that decides which checkpoint is best."""

    @property
    def headline(self) -> str:
        """The metric that a finished run is compared by."""
        return self.primary_metric

    @abstractmethod
    def load_processor(self, model: ModelSpec) -> Any:
        """The tokenizer or image processor that goes with the model."""

    def shaped(self, splits: Any) -> Any:
        """The splits with this task's columns where a known layout has others; as they are by default."""
        return splits

    @abstractmethod
    def prepare(self, splits: Any, processor: Any) -> Prepared:
        """Tokenise `splits` (of `adaptome.data.load_splits`). Labels come from train, unless already known.

        Raises:
            DataError: a column or label that is missing or unknown; names file and line.
        """

    @abstractmethod
    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        """The base model with a head for this task's labels."""

    @abstractmethod
    def metrics(self, result: Any) -> dict[str, float]:
        """Metrics of an EvalPrediction: `predictions` (as `reduce` left them) and `label_ids`."""

    @abstractmethod
    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """Readable predictions, one for each input."""

    def head_patterns(self, model: nn.Module) -> list[str]:
        """Modules to train in full beside the adapters: the head, and what the checkpoint had no weights for."""
        return []

    def reduce(self, logits: Any, labels: Tensor) -> Tensor:
        """Applied to each evaluation batch's logits, so that not all of them are kept in memory."""
        return logits[0] if isinstance(logits, tuple) else logits

    def counted(self, logits: Any, labels: Any) -> Tensor:
        """What `metrics` needs of each example of an evaluation batch [batch, ...], where labels are pictures, too many to keep.

        A task that writes it gets its rows as `predictions`, and no labels.
        """
        raise TypeError(f"{self.name} keeps logits and labels.")

    def from_logs(self, logs: Mapping[str, float]) -> dict[str, float]:
        """Metrics that follow from an evaluation's logs (with their `eval_` prefix)."""
        return {}

    def facts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What adapters are to know of a batch, by the names they ask for (see `ad.steer`): a task, qualities, modalities."""
        return {}

    def save_base(self, model: nn.Module, processor: Any, folder: Path) -> None:
        """Write the model, adapters merged, so that `load_model` of any task can start from the folder.

        Raises:
            MergeError: the model cannot be written.
        """
        own: Any = model if hasattr(model, "save_pretrained") else getattr(model, "encoder", None)
        if own is None:
            raise MergeError(f"{type(model).__name__} cannot be written as a base for another run.")
        own.save_pretrained(folder)
        processor.save_pretrained(folder)

    def inputs(self, rows: Any) -> list[Any] | None:
        """What `predict` takes, from the rows of a split; None leaves it to the names of the columns."""
        return None

    def truths(self, rows: Any) -> list[Any] | None:
        """What would have been right for each row of a split; None leaves it to the names of the columns."""
        return None

    def learned(self, result: Mapping[str, Any]) -> None:  # noqa: B027  # most take nothing
        """Take from a finished run's result (its metrics and history) what predictions go by, such as a threshold."""

    def ranked(
        self, model: nn.Module, processor: Any, words: Sequence[str], gallery: Gallery, batch_size: int = 32
    ) -> tuple[list[Given], list[Any]]:
        """The inputs that words name, and for each the gallery's items in the order of their likeness to it.

        Raises:
            DataError: the task ranks nothing.
        """
        raise DataError(f"a run of {self.name} ranks no gallery: leave --gallery out.")

    def given(self, words: Sequence[str]) -> list[Given]:
        """What `predict` takes, from the words of a command line: texts, files or folders of them.

        Raises:
            DataError: there is nothing that the task takes.
        """
        return gathered(words, self.takes)

    def shown(self, one: Any, prediction: Any) -> Shown:
        """An input of `predict` with its prediction, as people see it: see `showing.shown` for what goes by itself."""
        return shown(one, prediction)

    def scores(self, result: Any) -> Scores | None:
        """Probabilities and truths of an EvalPrediction, for the ROC and calibration curves; None where there are none."""
        return None

    def sketch(self, model: nn.Module, processor: Any) -> Any | None:
        """A PIL picture of what the model makes at this moment of training, for the report; None where the task has none."""
        return None

    def judge(self, split: Any, predictions: list[Any]) -> dict[str, float]:
        """Metrics of what `predict` gave for every row of a split; asked for where `judges` is set."""
        return {}

    def contrast(self, split: Any, predictions: list[Any], before: list[Any]) -> dict[str, float]:
        """Metrics of how predictions differ from those of the base alone; asked for where `judges` and `measures_before` are set."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Name, options and labels as JSON values; `task_from_dict` undoes it."""
        return {"name": self.name, "options": self.options.model_dump(mode="json"), "labels": self.labels}


TASKS: Parts[Task] = Parts("task", "adaptome.tasks")


def register_task(name: str) -> Callable[[type[Task]], type[Task]]:
    """Register a task class under `name`."""
    return TASKS.register(name)


def tasks() -> dict[str, type[Task]]:
    """All registered tasks by name: those here and those of installed packages."""
    return TASKS.all()


def get_task(name: str, labels: Sequence[str] | None = None, **options: Any) -> Task:
    """The task registered as `name`.

    Raises:
        RecipeError: no such task, or an option it does not have or admit.
    """
    task = TASKS.get(name)
    return task(checked(task.Options, options, "task", name), labels)


def task_from_dict(saved: Mapping[str, Any]) -> Task:
    """The task that `Task.to_dict` described."""
    # a task may have an option of the name `labels`; those that prepare found or took from it are in saved["labels"]
    options = {key: value for key, value in saved["options"].items() if key != "labels"}
    return get_task(saved["name"], saved["labels"], **options)


def argmax(predictions: Any) -> np.ndarray:
    """Label numbers from logits [..., labels] or, already reduced, label numbers themselves."""
    array = np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)
    return array.argmax(-1) if np.issubdtype(array.dtype, np.floating) else array
