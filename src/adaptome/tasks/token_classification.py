"""Token classification: a tag for every word, such as the entities of a sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import DataError, RecipeError
from adaptome.data.splits import Split, Splits
from adaptome.tasks.base import ModelSpec, Prepared, Task, TaskOptions, argmax, register_task
from adaptome.tasks.inference import chunks, evaluating, to_device
from adaptome.tasks.labels import LabelSet, labels_of_train, numbers
from adaptome.tasks.metrics import classification_metrics, span_metrics
from adaptome.tasks.models import check_vocabulary, head_modules, load_config, load_pretrained, load_tokenizer

IGNORED = -100  # positions that the loss and the metrics pass over


class TokenClassificationOptions(TaskOptions):
    max_length: int = Field(
        default=256, ge=8, description="tokens in a window; longer sentences are cut between words"
    )
    first_subtoken_only: bool = Field(
        default=True, description="tag the first piece of a word only, not all of them"
    )
    labels: list[str] | None = Field(
        default=None, min_length=2, description="the tags and their order; default: from train"
    )


@register_task("token-classification")
class TokenClassification(Task):
    """Columns: tokens and tags, lists of equal length. Metrics over entities where the tags are IOB2."""

    Options = TokenClassificationOptions
    options: TokenClassificationOptions
    prefer = {"tsv": "conll", "text": "conll"}  # noqa: RUF012 -- read only

    @property
    def primary_metric(self) -> str:
        return "f1" if self._spans() else "accuracy"

    def _spans(self) -> bool:
        return self.labels is None or all(_is_iob2(name) for name in self.labels)

    def load_processor(self, model: ModelSpec) -> Any:
        return load_tokenizer(model, add_prefix_space=True)  # words come without the spaces before them

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        from transformers import DataCollatorForTokenClassification

        splits.require("tokens", "tags")
        for split in splits.values():
            _check_lengths(split)
        labels = self._labels(splits)
        self.labels = labels.names
        made, notes, frame = {}, [], self._frame(processor)
        for name, split in splits.items():
            made[name], cut = self._dataset(split, numbers(split, name, "tags", labels), frame)
            if cut:
                notes.append(
                    f"{cut} sentences of {name} exceed {frame.room} tokens and were cut into windows (task.max_length)."
                )
        return Prepared(
            made, DataCollatorForTokenClassification(processor), self.labels, "length", notes=notes
        )

    def _labels(self, splits: Splits) -> LabelSet:
        found = labels_of_train(splits, "tags", self.labels or self.options.labels)
        if self.labels or self.options.labels or not all(_is_iob2(name) for name in found.names):
            return found
        # A type seen only as B- in train may go on over two words elsewhere: both tags exist for every type.
        kinds = sorted({name[2:] for name in found.names if name != "O"})
        return LabelSet(["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")])

    def _dataset(self, split: Split, tags: list[list[int]], frame: Frame) -> tuple[Any, int]:
        import datasets

        rows: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": [], "length": []}
        sentences = list(split.rows["tokens"])
        cut = 0
        for pieces, numbered in zip(word_pieces(frame.tokenizer, sentences), tags, strict=True):
            windows = frame.windows(pieces)
            cut += len(windows) > 1
            for start, end in windows:
                ids, targets = (
                    frame.ids(pieces[start:end]),
                    self._targets(pieces[start:end], numbered[start:end], frame),
                )
                for key, value in (("input_ids", ids), ("labels", targets), ("length", len(ids))):
                    rows[key].append(value)
                rows["attention_mask"].append([1] * len(ids))
        return datasets.Dataset.from_dict(rows), cut

    def _frame(self, processor: Any) -> Frame:
        before, after = special_tokens(processor)
        room = min(self.options.max_length, processor.model_max_length) - len(before) - len(after)
        return Frame(processor, before, after, room)

    def _targets(self, pieces: Sequence[list[int]], tags: Sequence[int], frame: Frame) -> list[int]:
        """A target for every token of a window."""
        targets = [IGNORED] * len(frame.before)
        for word, tag in zip(pieces, tags, strict=True):
            further = len(word[: frame.room]) - 1
            targets += [tag] + [IGNORED if self.options.first_subtoken_only else self._inside(tag)] * further
        return targets + [IGNORED] * len(frame.after)

    def _inside(self, tag: int) -> int:
        """The tag of a word's further pieces: B-X goes on as I-X."""
        name = (self.labels or [])[tag]
        if self._spans() and name.startswith("B-"):
            return (self.labels or []).index("I" + name[1:])
        return tag

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        from transformers import AutoModelForTokenClassification

        if self.labels is None:
            raise RecipeError("token-classification: labels are not known yet; prepare the data first.")
        config = load_config(
            model,
            num_labels=len(self.labels),
            id2label=dict(enumerate(self.labels)),
            label2id={name: i for i, name in enumerate(self.labels)},
        )
        built, self.new_modules = load_pretrained(AutoModelForTokenClassification, model, config)
        built.accepts_loss_kwargs = False  # type: ignore[assignment]  # its loss is a mean over the batch
        check_vocabulary(built, processor)
        return built

    def head_patterns(self, model: nn.Module) -> list[str]:
        return head_modules(model)

    def reduce(self, logits: Any, labels: Tensor) -> Tensor:
        """Tag numbers [batch, length] in place of logits [batch, length, tags]."""
        return super().reduce(logits, labels).argmax(-1)

    def metrics(self, result: Any) -> dict[str, float]:
        predicted, truth = argmax(result.predictions), np.asarray(result.label_ids)
        if not self._spans():
            kept = truth != IGNORED
            return classification_metrics(predicted[kept], truth[kept])
        names = self.labels or []
        pairs = [(p[t != IGNORED], t[t != IGNORED]) for p, t in zip(predicted, truth, strict=True)]
        return span_metrics(
            [[names[i] for i in p] for p, _ in pairs], [[names[i] for i in t] for _, t in pairs]
        )

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """Tags of each input: a sentence (parted into words and punctuation) or a list of words.

        Returns a list of {"tokens", "tags", "entities"}; an entity is {"type", "text", "start", "end"}, with word
        numbers, the end one past the last.
        """
        sentences = [
            re.findall(r"\w+|[^\w\s]", text) if isinstance(text, str) else list(text) for text in inputs
        ]
        frame, pieces = self._frame(processor), word_pieces(processor, sentences)
        places = [(i, a, b) for i, words in enumerate(pieces) for a, b in frame.windows(words) if b > a]
        tags: list[list[str]] = [["O"] * len(words) for words in sentences]
        with evaluating(model) as device:
            for part in chunks(places, batch_size):
                ids = [frame.ids(pieces[i][a:b]) for i, a, b in part]
                batch = processor.pad({"input_ids": ids}, return_tensors="pt")
                found = model(**to_device(batch, device)).logits.argmax(-1).cpu()
                for (i, a, b), row, own in zip(part, found, ids, strict=True):
                    shift = row.shape[0] - len(own) if processor.padding_side == "left" else 0
                    tags[i][a:b] = [(self.labels or [])[row[shift + n]] for n in frame.firsts(pieces[i][a:b])]
        return [
            {"tokens": words, "tags": found, "entities": entities(words, found) if self._spans() else []}
            for words, found in zip(sentences, tags, strict=True)
        ]


