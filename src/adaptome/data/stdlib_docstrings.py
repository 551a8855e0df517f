"""A text-classification task found on every machine: which module does this docstring come from?

The Python standard library is read as source (`ast`; nothing is imported or run). Each example is the docstring of
a function, a class or a method, with the name of its module masked; the label is that module:

    "Return the [MASK] object of the running loop."    asyncio
    "Add a header with the given name and value."      email, wsgiref or http: only the wording tells

What stands in the library differs a little between Python versions, so the labels are chosen by a rule, not by a
list: the modules with the most distinct docstrings, equally many examples of each where they have enough.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adaptome.core.errors import DataError

MASK = "[MASK]"

# Test suites, demonstrations and generated tables. (Folders whose names are no Python names go as well:
# site-packages, dist-packages, config-3.12-x86_64-linux-gnu.)
SKIPPED = {"encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tests", "turtledemo"}

# Shares of the hash range, in percent: train takes the rest.
TEST, VALIDATION = 25, 15


@dataclass(frozen=True)
class Example:
    """A masked docstring, the index of its label, and where it was found ("email.message:Message.as_string")."""

    text: str
    label: int
    origin: str


@dataclass(frozen=True)
class DocstringTask:
    """The labels (module names, sorted) and the three fixed splits."""

    labels: tuple[str, ...]
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]

    def sizes(self) -> dict[str, int]:
        """Number of examples of every split, and of labels."""
        return {
            "labels": len(self.labels),
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
        }

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DocstringTask:
        """The task that `to_dict` gave, also after JSON."""
        splits = {name: tuple(Example(**e) for e in values[name]) for name in ("train", "validation", "test")}
        return cls(labels=tuple(values["labels"]), **splits)


def docstring_task(
    *,
    labels: int = 16,
    per_label: int = 200,
    words: tuple[int, int] = (4, 60),
    root: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DocstringTask:
    """Builds the task from the standard library of the running Python. The same sources give the same task.

    Args:
        labels: how many modules to tell apart: those with the most docstrings, ties by name.
        per_label: at most so many examples of each, taken in the order of their hashes.
        words: shorter docstrings are left out, longer ones cut after so many words.
        root: a folder of modules to read instead of the standard library.
        progress: called as `progress(files done, files)`.

    Raises:
        DataError: the sources are not there, or hold fewer than `labels` modules with docstrings.
    """
    found = _distinct(_collect(_files(_stdlib(root)), words, progress))
    counts = Counter(module for module, _ in found.values())
    if len(counts) < labels or labels < 2:
        raise DataError(
            f"labels={labels} modules with docstrings were asked for, and {_stdlib(root)} has {len(counts)}.\n"
            f"  Ask for 2 to {len(counts)}, or run a Python whose standard library comes with its sources (.py)."
        )
    names = sorted(sorted(counts, key=lambda module: (-counts[module], module))[:labels])
    index, taken = {name: i for i, name in enumerate(names)}, Counter[str]()
    splits: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for text in sorted(found, key=_hash):
        module, origin = found[text]
        if module in index and taken[module] < per_label:
            taken[module] += 1
            splits[split_of(text)].append(Example(text, index[module], origin))
    return DocstringTask(tuple(names), *(tuple(splits[s]) for s in ("train", "validation", "test")))


def split_of(text: str) -> str:
    """The split a text belongs to, from its hash alone: adding or removing other texts never moves it."""
    place = _hash(text) % 100
    return "test" if place < TEST else "validation" if place < TEST + VALIDATION else "train"


def mask_name(text: str, name: str) -> str:
    """Masks `name` wherever its letters stand: alone, dotted, in compounds, in any case, and split in words.

    >>> mask_name("Open a TarFile with tarfile.open(); see tar file and TAR_FILE.", "tarfile")
    'Open a [MASK] with [MASK].open(); see [MASK] and [MASK].'
    """
    # Short names are matched unbroken only: "io" is not meant by "radi o", nor "xml" by "x ml".
    gap = r"[\s_-]?" if len(name) > 5 else ""
    return re.sub(gap.join(map(re.escape, name)), MASK, text, flags=re.IGNORECASE)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _stdlib(root: str | Path | None) -> Path:
    return Path(root) if root is not None else Path(sysconfig.get_paths()["stdlib"])


def _files(root: Path) -> list[tuple[str, Path]]:
    """(dotted module name, file) of every source file, sorted."""
    found = []
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        named = all(part.isidentifier() and part not in SKIPPED for part in parts)
        if named and _label(parts[0]) is not None:
            found.append((".".join(parts).removesuffix(".__init__"), file))
    return found


def _label(top: str) -> str | None:
    """The public module that a top-level name stands for (`_pydecimal` holds decimal), None for private ones."""
    if not top.startswith("_"):
        return top
    public = top.removeprefix("_py") if top.startswith("_py") else top[1:]
    return public if public in sys.stdlib_module_names else None


def _collect(
    files: list[tuple[str, Path]], words: tuple[int, int], progress: Callable[[int, int], None] | None
) -> Iterator[tuple[str, str, str]]:
    """(text, module, origin) of every docstring, its module masked, blanks joined, in the order of the files."""
    for done, (name, file) in enumerate(files, start=1):
        module = _label(name.split(".")[0])
        assert module is not None
        for qualname, docstring in _docstrings(_parse(file)):
            masked = mask_name(docstring, module).split()
            if len(masked) >= words[0]:
                yield " ".join(masked[: words[1]]), module, f"{name}:{qualname}"
        if progress is not None:
            progress(done, len(files))


def _parse(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes(), filename=str(file))
    except (SyntaxError, ValueError):  # a file that is no Python of this version has no docstrings for us
        return ast.Module(body=[], type_ignores=[])


def _docstrings(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of the classes and functions below `node`, those inside `if` and `try` too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            docstring = ast.get_docstring(child)
            if docstring:
                yield prefix + child.name, docstring
            yield from _docstrings(child, f"{prefix}{child.name}.")
        elif isinstance(child, (ast.If, ast.Try, ast.With)):
            yield from _docstrings(child, prefix)


def _distinct(rows: Iterable[tuple[str, str, str]]) -> dict[str, tuple[str, str]]:
    """{text: (module, origin)}: each text once; one that several modules share has no right answer and goes."""
    origins: dict[str, dict[str, str]] = defaultdict(dict)
    spelling: dict[str, str] = {}
    for text, module, origin in rows:
        key = text.casefold()
        spelling.setdefault(key, text)
        origins[key].setdefault(module, origin)
    return {
        spelling[key]: next(iter(modules.items())) for key, modules in origins.items() if len(modules) == 1
    }
