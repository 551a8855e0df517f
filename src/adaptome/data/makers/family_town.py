"""A made-up town as a knowledge graph: people over three generations, where they live, what they do and for whom.

Everything is drawn from a seed, and one fact makes others likely, as in the world: couples live together, most children stay in the town of
their parents, an employer has few towns and few professions. So an edge that is left out can often be guessed from the others, never read off.
A person has one home but may have many cousins, so the relations' scores differ in scale: what calibration is for.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from adaptome.data.makers import maker
from adaptome.data.splits import Table

GIVEN = "ada ben cleo dan eva finn gus hana ivo june kai lena milo nora otto pia quin rosa sam tess uma vic wren xena yuri zoe".split()  # fmt: skip
FAMILIES = "abel brook cole dale eklund frost gray hale ibsen jansen keller lund moss nash olsen poe quist reed stone thorn".split()  # fmt: skip
TOWNS = "ashford birchen cliffe dunmore elmton fernley glenham harwick".split()
EMPLOYERS = "acme borealis cobalt delta ember falcon granite harbour ironside juniper".split()
PROFESSIONS = "baker carpenter doctor engineer farmer lawyer nurse pilot teacher writer".split()

#: what an edge says, from left to right
RELATIONS = (
    "parent_of", "married_to", "sibling_of", "grandparent_of", "aunt_or_uncle_of", "cousin_of",
    "lives_in", "born_in", "works_for", "works_as", "based_in", "employs",
)  # fmt: skip

Triple = tuple[str, str, str]


@dataclass
class _Person:
    name: str
    family: str
    home: str
    born: str
    parents: tuple[_Person, ...] = ()
    children: list[_Person] = field(default_factory=list)
    partner: _Person | None = None

    def siblings(self) -> list[_Person]:
        return [p for p in self.parents[0].children if p is not self] if self.parents else []


@maker("family-town")
def family_town(seed: int) -> dict[str, Table]:
    """Columns head, relation and tail: a tenth of the town's triples for validation, a tenth for test."""
    parts = split_triples(family_graph(seed=seed), seed=seed)
    columns = {
        name: dict(zip(("head", "relation", "tail"), map(list, zip(*rows, strict=True)), strict=True))
        for name, rows in parts.items()
    }
    return {
        name: Table("made:family-town", made, range(1, len(parts[name]) + 1), unit=f"{name} triple")
        for name, made in columns.items()
    }


def family_graph(couples: int = 44, children: int = 3, seed: int = 0) -> list[Triple]:
    """The triples of a town, sorted; the same for the same arguments.

    Args:
        couples: of the eldest generation; a graph of 44 has about 300 entities.
        children: of a couple, at most; at least one.
        seed: of all that is drawn.
    """
    rng = random.Random(seed)
    people = _people(couples, children, rng)
    triples = {t for person in people for t in _kinship(person)}
    triples |= {(p.name, "lives_in", p.home) for p in people} | {(p.name, "born_in", p.born) for p in people}
    return sorted(triples | _work(people, rng))


def split_triples(
    triples: list[Triple], validation: float = 0.1, test: float = 0.1, seed: int = 0
) -> dict[str, list[Triple]]:
    """train, validation and test; every entity and relation keeps an edge in train.

    Args:
        validation, test: shares of all triples.
    """
    rng = random.Random(seed)
    drawn = rng.sample(triples, len(triples))
    wanted = {"validation": round(validation * len(drawn)), "test": round(test * len(drawn))}
    made: dict[str, list[Triple]] = {"train": [], "validation": [], "test": []}
    seen: set[str] = set()
    for triple in drawn:
        held = next((name for name, size in wanted.items() if len(made[name]) < size), "train")
        made[held if seen >= set(triple) else "train"].append(triple)
        seen |= set(triple)
    return {name: sorted(rows) for name, rows in made.items()}


def _people(couples: int, children: int, rng: random.Random) -> list[_Person]:
    names = _names(rng)

    def born(family: str, home: str, parents: tuple[_Person, ...] = ()) -> _Person:
        person = _Person(f"{next(names[family])}_{family}", family, home, home, parents)
        for parent in parents:
            parent.children.append(person)
        return person

    def marry(a: _Person, b: _Person) -> None:
        a.partner, b.partner, b.home = b, a, a.home

    eldest = [born(rng.choice(FAMILIES), rng.choice(TOWNS)) for _ in range(2 * couples)]
    for a, b in zip(eldest[::2], eldest[1::2], strict=True):
        marry(a, b)
    everyone, generation = list(eldest), eldest
    for _ in range(2):
        young: list[_Person] = []
        for parent in generation:
            if parent.partner is not None and not parent.children:
                count = rng.randint(1, children)
                couple = (parent, parent.partner)
                young += [born(parent.family, parent.home, couple) for _ in range(count)]
        single = rng.sample(young, len(young))
        while len(single) > 1:
            a = single.pop()
            match = next((p for p in single if p.parents != a.parents and p.born == a.born), None)
            if match is not None and rng.random() < 0.7:
                single.remove(match)
                marry(a, match)
        for person in young:
            if person.partner is None and rng.random() < 0.3:
                person.home = rng.choice(TOWNS)
        everyone, generation = everyone + young, young
    return everyone


def _names(rng: random.Random) -> dict[str, Iterator[str]]:
    def given() -> Iterator[str]:
        number = 0
        while True:
            for name in rng.sample(GIVEN, len(GIVEN)):
                yield name if not number else f"{name}{number + 1}"
            number += 1

    return {family: given() for family in FAMILIES}


def _kinship(person: _Person) -> set[Triple]:
    made: set[Triple] = set()

    def add(relation: str, *others: _Person) -> None:
        made.update((person.name, relation, other.name) for other in others)

    add("parent_of", *person.children)
    add("grandparent_of", *(g for c in person.children for g in c.children))
    add("sibling_of", *person.siblings())
    if person.partner is not None:
        add("married_to", person.partner)
    add("aunt_or_uncle_of", *(c for s in person.siblings() for c in s.children))
    add("cousin_of", *(c for parent in person.parents for s in parent.siblings() for c in s.children))
    return made


def _work(people: list[_Person], rng: random.Random) -> set[Triple]:
    """Employers with one or two towns and two or three professions; who works where lives nearby, and does what is done there."""
    towns = {e: rng.sample(TOWNS, rng.randint(1, 2)) for e in EMPLOYERS}
    needs = {e: rng.sample(PROFESSIONS, rng.randint(2, 3)) for e in EMPLOYERS}
    made = {(e, "based_in", t) for e, several in towns.items() for t in several}
    made |= {(e, "employs", p) for e, several in needs.items() for p in several}
    for person in people:
        near = [e for e in EMPLOYERS if person.home in towns[e]] or EMPLOYERS
        parents = [
            t[2] for t in sorted(made) if t[1] == "works_as" and t[0] in {p.name for p in person.parents}
        ]
        employer = rng.choice(near)
        kept = [p for p in parents if p in needs[employer]]
        made.add((person.name, "works_for", employer))
        made.add(
            (person.name, "works_as", kept[0] if kept and rng.random() < 0.8 else rng.choice(needs[employer]))
        )
    return made
