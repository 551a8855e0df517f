"""The recipe `openmed-demo` in full: texts of a made-up biomedicine read with LoRA, then its entities learned (Panahi 2025, arXiv:2508.01630).

    python benchmarks/systems/openmed_ner.py [--seeds 3]
    python benchmarks/systems/openmed_ner.py --data FOLDER [--only NAME ...] [--rows 1500] [--epochs 3]      # data sets in CoNLL form, minilm

The first compares entity F1 on test: the recipe, the same without the texts, the frozen base with a new head, and a list of the entities seen in
training. Exit code 1 unless the recipe beats base and list by a tenth in every seed, the perplexity falls by 15 % in every seed, and the texts do not
harm on average. The second takes every folder in FOLDER with train, validation (or devel) and test files (.tsv, .tsv.gz).
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _demo import Demo, Seen, arguments, carry_out

from adaptome.data import load_splits
from adaptome.recipe import load_recipe, stages_of
from adaptome.tasks.metrics import span_metrics
from adaptome.tasks.spans import entities
from adaptome.training import run, run_stages

DEMO, BASE, LIST, ALONE = "openmed-demo", "frozen base", "list of entities", "without the texts"
BEFORE, AFTER = "perplexity before", "perplexity after"


def listed(train: Any, test: Any) -> dict[str, float]:
    """Metrics of looking entities up: the longest run of words that was an entity in training, with its most frequent type."""
    seen: dict[tuple[str, ...], Counter[str]] = {}
    for words, tags in zip(train["tokens"], train["tags"], strict=True):
        for one in entities(tags):
            seen.setdefault(tuple(words[one["start"] : one["end"]]), Counter())[one["type"]] += 1
    longest = max(map(len, seen))
    return span_metrics([_look_up(words, seen, longest) for words in test["tokens"]], test["tags"])


def _look_up(words: Sequence[str], seen: dict[tuple[str, ...], Counter[str]], longest: int) -> list[str]:
    tags, i = ["O"] * len(words), 0
    while i < len(words):
        size = next(
            (n for n in range(min(longest, len(words) - i), 0, -1) if tuple(words[i : i + n]) in seen), 0
        )
        if size:
            kind = seen[tuple(words[i : i + size])].most_common(1)[0][0]
            tags[i : i + size] = [f"B-{kind}", *[f"I-{kind}"] * (size - 1)]
        i += max(size, 1)
    return tags


def measure(seed: int, folder: Path) -> Seen:
    """Entity F1 on test by row, and the perplexity of the domain's texts before and after."""
    changes = [
        f"training.seed={seed}",
        f"data.split_seed={seed}",
        f"output={folder}/both",
        "training.device=cpu",
    ]
    own = f"stages.1.data={{name: 'made:biomedical-entities', split_seed: {seed}}}"
    both = load_recipe(DEMO, [*changes, own])
    texts, ner = run_stages(both, []).stages.values()
    values = {DEMO: ner.metrics["f1"]}
    alone = stages_of(both)[1][1].model_copy(update={"start": None})
    probe = alone.model_copy(update={"methods": [type(alone.methods[0])(name="linear-probe")]})
    for label, recipe in ((ALONE, alone), (BASE, probe)):
        output = recipe.output.model_copy(update={"folder": str(folder / label)})
        values[label] = run(recipe.model_copy(update={"output": output}), []).metrics["f1"]
    splits = load_splits("made:biomedical-entities", split_seed=seed)
    values[LIST] = listed(splits["train"].rows, splits["test"].rows)["f1"]
    return values | {BEFORE: texts.metrics["perplexity_before"], AFTER: texts.metrics["perplexity"]}


def also(seen: Sequence[Seen]) -> dict[str, bool]:
    return {
        "perplexity falls by 15 % in every seed": all(one[AFTER] <= 0.85 * one[BEFORE] for one in seen),
        "the texts do not harm on average": statistics.fmean(one[DEMO] - one[ALONE] for one in seen) >= 0,
    }


def on_files(folder: Path, rows: int, epochs: float, only: list[str]) -> None:
    """Entity F1 on the test split of every data set in a folder, LoRA on minilm."""
    print("data set         precision  recall  f1     list's f1  seconds")
    for place in sorted(p for p in folder.iterdir() if p.is_dir() and (not only or p.name in only)):
        with tempfile.TemporaryDirectory() as out:
            recipe = load_recipe(
                {
                    "model": "minilm",
                    "task": {"name": "token-classification", "max_length": 128},
                    "data": {"name": str(place), "limit": rows},
                    "method": {"name": "lora", "r": 16, "alpha": 32, "dropout": 0.05, "targets": ["q", "k", "v"]},
                    "training": {"epochs": epochs, "batch_size": 16, "learning_rate": 2e-3, "warmup": 0.1, "weight_decay": 0.01, "device": "cpu"},
                    "output": out,
                }
            )  # fmt: skip
            splits = load_splits(str(place), limit=rows, prefer={"tsv": "conll"})
            base = listed(splits["train"].rows, splits["test"].rows)["f1"]
            found = run(recipe, [])
            m = found.metrics
            print(f"{place.name:16} {m['precision']:.4f}     {m['recall']:.4f}  {m['f1']:.4f} {base:.4f}     {found.seconds:.0f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--epochs", type=float, default=3)
    asked = parser.parse_args()
    if asked.data is not None:
        on_files(asked.data, asked.rows, asked.epochs, asked.only)
        sys.exit(0)
    demo = Demo(DEMO, "entity F1", BASE, LIST, {BASE: 0.1, LIST: 0.1}, measure, also)
    sys.exit(carry_out(demo, asked.seeds, "python benchmarks/systems/openmed_ner.py"))
