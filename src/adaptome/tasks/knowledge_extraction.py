"""Knowledge extraction: the relation of two entities in a sentence, or the type of one, read at a mask in a cloze after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import DataError, RecipeError
from adaptome.data.readers.knowledge import marked_words
from adaptome.data.splits import Split, Splits
from adaptome.tasks.base import ModelSpec, Prepared, Task, TaskOptions, argmax, register_task
from adaptome.tasks.clozes import Cloze, CueCollator
from adaptome.tasks.inference import chunks, labelled
from adaptome.tasks.labels import labels_of_train, numbers
from adaptome.tasks.lengths import cut_note
from adaptome.tasks.metrics import classification_metrics
from adaptome.tasks.models import check_vocabulary, load_config, load_pretrained, load_tokenizer
from adaptome.tasks.pooling import EncoderClassifier
from adaptome.tasks.scores import Scores, softmax_scores

#: an entity's column and its mark in what `predict` takes
MARKS = {"h": "head", "t": "tail", "m": "mention"}


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
        self._cloze(tokenizer).register(tokenizer)
        return tokenizer

    def _cloze(self, tokenizer: Any) -> Cloze:
        asked = self.options
        return Cloze.of(tokenizer, asked.mask_token, asked.markers, asked.prompt)

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
        cloze, texts = self._cloze(processor), []
        for number in range(len(split)):
            spans = {name: columns[name][number] for name in _COLUMNS[kind]}
            if isinstance(targets[number], list):
                raise DataError(f"{split.where(number)}: a row has one label here, and this one has a list.")
            texts.append(cloze.written(columns["tokens"][number], spans, split.where(number)))
        encoded, cut = cloze.encoded(texts, processor, self._length(processor))
        encoded["labels"] = targets
        encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
        return datasets.Dataset.from_dict(encoded), cut

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
        cloze, texts = self._cloze(processor), []
        for one in inputs:
            try:
                tokens, spans = marked_words(one, MARKS)
            except ValueError as error:
                raise DataError(f"{one!r}: {error}.") from error
            if set(spans) not in ({"head", "tail"}, {"mention"}):
                raise DataError(f"{one!r}: mark the entities, <h>...</h> and <t>...</t>, or <m>...</m>.")
            texts.append(cloze.written(tokens, spans, repr(one)))
        encoded, _ = cloze.encoded(texts, processor, self._length(processor))
        rows = [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]
        collate = CueCollator(processor.pad_token_id or 0)
        return labelled(model, (collate(part) for part in chunks(rows, batch_size)), self.labels or [])


_COLUMNS = {"relation": ("head", "tail"), "type": ("mention",)}


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
