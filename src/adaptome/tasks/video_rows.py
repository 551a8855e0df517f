"""Questions about videos in the layouts of known data sets, as rows of question, answer, options, type and video.

NExT-QA       csv, or SeViLA's JSON: video, question, a0 ... a4, answer (a number), type
MUSIC-AVQA    JSON: video_id, question_content with <places>, templ_values, anser (so spelt there), type as a list in text
SQA3D         3D-LLM's JSON: scene_id, situation, question, answers
others        question and answer; options as a list, or in one text with | between them
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from adaptome.core.errors import DataError
from adaptome.data.splits import Split

#: the columns that rows have here
OWN = ("question", "answer", "options", "type", "video")
Row = Mapping[str, Any]


def questions_taken(split: Split) -> Split:
    """The split with these columns where it has a known layout; those of the modalities and others stay.

    Raises:
        DataError: a row that does not fit its layout; names the line.
    """
    there = set(split.rows.column_names)
    layout = next((taken for needed, taken in _LAYOUTS if needed <= there), None)
    if layout is None:
        return split
    plain = sorted(there & _READ)
    found = [layout(row, split.where(i)) for i, row in enumerate(split.rows.select_columns(plain))]
    names = [name for name in OWN if any(row.get(name) is not None for row in found)]
    rows = split.rows.remove_columns(sorted({*names, *plain} & there))
    for name in names:
        rows = rows.add_column(name, [row.get(name) for row in found])
    return Split(rows, split.tables, split.origin)


def _next_qa(row: Row, where: str) -> dict[str, Any]:
    names = sorted((n for n in row if re.fullmatch(r"a\d", n)), key=lambda n: int(n[1:]))
    options = [str(row[n]) for n in names if row[n] is not None]
    number = _number(row["answer"])
    if number is None or not 0 <= number < len(options):
        raise DataError(
            f"{where}: answer is {row['answer']!r}; the number of one of the {len(options)} options is expected, from 0."
        )
    return {**_same(row), "options": options, "answer": options[number]}


def _music_avqa(row: Row, where: str) -> dict[str, Any]:
    values, kinds = (_listed(row.get(name), where, name) for name in ("templ_values", "type"))
    places = iter(values)
    try:
        question = re.sub(r"<[^<>]+>", lambda match: str(next(places)), str(row["question_content"]))
    except (StopIteration, RuntimeError) as error:
        raise DataError(
            f"{where}: the question {row['question_content']!r} has more places than templ_values has values: {values}."
        ) from error
    return {
        "question": question, "answer": str(row["anser"]), "type": " ".join(map(str, kinds)) or None, "video": str(row["video_id"]),
    }  # fmt: skip


def _sqa3d(row: Row, where: str) -> dict[str, Any]:
    answers = row["answers"]
    texts = [str(a.get("answer", "") if isinstance(a, Mapping) else a) for a in answers or []]
    if not texts:
        raise DataError(f"{where}: no answer.")
    situation = f"{row['situation'].strip()} " if row.get("situation") else ""
    best = Counter(texts).most_common(1)[0][0]
    return {**_same(row), "question": situation + str(row["question"]), "answer": best, "video": str(row["scene_id"])}  # fmt: skip


def _same(row: Row) -> dict[str, Any]:
    return {name: str(row[name]) for name in ("question", "type", "video") if row.get(name) is not None}


def _number(value: Any) -> int | None:
    return int(value) if re.fullmatch(r"-?\d+", str(value)) else None


def _listed(value: Any, where: str, name: str) -> list[Any]:
    """A list, or one written out as JSON in text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: {name} is {value!r}; a list is expected.") from error
    return list(value or [])


_LAYOUTS: tuple[tuple[set[str], Callable[[Row, str], dict[str, Any]]], ...] = (
    ({"question", "a0", "a1", "answer"}, _next_qa),
    ({"question_content", "anser", "video_id"}, _music_avqa),
    ({"question", "answers", "scene_id"}, _sqa3d),
)
_READ = {
    "question", "answer", "answers", "anser", "type", "video", "video_id", "scene_id", "situation", "question_content", "templ_values",
    *(f"a{i}" for i in range(10)),
}  # fmt: skip


def options_of(value: Any) -> list[str] | None:
    """The options of a row: a list, or one text with | between them; None where there are none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    parts = value.split("|") if isinstance(value, str) else [str(one) for one in value]
    return [part.strip() for part in parts]


def normal(answer: str) -> str:
    """An answer as it is compared: small letters, single spaces, no full stop.

    >>> normal(" Two  Violins.")
    'two violins'
    """
    return " ".join(answer.lower().split()).rstrip(".")
