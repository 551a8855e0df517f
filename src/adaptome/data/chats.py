"""Chats whose messages have their content in parts, as multimodal models' data has it.

    {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 2?"}]}

becomes {"role": "user", "content": "What is 2 + 2?"}: parts are joined as the templates of multimodal models join them, one right
after the other. Columns then hold one type, whichever way each of their rows was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import datasets

from adaptome.core.errors import DataError
from adaptome.data.splits import Split, Table

#: types of parts that are text, in the formats of transformers and of the chat services
TEXT = (None, "text", "input_text", "output_text")


def joined(chat: Any, place: str) -> Any:
    """The chat with every message's content as one text; anything but a list of messages is returned as it is.

    Args:
        chat: a list of {"role", "content"}.
        place: where it stands, for errors: "train.jsonl, line 7".

    Raises:
        DataError: a part is no text: an image, a sound, a file.
    """
    if not isinstance(chat, list):
        return chat
    return [
        {**message, "content": _text(message["content"], f"{place}: message {number}")}
        if isinstance(message, Mapping) and isinstance(message.get("content"), list)
        else message
        for number, message in enumerate(chat, 1)
    ]


def _text(parts: list[Any], place: str) -> str:
    made = []
    for number, part in enumerate(parts, 1):
        if isinstance(part, str):
            made.append(part)
            continue
        # Arrow fills keys that only other parts have with None
        given = {k: v for k, v in part.items() if v is not None} if isinstance(part, Mapping) else {}
        kind = given.get("type")
        if kind not in TEXT or not isinstance(given.get("text"), str):
            what = f"is of type {kind!r}" if kind not in TEXT else f"has no text: {part!r}"
            raise DataError(
                f"{place}, part {number} {what}; this task's models read text alone.\n"
                '  Leave such rows out, or write what the part says as text: {"type": "text", "text": "..."}.'
            )
        made.append(given["text"])
    return "".join(made)


def with_joined(found: Split | list[Table], columns: set[str]) -> Split | list[Table]:
    """Tables, or a split of the hub, with the chats of these columns joined.

    Raises:
        DataError: as `joined`.
    """
    if not isinstance(found, Split):
        return [
            replace(
                table,
                columns={
                    name: [joined(chat, table.place(row)) for row, chat in enumerate(values)]
                    if name in columns
                    else values
                    for name, values in table.columns.items()
                },
            )
            for table in found
        ]
    for name in columns & set(found.rows.column_names):
        chats = list(found.rows[name])
        made = [joined(chat, found.where(row)) for row, chat in enumerate(chats)]
        if made != chats:
            others, own = found.rows.remove_columns(name), datasets.Dataset.from_dict({name: made})
            rows = datasets.concatenate_datasets([others, own], axis=1) if others.column_names else own
            found = Split(rows, found.tables, found.origin)
    return found
