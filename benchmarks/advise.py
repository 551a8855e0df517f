"""What `adaptome advise` foretells against what training then took: peak memory and seconds a step, each in a process of its own.

    python benchmarks/advise.py                        # every case; minutes on a CPU
    python benchmarks/advise.py --only bert-512 --only llama --steps 12
    python benchmarks/advise.py --only bert-512/lora --json

A case is a model on made-up text with a method. One process foretells it, with a few real steps; another trains it from its recipe and
tells its peak (all of the process: libraries, base and step) and the mean time of its steps, the first left out. The targets are 10 % of the
memory and 25 % of the time. `above` is the error of what comes on top of the libraries, which in small cases are most of the process.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MEMORY, TIME = 0.10, 0.25
BERT = {"model_type": "bert", "num_attention_heads": 8}
MODELS: dict[str, dict[str, Any]] = {
    "bert-256": {**BERT, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4},
    "bert-512": {**BERT, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8},
    "llama-384": {
        "model_type": "llama", "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6,
        "num_key_value_heads": 6, "vocab_size": 30522, "use_cache": False,
    },
}  # fmt: skip
#: case -> method, and changes of the recipe
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-256/lora": ("lora", {}),
    "bert-256/series": ("series", {}),
    "bert-512/lora": ("lora", {}),
    "bert-512/dora": ("dora", {}),
    "bert-512/bitfit": ("bitfit", {}),
    "bert-512/ia3": ("ia3", {}),
    "bert-512/lora-checkpointed": ("lora", {"gradient_checkpointing": True}),
    "bert-512/lora-accumulated": ("lora", {"batch_size": 8, "gradient_accumulation": 2}),
    "bert-512/lora-mixed": ("lora", {"bf16": True}),
    "llama-384/lora": ("lora", {}),
    "llama-384/paca": ("paca", {}),
}


def recipe(case: str, folder: Path, steps: int) -> dict[str, Any]:
    """The recipe of a case, with its data in the folder."""
    method, changes = CASES[case]
    model = case.partition("/")[0]
    draw = random.Random(0)
    words = "the a of in sun moon cat dog river stone walks sings sleeps and but old new small".split()
    lines = [
        {"text": " ".join(draw.choices(words, k=draw.randint(20, 120))), "label": ("one", "two")[i % 2]}
        for i in range(512)
    ]
    data = folder / "train.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    training = {"max_steps": steps, "batch_size": 16, "device": "cpu", "logging_steps": 1000, **changes}
    return {
        "model": {"from_config": MODELS[model], "tokenizer": "minilm"},
        "task": "text-classification" if model.startswith("bert") else "causal-lm",
        "data": {"train": str(data), "validation_fraction": 0},
        "methods": [method],
        "training": training,
        "evaluation": {"split": "none"},
        "output": str(folder / "run"),
    }


def foretold(content: dict[str, Any]) -> dict[str, Any]:
    """What advise says of a recipe."""
    from adaptome.compare.advice import advise
    from adaptome.recipe import load_recipe

    began = time.perf_counter()
    case = advise(load_recipe(content)).cases[0]
    return {
        "memory": case.memory.total,
        "libraries": case.memory.libraries,
        "step": case.step_seconds,
        "took": time.perf_counter() - began,
    }


def trained(content: dict[str, Any]) -> dict[str, Any]:
    """What training it takes."""
    from transformers import TrainerCallback

    from adaptome.recipe import load_recipe
    from adaptome.training import run

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.since = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter() - self.since)

    found = run(load_recipe(content), [Clock()])
    return {"memory": found.peak_memory_bytes, "step": statistics.fmean(times[1:])}


def apart(what: str, content: dict[str, Any]) -> dict[str, Any]:
    """`foretold` or `trained` in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--inside", what],
        input=json.dumps(content),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def row(case: str, steps: int) -> dict[str, Any]:
    """A case: what was foretold, what came, and the errors as shares of what came."""
    with tempfile.TemporaryDirectory() as folder:
        content = recipe(case, Path(folder), steps)
        said, came = apart("foretold", content), apart("trained", content)
    above = came["memory"] - said["libraries"]
    return {
        "case": case,
        "foretold_mib": said["memory"] / 2**20,
        "trained_mib": came["memory"] / 2**20,
        "memory_error": said["memory"] / came["memory"] - 1,
        "above_error": (said["memory"] - said["libraries"]) / above - 1,
        "foretold_ms": 1e3 * said["step"],
        "trained_ms": 1e3 * came["step"],
        "time_error": said["step"] / came["step"] - 1,
        "seconds": said["took"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", help="cases that begin so; may be repeated")
    parser.add_argument("--steps", type=int, default=16, help="of training")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--inside", choices=("foretold", "trained"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        print(json.dumps({"foretold": foretold, "trained": trained}[args.inside](json.load(sys.stdin))))
        return 0
    chosen = [c for c in CASES if not args.only or any(c.startswith(start) for start in args.only)]
    if not args.json:
        print(f"{'case':28} {'foretold':>9} {'trained':>9} {'error':>7} {'above':>7} | {'foretold':>9} {'trained':>9} {'error':>7} | advice")  # fmt: skip
    met = True
    for case in chosen:
        found = row(case, args.steps)
        met &= abs(found["memory_error"]) <= MEMORY and abs(found["time_error"]) <= TIME
        print(json.dumps(found) if args.json else text(found), flush=True)
    if not args.json:
        print(f"memory within {MEMORY:.0%} and time within {TIME:.0%}: {'yes' if met else 'no'}")
    return 0


def text(found: dict[str, Any]) -> str:
    """A line of the table."""
    return (
        f"{found['case']:28} {found['foretold_mib']:5,.0f} MiB {found['trained_mib']:5,.0f} MiB {found['memory_error']:+7.1%} "
        f"{found['above_error']:+7.1%} | {found['foretold_ms']:6,.0f} ms {found['trained_ms']:6,.0f} ms {found['time_error']:+7.1%} | {found['seconds']:.0f} s"
    )


if __name__ == "__main__":
    raise SystemExit(main())
