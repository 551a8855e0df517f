"""Dialogues for training: ShareGPT's layout as messages, strict turns, and duplicates found before they are learned twice.

    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}

becomes {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from adaptome.core.errors import DataError, did_you_mean
from adaptome.data.splits import Split, Splits

#: who speaks, by the names of ShareGPT and of the chat services
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "bot": "assistant", "system": "system"}  # fmt: skip


def with_messages(splits: Splits) -> Splits:
    """The splits, a column `conversations` of ShareGPT's layout made one of `messages`; as they are where they have that.

    Raises:
        DataError: a speaker that is not known, or a turn that is none; names the line.
    """
    made = {name: _as_messages(split) for name, split in splits.items()}
    return Splits(made, splits.notes)


def _as_messages(split: Split) -> Split:
    if "conversations" not in split.rows.column_names or "messages" in split.rows.column_names:
        return split
    rows = [
        [_message(turn, f"{split.where(row)}: turn {n}") for n, turn in enumerate(turns or (), 1)]
        for row, turns in enumerate(split.rows["conversations"])
    ]
    others, own = split.rows.remove_columns("conversations"), datasets.Dataset.from_dict({"messages": rows})
    together = datasets.concatenate_datasets([others, own], axis=1) if others.column_names else own
    return Split(together, split.tables, split.origin)


def _message(turn: Any, place: str) -> dict[str, str]:
    speaker = turn.get("from") if isinstance(turn, Mapping) else None
    if speaker not in SPEAKERS:
        raise DataError(f"{place} is from {speaker!r}.{did_you_mean(str(speaker), SPEAKERS)} Known: {', '.join(SPEAKERS)}.")  # fmt: skip
    if not isinstance(turn.get("value"), str):
        raise DataError(f"{place} has no text in 'value': {turn!r}.")
    return {"role": SPEAKERS[speaker], "content": turn["value"]}


def check_turns(place: str, messages: Any) -> None:
    """Whether user and assistant take turns, the user first and the assistant last, each saying something; a system prompt may come before.

    Raises:
        DataError: they do not; names the message.
    """
    if not isinstance(messages, list) or not messages:
        raise DataError(f'{place}: a dialogue is a list of messages such as {{"role": "user", "content": ...}}; found {messages!r}.')  # fmt: skip
    begin = int(messages[0].get("role") == "system")
    for number, message in enumerate(messages[begin:], begin + 1):
        role, due = message.get("role"), ("user", "assistant")[(number - begin - 1) % 2]
        if role != due:
            raise DataError(
                f"{place}: message {number} is from {role!r}; expected {due!r}.\n"
                "  A dialogue goes user, assistant, user, assistant, after a system prompt or none."
            )
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise DataError(f"{place}: message {number} says nothing ({message.get('content')!r}).")
    if messages[-1]["role"] != "assistant":
        raise DataError(f"{place}: the dialogue ends with {messages[-1]['role']!r}; nobody answers.")


def without_duplicates(splits: Splits, near: float | None = None) -> Splits:
    """The splits without training dialogues that come again, in train, validation or test, or that give one answer twice; notes say how many.

    Args:
        near: with it, also dialogues whose words are as close as this: the cosine of TF-IDF vectors of single words and pairs, English stop
            words left out. A chain of near ones keeps its first.

    Raises:
        DataError: no training dialogue is left.
    """
    train = splits.get("train")
    if train is None:
        return splits
    rows = list(train.rows["messages"])
    held = [messages for name, split in splits.items() if name != "train" for messages in split.rows["messages"]]  # fmt: skip
    keys, outside = [_key(row) for row in rows], {_key(row) for row in held}
    first: dict[str, int] = {}
    for i, key in enumerate(keys):
        first.setdefault(key, i)
    reasons = ["" if first[key] == i else "are the same as an earlier one" for i, key in enumerate(keys)]
    for i, row in enumerate(rows):
        answers = [m["content"].strip() for m in row if m["role"] == "assistant"]
        if keys[i] in outside:
            reasons[i] = reasons[i] or "are in validation or test too"
        elif len(set(answers)) < len(answers):
            reasons[i] = reasons[i] or "give one answer twice"
    if near is not None:
        left = [i for i, reason in enumerate(reasons) if not reason]
        for i, reason in _near([rows[i] for i in left], held, near).items():
            reasons[left[i]] = reason
    notes = [
        f"{reasons.count(reason)} of {len(rows)} dialogues of train {reason} and were left out."
        for reason in dict.fromkeys(filter(None, reasons))
    ]
    kept = [i for i, reason in enumerate(reasons) if not reason]
    if not kept:
        raise DataError("no dialogue of train is left:\n  " + "\n  ".join(notes))
    made = splits if len(kept) == len(rows) else {**splits, "train": train.select(kept)}
    return Splits(made, [*splits.notes, *notes])


def _key(messages: Sequence[Mapping[str, str]]) -> str:
    return json.dumps([(m["role"], " ".join(m["content"].split())) for m in messages], ensure_ascii=False)


def _near(rows: Sequence[Any], held: Sequence[Any], limit: float) -> dict[int, str]:
    """Number of a row -> why it is left out: it is near a row outside, or near an earlier one that stays."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [" ".join(m["content"] for m in row) for row in (*rows, *held)]
    try:
        vectors = TfidfVectorizer(ngram_range=(1, 2), stop_words="english").fit_transform(texts)
    except ValueError:  # no word but stop words anywhere
        return {}
    train, outside = vectors[: len(rows)], vectors[len(rows) :]
    found: dict[int, str] = {}
    if len(held):
        close = np.asarray((train @ outside.T).max(axis=1).todense()).ravel() > limit
        found |= {int(i): "are nearly one of validation or test" for i in np.flatnonzero(close)}
    for begin in range(0, len(rows), 1000):  # a block of all pairs at a time
        like = (train[begin : begin + 1000] @ train.T).tocoo()
        for i, j, value in sorted(zip(like.row + begin, like.col, like.data, strict=True)):
            if value > limit and j < i and int(j) not in found:
                found.setdefault(int(i), "are nearly an earlier one")
    return found
