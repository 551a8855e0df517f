"""Texts that every Python brings: the standard library's docstrings, and the sources of some of its modules.

made:docstrings    columns text and label: docstrings, and the module that each is from, masked in it
made:sources       column text: pieces of modules' sources, cut at lines; validation and test are of modules that training has not seen
"""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

from adaptome.core.errors import DataError
from adaptome.data.makers import maker
from adaptome.data.splits import Table
from adaptome.data.stdlib_docstrings import docstring_task

MODULES = {
    "train": "argparse ast configparser csv dataclasses decimal difflib doctest enum functools inspect tarfile tempfile textwrap threading",
    "validation": "heapq shutil",
    "test": "ipaddress pathlib zipfile",
}
#: characters of a piece of source
PIECE = 240


@maker("docstrings")
def docstrings(seed: int) -> dict[str, Table]:
    """200 docstrings at most of each of the 16 modules that have most."""
    task = docstring_task()
    parts = {"train": task.train, "validation": task.validation, "test": task.test}
    return {
        name: _table("docstrings", [e.text for e in examples], label=[task.labels[e.label] for e in examples])
        for name, examples in parts.items()
    }


@maker("sources")
def sources(seed: int) -> dict[str, Table]:
    """About 2,000 pieces to train on; the seed shuffles them."""
    made = {}
    for split, modules in MODULES.items():
        pieces = [piece for name in modules.split() for piece in _pieces(_source(name))]
        random.Random(seed).shuffle(pieces)
        made[split] = _table("sources", pieces)
    return made


def _table(name: str, texts: list[str], **columns: list[str]) -> Table:
    return Table(f"made:{name}", {"text": texts, **columns}, range(len(texts)), "row", {})


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise DataError(
            f"made:sources reads {module}.py, which this Python's standard library comes without."
        )
    return Path(spec.origin).read_text(encoding="utf-8")


def _pieces(text: str) -> list[str]:
    """Whole lines up to PIECE characters each."""
    pieces, now = [], ""
    for line in text.splitlines(keepends=True):
        if now and len(now) + len(line) > PIECE:
            pieces.append(now)
            now = ""
        now += line
    return [piece for piece in [*pieces, now] if piece.strip()]
