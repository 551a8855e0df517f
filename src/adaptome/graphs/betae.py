"""Data sets of BetaE (Ren and Leskovec 2020, arXiv:2010.11465), which are pickles, converted to JSON lines without unpickling them.

    python -m adaptome.graphs.betae FB15k-237-betae queries/

A pickle is a program. This module does not run it: it reads the operations one by one (`pickletools`), builds numbers, texts, tuples, lists,
sets and dicts of them, and refuses every other, among them whatever would import a name or call something, but for the empty `set` and
`defaultdict` that these data sets are made of.

What is read in a folder, and what is written:

    id2ent.pkl, id2rel.pkl                                        vocabulary.json: {"entities": [...], "relations": [...]}
    {train,valid,test}-queries.pkl                                train.jsonl, validation.jsonl, test.jsonl: a line for each query,
    train-answers.pkl, {valid,test}-{easy,hard}-answers.pkl       {"query": "[[5, [0]], [7, [1, -2]]]", "easy": [...], "hard": [...]}

Numbers stay as they are, for the vocabulary lists names in their order.
"""

from __future__ import annotations

import json
import pickletools
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from adaptome.core.errors import DataError
from adaptome.core.files import atomic_folder

SPLITS = {"train": "train", "validation": "valid", "test": "test"}
#: what a pickle may name: made here, never imported
_KNOWN: dict[tuple[str, str], Any] = {
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "frozenset"): frozenset,
    ("collections", "defaultdict"): dict,
    ("collections", "OrderedDict"): dict,
}


class _Name:
    """A name that a pickle may use."""

    def __init__(self, made: Any):
        self.made = made


def read_pickle(path: Path) -> Any:
    """What a pickle of plain data holds, without running it.

    Raises:
        DataError: there is no such file, or it holds something else than numbers, texts, tuples, lists, sets and dicts.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    try:
        return _Data(path).value(content)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no whole pickle of plain data: {error}.") from error


class _Data:
    """The stack and the memo of a pickle's operations; what lies below a mark is kept aside."""

    def __init__(self, path: Path):
        self.path = path
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def value(self, content: bytes) -> Any:
        for code, argument, _ in pickletools.genops(content):
            if code.name == "STOP":
                return self.stack.pop()
            self.step(code.name, argument)
        raise ValueError("it does not end")

    def step(self, name: str, argument: Any) -> None:
        push, stack = self.stack.append, self.stack
        if name in _LITERALS:
            push(argument)
        elif name in _MADE:
            push(_MADE[name]())
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            self.below.append(stack)
            self.stack = []
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[len(self.memo) if argument is None else int(argument)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            push(self.memo[int(argument)])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in _MARKED:
            _MARKED[name](self, self.marked())
        elif name == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self.name(*(argument.split(" ", 1) if name == "GLOBAL" else (stack.pop(-2), stack.pop())))
        elif name == "REDUCE":
            self.call()
        else:
            raise DataError(f"{self.path}: the operation {name} is none of plain data. It is not read.")

    def marked(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def name(self, module: str, name: str) -> None:
        if (module, name) not in _KNOWN:
            raise DataError(f"{self.path} names {module}.{name}: plain data names nothing. It is not read.")
        self.stack.append(_Name(_KNOWN[module, name]))

    def call(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, _Name):
            raise DataError(f"{self.path} calls something that plain data does not. It is not read.")
        # a defaultdict is given what makes its values, which nothing here will ask for
        given = [a for a in arguments if not isinstance(a, _Name)]
        self.stack.append(called.made(*given))


_LITERALS = {
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING",
}  # fmt: skip
_MADE: dict[str, Any] = {
    "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": set,
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
}  # fmt: skip
_MARKED: dict[str, Any] = {
    "TUPLE": lambda data, items: data.stack.append(tuple(items)),
    "LIST": lambda data, items: data.stack.append(items),
    "DICT": lambda data, items: data.stack.append(dict(zip(items[::2], items[1::2], strict=True))),
    "FROZENSET": lambda data, items: data.stack.append(frozenset(items)),
    "APPENDS": lambda data, items: data.stack[-1].extend(items),
    "ADDITEMS": lambda data, items: data.stack[-1].update(items),
    "SETITEMS": lambda data, items: data.stack[-1].update(zip(items[::2], items[1::2], strict=True)),
}


def convert(folder: Path, out: Path) -> dict[str, int]:
    """Convert a data set of BetaE; returns how many queries each split has.

    Raises:
        DataError: a file is missing or holds something else; see this module.
    """
    names = [_names(folder / f"id2{kind}.pkl") for kind in ("ent", "rel")]
    counts: dict[str, int] = defaultdict(int)
    with atomic_folder(out) as staging:
        vocabulary = {"entities": names[0], "relations": names[1]}
        (staging / "vocabulary.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        for split, prefix in SPLITS.items():
            if not (folder / f"{prefix}-queries.pkl").exists():
                continue
            with (staging / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                for row in _rows(folder, prefix):
                    file.write(json.dumps(row) + "\n")
                    counts[split] += 1
    return dict(counts)


def _names(path: Path) -> list[str]:
    found = read_pickle(path)
    if not isinstance(found, dict) or sorted(found) != list(range(len(found))):
        raise DataError(f"{path} should map the numbers 0, 1, ... to names.")
    return [str(found[i]) for i in range(len(found))]


def _rows(folder: Path, prefix: str) -> Iterator[dict[str, Any]]:
    queries = read_pickle(folder / f"{prefix}-queries.pkl")
    if prefix == "train":
        easy, hard = {}, read_pickle(folder / "train-answers.pkl")
    else:
        easy, hard = (read_pickle(folder / f"{prefix}-{kind}-answers.pkl") for kind in ("easy", "hard"))
    for several in queries.values():
        for query in sorted(several, key=repr):
            yield {
                "query": json.dumps(query),
                "easy": sorted(easy.get(query, ())),
                "hard": sorted(hard.get(query, ())),
            }


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; 0 when it went well."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if len(arguments) != 2:
        print("usage: python -m adaptome.graphs.betae FOLDER OUT", file=sys.stderr)
        return 2
    try:
        counts = convert(Path(arguments[0]), Path(arguments[1]))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments[1]}: " + ", ".join(f"{count} {split} queries" for split, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
