"""What the tasks on knowledge graphs share: the names, the predictor, and filtered ranks as their measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import DataError, RecipeError
from adaptome.data.splits import Split, Splits
from adaptome.graphs.graph import Graph, Vocabulary
from adaptome.models.base import is_composite, load_composite, read_configuration
from adaptome.models.link_prediction import ComplEx
from adaptome.report.shown import Ranked, Shown
from adaptome.tasks.base import Task, TaskOptions
from adaptome.tasks.ranking import filtered_ranks, measured

TRIPLE = ("head", "relation", "tail")


class GraphOptions(TaskOptions):
    vocabulary: str | None = Field(
        default=None,
        description="JSON file of all entities and relations, in the order of the data's numbers; default: the names in train's triples",
    )
    relations: list[str] | None = Field(
        default=None, description="the relations and their order, inverse ones too; default: from the above"
    )


class GraphTask(Task):
    """A task whose model scores all entities of a graph; its labels are their names."""

    Options = GraphOptions
    options: Any
    prefer: ClassVar[dict[str, str]] = {"tsv": "triples", "text": "triples"}

    @property
    def primary_metric(self) -> str:
        return "mrr"

    # -- names -------------------------------------------------------------------------------------------------------

    @property
    def vocabulary(self) -> Vocabulary:
        """The names of entities and relations.

        Raises:
            RecipeError: neither model nor data told them yet.
        """
        if self.labels is None or self.options.relations is None:
            raise RecipeError("the graph's names are not known yet; prepare the data first.")
        return Vocabulary(tuple(self.labels), tuple(self.options.relations))

    def load_processor(self, model: Any) -> Vocabulary | None:
        """The names that a saved predictor knows; None for one that is made anew."""
        if model.composite is not None:
            return None
        if model.name is None or not is_composite(model.name):
            raise RecipeError(
                f"model.name={model.name!r} is no folder of a link predictor. Train one first (task: link-prediction), or make it anew: "
                "model: {composite: complex, rank: 100}."
            )
        _, settings = read_configuration(Path(model.name))
        return Vocabulary(tuple(settings["entities"]), tuple(settings["relations"]))

    def name_all(self, splits: Splits, processor: Vocabulary | None) -> Vocabulary:
        """The names, of the model, the task's file, or train's triples; kept as the task's labels and relations."""
        if processor is None and self.labels is not None and self.options.relations is not None:
            return self.vocabulary
        found = processor
        if found is None and self.options.vocabulary is not None:
            found = Vocabulary.read(Path(self.options.vocabulary).expanduser())
        if found is None:
            if "train" not in splits or not is_triples(splits["train"]):
                raise RecipeError(
                    "the graph's names are not known: start from a trained predictor, or give task.vocabulary."
                )
            found = Vocabulary.of(zip(*(splits["train"].rows[c] for c in TRIPLE), strict=True))
        self.labels, self.options.relations = list(found.entities), list(found.relations)
        return found

    # -- the model ---------------------------------------------------------------------------------------------------

    def load_predictor(self, model: Any) -> ComplEx:
        """The predictor of a folder, or a new one of the size that the names ask for.

        Raises:
            RecipeError: a setting that it does not have. ModelError: it cannot be had, or is of another kind.
        """
        new = model.composite is not None
        self.new_modules = ["predictor.entities", "predictor.relations"] if new else []
        names = self.vocabulary
        told = {"entities": list(names.entities), "relations": list(names.relations)} if new else {}
        found = load_composite(model, "complex", **told)
        assert isinstance(found, ComplEx)
        return found

    def shown(self, one: Any, prediction: Any) -> Shown:
        """The answers with their truths, and the edges that speak for each."""
        ranked = []
        for found in prediction["answers"]:
            edges = ", ".join(f"{step['edge']} {step['truth']:.2f}" for step in found["because"])
            ranked.append(Ranked(found["entity"], found["truth"], f"because {edges}"))
        return Shown("", str(one), ranked=tuple(ranked))

    def head_patterns(self, model: nn.Module) -> list[str]:
        return list(self.new_modules)

    def save_base(self, model: nn.Module, processor: Any, folder: Path) -> None:
        """Write the predictor and its names."""
        predictor: Any = model.predictor
        predictor.save_pretrained(folder)

    # -- measures ----------------------------------------------------------------------------------------------------

    def reduce(self, logits: Any, labels: Tensor) -> Tensor:
        """The measures of each row [B, 4], so that no scores of all entities are kept."""
        scores = logits[0] if isinstance(logits, tuple) else logits
        return measured(filtered_ranks(scores, labels))


def is_triples(split: Split) -> bool:
    """Whether the rows are triples."""
    return set(TRIPLE) <= set(split.rows.column_names)


def graphs_of(splits: Splits, names: Vocabulary) -> dict[str, Graph]:
    """The graph of each split alone.

    Raises:
        DataError: a name that the vocabulary does not have; tells its file and line.
    """
    made = {}
    for name, split in splits.items():
        columns = [split.rows[column] for column in TRIPLE]
        rows = []
        for i, (head, relation, tail) in enumerate(zip(*columns, strict=True)):
            try:
                rows.append((names.entity(head), names.relation(relation), names.entity(tail)))
            except DataError as error:
                raise DataError(f"{split.where(i)}: {error}") from error
        made[name] = Graph(names, np.array(rows, dtype=np.int64).reshape(-1, 3))
    return made
