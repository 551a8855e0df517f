"""Logical queries with one free variable, as trees; and the 14 structures that are asked of link predictors.

    works_for(?, acme) and not lives_in(?, york)    And((Project(Anchor(acme), works_for^-1), Not(Project(Anchor(york), lives_in^-1))))

Data sets write a query as nested lists of numbers, BetaE's form: `[5, [0, 3]]` goes from entity 5 along the relations 0 and 3, lists beside
each other are intersected (united, when a last `[-1]` says so), and a relation -2 negates what stands before it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from adaptome.core.errors import DataError

UNION, NEGATION = -1, -2

#: what a negation behind two steps negates: the second step alone, before the best way is chosen (as the authors of CQD-A run it), or the
#: set that both steps lead to (as the data sets write it)
Negation = Literal["atom", "set"]


@dataclass(frozen=True)
class Anchor:
    """A given entity."""

    entity: int


@dataclass(frozen=True)
class Project:
    """What a relation leads to from some entity of a set; negated: what it does not lead to."""

    of: Query
    relation: int
    negated: bool = False


@dataclass(frozen=True)
class Not:
    """All entities but these."""

    of: Query


@dataclass(frozen=True)
class And:
    """Entities in every one of these sets."""

    parts: tuple[Query, ...]


@dataclass(frozen=True)
class Or:
    """Entities in one of these sets, or more."""

    parts: tuple[Query, ...]


Query = Anchor | Project | Not | And | Or


def from_nested(nested: Any, negation: Negation = "atom") -> Query:
    """The query that nested lists (or tuples) of numbers stand for.

    Raises:
        DataError: they stand for none.
    """
    if not isinstance(nested, (list, tuple)) or not nested:
        raise _no_query(nested)
    last = nested[-1]
    if list(last if isinstance(last, (list, tuple)) else [last]) == [UNION]:
        return Or(tuple(from_nested(part, negation) for part in _several(nested[:-1])))
    if len(nested) == 2 and isinstance(last, (list, tuple)) and all(isinstance(n, int) for n in last):
        first = nested[0]
        return _steps(
            Anchor(first) if isinstance(first, int) else from_nested(first, negation), last, negation
        )
    return And(tuple(from_nested(part, negation) for part in _several(nested)))


def _steps(start: Query, steps: Any, negation: Negation) -> Query:
    found = start
    for step in steps:
        if step == NEGATION:
            found = _negated(found, negation)
        elif step >= 0:
            found = Project(found, step)
        else:
            raise _no_query(list(steps))
    if found == start:
        raise _no_query([start, list(steps)])
    return found


def to_nested(query: Query) -> list[Any]:
    """The nested lists that a query is written as; `from_nested` undoes it, told what a negation behind two steps means.

    Raises:
        DataError: they cannot say it: a negation of an intersection or a union, say.
    """
    if isinstance(query, Or):
        return [*map(to_nested, query.parts), [UNION]]
    if isinstance(query, And):
        return [to_nested(part) for part in query.parts]
    steps: list[int] = []
    node: Query = query
    while isinstance(node, (Project, Not)):
        steps[:0] = [NEGATION] if isinstance(node, Not) else [node.relation, *[NEGATION] * node.negated]
        node = node.of
    if not steps or (NEGATION in steps and not isinstance(node, Anchor)):
        raise DataError(f"nested lists cannot write {query}. Write it as text: see adaptome.graphs.text.")
    return [node.entity if isinstance(node, Anchor) else to_nested(node), steps]


def _negated(query: Query, negation: Negation) -> Query:
    if negation == "atom" and isinstance(query, Project) and not isinstance(query.of, Anchor):
        return Project(query.of, query.relation, negated=True)
    return Not(query)


def _several(parts: Any) -> Any:
    if len(parts) < 2:
        raise _no_query(list(parts))
    return parts


def _no_query(nested: Any) -> DataError:
    return DataError(
        f"{nested!r} is no query. Expected [entity, [relations]], such as [5, [0, 3]], or several of those in a list."
    )


def template(query: Query) -> tuple[Query, tuple[int, ...], tuple[int, ...]]:
    """The query's form, with places 0, 1, ... for its entities and relations; and these, in the order in which a data set writes them."""
    entities: list[int] = []
    relations: list[int] = []

    def visit(node: Query) -> Query:
        if isinstance(node, Anchor):
            entities.append(node.entity)
            return Anchor(len(entities) - 1)
        if isinstance(node, Project):
            inner = visit(node.of)
            relations.append(node.relation)
            return Project(inner, len(relations) - 1, node.negated)
        if isinstance(node, Not):
            return Not(visit(node.of))
        return type(node)(tuple(visit(part) for part in node.parts))

    return visit(query), tuple(entities), tuple(relations)


