"""Sentences of a made-up biomedicine: diseases, chemicals and genes with names that no model has read of.

    made:biomedical-texts       column text: sentences without tags, for pre-training
    made:biomedical-entities    columns tokens and tags (IOB2): sentences for finding entities

Both are of one world, drawn from the same seed: the texts tell of all names, the training sentences of a part of them, and those of
validation and test of all, so that a list of the names seen in training misses many. Nor do the names alone tell: cell lines are written
like genes, a gene's syndrome is a disease, and words such as "baseline" end like chemicals.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from adaptome.data.makers import maker
from adaptome.data.splits import Table

#: (words, tags)
Sentence = tuple[list[str], list[str]]

STARTS = "bra cor dex fen gla hyp lum mel nor ost par qui ret sal tri ura val xan zol ker".split()
MIDDLES = "do ba ri lo mu te va ni ga so pe ro".split()
DISEASE_ENDS = "itis oma emia opathy osis algia".split()
CHEMICAL_ENDS = "ine ol ide ate amab azole".split()
KINDS = "hereditary chronic juvenile familial acute".split()
ORGANS = "renal hepatic cardiac gastric pulmonary".split()
LETTERS = "ABCDFGHKLMNPRSTVX"

#: {D} disease, {C} chemical, {G} gene; {L} cell line, {W} method, {N} number, {O} organ, {A} animal: no entities
TEMPLATES = (
    "Patients with {D} were treated with {C} for {N} weeks .",
    "{C} inhibits {G} in {L} cells .",
    "Mutations of {G} cause {D} in {A} .",
    "Expression of {G} was measured by {W} at baseline .",
    "Loss of {G} protects {A} from {D} .",
    "A single dose of {C} ( {N} mg ) reduced symptoms of {D} .",
    "The {L} line does not express {G} .",
    "We examined {N} {A} with {D} by {W} .",
    "{C} and {C} bind the promoter of {G} .",
    "{D} is a rare {O} disease of unknown cause .",
    "{G} encodes a kinase that phosphorylates {G} .",
    "No association of {G} with {D} was found in {N} patients .",
    "Routine medicine offers {C} against {D} , but {O} toxicity is common .",
    "{L} cells were grown with {C} , and {W} was done after {N} hours .",
    "In {A} , {C} lowered the level of {G} .",
    "The risk of {D} rises with {D} .",
    "{W} of {L} showed {G} in the nucleus .",
    "Serum {C} predicts {D} ; {G} does not .",
    "Carriers of {G} variants respond to {C} within {N} days .",
    "{N} of {N} {A} died of {D} at baseline .",
)
METHODS = "PCR ELISA MRI FACS qPCR HPLC ultrasound imaging".split()
ANIMALS = "mice rats zebrafish adults infants".split()
LEADS = ("However ,", "In this study ,", "Interestingly ,", "Here ,", "", "", "", "")


@dataclass(frozen=True)
class World:
    """Names by slot, in the order in which training draws on them."""

    names: dict[str, list[list[str]]]

    def part(self, share: float) -> World:
        """The first of the names of every entity type."""
        return World({k: v[: round(share * len(v))] if k in TYPES else v for k, v in self.names.items()})


TYPES = {"D": "Disease", "C": "Chemical", "G": "Gene"}


def world(seed: int, each: int = 90) -> World:
    """The names of a world.

    Args:
        each: names of each entity type.
    """
    rng = random.Random(seed)
    symbols = rng.sample([f"{a}{b}{c}{n}" for a in LETTERS for b in LETTERS for c in LETTERS for n in range(1, 10)], 2 * each)  # fmt: skip
    genes, lines = symbols[:each], symbols[each:]
    stems = rng.sample([s + m for s in STARTS for m in MIDDLES], 2 * each)

    def disease(stem: str, gene: str) -> list[str]:
        name = stem + rng.choice(DISEASE_ENDS)
        forms = ([name], [rng.choice(KINDS), name], [gene, "syndrome"], [rng.choice(ORGANS), name])
        return list(rng.choice(forms))

    def chemical(stem: str) -> list[str]:
        name = stem + rng.choice(CHEMICAL_ENDS)
        return rng.choice(([name], [name], ["sodium", name], [name, "hydrochloride"]))

    return World(
        {
            "D": [disease(s, g) for s, g in zip(stems[:each], genes, strict=True)],
            "C": [chemical(s) for s in stems[each:]],
            "G": [[g] if rng.random() < 0.8 else [g, "receptor"] for g in genes],
            "L": [[line] for line in lines],
            "W": [[w] for w in METHODS],
            "O": [[o] for o in ORGANS],
            "A": [[a] for a in ANIMALS],
        }
    )


def sentences(known: World, count: int, rng: random.Random) -> list[Sentence]:
    """Tagged sentences about the names."""
    made = []
    for _ in range(count):
        words, tags = [], []
        for part in f"{rng.choice(LEADS)} {rng.choice(TEMPLATES)}".split():
            slot = part[1] if part.startswith("{") else ""
            name = [part] if not slot else [str(rng.randint(2, 60))] if slot == "N" else rng.choice(known.names[slot])  # fmt: skip
            kind = TYPES.get(slot)
            words += name
            tags += [f"{'I' if i else 'B'}-{kind}" if kind else "O" for i in range(len(name))]
        made.append((words, tags))
    return made


def _table(name: str, split: str, columns: dict[str, list[Any]]) -> Table:
    return Table(
        f"made:{name}", columns, range(1, len(next(iter(columns.values()))) + 1), unit=f"{split} row"
    )


@maker("biomedical-texts")
def biomedical_texts(seed: int) -> dict[str, Table]:
    """600 sentences for training, 100 for validation and 100 for test."""
    known, made = world(seed), {}
    for number, (split, count) in enumerate({"train": 600, "validation": 100, "test": 100}.items()):
        rng = random.Random(f"texts {seed} {number}")
        texts = [" ".join(words) for words, _ in sentences(known, count, rng)]
        made[split] = _table("biomedical-texts", split, {"text": texts})
    return made


@maker("biomedical-entities")
def biomedical_entities(seed: int) -> dict[str, Table]:
    """240 tagged sentences for training, about a third of the names; 100 for validation and 300 for test, about all of them."""
    known, made = world(seed), {}
    for number, (split, count) in enumerate({"train": 240, "validation": 100, "test": 300}.items()):
        rng = random.Random(f"entities {seed} {number}")
        found = sentences(known.part(1 / 3) if split == "train" else known, count, rng)
        columns = {"tokens": [w for w, _ in found], "tags": [t for _, t in found]}
        made[split] = _table("biomedical-entities", split, columns)
    return made
