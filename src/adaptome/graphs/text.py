"""Queries as lines that can be read, and back.

    ? : works_for(?, acme) and not lives_in(?, york)
    ? : parent_of(anna, ?a) and parent_of(?a, ?)
    ? : (lives_in(?a, york) or born_in(?a, york)) and works_for(?a, ?)

`relation(head, tail)` is a triple of the graph. `?` is what is asked for; `?a` some entity that need not be named; everything else is the name of
an entity. A name with blanks or signs of its own stands in double quotes. `not` binds closer than `and`, `and` closer than `or`.
`not r(?a, ?)` asks for some ?a without that edge; `not (r(x, ?a) and s(?a, ?))` for entities that no ?a leads to.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from adaptome.core.errors import DataError
from adaptome.graphs.graph import Vocabulary
from adaptome.graphs.query import Anchor, And, Not, Or, Project, Query, normal

_TOKEN = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*")|(\?\w*)|([(),:])|([^\s(),:"?]+(?::[^\s(),:"?]+)*))')
_PLAIN = re.compile(r'[^\s(),:"?]+(?::[^\s(),:"?]+)*')
_WORDS = ("and", "or", "not")
ASKED = "?"


@dataclass(frozen=True)
class _Atom:
    relation: str
    head: str  # as written: a variable with its question mark, or a name in JSON's quotes
    tail: str
    negated: bool = False

    def variables(self) -> frozenset[str]:
        return frozenset(term for term in (self.head, self.tail) if term.startswith("?"))


@dataclass(frozen=True)
class _Joint:
    word: str  # and, or, not
    parts: tuple[_Formula, ...]

    def variables(self) -> frozenset[str]:
        return frozenset().union(*(part.variables() for part in self.parts))


_Formula = _Atom | _Joint


def parse(text: str, vocabulary: Vocabulary) -> Query:
    """The query that a line asks.

    Raises:
        DataError: the line is none; tells the place, or the name that the graph does not have and the nearest one.
    """
    formula = _Parser(text).whole()
    if ASKED not in formula.variables():
        raise DataError(
            f"{text!r} asks for nothing: write ? where the answer stands, as in ? : lives_in(?, york)."
        )
    try:
        return normal(_set_of(formula, ASKED, vocabulary))
    except DataError as error:
        raise DataError(f"{text!r}: {error}") from error


# -- reading ---------------------------------------------------------------------------------------------------------


class _Parser:
    """Recursive descent over the tokens of a line."""

    def __init__(self, text: str):
        self.text, self.at = text, 0
        self.tokens = list(self._tokens())

    def _tokens(self) -> Iterator[tuple[str, int]]:
        at = 0
        while self.text[at:].strip():
            found = _TOKEN.match(self.text, at)
            if found is None:
                raise DataError(f"{self.text!r}: {self.text[at:].strip()[0]!r} at column {at + 1} begins nothing known. Is a quotation mark left open?")  # fmt: skip
            yield found.group().strip(), found.end() - len(found.group().lstrip()) + 1
            at = found.end()

    def next(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        token = self.next()
        if wanted and token not in wanted:
            column = self.tokens[self.at][1] if token else len(self.text) + 1
            raise DataError(
                f"{self.text!r}: expected {' or '.join(map(repr, wanted))} at column {column}, found {token or 'the end'!r}.\n"
                "  A query reads: ? : works_for(?, acme) and not lives_in(?, york)"
            )
        self.at += 1
        return token

    def whole(self) -> _Formula:
        if self.next() == ASKED and self.at + 1 < len(self.tokens) and self.tokens[self.at + 1][0] == ":":
            self.at += 2
        found = self.joint("or")
        if self.next():
            self.take("and", "or", "the end")
        return found

    def joint(self, word: str) -> _Formula:
        parts = [self.joint("and") if word == "or" else self.single()]
        while self.next().lower() == word:
            self.at += 1
            parts.append(self.joint("and") if word == "or" else self.single())
        return parts[0] if len(parts) == 1 else _Joint(word, tuple(parts))

    def single(self) -> _Formula:
        if self.next().lower() == "not":
            self.at += 1
            inner = self.single()
            if isinstance(inner, _Atom):
                return _Atom(inner.relation, inner.head, inner.tail, not inner.negated)
            return _Joint("not", (inner,))
        if self.next() == "(":
            self.at += 1
            inner = self.joint("or")
            self.take(")")
            return inner
        relation = self.name()
        self.take("(")
        head = self.term()
        self.take(",")
        tail = self.term()
        self.take(")")
        return _Atom(relation, head, tail)

    def name(self) -> str:
        token = self.next()
        if not token or token in "(),:" or token.startswith("?") or token.lower() in _WORDS:
            self.take("a name")
        self.at += 1
        return str(json.loads(token)) if token.startswith('"') else token

    def term(self) -> str:
        return self.take() if self.next().startswith("?") else json.dumps(self.name())


# -- from formulas to sets -------------------------------------------------------------------------------------------


def _set_of(formula: _Formula, target: str, vocabulary: Vocabulary) -> Query:
    """The entities that may stand for `target`, every other variable being some entity."""
    if isinstance(formula, _Joint) and formula.word == "or":
        return Or(tuple(_set_of(part, target, vocabulary) for part in formula.parts))
    if isinstance(formula, _Joint) and formula.word == "not":
        return Not(_set_of(formula.parts[0], target, vocabulary))
    parts = formula.parts if isinstance(formula, _Joint) else (formula,)
    found = [_group(group, target, vocabulary) for group in _groups(parts, target)]
    return found[0] if len(found) == 1 else And(tuple(found))


def _groups(parts: Sequence[_Formula], target: str) -> list[list[_Formula]]:
    """Conjuncts that hang together by variables other than the target."""
    groups: list[tuple[frozenset[str], list[_Formula]]] = []
    for part in parts:
        names, members = part.variables() - {target}, [part]
        for group in [g for g in groups if g[0] & names]:
            groups.remove(group)
            names, members = names | group[0], [*group[1], *members]
        groups.append((names, members))
    return [members for _, members in groups]


def _group(group: list[_Formula], target: str, vocabulary: Vocabulary) -> Query:
    touching = [part for part in group if target in part.variables()]
    if len(group) == 1 and touching:
        (only,) = group
        if isinstance(only, _Joint):
            return _set_of(only, target, vocabulary)
        if only.variables() == {target}:
            return _step(only, target, None, vocabulary)
    if not touching:
        names = " and ".join(sorted(group[0].variables())) or "nothing that is asked for"
        raise DataError(f"a part of it speaks of {names}, and nothing leads from there to {target}.")
    links = [part for part in touching if isinstance(part, _Atom)]
    if len(touching) > 1 or not links:
        raise DataError(
            f"{target} is tied to the same variables twice. Only queries whose variables form a tree can be answered."
        )
    (link,) = links
    (before,) = link.variables() - {target}
    rest = [part for part in group if part is not link]
    if not rest:
        raise DataError(f"nothing is said of {before}: name an entity in its place, or say what leads to it.")
    inner = rest[0] if len(rest) == 1 else _Joint("and", tuple(rest))
    return _step(link, target, _set_of(inner, before, vocabulary), vocabulary)


def _step(atom: _Atom, target: str, of: Query | None, vocabulary: Vocabulary) -> Query:
    """The target from the other end of an atom, which is `of`, or a named entity."""
    if atom.head == atom.tail:
        raise DataError(
            f"{atom.relation}({atom.head}, {atom.tail}): an entity beside itself cannot be asked for."
        )
    relation, backward = vocabulary.relation(atom.relation), atom.head == target
    step = vocabulary.inverse(relation) if backward else relation
    if of is None:
        anchor = Anchor(vocabulary.entity(json.loads(atom.tail if backward else atom.head)))
        made = Project(anchor, step)
        return Not(made) if atom.negated else made
    return Project(of, step, atom.negated)


# -- writing ---------------------------------------------------------------------------------------------------------


def write(query: Query, vocabulary: Vocabulary) -> str:
    """The line that asks a query; `parse` undoes it."""
    return f"? : {_Writer(vocabulary).formula(query, ASKED)}"


def write_atom(vocabulary: Vocabulary, relation: int, head: str, tail: str) -> str:
    """`relation(head, tail)`, an inverse relation turned around; head and tail as they are to stand there."""
    name, other = vocabulary.relations[relation], vocabulary.inverses[relation]
    backward = other is not None and (name.endswith(("^-1", "_reverse")) or name.startswith("-"))
    if backward:
        assert other is not None
        name, head, tail = vocabulary.relations[other], tail, head
    return f"{quoted(name.removeprefix('+'))}({head}, {tail})"


def quoted(name: str) -> str:
    """A name as a query writes it: in double quotes where it would be read as something else."""
    plain = _PLAIN.fullmatch(name) and name.lower() not in _WORDS
    return name if plain else json.dumps(name, ensure_ascii=False)


class _Writer:
    """Formulas of one line, with variables named ?a, ?b, ..."""

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self.fresh = (f"?{letter}{number or ''}" for number in itertools.count() for letter in "abcdefghijklmnopqrstuvwxyz")  # fmt: skip

    def formula(self, query: Query, target: str) -> str:
        if isinstance(query, Project):
            return self.step(query, target)
        if isinstance(query, Not):
            inner = self.formula(query.of, target)
            single = isinstance(query.of, Project) and isinstance(query.of.of, Anchor)
            return f"not {inner}" if single else f"not ({inner})"
        if isinstance(query, Anchor):
            raise DataError("a given entity alone is no query.")
        word = "and" if isinstance(query, And) else "or"
        return f" {word} ".join(self.inside(part, target, word) for part in query.parts)

    def inside(self, query: Query, target: str, word: str) -> str:
        written = self.formula(query, target)
        loose = isinstance(query, Or) or (isinstance(query, And) and word == "or")
        return f"({written})" if loose else written

    def step(self, query: Project, target: str) -> str:
        no = "not " if query.negated else ""
        if isinstance(query.of, Anchor):
            start = quoted(self.vocabulary.entities[query.of.entity])
            return no + write_atom(self.vocabulary, query.relation, start, target)
        before = next(self.fresh)
        inner = self.inside(query.of, before, "and")
        return f"{inner} and {no}{write_atom(self.vocabulary, query.relation, before, target)}"
