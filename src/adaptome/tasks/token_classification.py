"""Token classification: a tag for every word, such as the entities of a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import DataError, RecipeError, did_you_mean
from adaptome.data.documents import read_documents
from adaptome.data.splits import Split, Splits, Table, to_split
from adaptome.tasks.base import ModelSpec, Prepared, Task, TaskOptions, argmax, register_task
from adaptome.tasks.inference import chunks, evaluating, to_device
from adaptome.tasks.labels import LabelSet, labels_of_train, numbers
from adaptome.tasks.metrics import classification_metrics, span_metrics
from adaptome.tasks.models import check_vocabulary, head_modules, load_config, load_pretrained, load_tokenizer
from adaptome.tasks.showing import Given
from adaptome.tasks.spans import entities, from_bigbio, is_iob2, words_of
from adaptome.tasks.windows import Frame, word_pieces

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
    types: list[str] | None = Field(
        default=None, min_length=1, description="entity types that count; the others' tags become O"
    )
    strict: bool = Field(
        default=False,
        description="entities begin with B- alone (IOB2); otherwise with an I- that continues nothing too, as conlleval and seqeval count",
    )
    overlap: int = Field(
        default=32,
        ge=0,
        description="tokens that a window of a long text reads again of the one before, in prediction",
    )


@register_task("token-classification")
class TokenClassification(Task):
    """Columns: tokens and tags, lists of equal length; or documents in BigBio's schema. Metrics over entities where the tags are IOB2."""

    Options = TokenClassificationOptions
    options: TokenClassificationOptions
    prefer = {"tsv": "conll", "text": "conll"}  # noqa: RUF012 -- read only

    @property
    def primary_metric(self) -> str:
        return "f1" if self._spans() else "accuracy"

    def _spans(self) -> bool:
        return self.labels is None or all(is_iob2(name) for name in self.labels)

    def load_processor(self, model: ModelSpec) -> Any:
        return load_tokenizer(model, add_prefix_space=True)  # words come without the spaces before them

    def shaped(self, splits: Splits) -> Splits:
        """Documents in BigBio's schema as one row for each passage; and the tags of types that do not count as O."""
        made = {name: _of_documents(split, splits.notes) for name, split in splits.items()}
        if self.options.types is not None:
            _check_types(made.get("train"), self.options.types)
            made = {name: _of_types(split, self.options.types) for name, split in made.items()}
        return Splits(made, splits.notes)

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        from transformers import DataCollatorForTokenClassification

        splits.require("tokens", "tags")
        for split in splits.values():
            _check_lengths(split)
        labels = self._labels(splits)
        self.labels = labels.names
        made, notes, frame = {}, [], Frame.of(processor, self.options.max_length)
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
        if self.labels or self.options.labels or not all(is_iob2(name) for name in found.names):
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

    def given(self, words: Sequence[str]) -> list[Given]:
        """Texts, or files and folders of them, each as one document."""
        return [Given(name or text, text) for name, text in read_documents(words)]

    def metrics(self, result: Any) -> dict[str, float]:
        predicted, truth = argmax(result.predictions), np.asarray(result.label_ids)
        if not self._spans():
            kept = truth != IGNORED
            return classification_metrics(predicted[kept], truth[kept])
        names = self.labels or []
        pairs = [(p[t != IGNORED], t[t != IGNORED]) for p, t in zip(predicted, truth, strict=True)]
        return span_metrics(
            [[names[i] for i in p] for p, _ in pairs],
            [[names[i] for i in t] for _, t in pairs],
            self.options.strict,
        )

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """Tags of each input: a text (parted into words and punctuation) or a list of words.

        A long one is read in windows that overlap (task.overlap); a word in two keeps what the first said.

        Returns a list of {"tokens", "tags", "entities"}; an entity is {"type", "text", "start", "end"}, with word
        numbers, the end one past the last; of a text also "start_char" and "end_char", with characters.
        """
        places = [words_of(text) if isinstance(text, str) else None for text in inputs]
        sentences = [
            list(text) if spans is None else [text[a:b] for a, b in spans]
            for text, spans in zip(inputs, places, strict=True)
        ]
        tags = self._tags(model, processor, sentences, batch_size)
        made = []
        for text, spans, words, found in zip(inputs, places, sentences, tags, strict=True):
            named = entities(found, self.options.strict) if self._spans() else []
            for one in named:
                one["text"] = " ".join(words[one["start"] : one["end"]])
                if spans is not None:
                    first, last = spans[one["start"]][0], spans[one["end"] - 1][1]
                    one |= {"text": text[first:last], "start_char": first, "end_char": last}
            made.append({"tokens": words, "tags": found, "entities": named})
        return made

    def _tags(
        self, model: nn.Module, processor: Any, sentences: Sequence[Sequence[str]], batch_size: int
    ) -> list[list[str]]:
        """A tag for every word, of the first window that holds it; windows of like length share a batch."""
        frame, pieces = Frame.of(processor, self.options.max_length), word_pieces(processor, sentences)
        cut = [frame.windows(words, self.options.overlap) for words in pieces]
        # (sentence, first word, first word that no earlier window holds, one past the last word)
        places = [
            (i, a, windows[n - 1][1] if n else a, b)
            for i, windows in enumerate(cut)
            for n, (a, b) in enumerate(windows)
            if b > a
        ]
        places.sort(key=lambda p: sum(map(len, pieces[p[0]][p[1] : p[3]])))
        tags: list[list[str]] = [["O"] * len(words) for words in sentences]
        with evaluating(model) as device:
            for part in chunks(places, batch_size):
                ids = [frame.ids(pieces[i][a:b]) for i, a, _, b in part]
                batch = processor.pad({"input_ids": ids}, return_tensors="pt")
                found = model(**to_device(batch, device)).logits.argmax(-1).cpu()
                for (i, a, new, b), row, own in zip(part, found, ids, strict=True):
                    shift = row.shape[0] - len(own) if processor.padding_side == "left" else 0
                    named = [(self.labels or [])[row[shift + n]] for n in frame.firsts(pieces[i][a:b])]
                    tags[i][new:b] = named[new - a :]
        return tags


