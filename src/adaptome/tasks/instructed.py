"""What tasks share whose examples are an instruction and what a causal language model writes to it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import DataError, RecipeError
from adaptome.data.splits import Split
from adaptome.tasks.base import ModelSpec, Task, TaskOptions
from adaptome.tasks.inference import chunks
from adaptome.tasks.language import (
    counts,
    generate,
    language_model,
    language_tokenizer,
    left_padded,
    likelihood,
)
from adaptome.tasks.lengths import cut_note
from adaptome.tasks.packing import collated, packed
from adaptome.tasks.reasoning_prompts import IGNORED, Template, prompt_of, tokenised


class WrittenOptions(TaskOptions):
    max_length: int = Field(
        default=256, ge=8, description="tokens of an example, prompt and answer; the rest is cut"
    )
    max_new_tokens: int = Field(default=256, ge=1, description="generated at most")
    num_beams: int = Field(
        default=1, ge=1, description="1: greedy; LLM-Adapters evaluates with 4, four times as slow"
    )


class InstructedOptions(WrittenOptions):
    max_length: int = Field(
        default=256, ge=8, description="tokens of an example, prompt and answer, and of a packed row"
    )
    too_long: Literal["cut", "drop"] = Field(
        default="cut", description="what becomes of training examples of more tokens; others are cut"
    )
    packing: bool = Field(
        default=False,
        description="train on rows of max_length tokens that several examples fill; they do not see each other",
    )
    template: Template = Field(
        default="alpaca",
        description="alpaca-indented: with the 16 spaces that LLM-Adapters' released checkpoints were trained with; "
        "chat: the tokenizer's own; plain: a line each for instruction and input, if there are any",
    )
    train_on_inputs: bool = Field(
        default=True, description="the loss is over the whole sequence, not the answer alone"
    )


class Written(Task):
    """A causal language model learns to write texts after others; its loss is that of the written text."""

    Options = WrittenOptions
    options: WrittenOptions
    later_options: ClassVar[tuple[str, ...]] = ("max_new_tokens", "num_beams")
    greater_is_better = False
    ahead = 1

    def __init__(self, options: TaskOptions, labels: Sequence[str] | None = None):
        super().__init__(options, labels)
        self._positions = False  # whether the model is told positions; known once it is loaded

    @property
    def primary_metric(self) -> str:
        return "loss"

    def load_processor(self, model: ModelSpec) -> Any:
        tokenizer = language_tokenizer(model)
        tokenizer.padding_side = "left"
        return tokenizer

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        built, self.new_modules = language_model(model, processor)
        self._positions = "position_ids" in inspect.signature(built.forward).parameters
        return built

    def collator(self, processor: Any) -> Any:
        """Rows -> a batch padded on the left to a multiple of 8; positions count from each row's first token."""
        return partial(self._collate, processor)

    def _collate(self, processor: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if "position_ids" in rows[0]:  # packed
            return collated(rows, processor.pad_token_id, IGNORED)
        width = -(-max(len(row["input_ids"]) for row in rows) // 8) * 8

        def padded(key: str, filler: int) -> Tensor:
            return left_padded([row[key] for row in rows], filler, width)

        mask = padded("attention_mask", 0)
        batch = {
            "input_ids": padded("input_ids", processor.pad_token_id),
            "attention_mask": mask,
            "labels": padded("labels", IGNORED),
        }
        if self._positions:
            batch["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
        return batch

    def reduce(self, logits: Any, labels: Tensor) -> Tensor:
        """Loss, right and counted tokens of every row [batch, 3] in place of logits [batch, length, vocabulary]."""
        return counts(super().reduce(logits, labels), labels)

    def metrics(self, result: Any) -> dict[str, float]:
        return likelihood(torch.as_tensor(result.predictions).double().sum(0))


class Instructed(Written):
    """A language model learns to write `output` to an instruction and its input."""

    Options = InstructedOptions
    options: InstructedOptions

    def load_processor(self, model: ModelSpec) -> Any:
        tokenizer = super().load_processor(model)
        if self.options.template == "chat" and not getattr(tokenizer, "chat_template", None):
            raise RecipeError(
                f"task.template=chat: the tokenizer {model.tokenizer or model.name!r} has no chat template. "
                "Name an instruction-tuned model, or write task.template=alpaca."
            )
        return tokenizer

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        built = super().load_model(model, processor)
        if self.options.packing and not self._positions:
            raise RecipeError(
                f"task.packing: {type(built).__name__} is told no positions, so packed examples would see each other. Leave it out."
            )
        return built

    def dataset(
        self, records: Sequence[Mapping[str, str]], split: Split, name: str, processor: Any
    ) -> tuple[Any, list[str]]:
        """The tokenised examples of a split, and notes on what was cut or left out.

        Args:
            records: instruction, input and output of each.

        Raises:
            DataError: none has room for an answer.
            MissingExtraError: TRL, which packs, is not installed.
        """
        import datasets

        options = self.options
        drops = options.too_long == "drop" and name == "train"
        parts, cut, unlearned = [], 0, 0
        for part in chunks(list(records), 1000):  # token numbers are large as Python's lists
            rows, over, without = tokenised(
                part, options.template, processor, options.max_length, options.train_on_inputs, drops
            )
            parts += [datasets.Dataset.from_dict(rows)] if rows["length"] else []
            cut, unlearned = cut + over, unlearned + without
        if not parts:
            raise DataError(
                f"{split.source}: no example of the {name} split has an answer within task.max_length="
                f"{options.max_length} tokens. Raise it."
            )
        notes = cut_note(cut, len(records), name, options.max_length, drops)
        if unlearned:
            notes.append(
                f"{unlearned} examples of {name} were left out of the loss: their prompts leave no room for the answer."
            )
        made = datasets.concatenate_datasets(parts)
        if options.packing and name == "train":
            made, told = packed(made, options.max_length)
            notes.append(told)
        return made, notes

    def written(
        self,
        model: nn.Module,
        processor: Any,
        records: Sequence[Mapping[str, str]],
        batch_size: int,
        **settings: Any,
    ) -> list[str]:
        """What the model writes to each record's instruction and input.

        Args:
            settings: of the model's `generate`.
        """
        template = self.options.template
        return generate(
            model,
            processor,
            [prompt_of(record, template, processor) for record in records],
            batch_size,
            template != "chat",
            ("### Instruction:", "### Response:") if template.startswith("alpaca") else (),
            max_new_tokens=self.options.max_new_tokens,
            num_beams=self.options.num_beams,
            **settings,
        )
