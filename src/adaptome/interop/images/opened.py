"""The parts of a diffusers pipeline that a file's keys are for, loaded from its folder."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from torch import nn

from adaptome.core.errors import CheckpointError, MissingExtraError, ModelError
from adaptome.interop.images.file import file_of, keys_of
from adaptome.interop.images.names import PARTS

_PREFIXES = {
    "lora_unet_": ("unet", "transformer"), "lora_transformer_": ("transformer",), "lycoris_": ("unet", "transformer"), "diffusion_model.": ("unet", "transformer"),
    "lora_te_": ("text_encoder",), "lora_te1_": ("text_encoder",), "lora_te2_": ("text_encoder_2",), "lora_te3_": ("text_encoder_3", "text_encoder_2"),
    **{f"{part}.": (part,) for part in PARTS},
}  # fmt: skip


#: the libraries whose models are loaded -> the extra that brings them
_EXTRAS = {"diffusers": "diffusion", "transformers": "train"}


def open_parts(base: str, adapter: Path, dtype: Any = None) -> nn.Module:
    """The models of a base that a file holds adapters for: one as it is, or several in an `nn.ModuleDict`.

    Args:
        base: a local folder of a pipeline (with model_index.json), or of one of its models.
        adapter: a file of diffusers, kohya or LyCORIS.
        dtype: of the models; None as they are stored.

    Raises:
        ModelError: the folder is none of diffusers', or a part cannot be loaded.
    """
    folder, file = Path(base), file_of(adapter)
    if file is None:
        raise CheckpointError(f"{adapter} is no .safetensors file.")
    if not folder.is_dir():
        raise ModelError(
            f"the base {base!r} is no folder.\n  Give the local folder of the pipeline, or of its model."
        )
    wanted = _wanted(keys_of(file))
    index = folder / "model_index.json"
    if not index.is_file():
        config = _json(folder / "config.json")
        library = "diffusers" if "_class_name" in config else "transformers"
        name = config.get("_class_name") or (config.get("architectures") or [None])[0]
        return _load(library, name, folder, None, dtype)
    parts = {part: kind for part, kind in _json(index).items() if part in PARTS and isinstance(kind, list) and all(kind)}  # fmt: skip
    chosen = [part for part in parts if any(part in group for group in wanted)]
    if "text_encoder_3" in parts and ("text_encoder_3", "text_encoder_2") in wanted and ("text_encoder_2",) not in wanted:  # fmt: skip
        chosen = [part for part in chosen if part != "text_encoder_2"]
    if not chosen:
        raise ModelError(f"{adapter} names no part of {base}, which has {', '.join(parts)}.")
    return nn.ModuleDict(
        {part: _load(str(parts[part][0]), parts[part][1], folder, part, dtype) for part in chosen}
    )


def _wanted(keys: list[str]) -> set[tuple[str, ...]]:
    found = {group for key in keys for prefix, group in _PREFIXES.items() if key.startswith(prefix)}
    return found or {("unet", "transformer")}  # a model's own file has no prefix


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({error}).") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} is not what diffusers writes there.")
    return found


def _load(library: str, name: Any, folder: Path, part: str | None, dtype: Any) -> nn.Module:
    """A model by its class, which must be diffusers' or transformers' own."""
    if library not in _EXTRAS:
        raise ModelError(f"{folder}: {part} is of {library!r}, which is not loaded here.")
    try:
        home = importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise MissingExtraError(library, _EXTRAS[library]) from error
    kind = getattr(home, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ModelError(f"{folder}: {library} has no model {name!r}.")
    how = {"torch_dtype" if library == "diffusers" else "dtype": dtype} if dtype is not None else {}
    try:
        loaded: nn.Module = kind.from_pretrained(folder, use_safetensors=True, **({"subfolder": part} if part else {}), **how)  # type: ignore[attr-defined]  # fmt: skip
    except (OSError, ValueError) as error:
        raise ModelError(f"{part or name} of {folder} could not be loaded: {error}") from error
    return loaded.eval()
