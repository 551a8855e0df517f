"""A model of transformers on this machine, used as if nothing but its outputs could be seen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from adaptome.blackbox.base import BLACK_BOXES, BlackBox, BlackBoxSettings
from adaptome.core.errors import BlackBoxError


class LocalSettings(BlackBoxSettings):
    model: str = Field(default="minilm", description="hub id or local folder, or 'minilm'")
    revision: str | None = Field(default=None, description="branch, tag or commit on the hub")
    output: Literal["states", "logits"] = Field(
        default="states", description="states of a layer; or logits alone: log-probabilities of `words`"
    )
    layer: int = Field(default=-1, description="of states: which hidden layer; -1 the last")
    max_length: int = Field(default=128, ge=4, description="tokens that are read of a text")
    words: list[str] = Field(default_factory=list, description="of logits: the words that are asked for")
    prompt: str = Field(
        default="{text} {mask}",
        description="of logits: what is read, with {text}, and {mask} where the word would stand (its end, without a mask token)",
    )

    @model_validator(mode="after")
    def _words(self) -> LocalSettings:
        if self.output == "logits" and not self.words:
            raise ValueError("output=logits needs words, such as those of the labels' descriptions")
        if "{text}" not in self.prompt:
            raise ValueError("prompt needs {text}")
        return self


@BLACK_BOXES.register("local")
class Local(BlackBox):
    """Hidden states [tokens, d] of an encoder or decoder; or log-probabilities [1, words] at a mask or of the next word."""

    Settings = LocalSettings

    def identity(self) -> dict[str, Any]:
        """With sizes and times of a folder's files, so that other weights under the same name are other answers."""
        folder = Path(self.settings.model)
        files = (
            sorted(f for f in folder.glob("*") if f.suffix in (".safetensors", ".json"))
            if folder.is_dir()
            else []
        )
        stats = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]
        return {**super().identity(), "files": stats}

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.settings.model, revision=self.settings.revision)
        except (OSError, ValueError) as error:
            raise BlackBoxError(
                f"task.black_box.model={self.settings.model!r} cannot be had: {error}"
            ) from error

    @cached_property
    def model(self) -> Any:
        """Loaded at the first question, and never trained."""
        import transformers

        kind = "AutoModel"
        if self.settings.output == "logits":
            kind = "AutoModelForMaskedLM" if self.tokenizer.mask_token else "AutoModelForCausalLM"
        try:
            made = getattr(transformers, kind).from_pretrained(
                self.settings.model, revision=self.settings.revision
            )
        except (OSError, ValueError) as error:
            raise BlackBoxError(
                f"task.black_box.model={self.settings.model!r} cannot be had: {error}"
            ) from error
        return made.eval().requires_grad_(False)

    @torch.no_grad()
    def states(self, texts: Sequence[str]) -> list[Tensor]:
        return self._hidden(texts) if self.settings.output == "states" else self._words(texts)

    def _hidden(self, texts: Sequence[str]) -> list[Tensor]:
        told, model = self.settings, self.model
        batch = self._read(list(texts))
        layers = model(**batch, output_hidden_states=told.layer != -1)
        if told.layer == -1:
            states = layers.last_hidden_state
        elif -len(layers.hidden_states) <= told.layer < len(layers.hidden_states):
            states = layers.hidden_states[told.layer]
        else:
            raise BlackBoxError(
                f"task.black_box.layer={told.layer}: {told.model} has layers 0 (embeddings) to {len(layers.hidden_states) - 1}."
            )
        mask = batch["attention_mask"].bool()
        return [row[real] for row, real in zip(states, mask, strict=True)]

    def _words(self, texts: Sequence[str]) -> list[Tensor]:
        tokenizer, mask = self.tokenizer, self.tokenizer.mask_token
        cut = tokenizer(
            list(texts), truncation=True, max_length=self.settings.max_length, add_special_tokens=False
        )
        asked = [
            self.settings.prompt.format(text=tokenizer.decode(ids), mask=mask or "").rstrip()
            for ids in cut["input_ids"]
        ]
        batch = self._read(asked, cut=False)
        logits = self.model(**batch).logits
        if mask:
            at = (batch["input_ids"] == tokenizer.mask_token_id).int().argmax(1)
        else:
            width = batch["attention_mask"].shape[1]
            at = width - 1 - batch["attention_mask"].flip(1).argmax(1)
        chosen = logits[torch.arange(len(asked)), at].float().log_softmax(-1)[:, self._numbers]
        return list(chosen[:, None])

    @cached_property
    def _numbers(self) -> list[int]:
        """The first token of each word, as it stands behind another word."""
        lead = "" if self.tokenizer.mask_token else " "
        return [
            self.tokenizer(lead + word, add_special_tokens=False)["input_ids"][0]
            for word in self.settings.words
        ]

    def _read(self, texts: list[str], cut: bool = True) -> Any:
        tokenizer = self.tokenizer
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        limit = (
            {"truncation": True, "max_length": min(self.settings.max_length, tokenizer.model_max_length)}
            if cut
            else {}
        )
        batch = tokenizer(texts, padding=True, return_tensors="pt", **limit)
        if not batch["attention_mask"].any(1).all():
            raise BlackBoxError("a text has no token for the black box. Leave empty texts out.")
        return batch.to(self.model.device)
