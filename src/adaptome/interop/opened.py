"""An adapter folder on its base: which base it was trained on is in the folder, and transformers loads that."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from adaptome.core.checkpoint import load
from adaptome.core.errors import CheckpointError, MissingExtraError, ModelError, TornFileError
from adaptome.core.manifest import MANIFEST, read_manifest
from adaptome.interop.images.file import file_of
from adaptome.interop.images.opened import open_parts

#: what a model class is called at its end, or PEFT's task -> the class of transformers that loads it
_LOADERS = {
    "CausalLM": "AutoModelForCausalLM", "SequenceClassification": "AutoModelForSequenceClassification",
    "TokenClassification": "AutoModelForTokenClassification", "QuestionAnswering": "AutoModelForQuestionAnswering",
    "ConditionalGeneration": "AutoModelForSeq2SeqLM", "MaskedLM": "AutoModelForMaskedLM", "ImageClassification": "AutoModelForImageClassification",
    "CAUSAL_LM": "AutoModelForCausalLM", "SEQ_CLS": "AutoModelForSequenceClassification", "TOKEN_CLS": "AutoModelForTokenClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM", "QUESTION_ANS": "AutoModelForQuestionAnswering", "FEATURE_EXTRACTION": "AutoModel",
}  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """An adapter on its base, and what turns texts, images or sounds into its inputs (None where the base's folder has none)."""

    model: nn.Module
    base: str
    processor: Any


def open_adapter(
    folder: str | os.PathLike[str],
    base: str | None = None,
    *,
    dtype: Any = "auto",
    format: str | None = None,
    **how: Any,
) -> Opened:
    """Load the base of an adapter, and put the adapter on it.

    Args:
        folder: what `ad.save` or PEFT wrote, or a file that `ad.load` reads.
        base: id or path; None for the one that the folder names.
        dtype: of the base; 'auto' as it is stored.
        format: as `ad.load`'s.
        how: further arguments of `from_pretrained`. Code from a model's repository runs only with trust_remote_code=True.

    Raises:
        CheckpointError: the adapter cannot be used, or its base is not named.
        ModelError: the base cannot be loaded.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise MissingExtraError("transformers", "train") from error
    path = Path(folder)
    images = _is_of_images(path)
    named, kind = (None, "CausalLM") if images or path.suffix.lower() == ".gguf" else _base_of(path)
    chosen = base or named
    if not chosen:
        raise CheckpointError(
            f"{folder} does not say which base it was trained on.\n  Name it: base='...', or --base on the command line."
        )
    if images:
        parts = open_parts(chosen, path, None if dtype == "auto" else dtype)
        load(parts, path, format=format)
        return Opened(parts.eval(), chosen, None)
    loader = getattr(transformers, next((v for k, v in _LOADERS.items() if kind.endswith(k)), "AutoModel"))
    try:
        model = loader.from_pretrained(chosen, dtype=dtype, **how)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the base {chosen!r} of {folder} could not be loaded by {loader.__name__}: {error}"
        ) from error
    load(model, folder, format=format)
    return Opened(model.eval(), chosen, _processor(transformers, chosen))


def _is_of_images(path: Path) -> bool:
    """Whether it is a file of diffusers, kohya or LyCORIS, or a folder with one alone."""
    own = (path / MANIFEST, path / "adapter_config.json")
    return file_of(path) is not None and not any(file.is_file() for file in own)


def _base_of(folder: Path) -> tuple[str | None, str]:
    """The base's id, and what tells its class."""
    if (folder / MANIFEST).is_file() or not (folder / "adapter_config.json").is_file():
        base = read_manifest(folder)["base"]
        return base.get("id"), str(base.get("class") or "")
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise TornFileError(f"{folder / 'adapter_config.json'} is not whole JSON ({error}).") from error
    named = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    return named, str(config.get("task_type") or "CAUSAL_LM") if isinstance(config, dict) else ""


def _processor(transformers: Any, base: str) -> Any:
    try:
        return transformers.AutoProcessor.from_pretrained(base)
    except (OSError, ValueError, KeyError):  # no such files beside the model
        return None
