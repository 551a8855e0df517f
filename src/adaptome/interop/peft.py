"""PEFT's adapter folders, both ways: `adapter_config.json` and `adapter_model.safetensors`.

Written: LoRA for every weight method (exact where it is low-rank), and the methods that PEFT has too as what they are. For LoRA one rank and alpha = rank, with smaller ranks padded by
zeros and the scale inside B, because servers drop rank and alpha patterns. Trained heads go to `modules_to_save`.
Read: the same types, and of LoRA what it has besides (rsLoRA, rank and alpha patterns, embeddings, convolutions, fused experts, heads). A
setting that would change the numbers and that we do not know is refused, never dropped.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.errors import MergeError
from adaptome.core.files import atomic_folder
from adaptome.core.hosts import Conv1DHost
from adaptome.core.state import Attachment, find_root, is_ours
from adaptome.interop.card import CARD, card
from adaptome.interop.formats import (
    Asked,
    ExportReport,
    provenance,
    refuse_not_finite,
    register_writer,
)
from adaptome.interop.lora_factors import Factors, lora_factors
from adaptome.interop.peft_names import CONFIG, PREFIX, TENSORS, check_heads, has_form, target_modules
from adaptome.interop.peft_parameters import depth, stacked
from adaptome.interop.peft_products import KEYS, product_config, product_tensors
from adaptome.interop.peft_prompts import PROMPTS, prompt_form
from adaptome.interop.peft_random import TYPES
from adaptome.interop.peft_reading import load_peft as load_peft

#: method -> PEFT's type
OWN = {form.method: name for name, form in TYPES.items()}
FORMATS = ("peft", "peft-lora", "peft-dora", *(f"peft-{name}" for name in (*KEYS, *OWN, *PROMPTS)))


@register_writer(*FORMATS)
def write_peft(asked: Asked) -> ExportReport:
    """An adapter as a PEFT folder; see `export`."""
    attachment, format = asked.attachment, asked.format
    if format == "peft":
        own = f"peft-{attachment.method.name}"
        format = own if own in FORMATS else "peft-lora"
    _check(attachment, format)
    written = _written(asked, format)
    tensors = dict(written.tensors)
    heads = _heads(asked.root, attachment, asked.task_type)
    prefix = PREFIX if attachment.method.name not in PROMPTS else PREFIX.removesuffix("model.")
    for path, parameters in heads.items():
        tensors |= {f"{prefix}{path}.{k}": v.detach().cpu().clone() for k, v in parameters.items()}
    config = _config(asked.model, attachment, written.config, asked.task_type, sorted(heads))
    _write(asked.path, config, tensors, provenance(asked.root, attachment, tensors))
    return ExportReport(str(asked.path), format, written.rank, written.errors)


def write_lora(
    model: nn.Module,
    folder: str | os.PathLike[str],
    attachment: Attachment,
    factors: dict[str, Factors],
    rank: int,
    task_type: str | None = None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write factors of an attachment's targets as a PEFT folder of LoRA, all padded to one rank.

    Raises:
        MergeError: a layer has no place in the format.
        CheckpointError: the folder holds something else.
    """
    _check(attachment, "peft-lora")
    heads = _heads(find_root(model), attachment, task_type)
    tensors = lora_tensors(attachment, factors, rank)
    for path, parameters in heads.items():
        tensors |= {f"{PREFIX}{path}.{k}": v.detach().cpu().clone() for k, v in parameters.items()}
    config = _config(model, attachment, _lora_config(attachment, rank, False), task_type, sorted(heads))
    _write(folder, config, tensors, metadata)


#: the heads that PEFT stores with every adapter of a task
_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


def _heads(
    root: nn.Module, attachment: Attachment, task_type: str | None
) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters of the modules that PEFT keeps whole: those trained here, and the head that it expects with a task, as it is."""
    heads: dict[str, dict[str, nn.Parameter]] = {}
    for path, head in attachment.heads.items():
        if head.rows is not None:
            raise MergeError(
                f"{path}: PEFT has no form for trained rows of a layer.\n  Merge into the model instead."
            )
        heads[path] = dict(head.named_parameters())
    for name in _HEADS.get(task_type or "", ()):
        layer = getattr(root, name, None)
        if isinstance(layer, nn.Module) and not any(path.partition(".")[0] == name for path in heads):
            heads[name] = dict(layer.named_parameters())
    return heads


def _check(attachment: Attachment, format: str) -> None:
    """Raise MergeError for a method or a layer that has no place in the format."""
    if not attachment.adapters:
        raise MergeError(
            f"{attachment.name!r} is {attachment.method.name}, which changes no weight but the head's: {format} has no form of it.\n  Merge into the model instead."
        )
    if format != "peft-lora" and attachment.method.name != format.removeprefix("peft-"):
        raise MergeError(
            f"{format} needs {format.removeprefix('peft-')}; {attachment.name!r} is {attachment.method.name}. Use peft-lora."
        )
    for path, adapter in attachment.adapters.items():
        if not has_form(adapter.host, format):
            raise MergeError(
                f"{path} is a {adapter.host!r}: {format} has no exact form of it.\n  Merge into the model instead, or leave it out of the targets."
            )


@dataclass(frozen=True)
class Written:
    """An adapter in PEFT's form: tensors by key, its own settings, its rank and the errors by target."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    rank: int
    errors: dict[str, float]


