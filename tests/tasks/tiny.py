"""Helpers of the task tests: model sections, small configurations, data files, a bare loop."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from adaptome.data import Splits, load_splits

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "runs",
    "sleeps",
    "in",
    "paris",
    "london",
    "lives",
    "anna",
    "bob",
    "and",
    "good",
    "bad",
    "film",
    "very",
    "what",
]


def spec(**given: Any) -> SimpleNamespace:
    """A recipe's model section."""
    empty = {
        "name": None,
        "revision": None,
        "from_config": None,
        "tokenizer": None,
        "dtype": "float32",
        "attention": None,
        "quantization": None,
        "composite": None,
    }
    return SimpleNamespace(**{**empty, **given})


def small(kind: str, **given: Any) -> dict[str, Any]:
    """A configuration small enough to train in a second."""
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return {"model_type": kind, **size, **given}


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def splits_of(
    folder: Path, train: list[dict[str, Any]], validation: list[dict[str, Any]], **options: Any
) -> Splits:
    folder.mkdir(exist_ok=True)
    return load_splits(
        train=jsonl(folder / "train.jsonl", train),
        validation=jsonl(folder / "validation.jsonl", validation),
        **options,
    )


def fit(
    model: torch.nn.Module, data: Any, collator: Any, steps: int = 60, lr: float = 5e-3, batch: int = 8
) -> float:
    """Train in a bare loop; returns the last loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    rows = [data[i] for i in range(len(data))]
    keys = ("input_ids", "attention_mask", "token_type_ids", "labels", "image")
    rows = [{k: v for k, v in row.items() if k in keys} for row in rows]
    model.train()
    loss = torch.zeros(())
    for step in range(steps):
        part = [rows[(step * batch + i) % len(rows)] for i in range(batch)]
        loss = model(**collator(part)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()
