"""Rows of conversations as rows of questions and worked answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adaptome.core.errors import DataError
from adaptome.data.splits import Split

#: who speaks, in ShareGPT's words and in those of chats
_USER, _ASSISTANT = ("user", "human"), ("assistant", "gpt")


def conversations_taken(split: Split) -> Split:
    """A split whose column conversations, or messages, becomes instruction and output, and system where it is told there.

    Raises:
        DataError: a conversation that is not one question with one answer; names the line.
    """
    there = split.rows.column_names
    column = next((name for name in ("conversations", "messages") if name in there), None)
    if column is None or "instruction" in there or "question" in there:
        return split
    turns = [_turns(split.where(row), value) for row, value in enumerate(split.rows[column])]
    columns = {
        "instruction": [turn["user"] for turn in turns],
        "output": [turn["assistant"] for turn in turns],
    }
    if "system" not in there and any(turn["system"] for turn in turns):
        columns["system"] = [turn["system"] for turn in turns]
    rows = split.rows.remove_columns([column, *(name for name in columns if name in there)])
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    return Split(rows, split.tables, split.origin)


def _turns(place: str, value: Any) -> dict[str, str]:
    said: dict[str, str] = {"system": ""}
    turns: Sequence[Any] = value if isinstance(value, list) else []
    for turn in turns:
        given: Mapping[str, Any] = turn if isinstance(turn, Mapping) else {}
        who = given.get("from") or given.get("role")
        text = given.get("value") if given.get("value") is not None else given.get("content")
        name = "user" if who in _USER else "assistant" if who in _ASSISTANT else who
        if name not in ("user", "assistant", "system") or not isinstance(text, str) or said.get(name):
            raise DataError(
                f"{place}: one question with one answer is expected; found the turn {turn!r:.80}."
            )
        said[name] = text
    missing = [name for name in ("user", "assistant") if not said.get(name)]
    if missing:
        raise DataError(f"{place}: the conversation has no text of the {missing[0]}.")
    return said
