"""Knowledge extraction: the relation of two entities in a sentence, or the type of one, read at a mask in a cloze after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import DataError, RecipeError, did_you_mean
from adaptome.data.readers.knowledge import marked_words
from adaptome.data.splits import Split, Splits
from adaptome.tasks.base import ModelSpec, Prepared, Task, TaskOptions, argmax, register_task
from adaptome.tasks.inference import chunks, labelled
from adaptome.tasks.labels import labels_of_train, numbers
from adaptome.tasks.lengths import cut_note
from adaptome.tasks.metrics import classification_metrics
from adaptome.tasks.models import check_vocabulary, load_config, load_pretrained, load_tokenizer
from adaptome.tasks.pooling import EncoderClassifier
from adaptome.tasks.scores import Scores, softmax_scores

#: an entity's column and its mark in what `predict` takes
MARKS = {"h": "head", "t": "tail", "m": "mention"}
PROMPTS = {
    "relation": "In this sentence, {tail} is the {mask} of {head}.",
    "type": "In this sentence, {mention} is a {mask}.",
}
#: tokens that vocabularies have to spare, for marks around entities: BERT's, and LLaMA's for bytes that no text has
SPARE = (tuple(f"[unused{n}]" for n in range(1, 5)), tuple(f"<0x0{n}>" for n in range(1, 5)))
SPARE_MASK = "<0x05>"


class KnowledgeExtractionOptions(TaskOptions):
    max_length: int = Field(default=256, ge=16, description="tokens kept; the cloze is never cut")
    prompt: str | None = Field(
        default=None, description="the cloze, with {mask}, and {head}, {tail} or {mention}; default: of the kind of data"
    )  # fmt: skip
    mask_token: str | None = Field(
        default=None, description="where the answer is read; default: the tokenizer's own, else <0x05>"
    )
    markers: list[str] | None = Field(
        default=None, min_length=4, max_length=4, description="tokens before and after head and tail; default: spare ones of the vocabulary"
    )  # fmt: skip
    head: Literal["linear", "words"] = Field(
        default="linear", description="the classifier begins at random, or each label's row as the mean output embedding of its words"
    )  # fmt: skip
    label_words: dict[str, str] = Field(
        default_factory=dict, description="words of labels, for head=words; default: the label's name"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="before the classifier")
    labels: list[str] | None = Field(
        default=None, min_length=2, description="the labels and their order; default: from train"
    )


@register_task("knowledge-extraction")
class KnowledgeExtraction(Task):
    """Columns: tokens, label, and head and tail, or mention: places [first, end) among the tokens.

    `predict` takes sentences with marks: "<h>Curie</h> was born in <t>Warsaw</t>.", or "<m>Warsaw</m> is cold." for a type.
    """

    Options = KnowledgeExtractionOptions
    options: KnowledgeExtractionOptions

    @property
    def primary_metric(self) -> str:
        return "accuracy"

    def load_processor(self, model: ModelSpec) -> Any:
        """The tokenizer, to which mask and marks are single tokens.

        Raises:
            RecipeError: its vocabulary has none of them, or it tells no offsets.
        """
        tokenizer = load_tokenizer(model)
        if not tokenizer.is_fast:
            raise RecipeError("knowledge-extraction needs a tokenizer that tells offsets (a fast one).")
        single = [self._mask(tokenizer), *self._markers(tokenizer)]
        for token in single:
            if not _known(tokenizer, token):
                raise RecipeError(
                    f"the tokenizer has no token {token!r}.{did_you_mean(token, list(tokenizer.get_vocab()))}\n"
                    "  Name tokens that it has: task.mask_token, task.markers."
                )
        tokenizer.add_tokens(single, special_tokens=True)  # in the vocabulary already: they are not cut up any more
        return tokenizer

    def _mask(self, tokenizer: Any) -> str:
        return self.options.mask_token or tokenizer.mask_token or SPARE_MASK

    def _markers(self, tokenizer: Any) -> Sequence[str]:
        if self.options.markers is not None:
            return self.options.markers
        return next((spare for spare in SPARE if all(_known(tokenizer, token) for token in spare)), SPARE[0])

    # -- rows ----------------------------------------------------------------------------------------------------------

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        kind = _kind(splits)
        splits.require("tokens", "label", *_COLUMNS[kind])
        labels = labels_of_train(splits, "label", self.labels or self.options.labels)
        self.labels = labels.names
        made, notes = {}, []
        for name, split in splits.items():
            targets = numbers(split, name, "label", labels)
            made[name], cut = self._dataset(split, kind, targets, processor)
            notes += cut_note(cut, len(split), name, self._length(processor))
        pad = processor.pad_token_id or 0
        return Prepared(made, CueCollator(pad), self.labels, "length", False, notes)

    def _dataset(self, split: Split, kind: str, targets: list[Any], processor: Any) -> tuple[Any, int]:
        import datasets

        rows = split.rows.with_format(None)
        columns = {name: rows[name] for name in ("tokens", *_COLUMNS[kind])}
        texts = []
        for number in range(len(split)):
            spans = {name: columns[name][number] for name in _COLUMNS[kind]}
            if isinstance(targets[number], list):
                raise DataError(f"{split.where(number)}: a row has one label here, and this one has a list.")
            texts.append(self.written(columns["tokens"][number], spans, processor, split.where(number)))
        encoded, cut = self._encoded(texts, processor)
        encoded["labels"] = targets
        encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
        return datasets.Dataset.from_dict(encoded), cut

    def written(self, tokens: Sequence[str], spans: Mapping[str, Sequence[Sequence[int]]], processor: Any, where: str) -> tuple[str, str]:  # fmt: skip
        """The sentence with marks, and its cloze.

        Args:
            spans: column -> places [first, end) of the entity; the cloze names it as it stands in the first.

        Raises:
            DataError: an entity without a place. RecipeError: the cloze cannot be filled.
        """
        marks = self._markers(processor)
        opening: dict[int, list[str]] = {}
        closing: dict[int, list[str]] = {}
        names = {"mask": self._mask(processor)}
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
        prompt = self.options.prompt or PROMPTS["type" if "mention" in spans else "relation"]
        try:
            cloze = prompt.format(**names)
        except (KeyError, IndexError, ValueError) as error:
            raise RecipeError(f"task.prompt={prompt!r}: {error} is none of {', '.join(names)}.") from error
        if names["mask"] not in cloze:
            raise RecipeError(f"task.prompt={prompt!r} has no {{mask}}.")
        return " ".join(words), cloze

    def _encoded(self, texts: Sequence[tuple[str, str]], processor: Any) -> tuple[dict[str, Any], int]:
        """Token numbers and the mask's place of each text, and how many were cut; what is cut is the end of the sentence."""
        limit, mask = self._length(processor), processor.convert_tokens_to_ids(self._mask(processor))
        read = processor([f"{sentence} {cloze}" for sentence, cloze in texts], return_offsets_mapping=True)
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

    def _length(self, processor: Any) -> int:
        return min(self.options.max_length, processor.model_max_length)

    # -- model ---------------------------------------------------------------------------------------------------------

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        """A language model without its head, and a classifier on its last state at the mask."""
        from transformers import AutoModel, AutoModelForCausalLM

        config = load_config(model)
        if processor is not None and getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = processor.pad_token_id
        config.use_cache = False  # nothing is generated
        count, words = len(self.labels or ()), self.options.head == "words"
        whole, self.new_modules = load_pretrained(AutoModelForCausalLM if words else AutoModel, model, config)
        encoder: Any = whole.base_model if words else whole
        if isinstance(getattr(encoder, "pooler", None), nn.Module):
            encoder.pooler = None  # not in the path, so no gradient would reach it
        built = MaskClassifier(encoder, count, self.options.dropout)
        if words:
            with torch.no_grad():
                table = whole.get_output_embeddings().weight  # type: ignore[operator]
                built.classifier.weight.copy_(self._word_rows(table, processor))
        self.new_modules = ["classifier"]
        check_vocabulary(built, processor)
        return built

    def _word_rows(self, table: Tensor, processor: Any) -> Tensor:
        """For each label the mean of its words' output embeddings [labels, width]."""
        rows = []
        for label in self.labels or ():
            words = self.options.label_words.get(label) or label_words(label)
            ids = processor(words, add_special_tokens=False)["input_ids"]
            rows.append(table[ids].float().mean(0))
        return torch.stack(rows)

    def head_patterns(self, model: nn.Module) -> list[str]:
        return ["classifier"]

    # -- results -------------------------------------------------------------------------------------------------------

    def metrics(self, result: Any) -> dict[str, float]:
        return classification_metrics(argmax(result.predictions), np.asarray(result.label_ids))

    def scores(self, result: Any) -> Scores | None:
        return softmax_scores(result.predictions, result.label_ids)

    def inputs(self, rows: Any) -> list[Any] | None:
        """Rows as sentences with marks."""
        marks = {name: mark for mark, name in MARKS.items() if name in rows.column_names}
        return [_with_marks(row["tokens"], {marks[k]: row[k] for k in marks}) for row in rows]

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """Label and scores of each sentence with marks.

        Returns a list of {"label", "score", "scores"}.
        """
        texts = []
        for one in inputs:
            try:
                tokens, spans = marked_words(one, MARKS)
            except ValueError as error:
                raise DataError(f"{one!r}: {error}.") from error
            if set(spans) not in ({"head", "tail"}, {"mention"}):
                raise DataError(f"{one!r}: mark the entities, <h>...</h> and <t>...</t>, or <m>...</m>.")
            texts.append(self.written(tokens, spans, processor, repr(one)))
        encoded, _ = self._encoded(texts, processor)
        rows = [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]
        collate = CueCollator(processor.pad_token_id or 0)
        return labelled(model, (collate(part) for part in chunks(rows, batch_size)), self.labels or [])


