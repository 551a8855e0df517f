"""The files of a comparison for other programs and for documents, and published results to lay beside."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptome.core.errors import DataError
from adaptome.core.files import write_atomic

PARQUET, MARKDOWN = "results.parquet", "results.md"
#: columns of PEFT's method comparison that a row needs, and those that say how it was made
_NEEDED = ("task", "experiment", "peft_type", "num_trainable_params")
_SCORES = ("final_test_accuracy", "final_test_dino_similarity")
_CONDITIONS = ("lr", "batch_size", "max_steps", "seed", "accelerator", "torch", "peft")


def write_results(folder: Path, comparison: Mapping[str, Any], found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:  # fmt: skip
    """Write results.parquet, a line for each run, and results.md, the table with what is and is not told apart."""
    import pyarrow  # datasets brings it
    from pyarrow import parquet

    lines = [
        {
            "label": row["label"],
            "method": row["method"],
            "budget": None if row["budget"] is None else str(row["budget"]),
            "seed": seed,
            "learning_rate": row["learning_rate"],
            "trials": row["trials"],
            "parameters": run["trainable_parameters"],
            "total_parameters": run["total_parameters"],
            "steps": run["steps"],
            "seconds": run["seconds"],
            "peak_memory_bytes": run["peak_memory_bytes"],
            "split": run["split"],
            "folder": run["folder"],
            **{f"metric/{name}": float(value) for name, value in run["metrics"].items()},
        }
        for row in comparison["rows"]
        for seed, run in zip(comparison["seeds"], found[row["label"]], strict=True)
    ]
    columns = list(dict.fromkeys(key for line in lines for key in line))
    table = pyarrow.table({key: [line.get(key) for line in lines] for key in columns})
    held = pyarrow.BufferOutputStream()
    parquet.write_table(table, held)
    write_atomic(folder / PARQUET, held.getvalue().to_pybytes())
    write_atomic(folder / MARKDOWN, markdown(comparison))


def markdown(comparison: Mapping[str, Any]) -> str:
    """The table and the pairs, for a document."""
    from adaptome.compare.page import verdict

    metric, seeds = comparison["metric"], comparison["seeds"]
    of = {row["label"]: row for row in comparison["rows"]}
    rows = [
        [
            label,
            f"{row['parameters']:,}",
            f"{row['share']:.3%}",
            f"{row['learning_rate']:.3g}",
            f"{row['mean']:.4f}" + ("" if row["low"] is None else f" ± {row['mean'] - row['low']:.4f}"),
            f"{1000 * row['step_seconds']:.1f}",
            f"{row['evaluation_seconds']:.1f}",
            f"{row['memory'] / 2**20:,.0f}",
        ]
        for label, row in ((label, of[label]) for label in comparison["ranking"])
    ]
    names = ["method", "parameters", "of all", "learning rate", metric, "ms per step", "s evaluating", "peak MiB"]  # fmt: skip
    parts = [
        f"# {comparison['task']}: {metric} on {comparison['split']}",
        f"{verdict(comparison)} Means over {len(seeds)} seed{'s' * (len(seeds) > 1)}, ± half of the 95 % interval.",
        _table(names, rows),
    ]
    if comparison["pairs"]:
        told = [
            [
                f"{p['one']} − {p['other']}",
                f"{p['difference']:+.4f}",
                f"{p['low']:+.4f} … {p['high']:+.4f}",
                f"{p['p']:.3g}",
                f"{p['adjusted']:.3g}",
                "tie" if p["tie"] else "told apart",
            ]
            for p in comparison["pairs"]
        ]
        parts += ["## Seed by seed", _table(["pair", "difference", "95 % interval", "p", "p (Holm)", ""], told)]  # fmt: skip
    said = ", ".join(f"{name} {version}" for name, version in comparison["versions"].items())
    return "\n\n".join([*parts, f"{said}."]) + "\n"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def read_published(path: str | Path) -> list[dict[str, Any]]:
    """Rows of PEFT's method comparison with the conditions that they were made under.

    Args:
        path: a CSV file with its columns: task, experiment, peft_type, num_trainable_params, final_test_accuracy, ...

    Raises:
        DataError: there is no such file, or a column is missing.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    missing = [name for name in _NEEDED if not rows or name not in rows[0]]
    if missing:
        raise DataError(
            f"{path} is no table of PEFT's method comparison: {', '.join(missing)} missing.\n"
            f"  Needed are the columns {', '.join(_NEEDED)}."
        )
    return [
        {
            "task": row["task"],
            "experiment": row["experiment"],
            "method": row["peft_type"],
            "trained parameters": _number(row["num_trainable_params"]),
            "test score": next((_number(row[name]) for name in _SCORES if row.get(name)), None),
            "train seconds": _number(row.get("train_time_s")),
            "peak MiB": _mebibytes(_number(row.get("accelerator_memory_max"))),
            "conditions": ", ".join(f"{name} {row[name]}" for name in _CONDITIONS if row.get(name)),
        }
        for row in rows
        if row.get("status", "success") == "success"
    ]


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def _mebibytes(size: float | None) -> float | None:
    return None if size is None else size / 2**20
