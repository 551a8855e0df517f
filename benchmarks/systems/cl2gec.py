"""The recipe `cl2gec-demo` in full: corrections of five disciplines learned one after another (Qin et al. 2025, arXiv:2509.13672).

    python benchmarks/systems/cl2gec.py [--seeds 3]

F0.5 of the edits, the mean of all disciplines after the last. Beside the recipe stand the paper's other strategies with the same adapter and the same
base, all disciplines at once (the upper bound), the base alone, and copying every sentence, which corrects nothing. What a strategy keeps is told by
BWT, the last row of the matrix less its diagonal; what it still learns by the mean of the diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from _demo import Demo, Seen, main

from adaptome.data import load_splits
from adaptome.grammar import corpus
from adaptome.recipe import Recipe, load_recipe, stages_of
from adaptome.tasks.grammar_correction import read_corrections
from adaptome.training import load_run, run, run_continual

DEMO, COPY, FROZEN = "cl2gec-demo", "copying", "frozen base"
OTHERS = {
    "sequential": "sequential",
    "ewc": {"name": "ewc", "strength": 3000.0, "samples": 60},
    "ogd": {"name": "ogd", "samples": 60},
    "joint": "joint",
}
KEEPS = ("ewc", "ogd", DEMO)


def varied(recipe: Recipe, strategy: object, folder: Path) -> Recipe:
    """The stream's recipe with another strategy, in a folder of its own."""
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    stream = {**content["continual"], "strategy": strategy}
    return load_recipe({**content, "continual": stream, "output": str(folder)})


def measure(seed: int, folder: Path) -> dict[str, float]:
    told = [f"data.split_seed={seed}", f"stages.1.data={{name: 'made:corrections', split_seed: {seed}}}"]
    recipe = load_recipe(
        DEMO, [*told, f"training.seed={seed}", "training.device=cpu", f"output={folder}/demo"]
    )
    (_, base), (_, stream) = stages_of(recipe)
    run(base, callbacks=[])
    rows = {DEMO: stream, **{name: varied(stream, how, folder / name) for name, how in OTHERS.items()}}
    metrics = {name: run_continual(one, callbacks=[]).metrics for name, one in rows.items()}
    found = {name: of["domain_average"] for name, of in metrics.items()}
    first = load_run(Path(base.output.folder))
    test = load_splits("made:corrections", split_seed=seed)["test"]
    pairs = read_corrections(test, "test")
    sources, references = [s for s, _ in pairs], [r for _, r in pairs]
    written = first.task.predict(first.model, first.processor, sources, 64)
    found[FROZEN] = corpus(sources, [one["correction"] for one in written], references).f()
    found[COPY] = corpus(sources, sources, references).f()
    for name, of in metrics.items():
        if name != "joint":
            found |= {f"{name}: bwt": of["domain_bwt"], f"{name}: when new": of["domain_plasticity"]}
    return found


def also(seen: Sequence[Seen]) -> dict[str, bool]:
    def all_of(holds: object) -> bool:
        return all(holds(one) for one in seen)  # type: ignore[operator]

    told = {
        "sequential forgets: its BWT is below 0": all_of(lambda one: one["sequential: bwt"] < 0),
        "all at once is the upper bound": all_of(
            lambda one: one["joint"] >= max(one[n] for n in (*KEEPS, "sequential")) - 0.02
        ),
    }
    for name in KEEPS:
        told[f"{name}: BWT above sequential's"] = all_of(
            lambda one, n=name: one[f"{n}: bwt"] > one["sequential: bwt"]
        )
        told[f"{name}: learns the new at 0.95 of sequential or more"] = all_of(
            lambda one, n=name: one[f"{n}: when new"] >= 0.95 * one["sequential: when new"]
        )
    return told


if __name__ == "__main__":
    ahead = {FROZEN: 0.3, COPY: 0.3, "sequential": 0.02}
    demo = Demo(DEMO, "F0.5, mean of five disciplines", FROZEN, COPY, ahead, measure, also)
    main(demo, "python benchmarks/systems/cl2gec.py", __doc__)
