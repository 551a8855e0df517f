"""Clozes: a sentence with marks around its entities, and after it a text with a mask, at which a model's answer is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from adaptome.core.errors import DataError, RecipeError, did_you_mean

PROMPTS = {
    "relation": "In this sentence, {tail} is the {mask} of {head}.",
    "type": "In this sentence, {mention} is a {mask}.",
}
#: tokens that vocabularies have to spare, for marks around entities: BERT's, and LLaMA's for bytes that no text has
SPARE = (tuple(f"[unused{n}]" for n in range(1, 5)), tuple(f"<0x0{n}>" for n in range(1, 5)))
SPARE_MASK = "<0x05>"

#: column -> places [first, end) of an entity among the words
Places = Mapping[str, Sequence[Sequence[int]]]


@dataclass(frozen=True)
class Cloze:
    """How rows are written for one tokenizer.

    Args:
        mask: the token at which the answer is read.
        marks: tokens before and after the head (or the mention), and the tail.
        prompt: the cloze, with {mask} and the columns of the entities; None for that of the kind of row.
    """

    mask: str
    marks: Sequence[str]
    prompt: str | None = None

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        mask: str | None = None,
        marks: Sequence[str] | None = None,
        prompt: str | None = None,
    ) -> Cloze:
        """The cloze for a tokenizer, by what is asked for or by what it has to spare."""
        found = next((spare for spare in SPARE if all(_known(tokenizer, token) for token in spare)), SPARE[0])
        return cls(mask or tokenizer.mask_token or SPARE_MASK, marks or found, prompt)

    def register(self, tokenizer: Any) -> None:
        """Have the tokenizer read mask and marks as single tokens.

        Raises:
            RecipeError: its vocabulary has none of them.
        """
        single = [self.mask, *self.marks]
        for token in single:
            if not _known(tokenizer, token):
                raise RecipeError(
                    f"the tokenizer has no token {token!r}.{did_you_mean(token, list(tokenizer.get_vocab()))}\n"
                    "  Name tokens that it has: task.mask_token, task.markers."
                )
        # in the vocabulary already, so that it does not grow: they are not cut up any more
        tokenizer.add_tokens(single, special_tokens=True)

    def written(self, tokens: Sequence[str], spans: Places, where: str) -> tuple[str, str]:
        """The sentence with marks, and its cloze.

        Args:
            spans: column -> places [first, end) of the entity; the cloze names it as it stands in the first.

        Raises:
            DataError: an entity without a place. RecipeError: the cloze cannot be filled.
        """
        marks = self.marks
        opening: dict[int, list[str]] = {}
        closing: dict[int, list[str]] = {}
        names = {"mask": self.mask}
        for name, places in spans.items():
            if not places:
                raise DataError(f"{where}: {name} has no place in the sentence.")
            pair = marks[2:] if name == "tail" else marks[:2]
            for first, end in places:
                opening.setdefault(first, []).append(pair[0])
                closing.setdefault(end, []).append(pair[1])
            names[name] = " ".join(tokens[places[0][0] : places[0][1]])
        words: list[str] = []
        for at in range(len(tokens) + 1):
            words += [*closing.get(at, ()), *opening.get(at, ())]
            words += [tokens[at]] if at < len(tokens) else []
        prompt = self.prompt or PROMPTS["type" if "mention" in spans else "relation"]
        try:
            cloze = prompt.format(**names)
        except (KeyError, IndexError, ValueError) as error:
            raise RecipeError(f"task.prompt={prompt!r}: {error} is none of {', '.join(names)}.") from error
        if names["mask"] not in cloze:
            raise RecipeError(f"task.prompt={prompt!r} has no {{mask}}.")
        return " ".join(words), cloze

    def encoded(
        self, texts: Sequence[tuple[str, str]], tokenizer: Any, limit: int
    ) -> tuple[dict[str, Any], int]:
        """Token numbers and the mask's place of each text, and how many were cut; what is cut is the end of the sentence."""
        mask = tokenizer.convert_tokens_to_ids(self.mask)
        read = tokenizer([f"{sentence} {cloze}" for sentence, cloze in texts], return_offsets_mapping=True)
        made: dict[str, Any] = {"input_ids": [], "cue": []}
        cut = 0
        for ids, offsets, (sentence, cloze) in zip(
            read["input_ids"], read["offset_mapping"], texts, strict=True
        ):
            begins = next(i for i, (_, end) in enumerate(offsets) if end > len(sentence) + 1)
            if (more := len(ids) - limit) > 0:
                cut += 1
                if more >= begins:
                    raise DataError(f"task.max_length={limit}: the cloze {cloze!r} alone has more tokens.")
                ids = [*ids[: begins - more], *ids[begins:]]
                begins -= more
            made["input_ids"].append(ids)
            made["cue"].append(begins + ids[begins:].index(mask))
        return made, cut


def _known(tokenizer: Any, token: str) -> bool:
    found = tokenizer.convert_tokens_to_ids(token)
    return found is not None and (found != tokenizer.unk_token_id or token == tokenizer.unk_token)


class CueCollator:
    """Rows with `input_ids`, `cue` and perhaps `labels` -> input_ids and attention_mask [batch, length], padded at the end, cue [batch]."""

    def __init__(self, pad: int):
        self.pad = pad

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), longest), self.pad)
        mask = torch.zeros_like(ids)
        for n, row in enumerate(rows):
            size = len(row["input_ids"])
            ids[n, :size], mask[n, :size] = torch.tensor(row["input_ids"]), 1
        batch = {"input_ids": ids, "attention_mask": mask, "cue": torch.tensor([row["cue"] for row in rows])}
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch
