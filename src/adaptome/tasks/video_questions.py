"""Questions about videos as rows and batches: token numbers, features, and what is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from adaptome.core.errors import DataError
from adaptome.data.splits import Split
from adaptome.tasks.video_inputs import Modality, in_batch
from adaptome.tasks.video_rows import normal, options_of

if TYPE_CHECKING:
    from adaptome.tasks.video_qa import VideoQA

LETTERS = "ABCDEFGHIJ"
#: what stands where nothing is to be learned or scored
IGNORED = -100


class Questions:
    """Rows as token numbers, features and raw inputs; files are read when a row is asked for."""

    def __init__(self, task: VideoQA, split: Split, name: str, processor: Any, notes: list[str]):
        self.task, self.processor = task, processor
        held = [n for n in task.names if n in split.rows.column_names]
        kept, lacking, cut = [], dict.fromkeys(task.names[1:], 0), 0
        self.told: list[dict[str, Any]] = []
        self.chosen = False
        arrays = {n: _empty(split, n) for n in held if not _is_text(split, n)}
        for number, row in enumerate(split.rows.remove_columns(list(arrays))):
            where = split.where(number)
            sources = task.sources({**row, **{n: None if none[number] else () for n, none in arrays.items()}}, where)  # fmt: skip
            task.require_first(sources, where)
            absent = [n for n in task.names if n not in sources]
            for one in absent:
                lacking[one] += 1
            if absent and task.options.missing == "error":
                raise DataError(
                    f"{where}: there is no {absent[0]}. Give it, or let such rows run without it: task.missing=without."
                )
            if absent and task.options.missing == "skip":
                continue
            told, over = self._row(row, where)
            cut += over
            kept.append(number)
            self.told.append(told)
        if {told["chosen"] for told in self.told} == {True, False}:
            raise DataError(
                f"{split.source}: some rows of {name} have options, others have none. Part them into data sets of their own."
            )
        self.chosen = any(told["chosen"] for told in self.told)
        for one, count in lacking.items():
            done = "they run without it" if task.options.missing == "without" else "they are left out"
            notes += [f"{count} of {len(split)} rows of {name} have no {one}: {done}."] if count else []
        if cut:
            notes.append(f"{cut} of {len(kept)} questions of {name} exceed {task.options.max_length} tokens and were cut (task.max_length).")  # fmt: skip
        self.split, self.numbers = split, kept
        self.rows = split.rows.with_format("numpy", columns=held, output_all_columns=True)
        # arrays are in memory with their data set, whose rows take longer to take apart than a small model to run on
        self._taken: dict[int, Any] | None = {} if len(arrays) == len(held) and held else None

    def _row(self, row: Mapping[str, Any], where: str) -> tuple[dict[str, Any], bool]:
        """The words of a row as token numbers, and whether its question was cut."""
        task, read = self.task, self.processor
        options, answer = options_of(row.get("options")), str(row["answer"])
        ids = read.ids(task.prompt(str(row["question"]), options))
        kind = str(row.get("type") or "")
        told = {
            "question": ids[: task.options.max_length],
            "kind": task.types.index(kind) if kind in task.types else -1,
            "chosen": options is not None,
            "options": [],
        }
        if options is None:
            told["labels"], told["right"] = [*read.ids(normal(answer)), read.end], 1
        else:
            known = [normal(one) for one in options]
            if normal(answer) not in known:
                raise DataError(
                    f"{where}: the answer {answer!r} is none of its options: {', '.join(options)}."
                )
            if task.options.answers == "letters" and len(options) > len(LETTERS):
                raise DataError(
                    f"{where}: {len(options)} options, and there are letters for {len(LETTERS)}. Take task.answers=text."
                )
            told["options"] = [[*read.ids(text), read.end] for text in task.wordings(options)]
            told["right"] = known.index(normal(answer))
            told["labels"] = told["options"][told["right"]]
        return told, len(ids) > task.options.max_length

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = self.numbers[int(index)]
        found = None if self._taken is None else self._taken.get(number)
        if found is None:
            row, where = self.rows[number], self.split.where(number)
            plain = {key: str(value) if isinstance(value, np.str_) else value for key, value in row.items()}
            found = self.task.read(self.task.sources(plain, where), where, self.processor)
            if self._taken is not None:
                self._taken[number] = found
        return {**found, **self.told[int(index)]}


class QuestionCollator:
    """Rows of `Questions` -> a batch of `modular-qa`; answers [batch, 2]: the right option's number, and the type's."""

    def __init__(self, processor: Any, modalities: Sequence[Modality], prefix: str, frames: int):
        self.processor, self.modalities = processor, modalities
        words = [processor.ids(prefix.format(n=n + 1)) for n in range(frames)]
        self.prefix, self.prefix_mask = self._padded(words, self._pad), self._padded([[1] * len(one) for one in words], 0)  # fmt: skip

    @property
    def _pad(self) -> int:
        return int(self.processor.tokenizer.pad_token_id or 0)

    def _padded(self, rows: Sequence[Sequence[int]], fill: int) -> Tensor:
        width = max(map(len, rows), default=0)
        made = [[*row, *[fill] * (width - len(row))] for row in rows]
        return torch.tensor(made, dtype=torch.long).view(len(rows), width)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = dict(in_batch(rows, self.modalities))
        count = len(rows)
        made["frame_ids"] = self.prefix.expand(count, -1, -1).clone()
        made["frame_mask"] = self.prefix_mask.expand(count, -1, -1).clone()
        made["input_ids"] = self._padded([row["question"] for row in rows], self._pad)
        made["attention_mask"] = self._padded([[1] * len(row["question"]) for row in rows], 0)
        if "labels" in rows[0]:
            made["labels"] = self._padded([row["labels"] for row in rows], IGNORED)
            made["answers"] = torch.tensor([[row["right"], row["kind"]] for row in rows])
        if rows[0]["options"]:
            most = max(len(row["options"]) for row in rows)
            flat = [one for row in rows for one in [*row["options"], *[[]] * (most - len(row["options"]))]]
            made["options"] = self._padded(flat, IGNORED).view(count, most, -1)
        return made


def _is_text(split: Split, column: str) -> bool:
    """Whether a column holds paths, not arrays."""
    feature: Any = split.rows.features[column]
    return str(getattr(feature, "dtype", "")) in ("string", "large_string", "null")


def _empty(split: Split, column: str) -> list[bool]:
    """Which rows have nothing in a column."""
    rows = split.rows.select_columns([column]).with_format("arrow")
    return [bool(none) for none in rows[:].column(column).is_null().to_pylist()]
