"""Masked language modelling: pre-training an encoder further on the texts of a domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import DataError, RecipeError
from adaptome.tasks.base import ModelSpec, Prepared, Task, TaskOptions, register_task
from adaptome.tasks.inference import chunks, evaluating, to_device
from adaptome.tasks.language import perplexity
from adaptome.tasks.models import check_vocabulary, head_modules, load_config, load_pretrained, load_tokenizer

IGNORED = -100


class MaskedLMOptions(TaskOptions):
    max_length: int = Field(default=512, ge=8, description="tokens in a window; longer texts become several")
    mask: float = Field(default=0.15, gt=0, lt=1, description="share of the tokens that are to be guessed")
    masked: float = Field(default=0.8, ge=0, le=1, description="share of these shown as the mask token")
    random: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="share of these shown as a random token; the rest stay as they are",
    )
    mask_seed: int = Field(
        default=0, ge=0, description="of the masks of validation and test, which stay the same"
    )


@register_task("masked-lm")
class MaskedLM(Task):
    """Column: text. A share of the tokens is hidden and guessed from the others (Devlin et al. 2019, arXiv:1810.04805).

    Metrics are means over the hidden tokens; the masks of validation and test are drawn once, so that the perplexity before and
    after training is of the same guesses. Train is masked anew in every epoch.
    """

    Options = MaskedLMOptions
    options: MaskedLMOptions
    primary_metric = "perplexity"
    greater_is_better = False
    measures_before = True
    texts = ("text",)

    def load_processor(self, model: ModelSpec) -> Any:
        tokenizer = load_tokenizer(model)
        if tokenizer.mask_token_id is None:
            raise RecipeError(
                f"masked-lm: the tokenizer {model.tokenizer or model.name!r} has no mask token; "
                "name an encoder's, such as BERT's or DeBERTa's."
            )
        return tokenizer

    def prepare(self, splits: Any, processor: Any) -> Prepared:
        splits.require("text")
        if self.options.masked + self.options.random > 1:
            raise RecipeError("task.masked and task.random together are more than 1.")
        made, notes = {}, []
        for name, split in splits.items():
            rows, cut = self._windows(list(split.rows["text"]), processor)
            if not rows:
                raise DataError(f"{split.source}: the {name} split has no text to learn from.")
            if cut:
                notes.append(f"{cut} texts of {name} exceed {self.options.max_length} tokens and became several windows (task.max_length).")  # fmt: skip
            made[name] = self._dataset(rows, processor, fixed=name != "train")
        return Prepared(made, _Collator(self.options, processor), length_column="length", notes=notes)

    def _windows(self, texts: Sequence[str], processor: Any) -> tuple[list[list[int]], int]:
        """The tokens of every window, special ones around them; and how many texts became several."""
        room = min(self.options.max_length, processor.model_max_length)
        rows: list[list[int]] = []
        cut = 0
        for part in chunks(texts, 1000):
            encoded = processor(list(part), truncation=True, max_length=room, return_overflowing_tokens=True)
            owners = encoded.get("overflow_to_sample_mapping", range(len(encoded["input_ids"])))
            cut += len({o for i, o in enumerate(owners) if i and owners[i - 1] == o})
            rows += [
                ids for ids in encoded["input_ids"] if not all(i in processor.all_special_ids for i in ids)
            ]
        return rows, cut

    def _dataset(self, rows: list[list[int]], processor: Any, fixed: bool) -> Any:
        import datasets

        columns: dict[str, list[Any]] = {
            "input_ids": rows,
            "attention_mask": [[1] * len(ids) for ids in rows],
            "length": [len(ids) for ids in rows],
        }
        if fixed:
            generator = torch.Generator().manual_seed(self.options.mask_seed)
            pairs = [hidden(torch.tensor([ids]), processor, self.options, generator) for ids in rows]
            columns["input_ids"] = [ids[0].tolist() for ids, _ in pairs]
            columns["labels"] = [labels[0].tolist() for _, labels in pairs]
        return datasets.Dataset.from_dict(columns)

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        from transformers import AutoModelForMaskedLM

        built, self.new_modules = load_pretrained(AutoModelForMaskedLM, model, load_config(model))
        built.accepts_loss_kwargs = False  # type: ignore[assignment]  # its loss is a mean over the batch
        check_vocabulary(built, processor)
        if self.head_patterns(built):
            self.loading_notes = [
                f"{model.name or 'the model'} has no weights for the masked-LM head of {type(built).__name__}: it starts at random and "
                "trains with the adapter, so the perplexity before training says nothing of the base."
            ]
        return built

    def head_patterns(self, model: nn.Module) -> list[str]:
        """The head's own parameters where the checkpoint had none of them; what it shares with the embeddings stays the base's."""
        heads = head_modules(model)
        new = [name for name in self.new_modules if name.split(".")[0] in heads]
        inside = {
            id(p)
            for name, p in model.named_parameters(remove_duplicate=False)
            if name.split(".")[0] not in heads
        }
        return [
            name
            for name, p in model.named_parameters()
            if id(p) not in inside and any(name.startswith(f"{module}.") for module in new)
        ]

    def reduce(self, logits: Any, labels: Tensor) -> Tensor:
        """Summed loss, right and counted tokens of every row, [batch, 3], in place of logits [batch, length, vocabulary]."""
        scores = super().reduce(logits, labels)
        counted = labels != IGNORED
        loss = nn.functional.cross_entropy(
            scores.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
        ).sum(1, dtype=torch.float64)
        right = ((scores.argmax(-1) == labels) & counted).sum(1)
        return torch.stack([loss, right.double(), counted.sum(1).double()], dim=1)

    def metrics(self, result: Any) -> dict[str, float]:
        loss, right, counted = np.asarray(result.predictions, dtype=np.float64).reshape(-1, 3).sum(0).tolist()
        if not counted:
            raise DataError("masked-lm: no token of the split is hidden; it is too small for task.mask.")
        return {
            "masked_loss": loss / counted,
            "perplexity": perplexity(loss / counted),
            "token_accuracy": right / counted,
        }

    def inputs(self, rows: Any) -> list[Any]:
        raise RecipeError(
            "masked-lm predicts where a text has a mask token, and the rows of its data have none."
        )

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """The best guess for every mask token of each text: {"completion", "fills"}.

        Raises:
            DataError: a text without a mask token.
        """
        for text in inputs:
            if processor.mask_token not in text:
                raise DataError(
                    f"masked-lm: write {processor.mask_token} where a token is to be guessed: {text!r}."
                )
        made = []
        with evaluating(model) as device:
            for part in chunks(inputs, batch_size):
                batch = processor(list(part), truncation=True, max_length=self.options.max_length, padding=True, return_tensors="pt")  # fmt: skip
                best = model(**to_device(batch, device)).logits.argmax(-1).cpu()
                for text, ids, row in zip(part, batch["input_ids"], best, strict=True):
                    fills = [processor.decode([number]).strip() for number in row[ids == processor.mask_token_id].tolist()]  # fmt: skip
                    for word in fills:
                        text = text.replace(processor.mask_token, word, 1)
                    made.append({"completion": text, "fills": fills})
        return made


def hidden(
    ids: Tensor, processor: Any, options: MaskedLMOptions, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Token numbers with some hidden, and labels: the hidden ones' true numbers, IGNORED elsewhere; both [batch, length].

    Special tokens are never hidden.
    """
    special = torch.isin(ids, torch.tensor(processor.all_special_ids))
    chance = torch.rand(ids.shape, generator=generator)
    chosen = (chance < options.mask) & ~special
    labels = ids.masked_fill(~chosen, IGNORED)
    kind = torch.rand(ids.shape, generator=generator)
    drawn = torch.randint(len(processor), ids.shape, generator=generator)
    masked = chosen & (kind < options.masked)
    random = chosen & ~masked & (kind < options.masked + options.random)
    shown = torch.where(random, drawn, ids).masked_fill(masked, processor.mask_token_id)
    return shown, labels


class _Collator:
    """Rows as a batch; those without labels, the training split's, are masked here."""

    def __init__(self, options: MaskedLMOptions, processor: Any):
        self.options, self.processor = options, processor

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        plain = [{key: row[key] for key in ("input_ids", "attention_mask")} for row in rows]
        batch = dict(self.processor.pad(plain, return_tensors="pt"))
        if "labels" not in rows[0]:
            batch["input_ids"], batch["labels"] = hidden(batch["input_ids"], self.processor, self.options)
            return batch
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for target, row, mask in zip(labels, rows, batch["attention_mask"], strict=True):
            target[mask.bool()] = torch.tensor(row["labels"])
        batch["labels"] = labels
        return batch