def _written(asked: Asked, format: str) -> Written:
    attachment = asked.attachment
    exact = dict.fromkeys(attachment.adapters, 0.0)
    method = format.removeprefix("peft-")
    if method in PROMPTS:
        return Written(*prompt_form(asked.root, attachment, asked.task_type), 0, exact)
    if method in OWN:
        form = TYPES[OWN[method]]
        return Written(form.tensors(attachment), form.config(attachment), 0, exact)
    if method in KEYS:
        own = product_config(attachment)
        r = max(own["rank_pattern"].values(), default=own["r"])
        return Written({PREFIX + k: v for k, v in product_tensors(attachment).items()}, own, r, exact)
    if method == "dora":
        tensors, r = _dora_tensors(attachment)
        return Written(tensors, _lora_config(attachment, r, True), r, exact)
    factors = lora_factors(attachment, asked.rank)
    errors = {path: f.error for path, f in factors.items()}
    asked.within(errors)
    r = max(f.A.shape[-2] for f in factors.values())
    return Written(lora_tensors(attachment, factors, r), _lora_config(attachment, r, False), r, errors)


def lora_tensors(attachment: Attachment, factors: dict[str, Factors], r: int) -> dict[str, Tensor]:
    """Factors of an attachment's targets by PEFT's keys and in its shapes, padded to rank r."""
    tensors: dict[str, Tensor] = {}
    for path, f in factors.items():
        host = attachment.adapters[path].host
        A, B = F.pad(f.A, (0, 0, 0, r - f.A.shape[-2])), F.pad(f.B, (0, r - f.B.shape[-1]))
        if host.kind in ("experts", "parameter"):
            where = f"{PREFIX}{host.path}{'.base_layer' * depth(host, attachment)}"
            A, B = stacked(host, A, B)
            tensors |= {f"{where}.lora_A.weight": A, f"{where}.lora_B.weight": B}
            continue
        if host.kind == "embedding":
            tensors |= {f"{PREFIX}{path}.lora_embedding_A": A, f"{PREFIX}{path}.lora_embedding_B": B}
            continue
        if host.kind == "conv":
            kernel = host.stored("weight").shape[1:]
            A, B = A.view(r, *kernel), B.view(*B.shape, *[1] * (len(kernel) - 1))
        tensors |= {f"{PREFIX}{path}.lora_A.weight": A, f"{PREFIX}{path}.lora_B.weight": B}
    return tensors


def _dora_tensors(attachment: Attachment) -> tuple[dict[str, Tensor], int]:
    tensors: dict[str, Tensor] = {}
    adapters: dict[str, Any] = dict(attachment.adapters)
    if any(a.host.kind != "linear" for a in adapters.values()):
        raise MergeError("peft-dora is written for linear layers only. Merge into the model instead.")
    r = max(a.A.shape[0] for a in adapters.values())
    for path, a in adapters.items():
        A, B = a.A.detach().float().cpu(), a.B.detach().float().cpu() * a.scale
        tensors[f"{PREFIX}{path}.lora_A.weight"] = torch.cat([A, A.new_zeros(r - A.shape[0], A.shape[1])])
        tensors[f"{PREFIX}{path}.lora_B.weight"] = torch.cat([B, B.new_zeros(B.shape[0], r - B.shape[1])], 1)
        tensors[f"{PREFIX}{path}.lora_magnitude_vector"] = a.m.detach().float().cpu().clone()
    return tensors, r


def _lora_config(attachment: Attachment, r: int, dora: bool) -> dict[str, Any]:
    hosts = [a.host for a in attachment.adapters.values()]
    return {
        "peft_type": "LORA", "r": r, "lora_alpha": r, "lora_dropout": 0.0, "bias": "none", "init_lora_weights": True,
        "fan_in_fan_out": all(isinstance(host, Conv1DHost) for host in hosts), "use_rslora": False, "use_dora": dora,
        "rank_pattern": {}, "alpha_pattern": {},
        "target_parameters": [h.name for h in hosts if h.kind in ("experts", "parameter")] or None,
    }  # fmt: skip


def _config(
    model: nn.Module, attachment: Attachment, own: dict[str, Any], task_type: str | None, heads: list[str]
) -> dict[str, Any]:
    root = find_root(model)
    config = getattr(root, "config", None)
    common = {
        "inference_mode": True, "task_type": task_type, "modules_to_save": heads or None,
        "base_model_name_or_path": getattr(config, "_name_or_path", None) or None, "revision": getattr(config, "_commit_hash", None),
    }  # fmt: skip
    if attachment.method.name in PROMPTS:
        return common | own
    layers = [p for p, a in attachment.adapters.items() if a.host.kind not in ("experts", "parameter")]
    check_heads(heads, layers)
    names = [n for n, _ in root.named_modules() if not is_ours(n)]
    form = TYPES.get(own["peft_type"])
    targets = (
        {"target_modules": target_modules(layers, names)} if form is None else form.select(attachment, names)
    )
    return common | own | targets


def _write(
    folder: str | os.PathLike[str],
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    metadata: dict[str, str] | None = None,
) -> None:
    refuse_not_finite(tensors)
    data = dump_tensors(
        {k: v.contiguous() for k, v in tensors.items()}, metadata={"format": "pt", **(metadata or {})}
    )
    with atomic_folder(folder, only=(TENSORS, CONFIG, CARD)) as staging:
        (staging / TENSORS).write_bytes(data)
        (staging / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        (staging / CARD).write_text(card(config, tensors, metadata or {}), "utf-8")
