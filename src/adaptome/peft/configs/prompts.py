"""PEFT's configurations of prompts and prefixes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from adaptome.core.errors import MethodError
from adaptome.peft.configs.base import PeftConfig


@dataclass
class _Prompt(PeftConfig):
    num_virtual_tokens: int | None = None
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None
    modules_to_save: list[str] | None = None

    def _count(self) -> int:
        if not self.num_virtual_tokens:
            raise MethodError(f"{type(self).__name__} needs num_virtual_tokens.")
        return self.num_virtual_tokens


@dataclass
class PromptTuningConfig(_Prompt):
    """Prompt tuning; a start from text is `ad.prompt_from`."""

    kind: ClassVar[str] = "PROMPT_TUNING"

    prompt_tuning_init: str = "RANDOM"

    def method(self) -> tuple[str, dict[str, Any]]:
        start = {"RANDOM": "normal", "SAMPLE_VOCAB": "vocabulary"}.get(
            str(self.prompt_tuning_init).rpartition(".")[2]
        )
        if start is None:
            raise MethodError(
                f"prompt_tuning_init={self.prompt_tuning_init!r}: start with RANDOM, and set the words with ad.prompt_from."
            )
        return "prompt-tuning", {"p": self._count(), "place": "front", "init": start}


@dataclass
class PromptEncoderConfig(_Prompt):
    """P-tuning."""

    kind: ClassVar[str] = "P_TUNING"

    encoder_reparameterization_type: str = "MLP"
    encoder_hidden_size: int | None = None

    def method(self) -> tuple[str, dict[str, Any]]:
        made = str(self.encoder_reparameterization_type).rpartition(".")[2].lower()
        hidden = self.encoder_hidden_size or 0
        # of an LSTM PEFT's hidden size is that of one direction
        return "p-tuning", {"p": self._count(), "place": "front", "encoder": made, "hidden": hidden * 2 if made == "lstm" else hidden}  # fmt: skip


@dataclass
class PrefixTuningConfig(_Prompt):
    """Prefix tuning."""

    kind: ClassVar[str] = "PREFIX_TUNING"

    encoder_hidden_size: int | None = None
    prefix_projection: bool = False

    def method(self) -> tuple[str, dict[str, Any]]:
        hidden = (self.encoder_hidden_size or 0) if self.prefix_projection else 0
        return "prefix-tuning", {"p": self._count(), "hidden": hidden, "positions": "after"}
