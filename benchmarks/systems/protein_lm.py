"""The recipe `protein-lm-demo` in full: sequences of ten made-up families written by the name of the family (Shah and Jayaratnam 2024, arXiv:2411.05966).

    python benchmarks/systems/protein_lm.py [--seeds 3]

Family accuracy: how often the family whose profile makes a written sequence likeliest is the one that was asked for; what does not end or has other letters
counts as wrong. The profiles are what the data was drawn from, and no part of training. Beside the recipe stand the base that learned sequences and no names (the frozen base),
residues drawn from the family's own composition, the recipe without its first stage at as many steps of the second, and the test's own sequences as the
ceiling; and of the recipe the k-mer classifier's accuracy, novelty and complexity.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

from _demo import Demo, Seen, main

import adaptome as ad
from adaptome.data.makers.protein_families import (
    LEAD,
    OWN,
    PROPERTIES,
    RESIDUES,
    SECOND,
    Profile,
    profiles,
    protein_families,
)
from adaptome.recipe import load_recipe, stages_of
from adaptome.training import load_run, run

DEMO, FROZEN, COMPOSITION, CONTROL_ONLY, REAL = (
    "protein-lm-demo",
    "frozen base",
    "drawn from the composition",
    "second stage only",
    "test sequences",
)
SMALL = "isomerase"


def likeliest(sequence: str, families: Sequence[Profile]) -> int:
    """Number of the family that makes it likeliest, at the best place of its profile."""
    any_ = (1 - OWN - SECOND) / len(RESIDUES)

    def score(profile: Profile) -> float:
        best = -math.inf
        for lead in range(LEAD + 1):
            pairs = zip(sequence[lead:], profile, strict=False)
            held = [math.log(OWN * (r == own) + SECOND * (r == second) + any_) for r, (own, second) in pairs]
            missing = abs(len(sequence) - lead - len(profile))
            best = max(best, sum(held) + (lead + missing) * math.log(1 / len(RESIDUES)))
        return best

    return max(range(len(families)), key=lambda i: score(families[i]))


def accuracy(pairs: Sequence[tuple[str, str]], families: Sequence[Profile]) -> float:
    """Share of (sequence, asked for) whose likeliest family is that; an empty sequence is wrong."""
    return sum(bool(s) and PROPERTIES[likeliest(s, families)] == of for s, of in pairs) / len(pairs)


def written(loaded, asked: Sequence[str]) -> list[tuple[str, str]]:
    """What is written for each property, '' where it is not valid."""
    made = loaded.task.predict(loaded.model, loaded.processor, asked, 64)
    return [(loaded.task.valid(one["written"][0])[0], of) for one, of in zip(made, asked, strict=True)]


def measure(seed: int, folder: Path) -> dict[str, float]:
    told = [
        f"data.split_seed={seed}",
        f"stages.0.data={{name: 'made:protein-language', split_seed: {seed}}}",
        f"training.seed={seed}",
    ]
    told += ["training.device=cpu", "evaluation.examples=0", "stages.0.evaluation={split: test, examples: 0}"]
    (_, first), (_, second) = stages_of(load_recipe(DEMO, [*told, f"output={folder}/demo"]))
    language, control = run(first, callbacks=[]), run(second, callbacks=[])
    short = load_recipe(DEMO, [*told, f"output={folder}/only", "stages.0.training.max_steps=1"])
    for _, stage in stages_of(short):
        run(stage, callbacks=[])
    data, families = protein_families(seed), profiles(seed)[: len(PROPERTIES)]
    asked = list(data["test"].columns["property"])
    loaded, only = load_run(folder / "demo" / "2-control"), load_run(folder / "only" / "2-control")
    ours, theirs = written(loaded, asked), written(only, asked)
    with ad.disabled(loaded.model):
        base = written(loaded, asked)
    draw, train = random.Random(seed), dict[str, str]()
    for sequence, of in zip(
        data["train"].columns["sequence"], data["train"].columns["property"], strict=True
    ):
        train[of] = train.get(of, "") + sequence
    drawn = [("".join(draw.choices(train[of], k=len(families[0]) + LEAD // 2)), of) for of in asked]
    found = {
        DEMO: accuracy(ours, families),
        FROZEN: accuracy(base, families),
        COMPOSITION: accuracy(drawn, families),
    }
    found[CONTROL_ONLY] = accuracy(theirs, families)
    found[REAL] = accuracy(list(zip(data["test"].columns["sequence"], asked, strict=True)), families)
    for label, pairs in ((SMALL, ours), (f"{SMALL}, second stage only", theirs)):
        found[label] = accuracy([pair for pair in pairs if pair[1] == SMALL], families)
    found |= {"perplexity of sequences": language.metrics["perplexity"]}
    names = (
        "valid",
        "unique",
        "low_complexity",
        "composition_divergence",
        "nearest_identity",
        "property_accuracy",
        "classifier_accuracy",
    )
    return found | {name: control.metrics[name] for name in names}


def also(seen: Sequence[Seen]) -> dict[str, bool]:
    return {
        "sequences' perplexity is below 20, that of residues at random": all(
            one["perplexity of sequences"] < 20 for one in seen
        ),
        f"ahead of {CONTROL_ONLY} in every seed": all(one[DEMO] > one[CONTROL_ONLY] for one in seen),
        "written sequences are not copies: mean identity to the nearest of training below 0.98": all(
            one["nearest_identity"] < 0.98 for one in seen
        ),
        "nine of ten written sequences are valid": all(one["valid"] >= 0.9 for one in seen),
    }


if __name__ == "__main__":
    ahead = {FROZEN: 0.3, COMPOSITION: 0.3}
    demo = Demo(DEMO, "family accuracy of written sequences", FROZEN, COMPOSITION, ahead, measure, also)
    main(demo, "python benchmarks/systems/protein_lm.py", __doc__)
