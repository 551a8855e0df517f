"""An adapter's tensors by PEFT's keys, with the settings of its configuration: unlike an export nothing is padded and no scale is moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from adaptome.core.checkpoint import fill
from adaptome.core.errors import KeyMismatchError
from adaptome.core.state import Attachment, find_root, tensors_of
from adaptome.interop.lora_factors import Factors
from adaptome.interop.peft import lora_tensors
from adaptome.interop.peft_names import PREFIX
from adaptome.interop.peft_products import KEYS, product_tensors
from adaptome.interop.peft_prompts import PROMPTS, prompt_form
from adaptome.interop.peft_random import TYPES
from adaptome.interop.peft_reading import put_tensors
from adaptome.peft.configs import PeftConfig


def read(model: nn.Module, attachment: Attachment, config: PeftConfig) -> dict[str, Tensor]:
    """The tensors on the CPU, by PEFT's keys.

    Raises:
        MergeError: PEFT has no such adapter on a layer.
        KeyMismatchError: rows of a layer are trained, for which PEFT has no key.
    """
    if config.kind == "ADAPTOME":
        return {f"{PREFIX}{k}": v.detach().cpu().clone() for k, v in tensors_of(attachment).items()}
    found = _heads(attachment)
    if config.kind in PROMPTS.values():
        return found | prompt_form(find_root(model), attachment, config.task_type or "CAUSAL_LM")[0]
    if config.kind in TYPES:
        return found | TYPES[config.kind].tensors(attachment)
    if config.kind.lower() in KEYS:
        return found | {f"{PREFIX}{k}": v for k, v in product_tensors(attachment).items()}
    for path, adapter in attachment.adapters.items():
        own: Any = adapter
        A, B = own.A.detach().cpu().clone(), own.B.detach().cpu().clone()
        found |= lora_tensors(attachment, {path: Factors(A, B, 0.0)}, A.shape[-2])
        if attachment.method.name == "dora":
            found[f"{PREFIX}{path}.lora_magnitude_vector"] = own.m.detach().cpu().clone()
    return found


def _heads(attachment: Attachment) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path, head in attachment.heads.items():
        if head.rows is not None:
            raise KeyMismatchError(
                f"{path}: PEFT has no key for trained rows of a layer. Save it with ad.save."
            )
        found |= {f"{PREFIX}{path}.{k}": v.detach().cpu().clone() for k, v in head.named_parameters()}
    return found


def write(
    model: nn.Module, attachment: Attachment, config: PeftConfig, tensors: Mapping[str, Tensor]
) -> None:
    """Set the tensors from what `read` gave.

    Raises:
        CheckpointError: a subclass for each fault; nothing is set then.
    """
    if config.kind == "ADAPTOME":
        fill(attachment, {k.removeprefix(PREFIX): v for k, v in tensors.items()}, "the state dict")
        return
    # how A and B began changes nothing of what they are
    settings = config.to_dict() | ({"init_lora_weights": True} if config.kind == "LORA" else {})
    put_tensors(model, attachment, settings, dict(tensors))
