"""What all of PEFT's configurations have; a type's class is found by its `kind`, once its module is imported."""

from __future__ import annotations

import enum
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from adaptome.core.errors import CheckpointError, FormatError, MethodError, TornFileError, did_you_mean
from adaptome.core.files import write_atomic
from adaptome.core.state import Attachment
from adaptome.interop.peft_names import CONFIG
from adaptome.interop.peft_prompts import PROMPTS

#: PEFT's type -> its configuration
CONFIGS: dict[str, type[PeftConfig]] = {}


class TaskType(str, enum.Enum):
    """What the model is for."""

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


class PeftType(str, enum.Enum):
    """The types that are here."""

    LORA = "LORA"
    ADALORA = "ADALORA"
    IA3 = "IA3"
    LOHA = "LOHA"
    LOKR = "LOKR"
    VERA = "VERA"
    FOURIERFT = "FOURIERFT"
    BOFT = "BOFT"
    OFT = "OFT"
    LN_TUNING = "LN_TUNING"
    PROMPT_TUNING = "PROMPT_TUNING"
    P_TUNING = "P_TUNING"
    PREFIX_TUNING = "PREFIX_TUNING"
    BEFT = "BEFT"
    C3A = "C3A"
    DEFT = "DEFT"
    DELORA = "DELORA"
    GLORA = "GLORA"
    GRALORA = "GRALORA"
    HIRA = "HIRA"
    HRA = "HRA"
    MISS = "MISS"
    PEANUT = "PEANUT"
    ROAD = "ROAD"
    SHIRA = "SHIRA"
    VBLORA = "VBLORA"
    WAVEFT = "WAVEFT"
    ADAPTOME = "ADAPTOME"


@dataclass
class PeftConfig:
    """What all types have."""

    kind: ClassVar[str] = ""

    task_type: str | None = None
    inference_mode: bool = False
    base_model_name_or_path: str | None = None
    revision: str | None = None
    auto_mapping: dict[str, Any] | None = None
    peft_type: str | None = None

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if cls.kind:
            CONFIGS[cls.kind] = cls

    def __post_init__(self) -> None:
        self.peft_type = PeftType(self.kind) if self.kind else self.peft_type
        if self.task_type is not None and self.task_type not in list(TaskType):
            raise MethodError(
                f"task_type={self.task_type!r} is none of PEFT's.{did_you_mean(self.task_type, [t.value for t in TaskType])}"
            )

    @property
    def starts_as_base(self) -> bool:
        """Whether outputs are the base's at the start: not with False for `init_weights`, `init_lora_weights` or `init_ia3_weights`."""
        return all(getattr(self, f"init_{kind}weights", True) is not False for kind in ("", "lora_", "ia3_"))

    @property
    def is_prompt_learning(self) -> bool:
        """Whether it is a prompt or prefix."""
        return self.kind in PROMPTS.values()

    def start(self, attachment: Attachment) -> None:
        """Draw an adapter that does not start as the base."""
        start_elsewhere(attachment)

    def check(self) -> None:
        """Raise MethodError for a setting that PEFT has and we have not."""

    def method(self) -> tuple[str, dict[str, Any]]:
        """Our method and its settings."""
        raise MethodError(f"{type(self).__name__} names no method; use one of its subclasses.")

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: the content of adapter_config.json."""
        return {k: _plain(v) for k, v in asdict(self).items()}

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write adapter_config.json."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        write_atomic(
            Path(save_directory) / CONFIG, json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **changes: Any
    ) -> PeftConfig:
        """The configuration of a folder, of the class that its type has.

        Raises:
            CheckpointError: there is no such folder; FormatError: a type that is not here.
        """
        path = Path(pretrained_model_name_or_path) / CONFIG
        if not path.is_file():
            raise CheckpointError(f"{pretrained_model_name_or_path} has no {CONFIG}.")
        try:
            content = json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise TornFileError(f"{path} is not whole JSON ({error}).") from error
        if not isinstance(content, dict):
            raise FormatError(f"{path} is not a PEFT configuration.")
        kind = content.get("peft_type")
        if kind not in CONFIGS:
            raise FormatError(f"{path} is of type {kind!r}; here are {', '.join(CONFIGS)}.")
        known = {f.name for f in fields(CONFIGS[kind])}
        return CONFIGS[kind](**{k: v for k, v in content.items() if k in known} | changes)


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    return sorted(value) if isinstance(value, (set, frozenset)) else value


@dataclass
class Targeted(PeftConfig):
    """Types that sit on layers: lists are names or endings of names, a string is a regular expression or 'all-linear'."""

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    fan_in_fan_out: bool = False
    bias: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            setattr(self, name, set(value) if isinstance(value, (list, tuple)) else value)

    def check(self) -> None:
        if self.bias != "none":
            raise MethodError(
                f"bias={self.bias!r}: biases are not trained beside another method here.\n  Attach 'bitfit' as an adapter of its own."
            )

    def layer(self, path: str, module: nn.Module | None) -> dict[str, Any]:
        """The settings of one layer that differ from the method's."""
        return {}


@torch.no_grad()
def start_elsewhere(attachment: Attachment) -> None:
    """Draw the tensors whose start, zeros or ones, leaves the outputs those of the base."""
    for adapter in attachment.adapters.values():
        for value in adapter.parameters():
            if value.numel() and not (value != value.flatten()[0]).any():
                if value.dim() > 1:
                    nn.init.kaiming_uniform_(value, a=5**0.5)
                else:
                    value.add_(torch.randn_like(value))
