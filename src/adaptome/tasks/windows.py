"""Sentences of words as windows of tokens: no word is parted, none is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adaptome.tasks.inference import chunks


@dataclass(frozen=True)
class Frame:
    """How sentences fit into windows: the special tokens around them and the room between."""

    tokenizer: Any
    before: list[int]
    after: list[int]
    room: int

    @classmethod
    def of(cls, tokenizer: Any, max_length: int) -> Frame:
        """Windows of at most `max_length` tokens, special ones counted, and of no more than the tokenizer says."""
        before, after = special_tokens(tokenizer)
        return cls(
            tokenizer, before, after, min(max_length, tokenizer.model_max_length) - len(before) - len(after)
        )

    def windows(self, pieces: Sequence[list[int]], overlap: int = 0) -> list[tuple[int, int]]:
        """Ranges of words that fit, from the first word to the last.

        Args:
            pieces: the tokens of every word.
            overlap: tokens at the end of a window that the next one reads again, in whole words; half a window at most.
        """
        start, used, windows = 0, 0, []
        for i, word in enumerate(pieces):
            size = min(len(word), self.room)
            if used + size > self.room:
                windows.append((start, i))
                start, used = self._back(pieces, i, min(overlap, self.room // 2, self.room - size))
            used += size
        return [*windows, (start, len(pieces))]

    def _back(self, pieces: Sequence[list[int]], end: int, overlap: int) -> tuple[int, int]:
        """The first of the words before `end` that have at most `overlap` tokens together, and how many they have."""
        start, used = end, 0
        while start and used + len(pieces[start - 1]) <= overlap:
            start -= 1
            used += len(pieces[start])
        return start, used

    def ids(self, pieces: Sequence[list[int]]) -> list[int]:
        """The tokens of a window; a word longer than it keeps its first pieces."""
        return [*self.before, *(number for word in pieces for number in word[: self.room]), *self.after]

    def firsts(self, pieces: Sequence[list[int]]) -> list[int]:
        """Where each word's first piece stands in its window."""
        at, places = len(self.before), []
        for word in pieces:
            places.append(at)
            at += min(len(word), self.room)
        return places


def word_pieces(processor: Any, sentences: Sequence[Sequence[str]]) -> list[list[list[int]]]:
    """Token numbers of every word of every sentence; a word the tokenizer drops becomes its unknown token."""
    made = []
    for part in chunks(sentences, 1000):
        encoded = processor([list(s) for s in part], is_split_into_words=True, add_special_tokens=False)
        for row, words in enumerate(part):
            pieces: list[list[int]] = [[] for _ in words]
            for number, word in zip(encoded["input_ids"][row], encoded.word_ids(row), strict=True):
                pieces[word].append(number)
            unknown = processor.unk_token_id if processor.unk_token_id is not None else processor.eos_token_id
            made.append([found or [unknown] for found in pieces])
    return made


def special_tokens(processor: Any) -> tuple[list[int], list[int]]:
    """The special tokens before and after a sentence."""
    empty = processor("a", return_special_tokens_mask=True)
    mask, ids = empty["special_tokens_mask"], empty["input_ids"]
    first = mask.index(0)
    last = len(mask) - mask[::-1].index(0)
    return ids[:first], ids[last:]
