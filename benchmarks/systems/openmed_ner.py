"""OpenMed NER: pre-training on a domain's texts with LoRA, then LoRA for its entities (Panahi 2025, arXiv:2508.01630).

    python benchmarks/systems/openmed_ner.py [--seeds 3]                                     # recipe openmed-demo in full
    python benchmarks/systems/openmed_ner.py --data FOLDER [--rows 1500] [--epochs 3]        # data sets in CoNLL form, minilm

The first compares entity F1 on test over the seeds: the recipe, the same without the texts, the frozen base with a new head, and a list of the
entities seen in training. It asserts that the recipe beats base and list by a tenth, that the perplexity falls by 15 %, and prints whether the
texts helped. The second takes every folder in FOLDER with train, validation (or devel) and test files (.tsv, .tsv.gz).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptome.data import load_splits
from adaptome.recipe import load_recipe, stages_of
from adaptome.tasks.metrics import span_metrics
from adaptome.tasks.spans import entities
from adaptome.training import run, run_stages

MARGIN = 0.10


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


def demo(seed: int, folder: str) -> dict[str, float]:
    """F1 by row, and the perplexity before and after, of one seed."""
    changes = [
        f"training.seed={seed}",
        f"data.split_seed={seed}",
        f"output={folder}/{seed}",
        "training.device=cpu",
    ]
    both = load_recipe(
        "openmed-demo", [*changes, f"stages.1.data={{name: 'made:biomedical-entities', split_seed: {seed}}}"]
    )
    found = run_stages(both, [])
    texts, ner = found.stages.values()
    alone = stages_of(both)[1][1].model_copy(update={"start": None})
    probe = alone.model_copy(update={"methods": [type(alone.methods[0])(name="linear-probe")]})
    values = {"OpenMed NER": ner.metrics["f1"]}
    for label, recipe in (("without the texts", alone), ("frozen base", probe)):
        output = recipe.output.model_copy(update={"folder": f"{folder}/{seed}/{label.replace(' ', '-')}"})
        values[label] = run(recipe.model_copy(update={"output": output}), []).metrics["f1"]
    splits = load_splits("made:biomedical-entities", split_seed=seed)
    values["list of entities"] = listed(splits["train"].rows, splits["test"].rows)["f1"]
    values |= {k: texts.metrics[k] for k in ("perplexity_before", "perplexity")}
    print(f"seed {seed}: " + ", ".join(f"{k} {v:.4f}" for k, v in values.items()), flush=True)
    print(f"  {texts.seconds + ner.seconds:.0f} s of training, {ner.trainable_parameters:,} parameters in stage 2", flush=True)  # fmt: skip
    return values


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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--epochs", type=float, default=3)
    asked = parser.parse_args()
    if asked.data is not None:
        on_files(asked.data, asked.rows, asked.epochs, asked.only)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        seen = [demo(seed, folder) for seed in range(asked.seeds)]
    for key in seen[0]:
        values = [s[key] for s in seen]
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        print(f"{key:20} {statistics.fmean(values):.4f}{spread}")
    mean = {key: statistics.fmean(s[key] for s in seen) for key in seen[0]}
    holds = {
        "beats the frozen base by a tenth": mean["OpenMed NER"] >= mean["frozen base"] + MARGIN,
        "beats the list by a tenth": mean["OpenMed NER"] >= mean["list of entities"] + MARGIN,
        "perplexity falls by 15 %": mean["perplexity"] <= 0.85 * mean["perplexity_before"],
        "the texts do not harm": mean["OpenMed NER"] >= mean["without the texts"],
    }
    for claim, true in holds.items():
        print(f"{claim}: {'yes' if true else 'no'}")
    return 0 if all(holds.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
