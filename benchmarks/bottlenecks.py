"""What the bottleneck family costs beyond its own arithmetic.

    python benchmarks/bottlenecks.py                      # every method of the family, on the CPU
    python benchmarks/bottlenecks.py pfeiffer convpass --rounds 15

A step with the method is held against the floor of `step.py` (no adapter, frozen weights, gradients of activations alone) plus what the
networks themselves need: each run alone, forward and backward, on activations of the shape that it meets in the model. Every round runs
all three in turn; medians are printed, and the step as a multiple of floor plus own arithmetic.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from step import BATCH, SHAPES, base, open_input, step
from torch import Tensor, nn

import adaptome as ad
from adaptome.forms.insertion import Inserted

METHODS: dict[str, dict[str, Any]] = {
    "series": {}, "parallel": {}, "pfeiffer": {}, "houlsby": {}, "adaptformer": {}, "convpass": {}, "conformer-adapter": {},
    "compacter": {"size": 32}, "soft-moa": {},
}  # fmt: skip


def networks(model: nn.Module, ids: Tensor) -> list[tuple[Inserted, Tensor]]:
    """Every network with activations of the shape that it is given in the model."""
    found: list[tuple[Inserted, Tensor]] = []
    for adapter in ad.adapters(model)["default"].adapters.values():
        if isinstance(adapter, Inserted):
            before = adapter.bypass

            def bypass(h: Tensor, adapter: Any = adapter, before: Any = before) -> Tensor:
                found.append((adapter, torch.randn_like(h).requires_grad_(True)))
                return before(h)  # type: ignore[no-any-return]

            adapter.bypass = bypass  # type: ignore[method-assign]
    with torch.no_grad():
        model(input_ids=ids)
    for adapter, _ in found:
        del adapter.bypass
    return found


def alone(parts: list[tuple[Inserted, Tensor]]) -> None:
    """The networks' own arithmetic: forward and backward, one after the other."""
    for adapter, h in parts:
        made = adapter.bypass(h)
        made.backward(torch.ones_like(made))
        h.grad = None
        adapter.zero_grad(set_to_none=True)


def seconds(run: Callable[[], None]) -> float:
    """One run's time."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(name: str, frozen: nn.Module, ids: Tensor, rounds: int) -> tuple[int, dict[str, list[float]]]:
    """What trains, and the times of the floor, of the networks alone and of the step, round by round."""
    model, floor = copy.deepcopy(frozen), open_input(copy.deepcopy(frozen))
    plan = ad.attach(model, name, seed=0, **METHODS.get(name, {}))
    parts = networks(model, ids)
    open_input(model)
    runs = {"floor": lambda: step(floor, ids), "own": lambda: alone(parts), "step": lambda: step(model, ids)}
    times: dict[str, list[float]] = {key: [] for key in runs}
    for number in range(rounds + 1):
        for key, run in runs.items():
            seen = seconds(run)
            if number:  # the first one warms up
                times[key].append(seen)
    return plan.trainable, times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*", help="default: all of the family")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    frozen = base("small", "cpu", torch.float32)
    ids = torch.randint(SHAPES["small"]["vocab_size"], BATCH["small"])
    print(
        f"{'method':18} {'trainable':>10} {'floor':>9} {'own':>9} {'step':>9}   of the floor   of floor + own"
    )
    for name in args.methods or METHODS:
        count, times = measure(name, frozen, ids, args.rounds)
        rounds = list(zip(times["floor"], times["own"], times["step"], strict=True))
        ratios = [statistics.median(s / (f + k * o) for f, o, s in rounds) for k in (0, 1)]
        columns = " ".join(f"{1e3 * statistics.median(seen):6.0f} ms" for seen in times.values())
        print(f"{name:18} {count:10,} {columns} {ratios[0]:14.2f} {ratios[1]:16.2f}", flush=True)


if __name__ == "__main__":
    main()
