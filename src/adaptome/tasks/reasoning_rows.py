"""What a row of a reasoning data set asks, and what its answer is."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from adaptome.core.errors import DataError, nearest
from adaptome.data.splits import Split, Splits
from adaptome.tasks import answers


def read_rows(split: Split, name: str) -> list[dict[str, str]]:
    """instruction, input, output and answer of every row, as text.

    Raises:
        DataError: neither output nor answer is there, or an instruction is no text; names the line.
    """
    there = split.rows.column_names
    if "question" not in there:
        Splits({name: split}).require("instruction")
    if "output" not in there and "answer" not in there:
        guess = (nearest("answer", there) or nearest("output", there) or there[-1:])[0]
        raise DataError(
            f"{split.source}: the {name} split has neither output (the text to learn) nor answer (what is scored).\n"
            f"  Columns there: {', '.join(there)}. Say which one it is, e.g. data.columns: {{answer: {guess}}}."
        )
    made = []
    for row, record in enumerate(split.rows):
        bare = record.get("instruction") or record.get("question")
        if not isinstance(bare, str) or not bare.strip():
            raise DataError(f"{split.where(row)}: 'instruction' is {bare!r}; expected text.")
        options = record.get("options")
        if options is not None and not (
            isinstance(options, list) and all(isinstance(o, str) for o in options)
        ):
            raise DataError(f"{split.where(row)}: 'options' is {options!r}; expected a list of texts.")
        texts = {
            key: "" if record.get(key) is None else str(record[key]) for key in ("input", "output", "answer")
        }
        texts["output"] = texts["output"] or texts["answer"]
        texts["answer"] = texts["answer"] or texts["output"]
        if not texts["output"]:
            raise DataError(f"{split.where(row)}: no value for 'output' nor for 'answer'.")
        made.append({"instruction": asked_by(record), **texts})
    return made


def masked_numbers(records: Sequence[Mapping[str, str]], name: str) -> list[str]:
    """A note where questions have placeholders for their numbers, as files for equation solvers have."""
    masked = [
        found for record in records if (found := re.search(r"\b(?:number|N_)\d+\b", record["instruction"]))
    ]
    if 2 * len(masked) < len(records):
        return []
    return [
        f"{len(masked)} of {len(records)} questions of {name} have placeholders such as {masked[0][0]} for their numbers: "
        "fill these in, for no model can answer without them."
    ]


def sets_of(split: Split) -> list[str]:
    """The data set of every row."""
    if "dataset" in split.rows.column_names:
        return [answers.set_name(str(name)) for name in split.rows["dataset"]]
    files = [answers.set_name(table.file) for table in split.tables]
    return [files[table] for table, _ in split.origin.tolist()]


def question_of(row: Mapping[str, Any]) -> str:
    """All that the row asks: the instruction and what it is given."""
    return f"{asked_by(row)} {row.get('input') or ''}"


def asked_by(row: Mapping[str, Any]) -> str:
    """The question, with its options where it has some: `["A)21", "B)5"]` is shown as "Answer Choices: (A) 21 (B) 5"."""
    asked = str(row.get("instruction") or row.get("question"))
    options = [
        f"({letter}) {re.sub(rf'^[( ]*{letter} *[).:] *', '', option)}"
        for letter, option in zip(string.ascii_uppercase, row.get("options") or [], strict=False)
    ]
    return f"{asked} Answer Choices: {' '.join(options)}" if options else asked


def contamination(splits: Splits, allowed: bool) -> list[str]:
    """Notes on test questions that stand in train.

    Raises:
        DataError: the sets are known for it, and it is not allowed.
    """
    if "train" not in splits or "test" not in splits:
        return []
    pairs = answers.contaminated(sets_of(splits["train"]), sets_of(splits["test"]))
    if pairs and not allowed:
        held = ", ".join(sorted({name for _, name in pairs}))
        raise DataError(
            f"{pairs[0][0]} holds questions of {held}: scores on them after training on it mean nothing.\n"
            "  Test on gsm8k, svamp, aqua or mawps, or train without MAWPS (math_7k); task.allow_contamination=true "
            "tests all the same."
        )
    notes = [f"{one} is known to hold questions of {held}." for one, held in pairs]
    texts = {name: [question_of(row) for row in splits[name].rows] for name in ("train", "test")}
    shared = answers.overlap(texts["train"], texts["test"])
    if shared:
        notes.append(f"{shared} of {len(texts['test'])} questions of test stand in train.")
    return notes
