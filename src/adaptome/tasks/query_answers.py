"""Answers to queries in words, with the edges that speak for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from adaptome.graphs.graph import Vocabulary
from adaptome.graphs.query import Query, template
from adaptome.graphs.text import quoted, write_atom
from adaptome.models.query_answering import QueryAnswerer, Step
from adaptome.tasks.inference import evaluating


def explained(
    answerer: QueryAnswerer, names: Vocabulary, queries: Sequence[Query], top: int
) -> list[list[dict[str, Any]]]:
    """The `top` answers to each query, the truest first.

    Returns lists of {"entity", "truth", "because": [{"edge", "truth"}]}.
    """
    made = []
    with evaluating(answerer) as device:
        for query in queries:
            form, *numbers = template(query)
            anchors, relations = (torch.tensor([n], device=device) for n in numbers)
            best = answerer.answer(form, anchors, relations)[0].topk(min(top, len(names.entities)))
            answers = []
            for value, entity in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                steps = answerer.explain(form, anchors, relations, entity)
                because = [{"edge": _edge(step, names), "truth": round(step.truth, 6)} for step in steps]
                answers.append(
                    {"entity": names.entities[entity], "truth": round(value, 6), "because": because}
                )
            made.append(answers)
    return made


def asked(triples: Any) -> list[str]:
    """The query for the tail of each triple of a split: `? : relation(head, ?)`."""
    return [
        f"? : {quoted(relation)}({quoted(head)}, ?)"
        for head, relation in zip(triples["head"], triples["relation"], strict=True)
    ]


def _edge(step: Step, names: Vocabulary) -> str:
    head, tail = (quoted(names.entities[entity]) for entity in (step.before, step.after))
    return ("not " if step.negated else "") + write_atom(names, step.relation, head, tail)