@dataclass(frozen=True)
class Frame:
    """How sentences fit into windows: the special tokens around them and the room between."""

    tokenizer: Any
    before: list[int]
    after: list[int]
    room: int

    def windows(self, pieces: Sequence[list[int]]) -> list[tuple[int, int]]:
        """Ranges of words that fit: no word is left out, none is parted."""
        start, used, windows = 0, 0, []
        for i, word in enumerate(pieces):
            size = min(len(word), self.room)
            if used + size > self.room:
                windows.append((start, i))
                start, used = i, 0
            used += size
        return [*windows, (start, len(pieces))]

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


def entities(tokens: Sequence[str], tags: Sequence[str]) -> list[dict[str, Any]]:
    """Spans of IOB2 tags; an I- without its B- opens a span, as conlleval reads it."""
    found: list[dict[str, Any]] = []
    kind = None
    for i, tag in enumerate(tags):
        prefix, _, name = tag.partition("-")
        if prefix == "I" and name == kind:
            found[-1]["end"] = i + 1
        elif prefix in ("B", "I"):
            found.append({"type": name, "start": i, "end": i + 1})
        kind = name if prefix in ("B", "I") else None
    return [{"text": " ".join(tokens[e["start"] : e["end"]]), **e} for e in found]


def _is_iob2(name: str) -> bool:
    return name == "O" or name[:2] in ("B-", "I-")


def _check_lengths(split: Split) -> None:
    for row, (tokens, tags) in enumerate(zip(split.rows["tokens"], split.rows["tags"], strict=True)):
        if not isinstance(tokens, list) or not isinstance(tags, list):
            raise DataError(
                f'{split.where(row)}: tokens and tags are lists, e.g. ["Paris", "shines"] and ["B-LOC", "O"].'
            )
        if len(tokens) != len(tags) or not tokens:
            raise DataError(f"{split.where(row)}: {len(tokens)} tokens but {len(tags)} tags.")
