"""How a training step grows: its time and memory against hidden size, depth, length, rank and number of adapters, with fitted exponents.

    python benchmarks/scaling.py                               # lora; minutes on a CPU
    python benchmarks/scaling.py lora dora vera --axes hidden rank --rounds 5
    python benchmarks/scaling.py --axes adapters --json

One size at a time is varied on a small Llama whose linear layers are all adapted; the others stay where they are. Time is the fastest of the
rounds of a forward and backward, `kept` the bytes that autograd keeps for it. The exponent is the slope of a straight line through the
logarithms: 1 doubles with the size, 2 quadruples. `over` is the same of what comes on top of the frozen floor, where that grows by more than noise.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any

import torch
from step import kept, open_input, step
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import adaptome as ad

SIZES: dict[str, int] = {"hidden": 256, "depth": 4, "length": 64, "rank": 8, "adapters": 1}
AXES: dict[str, tuple[int, ...]] = {
    "hidden": (128, 256, 512, 768),
    "depth": (2, 4, 8, 16),
    "length": (32, 64, 128, 256),
    "rank": (4, 16, 64, 128),
    "adapters": (1, 2, 4, 8),
}
BATCH, VOCABULARY = 2, 1000


def model_of(sizes: dict[str, int], method: str | None) -> nn.Module:
    """The small Llama, with as many adapters of the method as asked for, all active."""
    torch.manual_seed(0)
    hidden = sizes["hidden"]
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=sizes["depth"], num_attention_heads=4,
        num_key_value_heads=4, vocab_size=VOCABULARY, use_cache=False,
    )  # fmt: skip
    model = open_input(LlamaForCausalLM(config).train().requires_grad_(False))
    if method is None:
        return model
    settings = {"r": sizes["rank"]} if "r" in ad.get_method(method).settings() else {}
    names = [f"a{k}" for k in range(sizes["adapters"])]
    for k, name in enumerate(names):
        ad.attach(model, method, name, targets="all-linear", seed=k, **settings)
    ad.activate(model, names)
    for name in names:
        ad.set_trainable(model, name)
    ad.on_step(model, 0, 1000)
    return model


def measured(sizes: dict[str, int], method: str | None, rounds: int) -> dict[str, float]:
    """Milliseconds of a step and bytes that it keeps."""
    model = model_of(sizes, method)
    ids = torch.randint(VOCABULARY, (BATCH, sizes["length"]))
    inputs = {"input_ids": ids, "labels": ids}
    size = kept(model, inputs)
    best = math.inf
    for _ in range(rounds + 1):
        start = time.perf_counter()
        step(model, inputs)
        best = min(best, time.perf_counter() - start)
    return {"ms": 1e3 * best, "kept": float(size)}


def exponent(xs: list[int], ys: list[float]) -> float | None:
    """Slope of log y over log x by least squares; None where a y is not positive."""
    if min(ys) <= 0:
        return None
    lx, ly = [math.log(x) for x in xs], [math.log(y) for y in ys]
    mx, my = sum(lx) / len(lx), sum(ly) / len(ly)
    return sum((a - mx) * (b - my) for a, b in zip(lx, ly, strict=True)) / sum((a - mx) ** 2 for a in lx)


def row(method: str, axis: str, rounds: int) -> dict[str, Any]:
    """One method along one axis."""
    sizes, floors, found = AXES[axis], [], []
    for value in sizes:
        point = {**SIZES, axis: value}
        floors.append(measured(point, None, rounds))
        found.append(measured(point, method, rounds))
    told: dict[str, Any] = {"method": method, "axis": axis, "sizes": list(sizes)}
    for what in ("ms", "kept"):
        own = [one[what] for one in found]
        over = [one[what] - floor[what] for one, floor in zip(found, floors, strict=True)]
        told |= {what: own, f"{what}_floor": [f[what] for f in floors], f"{what}_exponent": exponent(list(sizes), own), f"{what}_over": exponent(list(sizes), over)}  # fmt: skip
    return told


def text(told: dict[str, Any]) -> str:
    """A line of the table."""

    def cell(value: float | None) -> str:
        return f"{'-':>6}" if value is None else f"{value:6.2f}"

    times = " ".join(f"{value:8.1f}" for value in told["ms"])
    sizes = " ".join(f"{value / 2**20:8.2f}" for value in told["kept"])
    return (
        f"{told['method']:12} {told['axis']:8} | {times} | {cell(told['ms_exponent'])} {cell(told['ms_over'])} | "
        f"{sizes} | {cell(told['kept_exponent'])} {cell(told['kept_over'])}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*", default=["lora"], help="default: lora")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    args = parser.parse_args()
    if not args.json:
        for axis in args.axes:
            print(f"{axis}: {', '.join(map(str, AXES[axis]))}")
        print(f"{'method':12} {'axis':8} | {'ms by size':35} | {'slope':>6} {'over':>6} | {'kept MiB by size':35} | {'slope':>6} {'over':>6}")  # fmt: skip
    for method in args.methods:
        for axis in args.axes:
            told = row(method, axis, args.rounds)
            print(json.dumps(told) if args.json else text(told), flush=True)


if __name__ == "__main__":
    main()
