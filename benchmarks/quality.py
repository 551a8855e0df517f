"""Quality at equal cost: every method that MiniLM admits on texts, beside PEFT's LoRA and full fine-tuning, over several seeds.

    python benchmarks/quality.py --data DATA                              # all sets, all methods, 3 seeds: hours on a CPU
    python benchmarks/quality.py --data DATA --sets sst2 trec --methods lora dora mos --rows 500 --seeds 2 --epochs 1
    python benchmarks/quality.py --data DATA --trials 8 --jobs 4          # with a learning rate of its own for each method

DATA holds a folder for each set (sst2, trec, cola, mrpc, ag_news) with train, validation and test as jsonl or jsonl.gz: text, or text_a and
text_b, and label. The study is `adaptome compare`'s: its runs, seeds, paired tests, table and page are in OUT/<set>, and it goes on where it was
stopped. PEFT's LoRA (the rank that the budget names, or 8) and full fine-tuning are trained by transformers' own Trainer on the same batches and
stand in the same table. A method without a size takes its own; what MiniLM does not admit is told with the reason.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import transformers

import adaptome as ad
from adaptome.compare import Comparison, Row, compare
from adaptome.compare.page import page, verdict
from adaptome.compare.results import markdown
from adaptome.compare.table import half_width
from adaptome.core.errors import AdaptomeError
from adaptome.core.files import write_atomic
from adaptome.recipe import Recipe, load_recipe
from adaptome.training.arguments import training_arguments
from adaptome.training.building import base_model, prepared
from adaptome.training.memory import PeakMemory
from adaptome.training.runs import plans

#: set -> its columns where they are not text and label
SETS: dict[str, dict[str, str]] = {
    "sst2": {}, "trec": {}, "cola": {}, "mrpc": {"text": "text_a", "text_pair": "text_b"}, "ag_news": {},
}  # fmt: skip
PEFT, FULL = "PEFT lora", "full fine-tuning"


def content(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The recipe of a set, without its methods."""
    folder = args.data / name
    files = {split: next(iter(sorted(folder.glob(f"{split}.jsonl*"))), None) for split in ("train", "validation", "test")}  # fmt: skip
    missing = [split for split, file in files.items() if file is None]
    if missing:
        raise SystemExit(f"{folder} has no {', '.join(missing)}: needed are train, validation and test as jsonl or jsonl.gz.")  # fmt: skip
    return {
        "title": f"MiniLM on {name}",
        "model": "minilm",
        "task": {"name": "text-classification", "max_length": args.length},
        "data": {
            **{k: str(v) for k, v in files.items()},
            "columns": SETS[name],
            **({"limit": args.rows} if args.rows else {}),
        },
        "training": {
            "epochs": args.epochs, "batch_size": 32, "learning_rate": args.rate, "keep_best": False, "logging_steps": 10,
            "device": args.device,
        },
        "evaluation": {"batch_size": 64, "examples": 0},
        "output": str(args.out / name),
    }  # fmt: skip


def admitted(
    base: dict[str, Any], names: list[str], budget: str
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows for the methods that go with the model, and why the others do not."""
    found, refused = [], {}
    for name in names:
        if ad.get_method(name).example_facts()[0]:
            refused[name] = "asks for facts of a batch that texts do not have"
            continue
        for size in (budget, None):
            section = {"name": name, **({"budget": size} if size else {"label": f"{name} (own size)"})}
            try:
                recipe = load_recipe({**base, "compare": {"methods": [section]}})
                assert recipe.compare is not None
                plans(recipe, recipe.compare.methods)
            except AdaptomeError as error:
                refused[name] = str(error).splitlines()[0]
                continue
            refused.pop(name, None)
            found.append(section)
            break
    return found, refused


# -- what is laid beside: PEFT's LoRA and the whole model, by transformers' own Trainer ----------------------------------------------


def peft_lora(model: Any, heads: list[str], rank: int) -> Any:
    """PEFT's LoRA on the places of ours; the head trains."""
    import peft

    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["query", "value"], modules_to_save=heads)  # fmt: skip
    return peft.get_peft_model(model, config)


