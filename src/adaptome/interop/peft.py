"""PEFT's adapter folders, both ways: `adapter_config.json` and `adapter_model.safetensors`.

Written: LoRA for every weight method (exact where it is low-rank), and DoRA, LoHa and LoKr as what they are. For LoRA one rank and alpha = rank, with smaller ranks padded by
zeros and the scale inside B, because servers drop rank and alpha patterns. Trained heads go to `modules_to_save`.
Read: LoRA (rsLoRA, rank and alpha patterns, embeddings, convolutions, heads), DoRA, IA3, LN tuning, LoHa and LoKr. A
setting that would change the numbers and that we do not know is refused, never dropped.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from adaptome.core.errors import FormatError, MergeError, NonFiniteError, did_you_mean
from adaptome.core.files import atomic_folder
from adaptome.core.state import Attachment, attachment_of, find_root, is_ours
from adaptome.interop.lora_factors import Factors, lora_factors
from adaptome.interop.peft_names import CONFIG, PREFIX, TENSORS, check_heads, has_form, target_modules
from adaptome.interop.peft_products import product_config, product_tensors
from adaptome.interop.peft_reading import load_peft as load_peft

Format = Literal["peft-lora", "peft-dora", "peft-loha", "peft-lokr"]
FORMATS = get_args(Format)


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        folder: where.
        format: of what.
        rank: of every layer, smaller ones padded; of LoHa and LoKr the largest.
        errors: target -> relative error of its update; 0 where exact.
    """

    folder: str
    format: str
    rank: int
    errors: dict[str, float]

    @property
    def worst(self) -> float:
        """The largest error."""
        return max(self.errors.values(), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {**vars(self), "worst": self.worst}

    def __str__(self) -> str:
        exact = "exact" if self.worst == 0 else f"largest relative error of an update {self.worst:.2e}"
        return (
            f"wrote {len(self.errors)} updates as {self.format}, rank {self.rank}, to {self.folder}: {exact}"
        )


def export(
    model: nn.Module,
    folder: str | os.PathLike[str],
    name: str = "default",
    *,
    format: Format = "peft-lora",
    rank: int | None = None,
    tolerance: float | None = None,
    task_type: str | None = None,
) -> ExportReport:
    """Write an adapter as a PEFT folder.

    Args:
        model: with the adapter.
        folder: made or replaced.
        name: of the adapter.
        format: 'peft-lora' for any weight method, 'peft-dora', 'peft-loha' and 'peft-lokr' for DoRA, LoHa and LoKr as they are.
        rank: truncate updates of a higher rank to this one; a method that is not low-rank needs it.
        tolerance: refuse when an update's relative error is above it.
        task_type: PEFT's ('CAUSAL_LM', 'SEQ_CLS', ...), for `AutoPeftModel`.

    Raises:
        MergeError: the method has no such form, a rank is needed, a layer has no place in the format, or the error is too large.
        CheckpointError: the folder holds something else.
    """
    if format not in FORMATS:
        raise FormatError(
            f"no export format is called {format!r}.{did_you_mean(format, FORMATS)} There are {', '.join(FORMATS)}."
        )
    attachment = attachment_of(model, name)
    if not attachment.adapters:
        raise MergeError(
            f"{name!r} is {attachment.method.name}, which changes no weight but the head's: {format} has no form of it.\n  Merge into the model instead."
        )
    for path, adapter in attachment.adapters.items():
        if not has_form(adapter.host):
            raise MergeError(
                f"{path} is a {adapter.host!r}: {format} has no exact form of it.\n  Merge into the model instead, or leave it out of the targets."
            )
    if format != "peft-lora" and attachment.method.name != format.removeprefix("peft-"):
        raise MergeError(
            f"{format} needs {format.removeprefix('peft-')}; {name!r} is {attachment.method.name}. Use peft-lora."
        )
    tensors, r, errors, own = _tensors(attachment, format, rank, tolerance)
    for path, head in attachment.heads.items():
        if head.rows is not None:
            raise MergeError(
                f"{path}: {format} has no form for trained rows of a layer.\n  Merge into the model instead."
            )
        tensors |= {f"{PREFIX}{path}.{k}": v.detach().cpu().clone() for k, v in head.named_parameters()}
    _write(folder, _config(model, attachment, r, format, task_type, own), tensors)
    return ExportReport(str(folder), format, r, errors)


def _tensors(
    attachment: Attachment, format: Format, rank: int | None, tolerance: float | None
) -> tuple[dict[str, Tensor], int, dict[str, float], dict[str, Any]]:
    """The adapters' tensors under PEFT's names, their rank, the errors by target, and settings of the format's own."""
    if format == "peft-dora":
        return *_dora_tensors(attachment), {}
    if format != "peft-lora":
        tensors = {PREFIX + key: value for key, value in product_tensors(attachment).items()}
        own, exact = product_config(attachment), dict.fromkeys(attachment.adapters, 0.0)
        return tensors, max(own["rank_pattern"].values(), default=own["r"]), exact, own
    factors = lora_factors(attachment, rank)
    errors = {path: f.error for path, f in factors.items()}
    if tolerance is not None and max(errors.values()) > tolerance:
        worst = max(errors, key=lambda k: errors[k])
        raise MergeError(
            f"rank {rank} leaves a relative error of {errors[worst]:.2e} on {worst}, above {tolerance:.0e}.\n  Raise the rank or the tolerance."
        )
    r = max(f.A.shape[-2] for f in factors.values())
    return _lora_tensors(attachment, factors, r), r, errors, {}


def _lora_tensors(attachment: Attachment, factors: dict[str, Factors], r: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path, f in factors.items():
        host = attachment.adapters[path].host
        A = torch.cat([f.A, f.A.new_zeros(r - f.A.shape[0], f.A.shape[1])])
        B = torch.cat([f.B, f.B.new_zeros(f.B.shape[0], r - f.B.shape[1])], 1)
        if host.kind == "embedding":
            tensors |= {f"{PREFIX}{path}.lora_embedding_A": A, f"{PREFIX}{path}.lora_embedding_B": B}
            continue
        if host.kind == "conv":
            kernel = host.stored("weight").shape[1:]
            A, B = A.view(r, *kernel), B.view(*B.shape, *[1] * (len(kernel) - 1))
        tensors |= {f"{PREFIX}{path}.lora_A.weight": A, f"{PREFIX}{path}.lora_B.weight": B}
    return tensors


def _dora_tensors(attachment: Attachment) -> tuple[dict[str, Tensor], int, dict[str, float]]:
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
    return tensors, r, dict.fromkeys(adapters, 0.0)


def _config(
    model: nn.Module,
    attachment: Attachment,
    r: int,
    format: Format,
    task_type: str | None,
    own: dict[str, Any],
) -> dict[str, Any]:
    root = find_root(model)
    config = getattr(root, "config", None)
    check_heads(attachment.heads, attachment.adapters)
    targets = target_modules(attachment.adapters, [n for n, _ in root.named_modules() if not is_ours(n)])
    transposed = [type(a.host).__name__ == "Conv1DHost" for a in attachment.adapters.values()]
    lora = {
        "peft_type": "LORA", "r": r, "lora_alpha": r, "lora_dropout": 0.0, "bias": "none", "init_lora_weights": True,
        "fan_in_fan_out": all(transposed), "use_rslora": False, "use_dora": format == "peft-dora",
        "rank_pattern": {}, "alpha_pattern": {},
    }  # fmt: skip
    return (own or lora) | {
        "inference_mode": True, "target_modules": targets, "modules_to_save": sorted(attachment.heads) or None,
        "task_type": task_type, "base_model_name_or_path": getattr(config, "_name_or_path", None) or None,
        "revision": getattr(config, "_commit_hash", None),
    }  # fmt: skip


def _write(folder: str | os.PathLike[str], config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    bad = [k for k, v in tensors.items() if not torch.isfinite(v).all()]
    if bad:
        raise NonFiniteError(f"{len(bad)} tensors hold NaN or infinity ({bad[0]}); nothing was written.")
    data = dump_tensors({k: v.contiguous() for k, v in tensors.items()}, metadata={"format": "pt"})
    with atomic_folder(folder, only=(TENSORS, CONFIG, "README.md")) as staging:
        (staging / TENSORS).write_bytes(data)
        (staging / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