_COLUMNS = {"relation": ("head", "tail"), "type": ("mention",)}


def _known(tokenizer: Any, token: str) -> bool:
    found = tokenizer.convert_tokens_to_ids(token)
    return found is not None and (found != tokenizer.unk_token_id or token == tokenizer.unk_token)


def _kind(splits: Splits) -> str:
    split = splits["train"] if "train" in splits else next(iter(splits.values()))
    return "type" if "mention" in split.rows.column_names else "relation"


def _with_marks(tokens: Sequence[str], spans: Mapping[str, Sequence[Sequence[int]]]) -> str:
    words = list(tokens)
    for mark, places in spans.items():
        for first, end in places:
            words[first] = f"<{mark}>{words[first]}"
            words[end - 1] += f"</{mark}>"
    return " ".join(words)


def label_words(label: str) -> str:
    """A label's name as words.

    >>> label_words("/person/political_figure"), label_words("per:city_of_birth")
    ('person political figure', 'per city of birth')
    """
    return " ".join("".join(c if c.isalnum() else " " for c in label).split()) or label


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


class MaskClassifier(EncoderClassifier):
    """A language model -> its last state at the mask -> dropout -> linear.

    shapes      input_ids, attention_mask [batch, length], cue [batch] -> logits [batch, labels]
    """

    def features(self, input_ids: Tensor, attention_mask: Tensor, cue: Tensor) -> Tensor:
        """The states at the mask [batch, hidden], before dropout: what a linear probe is trained on."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        found: Tensor = states[torch.arange(len(cue), device=states.device), cue]
        return found

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, cue: Tensor, labels: Tensor | None = None
    ) -> Any:
        return self.classified(self.features(input_ids, attention_mask, cue), labels)