def beside(
    recipe: Recipe, label: str, prepare: Callable[[Any, list[str]], Any], rate: float, seed: int
) -> dict[str, Any]:
    """One run of a model that `prepare` made, its metrics on test; read where it is there already."""
    folder = Path(recipe.output.folder) / label.replace(" ", "-") / f"seed-{seed}"
    stored, asked = folder / "metrics.json", recipe.model_dump(mode="json", exclude={"output", "compare"})
    asked |= {"rate": rate, "seed": seed}
    if stored.exists():
        known = json.loads(stored.read_text(encoding="utf-8"))
        if known["asked"] == asked:
            return dict(known)
    training = recipe.training.model_copy(update={"learning_rate": rate, "seed": seed})
    output = recipe.output.model_copy(update={"folder": str(folder)})
    one = recipe.model_copy(update={"training": training, "output": output})
    peak = PeakMemory()
    task, processor, _, data = prepared(one)
    model, _, _ = base_model(one, task, processor)
    model = prepare(model, task.head_patterns(model))
    settings = {**training_arguments(one, task, data), "eval_strategy": "no", "save_strategy": "no"}
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(**settings),
        train_dataset=data["train"],
        data_collator=data.collator,
        processing_class=processor,
        compute_metrics=task.metrics,
        preprocess_logits_for_metrics=task.reduce,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    found = trainer.evaluate(data["test"], metric_key_prefix="test")
    parameters = [(p.numel(), p.requires_grad) for p in model.parameters()]
    made = {
        "asked": asked,
        "metrics": {k.removeprefix("test_"): v for k, v in found.items() if k.startswith("test_")},
        "seconds": seconds,
        "steps": trainer.state.global_step,
        "history": trainer.state.log_history,
        "memory": peak.bytes(),
        "trained": sum(n for n, trains in parameters if trains),
        "total": sum(n for n, _ in parameters),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(stored, json.dumps(made))
    return made


def row_of(label: str, rate: float, metric: str, runs: list[dict[str, Any]]) -> Row:
    """The runs of `beside` as a row of the table."""
    values = [float(run["metrics"][metric]) for run in runs]
    mean, half = statistics.fmean(values), half_width(values)
    low, high = (None, None) if half is None else (mean - half, mean + half)
    seconds = statistics.fmean(run["seconds"] for run in runs)
    return Row(
        label, label, None, runs[0]["trained"], runs[0]["trained"] / runs[0]["total"], rate, values, mean, low, high, seconds,
        runs[0]["history"], step_seconds=seconds / runs[0]["steps"], memory=max(run["memory"] for run in runs),
    )  # fmt: skip


def study(name: str, args: argparse.Namespace) -> Comparison:
    """A set's comparison with what is laid beside it, written over the one that `compare` wrote."""
    base = content(name, args)
    sections, refused = admitted(base, args.methods or list(ad.list_methods()), args.budget)
    for method, why in refused.items():
        print(f"{name}: {method} is left out: {why}", flush=True)
    section = {"methods": sections, "seeds": list(range(args.seeds)), "trials": args.trials}
    recipe = load_recipe({**base, "compare": section})
    found = compare(recipe, tell=lambda line: print(f"{name}: {line}", flush=True), callbacks=[], jobs=args.jobs)  # fmt: skip
    if args.no_beside:
        return found
    rank = int(args.budget.partition("r=")[2] or 8) if args.budget.startswith("lora:") else 8
    kinds: dict[str, tuple[Callable[[Any, list[str]], Any], float]] = {
        PEFT: (lambda model, heads: peft_lora(model, heads, rank), args.rate),
        FULL: (lambda model, heads: model, args.full_rate),
    }
    rows = list(found.rows)
    for label, (prepare, rate) in kinds.items():
        runs = []
        for seed in found.seeds:
            print(f"{name}: {label}, seed {seed}", flush=True)
            runs.append(beside(recipe, label, prepare, rate, seed))
        rows.append(row_of(label, rate, found.metric, runs))
    made = replace(found, rows=rows)
    folder, told = Path(found.folder), made.to_dict()
    write_atomic(folder / "comparison.json", json.dumps(told, indent=1))
    write_atomic(folder / "results.md", markdown(told))
    page(told, recipe.title).write(folder / "report.html")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each set")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--methods", nargs="+", help="default: every one that the model admits")
    parser.add_argument("--rows", type=int, help="at most so many of each split")
    parser.add_argument("--budget", default="lora:r=8", help="trained numbers of each method")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--length", type=int, default=128, help="tokens of a text at most")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of the methods")
    parser.add_argument("--full-rate", type=float, default=5e-5, help="learning rate of full fine-tuning")
    parser.add_argument("--trials", type=int, default=0, help="runs in search of each method's own rate")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--no-beside", action="store_true", help="without PEFT and full fine-tuning")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"), help="for the runs and tables")
    parser.add_argument("--json", action="store_true", help="one JSON object a row on the last lines")
    args = parser.parse_args()
    studies = {name: study(name, args) for name in args.sets}
    for name, found in studies.items():
        if not args.json:
            print(f"\n{name}: {found.metric}, {len(found.seeds)} seeds. {verdict(found.to_dict())}")
        for row in found.ranking:
            print(json.dumps({"set": name, "method": row.label, "trained": row.parameters, "metric": found.metric, "values": row.values, "mean": row.mean, "low": row.low, "ms": 1e3 * row.step_seconds, "mib": row.memory / 2**20}) if args.json else line(row))  # fmt: skip


def line(row: Row) -> str:
    """A row as text."""
    half = "" if row.low is None else f" ± {row.mean - row.low:.4f}"
    return f"{row.label:28} {row.parameters:11,} {row.mean:8.4f}{half:10} {1e3 * row.step_seconds:8.1f} ms a step"


if __name__ == "__main__":
    main()