def normal(query: Query) -> Query:
    """An equal query in the order in which data sets write it: nested conjunctions joined, longer ways first, negated ones last."""
    if isinstance(query, Anchor):
        return query
    if isinstance(query, Project):
        return replace(query, of=normal(query.of))
    if isinstance(query, Not):
        inner = normal(query.of)
        return inner.of if isinstance(inner, Not) else Not(inner)
    kind = type(query)
    parts = [
        inner
        for part in map(normal, query.parts)
        for inner in (part.parts if isinstance(part, kind) else (part,))
    ]
    return parts[0] if len(parts) == 1 else kind(tuple(sorted(parts, key=_order)))


def _order(query: Query) -> tuple[bool, int]:
    negated = isinstance(query, Not) or (isinstance(query, Project) and query.negated)
    # pni is written with its negated two steps first
    return (negated and _depth(query) < 2, -_depth(query))


def _depth(query: Query) -> int:
    if isinstance(query, Anchor):
        return 0
    if isinstance(query, Project):
        return 1 + _depth(query.of)
    return _depth(query.of) if isinstance(query, Not) else max(map(_depth, query.parts))


def _built(negation: Negation, **structures: Any) -> dict[str, Query]:
    return {
        name.lstrip("_"): template(from_nested(nested, negation))[0] for name, nested in structures.items()
    }


_e1, _e2 = [0, [0]], [0, [0, 0]]
_not = [0, [0, NEGATION]]
#: the structures of BetaE (Ren and Leskovec 2020, arXiv:2010.11465): p a step, i an intersection, u a union, n a negation
STRUCTURES: dict[str, Query] = _built(
    "atom",
    _1p=_e1, _2p=_e2, _3p=[0, [0, 0, 0]],
    _2i=[_e1, _e1], _3i=[_e1, _e1, _e1], ip=[[_e1, _e1], [0]], pi=[_e2, _e1],
    _2in=[_e1, _not], _3in=[_e1, _e1, _not], inp=[[_e1, _not], [0]], pin=[_e2, _not], pni=[[0, [0, 0, NEGATION]], _e1],
    _2u=[_e1, _e1, [UNION]], up=[[_e1, _e1, [UNION]], [0]],
)  # fmt: skip
#: pni as its data are written: the whole two steps negated
STRUCTURES["pni-set"] = template(from_nested([[0, [0, 0, NEGATION]], _e1], "set"))[0]

POSITIVE = ("1p", "2p", "3p", "2i", "3i", "ip", "pi", "2u", "up")
NEGATIVE = ("2in", "3in", "inp", "pin", "pni")
#: what the paper trains the adapter on: no variable in between, so nothing is searched
TRAINED = ("2i", "3i", "2in", "3in")

_NAMES = {form: name for name, form in STRUCTURES.items()}


def structure_of(query: Query) -> str | None:
    """The name of a query's structure; None when it is none of those."""
    return _NAMES.get(template(query)[0])


def filled(structure: Query, entities: Any, relations: Any) -> Query:
    """The query of this form about these entities and relations: undoes `template`."""
    if isinstance(structure, Anchor):
        return Anchor(int(entities[structure.entity]))
    if isinstance(structure, Project):
        return replace(
            structure,
            of=filled(structure.of, entities, relations),
            relation=int(relations[structure.relation]),
        )
    if isinstance(structure, Not):
        return Not(filled(structure.of, entities, relations))
    return type(structure)(tuple(filled(part, entities, relations) for part in structure.parts))
