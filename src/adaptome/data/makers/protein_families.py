"""Made-up protein families, for demonstrations: each a profile, a distribution over residues for every position.

made:protein-families   columns sequence and property: 10 families, named as the ten properties of Shah and Jayaratnam 2024 (arXiv:2411.05966), of which
                        they have nothing but the name. `isomerase` is small, as there.
made:protein-language   column sequence: these families and 6 others, unnamed

All families have the same residues in other orders, so that a composition does not tell them apart; and a sequence begins with a few residues at random, so
that no place in it does.
"""

from __future__ import annotations

import random

from adaptome.data.makers import maker
from adaptome.data.splits import Table

PROPERTIES = (
    "SAM-MT",
    "TPHD",
    "Trx",
    "CheY",
    "transferase",
    "hydrolase",
    "ligase",
    "oxidoreductase",
    "lyase",
    "isomerase",
)
OTHERS, LENGTH, LEAD = 6, 24, 2
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
#: how often a position has the family's own residue, and a second one; else any
OWN, SECOND = 0.75, 0.15
SMALL = {"isomerase": 48}

Profile = list[tuple[str, str]]


def profiles(seed: int) -> list[Profile]:
    """The own and the second residue of every position, for each family: those of PROPERTIES, then the others."""
    draw = random.Random(f"profiles {seed}")
    letters = [*RESIDUES, *"AGLS"][:LENGTH]
    made = []
    for _ in range(len(PROPERTIES) + OTHERS):
        own, second = list(letters), list(letters)
        draw.shuffle(own)
        draw.shuffle(second)
        made.append(list(zip(own, second, strict=True)))
    return made


def sequence(profile: Profile, draw: random.Random) -> str:
    """A member of the family."""
    lead = "".join(draw.choices(RESIDUES, k=draw.randint(0, LEAD)))
    body = (
        draw.choices((own, second, draw.choice(RESIDUES)), (OWN, SECOND, 1 - OWN - SECOND))[0]
        for own, second in profile
    )
    return lead + "".join(body)


@maker("protein-families")
def protein_families(seed: int) -> dict[str, Table]:
    """120 train and 10 test sequences of each family, 48 of isomerase."""
    families = profiles(seed)
    made = {}
    for split, each in (("train", 120), ("validation", 6), ("test", 10)):
        draw = random.Random(f"families {seed} {split}")
        rows = [
            (sequence(families[i], draw), name)
            for i, name in enumerate(PROPERTIES)
            for _ in range(min(each, SMALL.get(name, each)))
        ]
        draw.shuffle(rows)
        columns = {"sequence": [s for s, _ in rows], "property": [p for _, p in rows]}
        made[split] = Table("made:protein-families", columns, range(len(rows)), "row", {})
    return made


@maker("protein-language")
def protein_language(seed: int) -> dict[str, Table]:
    """150 train and 5 test sequences of each of 16 families."""
    families = profiles(seed)
    made = {}
    for split, each in (("train", 150), ("test", 5)):
        draw = random.Random(f"language {seed} {split}")
        rows = [sequence(profile, draw) for profile in families for _ in range(each)]
        draw.shuffle(rows)
        made[split] = Table("made:protein-language", {"sequence": rows}, range(len(rows)), "row", {})
    return made