def _of_documents(split: Split, notes: list[str]) -> Split:
    """A split in BigBio's `kb` schema (`passages`, `entities`) with columns tokens and tags; any other as it is."""
    if not {"passages", "entities"} <= set(split.rows.column_names):
        return split
    rows = [(n, *passage) for n, row in enumerate(split.rows) for passage in from_bigbio(row)]
    if not rows:
        raise DataError(f"{split.source}: no passage has a text.")
    lost = sum(row[3] for row in rows)
    if lost:
        notes.append(
            f"{split.source}: {lost} entities lie over others or in several parts, and have no tags."
        )
    columns = {"tokens": [row[1] for row in rows], "tags": [row[2] for row in rows]}
    return to_split(
        [Table(split.source, columns, range(len(rows)), places=[split.where(row[0]) for row in rows])],
        "train",
    )


def _of_types(split: Split, types: Sequence[str]) -> Split:
    """The split with the tags of other entity types as O."""
    kept = [[tag if tag[2:] in types else "O" for tag in row] for row in _named_tags(split)]
    return Split(split.rows.remove_columns("tags").add_column("tags", kept), split.tables, split.origin)


def _check_types(train: Split | None, types: Sequence[str]) -> None:
    if train is None:
        return
    there = {tag[2:] for row in _named_tags(train) for tag in row if tag != "O"}
    for kind in types:
        if kind not in there:
            raise DataError(
                f"task.types: {train.source} has no entity of type {kind!r}.{did_you_mean(kind, there)} "
                f"It has: {', '.join(sorted(there)) or 'none'}."
            )


def _named_tags(split: Split) -> list[list[str]]:
    """The tags of every row by name."""
    if "tags" not in split.rows.column_names:
        raise DataError(f"task.types: {split.source} has no column 'tags'.")
    names = getattr(getattr(split.rows.features["tags"], "feature", None), "names", None)
    return [[names[tag] if names else tag for tag in row] for row in split.rows["tags"]]


def _check_lengths(split: Split) -> None:
    for row, (tokens, tags) in enumerate(zip(split.rows["tokens"], split.rows["tags"], strict=True)):
        if not isinstance(tokens, list) or not isinstance(tags, list):
            raise DataError(
                f'{split.where(row)}: tokens and tags are lists, e.g. ["Paris", "shines"] and ["B-LOC", "O"].'
            )
        if len(tokens) != len(tags) or not tokens:
            raise DataError(f"{split.where(row)}: {len(tokens)} tokens but {len(tags)} tags.")
