"""A knowledge graph: names of entities and relations, and triples among them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from adaptome.core.errors import DataError, did_you_mean

#: how a relation and its inverse are named, as (prefix, suffix) of each: ours, FB15k's in BetaE, NELL's in BetaE
PAIRS = ((("", ""), ("", "^-1")), (("+", ""), ("-", "")), (("", ""), ("", "_reverse")))


@dataclass(frozen=True)
class Vocabulary:
    """Names of entities and relations; a name's number is its place.

    Inverse relations are relations of their own, known by their names: `x` and `x^-1`, `+x` and `-x`, `x` and `x_reverse`.

    Raises:
        DataError: a name stands twice.
    """

    entities: tuple[str, ...]
    relations: tuple[str, ...]

    def __post_init__(self) -> None:
        for what, names, numbers in (
            ("entity", self.entities, self._entity),
            ("relation", self.relations, self._relation),
        ):
            if len(numbers) < len(names):
                twice = next(name for i, name in enumerate(names) if numbers[name] != i)
                raise DataError(f"the {what} {twice!r} stands twice among the names.")

    @classmethod
    def of(cls, triples: Iterable[tuple[str, str, str]]) -> Vocabulary:
        """The names of these triples in alphabetical order, with an inverse beside every relation."""
        listed = list(triples)
        entities = sorted({name for head, _, tail in listed for name in (head, tail)})
        forward = sorted({relation for _, relation, _ in listed})
        return cls(tuple(entities), tuple(name for r in forward for name in (r, f"{r}^-1")))

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """The names in a JSON file: {"entities": [...], "relations": [...]}.

        Raises:
            DataError: there is no such file, or it holds something else.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(tuple(content["entities"]), tuple(content["relations"]))
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{path} should be JSON of the form {{"entities": [...], "relations": [...]}}: {error}.'
            ) from error

    @cached_property
    def _entity(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.entities)}

    @cached_property
    def _relation(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.relations)}

    @cached_property
    def inverses(self) -> tuple[int | None, ...]:
        """The number of every relation's inverse; None where it has none."""
        found: dict[int, int] = {}
        for i, name in enumerate(self.relations):
            for (before, after), (prefix, suffix) in PAIRS:
                if name.startswith(before) and name.endswith(after):
                    bare = name[len(before) : len(name) - len(after)]
                    other = self._relation.get(f"{prefix}{bare}{suffix}")
                    if other is not None and other != i:
                        found[i], found[other] = other, i
        return tuple(found.get(i) for i in range(len(self.relations)))

    def entity(self, name: str) -> int:
        """The number of an entity, by its name or, where no entity is called so, the number itself.

        Raises:
            DataError: there is none; names the nearest.
        """
        if name in self._entity:
            return self._entity[name]
        if str(name).isdecimal() and int(name) < len(self.entities):
            return int(name)
        raise DataError(f"the graph has no entity {name!r}.{did_you_mean(name, self.entities)}")

    def relation(self, name: str) -> int:
        """The number of a relation, by its name (`+name` being known as `name` too) or, where none is called so, the number itself.

        Raises:
            DataError: there is none; names the nearest.
        """
        for known in (name, f"+{name}"):
            if known in self._relation:
                return self._relation[known]
        if str(name).isdecimal() and int(name) < len(self.relations):
            return int(name)
        raise DataError(f"the graph has no relation {name!r}.{did_you_mean(name, self.relations)}")

    def inverse(self, relation: int) -> int:
        """The number of a relation's inverse.

        Raises:
            DataError: it has none.
        """
        other = self.inverses[relation]
        if other is None:
            name = self.relations[relation]
            raise DataError(
                f"the relation {name!r} has no inverse here: there is no {name + '^-1'!r} among the relations."
            )
        return other

    def numbers(self, heads: Sequence[str], relations: Sequence[str], tails: Sequence[str]) -> np.ndarray:
        """Triples of names as numbers [n, 3]."""
        rows = [
            (self.entity(h), self.relation(r), self.entity(t))
            for h, r, t in zip(heads, relations, tails, strict=True)
        ]
        return np.array(rows, dtype=np.int64).reshape(-1, 3)


@dataclass(frozen=True)
class Graph:
    """Triples [n, 3] (head, relation, tail) over a vocabulary, walked both ways where a relation has an inverse."""

    vocabulary: Vocabulary
    triples: np.ndarray
    _after: dict[tuple[int, int], set[int]] = field(init=False, repr=False, compare=False)
    _into: dict[int, set[tuple[int, int]]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        after: dict[tuple[int, int], set[int]] = defaultdict(set)
        into: dict[int, set[tuple[int, int]]] = defaultdict(set)
        for head, relation, tail in self.both_ways.tolist():
            after[head, relation].add(tail)
            into[tail].add((head, relation))
        object.__setattr__(self, "_after", dict(after))
        object.__setattr__(self, "_into", dict(into))

    @cached_property
    def both_ways(self) -> np.ndarray:
        """The triples with their inverses, each once, sorted [m, 3]."""
        inverses = self.vocabulary.inverses
        backward = [(t, i, h) for h, r, t in self.triples.tolist() if (i := inverses[r]) is not None]
        rows = np.array([*map(tuple, self.triples.tolist()), *backward], dtype=np.int64).reshape(-1, 3)
        return np.unique(rows, axis=0)

    def after(self, entity: int, relation: int) -> set[int]:
        """The entities that a relation leads to."""
        return self._after.get((entity, relation), set())

    def into(self, entity: int) -> list[tuple[int, int]]:
        """The (entity, relation) that lead to an entity, sorted."""
        return sorted(self._into.get(entity, ()))

    def __add__(self, other: Graph) -> Graph:
        return Graph(self.vocabulary, np.concatenate([self.triples, other.triples]))
