"""The page of the benchmarks: tables and plots of each part from the newest day in benchmarks/results that has it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from figure import bar_chart, line_chart

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
Rows = list[dict[str, Any]]


def days(results: Path = RESULTS) -> list[Path]:
    """The folders of days, the last first."""
    found = [
        path for path in results.glob("*") if path.is_dir() and re.fullmatch(r"\d{4}-\d\d-\d\d", path.name)
    ]
    return sorted(found, reverse=True)


def evidence_page(results: Path = RESULTS) -> str:
    """What was measured last, a section for each part from the newest day that has it; one that none has is named with its command."""
    parts = [
        "# Benchmarks",
        "`python benchmarks/all.py` measures all of it anew and keeps the rows in `benchmarks/results/<date>/`; of each part the newest is shown.",
    ]
    for name, (title, lead, make) in SECTIONS.items():
        parts.append(f"## {title}\n\n{lead}")
        folder = next((day for day in days(results) if (day / f"{name}.jsonl").exists()), None)
        if folder is None:
            parts.append(f"Not measured yet: `python benchmarks/all.py --only {name}`.")
            continue
        parts += conditions(folder, name)
        lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        parts.append(make([json.loads(line) for line in lines]))
    return "\n\n".join(parts) + "\n"


def conditions(folder: Path, name: str) -> list[str]:
    """What a part was run with, as far as its folder tells."""
    path = folder / "conditions.json"
    if not path.exists():
        return [folder.name]
    known = json.loads(path.read_text(encoding="utf-8"))
    versions = ", ".join(f"{what} {version}" for what, version in known["versions"].items())
    how = known["parts"].get(name, {})
    told = f"{folder.name}, {known['device']}, {known['threads']} thread{'s' * (known['threads'] != 1)}; {versions}."
    if how:
        took = (
            f" ({how['minutes']} minutes; the machine's load when it began was {how['load']})"
            if how.get("minutes") is not None
            else ""
        )
        told += f" By `{how['command']}`{took}."
    return [told]


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', ' ') for cell in line)} |" for line in lines)


def _number(value: Any, spec: str = ".2f") -> str:
    return "-" if value is None else format(value, spec)


def steps(rows: Rows) -> str:
    """Step time and kept bytes as multiples of the frozen floor."""
    done = [row for row in rows if "refused" not in row]
    cells = [
        [
            f"`{row['method']}`", f"{row['trainable']:,}", _number(row["ours_time"]), _number(row["ours_products"]), _number(row["ours_bytes"]),
            _number(row.get("peft_time")), _number(row.get("peft_bytes")),
        ]
        for row in done
    ]  # fmt: skip
    both = [row for row in done if "peft_time" in row]
    plot = bar_chart(
        {row["method"]: {"ours": row["ours_time"], "PEFT": row["peft_time"]} for row in both},
        "time of a step, multiples of the floor",
    )
    names = ("method", "trained", "time", "products", "kept", "PEFT's time", "PEFT's kept")
    return "\n\n".join([*([plot] if both else []), table(names, cells)])


def scaling(rows: Rows) -> str:
    """Exponents, and the times they are fitted to."""
    cells = [
        [
            f"`{row['method']}`", row["axis"], ", ".join(map(str, row["sizes"])), _number(row["ms_exponent"]), _number(row["ms_over"]),
            _number(row["kept_exponent"]), _number(row["kept_over"]),
        ]
        for row in rows
    ]  # fmt: skip
    first = rows[0]["method"]
    plots = [
        line_chart(row["sizes"], [max(1, round(1000 * ms)) for ms in row["ms"]], row["axis"], f"{first}: microseconds of a step")
        for row in rows
        if row["method"] == first
    ]  # fmt: skip
    names = ("method", "what grows", "sizes", "time", "time over the floor", "kept", "kept over the floor")
    return "\n\n".join([table(names, cells), *plots])


def adapters(rows: Rows) -> str:
    """Milliseconds by what is done and how many adapters there are."""
    cells = [
        [
            row["what"], f"{row['adapters']:,}", *(_number(row[who][what]) if row.get(who) else "-" for who in ("ours", "peft") for what in ("median", "last")),
        ]
        for row in rows
    ]  # fmt: skip
    return table(("what", "adapters", "ours, ms", "last tenth", "PEFT, ms", "last tenth"), cells)


def advice(rows: Rows) -> str:
    """What was foretold and what came."""
    cells = [
        [
            row["case"], f"{row['foretold_mib']:,.0f}", f"{row['trained_mib']:,.0f}", f"{row['memory_error']:+.1%}", f"{row['above_error']:+.1%}",
            f"{row['foretold_ms']:,.0f}", f"{row['trained_ms']:,.0f}", f"{row['time_error']:+.1%}",
        ]
        for row in rows
    ]  # fmt: skip
    good = (
        sum(abs(row["memory_error"]) <= 0.1 for row in rows),
        sum(abs(row["time_error"]) <= 0.25 for row in rows),
    )
    told = f"Memory is within 10 % in {good[0]} of {len(rows)} cases, time within 25 % in {good[1]}."
    names = ("case", "MiB foretold", "came", "error", "above the libraries", "ms foretold", "came", "error")
    return f"{table(names, cells)}\n\n{told}"


def quality(rows: Rows) -> str:
    """Means and intervals, a table for each set."""
    parts = []
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name]
        cells = [
            [
                row["method"], f"{row['trained']:,}", f"{row['mean']:.4f}" + ("" if row["low"] is None else f" ± {row['mean'] - row['low']:.4f}"),
                f"{row['ms']:,.1f}", f"{row['mib']:,.0f}",
            ]
            for row in own
        ]  # fmt: skip
        plot = bar_chart({row["method"]: {own[0]["metric"]: row["mean"]} for row in own}, f"{name}: {own[0]['metric']}")  # fmt: skip
        parts += [f"### {name}", f"{len(own[0]['values'])} seeds.", plot, table(("method", "trained", own[0]["metric"], "ms a step", "peak MiB"), cells)]  # fmt: skip
    return "\n\n".join(parts)


def plain(rows: Rows) -> str:
    """Rows as they are."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return table(columns, [[_cell(row.get(key)) for key in columns] for row in rows])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


#: part -> title, what it says, and what makes its tables
SECTIONS: dict[str, tuple[str, str, Callable[[Rows], str]]] = {
    "step": ("A training step", "Time and bytes kept for the backward, as multiples of a step through the frozen model.", steps),
    "scaling": ("How a step grows", "Slopes through the logarithms: 1 doubles with the size, 2 quadruples. Over the floor: of what comes on top of the frozen model.", scaling),
    "adapters": ("Many adapters", "Of adapters that are all on one model; medians, and that of the last tenth.", adapters),
    "advise": ("What advice is worth", "`adaptome advise` against what training took.", advice),
    "end_to_end": ("Fine-tuning end to end", "Tokens a second and peak memory of supervised fine-tuning.", plain),
    "quality": ("Quality at equal cost", "MiniLM on text sets: every method at one budget beside PEFT's LoRA and full fine-tuning. ± is half of the 95 % interval over seeds.", quality),
}  # fmt: skip
