"""Logical queries over a knowledge graph: which entities satisfy several conditions at once, with edges that are missing."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import datasets
import numpy as np
import torch
from pydantic import Field, field_validator
from torch import nn

from adaptome.core.errors import DataError, did_you_mean
from adaptome.data.splits import Split, Splits
from adaptome.graphs.graph import Graph, Vocabulary
from adaptome.graphs.query import (
    NEGATIVE,
    POSITIVE,
    STRUCTURES,
    TRAINED,
    Query,
    filled,
    from_nested,
    normal,
    structure_of,
    template,
    to_nested,
)
from adaptome.graphs.sampling import Answered, sample
from adaptome.graphs.text import parse, write
from adaptome.models.query_answering import PLACES, QueryAnswerer
from adaptome.tasks.base import ModelSpec, Prepared, register_task
from adaptome.tasks.knowledge_graph import GraphOptions, GraphTask, graphs_of, is_triples
from adaptome.tasks.query_answers import asked, explained
from adaptome.tasks.ranking import MEASURES, collate, known

KINDS = list(STRUCTURES)
ALL = (*POSITIVE, *NEGATIVE)


class KgQueriesOptions(GraphOptions):
    normalization: Literal["sigmoid", "min-max", "softmax"] = Field(
        default="sigmoid", description="how scores become truth values between 0 and 1"
    )
    t_norm: Literal["product", "min"] = Field(
        default="product", description="what `and` is; `or` is its dual"
    )
    beam: int = Field(
        default=5, ge=1, description="entities tried for every variable in between, in training"
    )
    eval_beam: int | None = Field(default=None, ge=1, description="the same in evaluation; default: beam")
    negation: Literal["atom", "set"] = Field(
        default="atom",
        description="what the negation of two steps in nested lists (pni) negates: the second step, as the authors' code, or the set of both",
    )
    log_scores: bool = Field(
        default=True, description="the loss is a softmax over logarithms of truth values, else over these"
    )
    mask_known: bool = Field(
        default=False,
        description="in the loss, leave a query's other answers out; else they count as wrong, as in the paper",
    )
    structures: list[str] = Field(default=list(TRAINED), description="of the queries that are trained on")
    eval_structures: list[str] = Field(default=list(ALL), description="of the queries that are scored")
    share: float = Field(default=1.0, gt=0, le=1, description="share of the training queries that is used")
    answers_per_query: int | None = Field(
        default=None, ge=1, description="train on at most so many answers of a query"
    )
    queries: int = Field(
        default=1000, ge=1, description="data of triples: queries drawn of each structure, for train"
    )
    eval_queries: int = Field(default=200, ge=1, description="the same for validation and test")
    max_answers: int = Field(
        default=100, ge=1, description="data of triples: queries with more are not drawn"
    )
    query_seed: int = Field(default=0, description="data of triples: changes which queries are drawn")
    top: int = Field(default=5, ge=1, description="answers that `predict` gives and explains")

    @field_validator("structures", "eval_structures")
    @classmethod
    def _there(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in ALL:
                raise ValueError(
                    f"no structure is called {name!r}.{did_you_mean(name, ALL)} There are {', '.join(ALL)}"
                )
        return names


@register_task("kg-queries")
class KgQueries(GraphTask):
    """Columns: query (a line or nested lists as JSON), easy and hard (answers, by name or number); or head, relation, tail, from which
    queries are drawn. Of validation and test, hard answers are ranked; of train, all are learned."""

    Options = KgQueriesOptions
    shows_prepared = True  # the data may be triples, of which the queries were drawn

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        names = self.name_all(splits, processor)
        drawn = all(is_triples(split) for split in splits.values())
        if not drawn:
            splits.require("query", "hard")
        found = self._drawn(splits, names) if drawn else {k: self._read(s, names) for k, s in splits.items()}
        made = {name: self._rows(queries, name == "train") for name, queries in found.items()}
        notes = (
            []
            if not drawn
            else [f"{len(q)} {name} queries were drawn from the triples." for name, q in found.items()]
        )
        return Prepared(made, collate, self.labels, remove_unused_columns=False, notes=notes)

    def _drawn(self, splits: Splits, names: Vocabulary) -> dict[str, list[Answered]]:
        """Train's answers follow from train; a hard answer of validation needs an edge of validation, one of test an edge of test."""
        options, graphs, found = self.options, graphs_of(splits, names), {}
        seen: Graph | None = None
        for name, graph in graphs.items():
            whole = graph if seen is None else seen + graph
            wanted = options.structures if name == "train" else options.eval_structures
            count = options.queries if name == "train" else options.eval_queries
            how = {"seed": f"{options.query_seed}:{name}", "most": options.max_answers}
            drawn = [
                q
                for s in wanted
                for q in sample(s, count, seen or whole, None if seen is None else whole, **how)
            ]
            # answers are of the set of pni's two steps, as in the data sets; what is run is what the option says
            found[name] = [replace(q, query=self._as_run(q.query)) for q in drawn]
            seen = whole
        return found

    def _as_run(self, query: Query) -> Query:
        return normal(from_nested(to_nested(query), self.options.negation))

    def _read(self, split: Split, names: Vocabulary) -> list[Answered]:
        easy = split.rows["easy"] if "easy" in split.rows.column_names else [[]] * len(split)
        made = []
        for i, (query, old, new) in enumerate(
            zip(split.rows["query"], easy, split.rows["hard"], strict=True)
        ):
            try:
                read = self.query(query, names)
                if structure_of(read) is None:
                    raise DataError(f"{query!r} has none of the structures {', '.join(ALL)}.")
                numbers = [tuple(names.entity(e) for e in several or ()) for several in (old, new)]
            except DataError as error:
                raise DataError(f"{split.where(i)}: {error}") from error
            made.append(Answered(read, *numbers))
        return made

    def query(self, text: str, names: Vocabulary) -> Query:
        """The query that a line, or nested lists as JSON, stand for."""
        if not text.lstrip().startswith("["):
            return parse(text, names)
        try:
            return normal(from_nested(json.loads(text), self.options.negation))
        except json.JSONDecodeError as error:
            raise DataError(f"{text!r} is neither a query nor a nested list: {error}.") from error

    def _rows(self, queries: Iterable[Answered], train: bool) -> datasets.Dataset:
        """structures, anchors, relations and labels: of train one row for each answer, else one for each query."""
        options = self.options
        wanted = set(options.structures if train else options.eval_structures)
        kinds = [(str(structure_of(one.query)), one) for one in queries]
        chosen = [(kind, one) for kind, one in kinds if kind.removesuffix("-set") in wanted]
        if not chosen:
            raise DataError(
                f"no query of the structures {', '.join(sorted(wanted))} is in the {'train' if train else 'evaluation'} data."
            )
        if train and options.share < 1:
            count = max(1, round(options.share * len(chosen)))
            chosen = random.Random(options.query_seed).sample(chosen, count)
        columns: dict[str, list[Any]] = {
            name: [] for name in ("structures", "anchors", "relations", "labels")
        }
        for kind, one in chosen:
            _, anchors, relations = template(one.query)
            for label in self._labels(one, train):
                row = (KINDS.index(kind), _filled(anchors), _filled(relations), label)
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
        return datasets.Dataset.from_dict(columns)

    def _labels(self, one: Answered, train: bool) -> list[list[int]]:
        """The labels of each row that a query makes."""
        if not train:
            return [[*one.hard, *map(known, one.easy)]]
        answers = [*one.hard, *one.easy]
        return [
            [answer, *(known(e) for e in answers if self.options.mask_known and e != answer)]
            for answer in answers[: self.options.answers_per_query]
        ]

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        o = self.options
        return QueryAnswerer(
            self.load_predictor(model), normalization=o.normalization, t_norm=o.t_norm, beam=o.beam, eval_beam=o.eval_beam,
            log_scores=o.log_scores,
        )  # fmt: skip

    # -- measures ----------------------------------------------------------------------------------------------------

    def reduce(self, logits: Any, labels: torch.Tensor) -> torch.Tensor:
        """Each query's structure and its measures [B, 5]."""
        scores, structures = logits
        return torch.cat([structures[:, None].to(scores), super().reduce(scores, labels)], -1)

    def metrics(self, result: Any) -> dict[str, float]:
        """Means over a structure's queries, and over structures: all, those without and those with negation."""
        table = np.asarray(result.predictions)
        each = {
            KINDS[int(kind)].removesuffix("-set"): table[table[:, 0] == kind, 1:].mean(0)
            for kind in np.unique(table[:, 0])
        }
        made = dict(zip(MEASURES, map(float, np.mean(list(each.values()), axis=0)), strict=True))
        for group, members in (("positive", POSITIVE), ("negative", NEGATIVE)):
            there = [each[name][0] for name in members if name in each]
            made |= {f"mrr_{group}": float(np.mean(there))} if there else {}
        return made | {f"mrr_{name}": float(values[0]) for name, values in each.items()}

    # -- prediction --------------------------------------------------------------------------------------------------

    def inputs(self, rows: Any) -> list[Any] | None:
        if "query" in rows.column_names:
            return list(rows["query"])
        if "structures" not in rows.column_names:
            return asked(rows)
        each = zip(rows["structures"], rows["anchors"], rows["relations"], strict=True)
        return [write(filled(STRUCTURES[KINDS[k]], entities, relations), self.vocabulary) for k, entities, relations in each]  # fmt: skip

    def truths(self, rows: Any) -> list[Any] | None:
        if "labels" not in rows.column_names:
            return list(rows["hard"]) if "hard" in rows.column_names else None
        names = self.vocabulary.entities
        return [[names[number] for number in labels if number >= 0] for labels in rows["labels"]]

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """The answers to each query, the truest first, and the edges that speak for each.

        Returns a list of {"query", "answers": [{"entity", "truth", "because": [{"edge", "truth"}]}]}.
        """
        names, answerer = self.vocabulary, model
        assert isinstance(answerer, QueryAnswerer)
        queries = [self.query(str(text), names) for text in inputs]
        found = explained(answerer, names, queries, self.options.top)
        return [{"query": str(text), "answers": answers} for text, answers in zip(inputs, found, strict=True)]


def _filled(numbers: Sequence[int]) -> list[int]:
    return [*numbers, *[0] * (PLACES - len(numbers))]
