"""What gathering buys: the time of an MLP's last map on the columns that are not zero, over the dense one's, at each density.

    python benchmarks/sparse_mlp.py                          # 1024 -> 4096 -> 1024 (RoBERTa-large's MLP), a minute on one core
    python benchmarks/sparse_mlp.py --tokens 1 --hidden 2048

A column counts as zero when it is for every token of the batch: `shared` activations have their zeros in the same units (dead ones), `scattered`
ones where chance puts them, token by token. The density is that of the activations. Times are medians of rounds that run dense and gathered in turn; above 1
is faster. `map` is the last map alone, finding the zeros counted; `mlp` is both maps and the ReLU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from adaptome.sparsity import GatheredLinear

DENSITIES = (1.0, 0.5, 0.25, 0.1, 0.05, 0.01)


def activations(tokens: int, units: int, density: float, shared: bool, seed: int = 0) -> Tensor:
    """`[tokens, units]`, positive where they are not zero."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(tokens, units, generator=generator) + 0.1
    chance = torch.rand(1 if shared else tokens, units, generator=generator)
    return values * (chance < density)


def ratio(dense: Callable[[], object], other: Callable[[], object], rounds: int) -> float:
    """Time of the first over that of the second: the median of rounds, each of both in turn."""
    seen = []
    for number in range(rounds + 2):
        begin = time.perf_counter()
        dense()
        middle = time.perf_counter()
        other()
        if number >= 2:  # the first ones warm up
            seen.append((middle - begin) / (time.perf_counter() - middle))
    return statistics.median(seen)


@torch.no_grad()
def measured(hidden: int, units: int, tokens: int, rounds: int) -> list[dict[str, float | str]]:
    """One row for each density and kind of zeros."""
    up, down = nn.Linear(hidden, units), nn.Linear(units, hidden)
    x, rows = torch.randn(tokens, hidden), []
    for kind in ("shared", "scattered"):
        for density in DENSITIES:
            o = activations(tokens, units, density, kind == "shared")
            gathered = GatheredLinear(down.weight, down.bias, most=1.0)
            error = float((gathered(o) - down(o)).abs().max())
            share = gathered.saved.share
            rows.append(
                {
                    "zeros": kind, "density": density, "skipped": share, "error": error,
                    "map": ratio(lambda o=o: down(o), lambda o=o, g=gathered: g(o), rounds),
                    "mlp": ratio(
                        lambda o=o: (torch.relu(up(x)), down(o)), lambda o=o, g=gathered: (torch.relu(up(x)), g(o)), rounds
                    ),
                }
            )  # fmt: skip
    return rows


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--units", type=int, default=4096)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    found = {tokens: measured(args.hidden, args.units, tokens, args.rounds) for tokens in args.tokens}
    if args.json:
        print(json.dumps(found, indent=1))
        return 0
    print("tokens  zeros      density  skipped  speed-up: map   mlp   largest error")
    for tokens, rows in found.items():
        for row in rows:
            print(
                f"{tokens:6}  {row['zeros']:9}  {row['density']:7.2f}  {row['skipped']:7.1%}  {row['map']:13.2f}  {row['mlp']:4.2f}   {row['error']:.0e}"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
