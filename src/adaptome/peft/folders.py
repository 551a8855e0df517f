"""An adapter of PEFT's interface in its folder: written there, and found."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as dump_tensors
from torch import nn

import adaptome as ad
from adaptome.core.errors import CheckpointError, MissingExtraError
from adaptome.core.files import write_atomic
from adaptome.core.state import attachment_of
from adaptome.interop.peft_names import TENSORS
from adaptome.peft import state
from adaptome.peft.configs import PeftConfig

OWN = "adaptome"  # the folder, inside PEFT's, of a method that PEFT has not


def save_adapter(model: nn.Module, folder: Path, name: str, config: PeftConfig) -> None:
    """Write one adapter as a folder of PEFT's; one that starts from the base's weights as a LoRA of twice the rank, which needs no other base."""
    attachment = attachment_of(model, name)
    if any("B0" in dict(adapter.named_buffers()) for adapter in attachment.adapters.values()):
        ad.export(model, folder, name, format="peft-lora", task_type=config.task_type)
        return
    folder.mkdir(parents=True, exist_ok=True)  # trainers have files of their own in it
    if config.kind == "ADAPTOME":
        ad.save(model, folder / OWN, name)
    else:
        tensors = {k: v.contiguous() for k, v in state.read(model, attachment, config).items()}
        write_atomic(folder / TENSORS, dump_tensors(tensors, {"format": "pt"}))
    written = config.to_dict() | {"inference_mode": True}
    type(config)(**{k: v for k, v in written.items() if k in config.__dict__}).save_pretrained(folder)


def folder_of(model_id: str | os.PathLike[str], hub: Mapping[str, Any]) -> Path:
    """The folder itself, or the repository's, fetched."""
    inside = hub.get("subfolder") or ""
    if Path(model_id).is_dir():
        return Path(model_id) / inside
    if Path(model_id).exists() or len(Path(model_id).parts) != 2:
        raise CheckpointError(f"{model_id} is no folder, nor the name of a repository.")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "train") from error
    known = {k: v for k, v in hub.items() if k in ("revision", "token", "cache_dir", "local_files_only")}
    return (
        Path(snapshot_download(str(model_id), allow_patterns=["*.json", "*.safetensors"], **known)) / inside
    )
