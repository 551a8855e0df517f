"""Queries drawn from a graph, answered by it: what follows from the known part (easy) and what needs a missing edge (hard).

A query is grounded backwards from one of its answers, so that it has one; a negated part is grounded on another entity that the positive
parts admit, so that it excludes something (as BetaE's sampler asks, Ren and Leskovec 2020, arXiv:2010.11465, appendix).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from adaptome.core.errors import DataError
from adaptome.graphs.graph import Graph
from adaptome.graphs.query import STRUCTURES, Anchor, And, Not, Or, Project, Query


@dataclass(frozen=True)
class Answered:
    """A query with its answers: those that follow from what is known, and those that need an edge that is not."""

    query: Query
    easy: tuple[int, ...]
    hard: tuple[int, ...]


def answers(graph: Graph, query: Query) -> set[int]:
    """The entities that satisfy a query in this graph, taken to be complete."""
    if isinstance(query, Anchor):
        return {query.entity}
    if isinstance(query, Project):
        sets = [graph.after(entity, query.relation) for entity in answers(graph, query.of)]
        if query.negated:  # some entity of the set does not lead there
            everywhere = set.intersection(*sets) if sets else _all(graph)
            return _all(graph) - everywhere
        return set().union(*sets)
    if isinstance(query, Not):
        return _all(graph) - answers(graph, query.of)
    found = [answers(graph, part) for part in query.parts]
    return set.intersection(*found) if isinstance(query, And) else set.union(*found)


def _all(graph: Graph) -> set[int]:
    return set(range(len(graph.vocabulary.entities)))


def sample(
    structure: str,
    count: int,
    known: Graph,
    whole: Graph | None = None,
    *,
    seed: int | str = 0,
    most: int = 100,
    tries: int = 200,
) -> list[Answered]:
    """Different queries of one structure.

    Args:
        structure: a name among `STRUCTURES`.
        count: how many; fewer are returned when the graph does not have so many.
        known: the graph that easy answers follow from.
        whole: the graph that all answers follow from; then every query has a hard one. None: all answers of `known` are given as hard.
        seed: of the draw; with the same graph it gives the same queries.
        most: a query with more answers is not taken.
        tries: how many draws a query may take, on average, before the graph is taken to have no more.

    Raises:
        DataError: no such structure, or not a single query of it.
    """
    if structure not in STRUCTURES:
        raise DataError(f"no structure is called {structure!r}. There are: {', '.join(STRUCTURES)}.")
    # the answers of pni are those of the set form, whichever way a model runs it
    form = STRUCTURES["pni-set" if structure == "pni" else structure]
    asked = whole or known
    rng = random.Random(f"{seed}:{structure}")
    ends = sorted({int(t) for t in asked.both_ways[:, 2]})
    taken: dict[Query, Answered] = {}
    for _ in range(count * tries):
        if len(taken) == count:
            break
        query = _grounded(form, rng.choice(ends), asked, rng)
        if query is None or query in taken:
            continue
        found = answers(asked, query)
        old = answers(known, query) & found if whole is not None else set()
        if found - old and len(found) <= most:
            taken[query] = Answered(query, tuple(sorted(old)), tuple(sorted(found - old)))
    if not taken:
        raise DataError(
            f"not one query of the structure {structure} with 1 to {most} answers was found in the graph."
        )
    return list(taken.values())


def sample_all(
    counts: Mapping[str, int],
    known: Graph,
    whole: Graph | None = None,
    *,
    seed: int | str = 0,
    most: int = 100,
) -> Iterator[tuple[str, Answered]]:
    """(structure, query) of as many queries of each structure as `counts` says."""
    for structure, count in counts.items():
        for drawn in sample(structure, count, known, whole, seed=seed, most=most):
            yield structure, drawn


def _grounded(form: Query, answer: int, graph: Graph, rng: random.Random) -> Query | None:
    """A query of this form that `answer` satisfies in the graph; None when this draw found none."""
    if isinstance(form, Anchor):
        return Anchor(answer)
    if isinstance(form, Project):
        edges = graph.into(answer)
        if not edges:
            return None
        before, relation = rng.choice(edges)
        inner = _grounded(form.of, before, graph, rng)
        return None if inner is None else Project(inner, relation)
    if isinstance(form, Or):
        ends = [answer, *(rng.choice(sorted(graph._into)) for _ in form.parts[1:])]
        return _joined(Or, [_grounded(p, e, graph, rng) for p, e in zip(form.parts, ends, strict=True)])
    assert isinstance(form, And)  # a negation stands in a conjunction in all structures
    negated = [isinstance(p, Not) or (isinstance(p, Project) and p.negated) for p in form.parts]
    positive = [
        None if n else _grounded(p, answer, graph, rng) for p, n in zip(form.parts, negated, strict=True)
    ]
    if any(p is None and not n for p, n in zip(positive, negated, strict=True)):
        return None
    allowed = set.intersection(*(answers(graph, p) for p in positive if p is not None)) - {answer}
    parts: list[Query | None] = []
    for part, given, is_negated in zip(form.parts, positive, negated, strict=True):
        parts.append(_excluding(part, answer, allowed, graph, rng) if is_negated else given)
    return _joined(And, parts)


def _excluding(form: Query, answer: int, allowed: set[int], graph: Graph, rng: random.Random) -> Query | None:
    """A negated part that excludes an entity of `allowed`, and not the answer."""
    if not allowed:
        return None
    inner = form.of if isinstance(form, Not) else form
    drawn = _grounded(inner, rng.choice(sorted(allowed)), graph, rng)
    if drawn is None:
        return None
    made = Not(drawn) if isinstance(form, Not) else Project(drawn.of, drawn.relation, True)  # type: ignore[union-attr]
    return made if answer in answers(graph, made) else None


def _joined(kind: type[And] | type[Or], parts: list[Query | None]) -> Query | None:
    made = [p for p in parts if p is not None]
    bare = {p.of if isinstance(p, Not) else p for p in made}
    return kind(tuple(made)) if len(made) == len(parts) == len(bare) else None
