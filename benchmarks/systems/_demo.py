"""What the demonstrations of systems share: seeds, a table, margins, and the stored figure that the README shows.

Every script here carries out a recipe of the package in full, beside the frozen base and something trivial, and is run alone:

    python benchmarks/systems/gend.py [--seeds 3]

It prints a row for each with mean and spread over the seeds, a line for each part of what it asserts, and exits with 1 when a part does not hold. With
three seeds or more it writes `benchmarks/results/systems/<recipe>.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parents[1] / "results" / "systems"
#: seeds from which on a spread is told and the figures are kept
KEPT = 3

#: label -> figure of one seed; the first is the recipe's
Seen = Mapping[str, float]


@dataclass(frozen=True)
class Demo:
    """A demonstration and what is asserted of it.

    Args:
        recipe: its name.
        metric: what the figures are, greater being better.
        base: the label of the frozen base's row.
        trivial: that of what needs no model.
        ahead: label -> by how much the recipe is above it, in every seed.
        measure: seed and an empty folder -> the rows; the recipe's stands under its name.
        also: what else is asserted of all seeds: a sentence, and whether it holds.
    """

    recipe: str
    metric: str
    base: str
    trivial: str
    ahead: Mapping[str, float]
    measure: Callable[[int, Path], Seen]
    also: Callable[[Sequence[Seen]], Mapping[str, bool]] = field(default=lambda seen: {})

    def judge(self, seen: Sequence[Seen]) -> dict[str, bool]:
        """What is asserted, and whether it holds."""
        margins = {
            f"ahead of {label} by {by:g} in every seed": all(
                one[self.recipe] >= one[label] + by for one in seen
            )
            for label, by in self.ahead.items()
        }
        return margins | dict(self.also(seen))


def stored(demo: Demo, seen: Sequence[Seen], command: str) -> dict[str, Any]:
    """What the file holds: the three figures that the README shows, every row of every seed, and what was asserted."""
    rows = {label: [one[label] for one in seen] for label in seen[0]}
    return {
        "metric": demo.metric,
        "value": statistics.fmean(rows[demo.recipe]),
        "values": rows[demo.recipe],
        "base": statistics.fmean(rows[demo.base]),
        "trivial": statistics.fmean(rows[demo.trivial]),
        "trivial_is": demo.trivial,
        "command": command,
        "rows": rows,
        "asserted": demo.judge(seen),
        "torch": torch.__version__.partition("+")[0],
    }


def carry_out(demo: Demo, seeds: int, command: str) -> int:
    """Measure every seed, print rows and verdict, keep them; 0 when everything asserted holds, else 1.

    Args:
        command: what prints these figures, from the repository's root.
    """
    seen: list[Seen] = []
    for seed in range(seeds):
        began, worked = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            seen.append(demo.measure(seed, Path(folder)))
        figures = ", ".join(f"{label} {value:.4f}" for label, value in seen[-1].items())
        took = f"{time.perf_counter() - began:.0f} s, {time.process_time() - worked:.0f} s of processor time"
        print(f"seed {seed} ({took}): {figures}", flush=True)
    told = stored(demo, seen, command)
    wide = max(map(len, told["rows"]))
    print(f"{'':{wide}}  {demo.metric}: mean ± standard deviation")
    for label, values in told["rows"].items():
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        print(f"{label:{wide}}  {statistics.fmean(values):.4f}{spread}")
    for part, held in told["asserted"].items():
        print(f"  {'yes' if held else 'no ':3}  {part}")
    if seeds >= KEPT:
        RESULTS.mkdir(parents=True, exist_ok=True)
        path = RESULTS / f"{demo.recipe}.json"
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        print(f"written to {path}")
    return 0 if all(told["asserted"].values()) else 1


def on_seed(seed: int, folder: Path) -> list[str]:
    """Changes to a demonstration's recipe for one seed, its runs in `folder`/demo."""
    return [
        f"data.split_seed={seed}",
        f"training.seed={seed}",
        "training.device=cpu",
        f"output={folder}/demo",
    ]


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The parser of a script; `doc` is the script's own."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seeds", type=int, default=KEPT, help="how many; with three or more the figures are kept"
    )
    return parser


def main(demo: Demo, command: str, doc: str | None) -> None:
    """The whole of a script that takes no more than `--seeds`."""
    sys.exit(carry_out(demo, arguments(doc).parse_args().seeds, command))
