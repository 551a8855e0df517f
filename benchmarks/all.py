"""The evidence in one command: every benchmark of this folder, its rows kept in results/<date>/ for the documentation's page.

    python benchmarks/all.py                           # in full; the minutes of each stand in PARTS
    python benchmarks/all.py --small                   # every part, small: to see it run
    python benchmarks/all.py --only step scaling       # some parts; those of the same day stay
    python benchmarks/all.py --data DATA               # with quality on text sets (see quality.py); without it that part is left out

Each part runs in a process of its own and writes <part>.jsonl, whole or not at all; conditions.json says with what, when and how busy the machine was.
Building the documentation (`make docs`) makes the page with the plots, from the newest rows of each part.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptome.compare.study import versions

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Part:
    """A benchmark: its arguments in full and small, and the minutes it takes in full on two quiet cores."""

    full: tuple[str, ...]
    small: tuple[str, ...]
    minutes: int


PARTS: dict[str, Part] = {
    "step": Part((), ("lora", "ia3", "paca", "--rounds", "3"), 25),
    "scaling": Part(
        ("lora", "dora", "vera", "paca", "series"),
        ("lora", "--axes", "length", "rank", "--rounds", "2"),
        15,
    ),
    "adapters": Part((), ("--counts", "1", "10"), 10),
    "advise": Part((), ("--only", "bert-256/lora", "--steps", "6"), 20),
    "end_to_end": Part((), (), 20),
    "quality": Part(
        (), ("--sets", "trec", "--methods", "lora", "ia3", "--rows", "96", "--seeds", "2", "--epochs", "1", "--length", "32"), 900,
    ),
}  # fmt: skip


def command(name: str, args: argparse.Namespace) -> list[str]:
    """What is run for a part, from the root of the repository."""
    part = PARTS[name]
    given = [*(part.small if args.small else part.full), "--json"]
    if name == "quality":
        given += ["--data", str(args.data), *(["--out", str(args.runs)] if args.runs else [])]
    return ["benchmarks/" + f"{name}.py", *given]


def rows(text: str) -> list[dict[str, Any]]:
    """The JSON objects among the lines that a part printed."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def carried_out(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any] | None:
    """Run a part and keep its rows; None when it failed, which is told."""
    words, load, began = command(name, args), os.getloadavg()[0], time.monotonic()
    print(f"{name}: python {' '.join(words)}", flush=True)
    done = subprocess.run([sys.executable, *words], cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
    found = rows(done.stdout)
    if done.returncode or not found:
        print(
            f"{name} failed ({done.returncode}) and is left out; what it printed is above.", file=sys.stderr
        )
        return None
    part = folder / f"{name}.jsonl.part"
    part.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    part.replace(folder / f"{name}.jsonl")
    shown = [word if word != str(args.data) else "DATA" for word in words]
    minutes = (time.monotonic() - began) / 60
    return {"command": f"python {' '.join(shown)}", "minutes": round(minutes, 1), "load": round(load, 1)}


def conditions(folder: Path, told: dict[str, Any]) -> None:
    """Write what the parts of a folder were run with, beside what is known of those of earlier calls."""
    import torch

    path = folder / "conditions.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"parts": {}}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()}, {os.cpu_count()} cores)"  # fmt: skip
    content = {
        "date": str(datetime.date.today()), "device": device, "threads": torch.get_num_threads(), "versions": versions(),
        "parts": {**known["parts"], **told},
    }  # fmt: skip
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--data", type=Path, help="text sets for quality")
    parser.add_argument("--runs", type=Path, help="where quality keeps its runs, to go on from")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    folder = args.out / str(datetime.date.today())
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in args.only:
        if name == "quality" and args.data is None:
            print("quality is left out: it needs --data.", file=sys.stderr)
        elif not (HERE / f"{name}.py").exists():
            print(f"{name} is left out: there is no {name}.py.", file=sys.stderr)
        elif (told := carried_out(name, args, folder)) is None:
            failed.append(name)
        else:
            conditions(folder, {name: told})
    print(f"Kept in {folder}. `make docs` makes the page.")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
