"""The recipe `conpet-demo` in full: 15 relations learned three at a time (Song et al. 2023, arXiv:2309.14763).

    python benchmarks/systems/conpet.py [--seeds 3]

Accuracy among all labels after the last task, no task told. Beside the recipe, which is the dynamic form, stand the static one; one adapter trained on
each task in turn, with as many steps as the static form has; the recipe's own modules without its selector, all of them answering; modules that were
trained to answer side by side; the frozen decoder under a head, sampled as the static form; and naive Bayes over the words, which is given all
relations at once. That the cost of a task does not grow with the number of tasks before it is measured in steps, and in seconds of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _demo import Demo, Seen, main

from adaptome.data import load_splits
from adaptome.recipe import Recipe, load_recipe, stages_of
from adaptome.training import evaluate, run, run_continual

DEMO, BATCHES = "conpet-demo", 24
STATIC, ALL, BARE = "conpet-static", "all modules", "its modules, no selector"
SECOND, LAST = "second task, s", "last task, s"


def varied(recipe: Recipe, folder: Path, strategy: dict[str, Any], **changes: Any) -> Recipe:
    """The stream's recipe with another strategy, in a folder of its own."""
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    content["continual"]["strategy"] = strategy
    content["training"] |= changes.pop("training", {})
    return load_recipe({**content, **changes, "output": str(folder)})


def naive_bayes(seed: int) -> float:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    splits = load_splits("made:relations", split_seed=seed)
    texts = {k: [" ".join(words) for words in splits[k].rows["tokens"]] for k in ("train", "test")}
    counts = CountVectorizer().fit(texts["train"])
    fitted = MultinomialNB().fit(counts.transform(texts["train"]), splits["train"].rows["label"][:])
    return float(fitted.score(counts.transform(texts["test"]), splits["test"].rows["label"][:]))


def seconds(history: Sequence[dict[str, Any]], runs: int) -> list[float]:
    """Of training, a figure for each of the tasks, of which all but the first have so many runs of the Trainer."""
    took = [entry["train_runtime"] for entry in history if "train_runtime" in entry]
    return [took[0], *(sum(took[i : i + runs]) for i in range(1, len(took), runs))]


def measure(seed: int, folder: Path) -> dict[str, float]:
    told = [f"data.split_seed={seed}", f"stages.1.data={{name: 'made:relations', split_seed: {seed}}}"]
    recipe = load_recipe(DEMO, [*told, f"training.seed={seed}", "training.device=cpu", f"output={folder}/demo"])  # fmt: skip
    (_, base), (_, stream) = stages_of(recipe)
    run(base, callbacks=[])
    steps = round(BATCHES * stream.training.epochs)
    static = {"name": STATIC, "batches": BATCHES}
    rows = {
        DEMO: stream,
        STATIC: varied(stream, folder / "static", static),
        "sequential": varied(stream, folder / "seq", {"name": "sequential"}, training={"max_steps": steps}),
        ALL: varied(stream, folder / "all", {"name": "conpet-dynamic", "batches": BATCHES, "active": 99}),
        "frozen decoder": varied(stream, folder / "frozen", static, methods=["linear-probe"]),
    }
    found, made = {}, {}
    for name, one in rows.items():
        made[name] = run_continual(one, callbacks=[])
        found[name] = made[name].metrics["class_whole"]
    found[BARE] = evaluate(stream.output.folder, overrides=["continual.strategy.active=99"])["accuracy"]
    found["naive Bayes"] = naive_bayes(seed)
    took = seconds(made[DEMO].history, 2)
    flat = all(len(set(made[name].continual["steps"][1:])) == 1 for name in (DEMO, STATIC, ALL))  # type: ignore[index]
    return found | {"steps alike for every task": float(flat), SECOND: took[1], LAST: took[-1]}


def also(seen: Sequence[Seen]) -> dict[str, bool]:
    return {
        "every task after the first takes the same number of steps": all(one["steps alike for every task"] for one in seen),
        "training the last task takes no more than 1.5 times the second's": sum(one[LAST] for one in seen)
        <= 1.5 * sum(one[SECOND] for one in seen),
        "the static form is ahead of sequential by 0.3 at the same steps": all(
            one[STATIC] >= one["sequential"] + 0.3 for one in seen
        ),
    }  # fmt: skip


if __name__ == "__main__":
    ahead = {"sequential": 0.3, BARE: 0.1, ALL: 0.0, "frozen decoder": 0.1, "naive Bayes": 0.1}
    demo = Demo(DEMO, "accuracy after the last task", "frozen decoder", "naive Bayes", ahead, measure, also)
    main(demo, "python benchmarks/systems/conpet.py", __doc__)
