"""Link prediction: which entity a relation leads to, learned from the triples of a knowledge graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import datasets
import numpy as np
from pydantic import Field
from torch import nn

from adaptome.data.splits import Splits
from adaptome.graphs.graph import Graph
from adaptome.graphs.text import parse
from adaptome.models.link_prediction import LinkPrediction as Model
from adaptome.models.query_answering import QueryAnswerer
from adaptome.tasks.base import ModelSpec, Prepared, register_task
from adaptome.tasks.knowledge_graph import TRIPLE, GraphOptions, GraphTask, graphs_of
from adaptome.tasks.query_answers import asked, explained
from adaptome.tasks.ranking import MEASURES, collate, known


class LinkPredictionOptions(GraphOptions):
    sides: Literal["both", "objects"] = Field(
        default="both",
        description="predict subjects too, or objects alone (inverse triples ask for subjects already)",
    )
    top: int = Field(default=5, ge=1, description="answers to each question of `predict`")


@register_task("link-prediction")
class LinkPrediction(GraphTask):
    """Columns: head, relation, tail. Every triple is learned with its inverse, where its relation has one."""

    Options = LinkPredictionOptions

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        splits.require(*TRIPLE)
        names = self.name_all(splits, processor)
        graphs = graphs_of(splits, names)
        whole = Graph(names, np.concatenate([graph.triples for graph in graphs.values()]))
        made = {name: _rows(graph, None if name == "train" else whole) for name, graph in graphs.items()}
        return Prepared(made, collate, self.labels, remove_unused_columns=False)

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        return Model(self.load_predictor(model), self.options.sides)

    def metrics(self, result: Any) -> dict[str, float]:
        return dict(zip(MEASURES, map(float, np.mean(result.predictions, axis=0)), strict=True))

    def inputs(self, rows: Any) -> list[Any] | None:
        return asked(rows)

    def truths(self, rows: Any) -> list[Any] | None:
        return list(rows["tail"])

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """Answers to questions as `? : lives_in(?, york)`, or of several edges, the truest first: their scores' sigmoids."""
        predictor: Any = model
        answerer = QueryAnswerer(predictor.predictor, normalization="sigmoid")
        queries = [parse(str(text), self.vocabulary) for text in inputs]
        found = explained(answerer, self.vocabulary, queries, self.options.top)
        return [{"query": str(text), "answers": answers} for text, answers in zip(inputs, found, strict=True)]


def _rows(graph: Graph, whole: Graph | None) -> datasets.Dataset:
    """heads, relations and labels: the tail and, with `whole`, all other answers there are."""
    columns = graph.both_ways
    labels = [[tail] for tail in columns[:, 2].tolist()]
    if whole is not None:
        for (head, relation, tail), label in zip(columns.tolist(), labels, strict=True):
            label += [known(e) for e in sorted(whole.after(head, relation) - {tail})]
    return datasets.Dataset.from_dict({"heads": columns[:, 0], "relations": columns[:, 1], "labels": labels})
