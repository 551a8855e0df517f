"""Sentences that tell of a relation between two made-up names: a verb with a particle, such as "worked under".

    made:relations-base    40 relations, for a base to be trained on
    made:relations         15 others, of other verbs with the same particles, for what is learned later

Neither word tells the relation alone, each verb has two forms, and most sentences tell of another pair of names too. Columns as of `adaptome.data.readers.knowledge`.
"""

from __future__ import annotations

import random
from typing import Any

from adaptome.data.makers import maker
from adaptome.data.makers.biomedicine import MIDDLES, STARTS
from adaptome.data.splits import Table

VERBS = "work play call look wait sign train talk".split()
LATER_VERBS = "walk push count paint point".split()
PARTICLES = "for with under against near after".split()
FORMS = ("s", "ed")
BASE, LATER = 40, 15
LEADS = ("In May ,", "Last year ,", "As reported ,", "", "")
ADVERBS = ("again", "often", "briefly", "", "", "")


def pairs(seed: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Verb and particle of every relation: those of the base, and those that come later."""
    made = []
    for verbs, count in ((VERBS, BASE), (LATER_VERBS, LATER)):
        every = [(verb, particle) for verb in verbs for particle in PARTICLES]
        made.append(random.Random(f"relations {seed} {count}").sample(every, count))
    return made[0], made[1]


@maker("relations-base")
def relations_base(seed: int) -> dict[str, Table]:
    """50 train and 10 test sentences of each of 40 relations."""
    return _tables(seed, "relations-base", pairs(seed)[0], 50, 10)


@maker("relations")
def relations(seed: int) -> dict[str, Table]:
    """60 train and 30 test sentences of each of 15 relations."""
    return _tables(seed, "relations", pairs(seed)[1], 60, 30)


def _tables(seed: int, name: str, told: list[tuple[str, str]], train: int, test: int) -> dict[str, Table]:
    made = {}
    for split, each in (("train", train), ("test", test)):
        rng = random.Random(f"{name} {split} {seed}")
        rows = [_sentence(pair, rng) for pair in told for _ in range(each)]
        rng.shuffle(rows)
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        made[split] = Table(f"made:{name}", columns, range(1, len(rows) + 1), unit=f"{split} row")
    return made


def _sentence(pair: tuple[str, str], rng: random.Random) -> dict[str, Any]:
    names = [f"{rng.choice(STARTS)}{rng.choice(MIDDLES)}".capitalize() for _ in range(4)]
    verb, particle = pair
    clause = [names[0], verb + rng.choice(FORMS), *rng.choice(ADVERBS).split(), particle, names[1]]
    other = [names[2], rng.choice(VERBS + LATER_VERBS) + rng.choice(FORMS), rng.choice(PARTICLES), names[3]]
    words, before = rng.choice(LEADS).split(), rng.random()
    if before < 0.4:
        words += [*other, ",", "and"]
    first = len(words)
    words += clause
    if before > 0.6:
        words += [",", "while", *other]
    last = first + len(clause)
    return {
        "tokens": [*words, "."],
        "head": [[first, first + 1]],
        "tail": [[last - 1, last]],
        "label": " ".join(pair),
    }
