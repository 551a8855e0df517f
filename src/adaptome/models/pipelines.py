"""Folders of diffusers pipelines: found, read part by part, and written. Weights in safetensors alone; nothing is unpickled.

<folder>/
  model_index.json                                    the pipeline's class, and library and class of each part
  unet/ or transformer/, vae/, text_encoder/, ...     config.json and safetensors
  tokenizer/, tokenizer_2/, scheduler/
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adaptome.core.errors import MissingExtraError, ModelError, did_you_mean
from adaptome.core.files import atomic_folder
from adaptome.models.base import Part, load_part, quiet
from adaptome.models.control import FOLDER as CONTROL
from adaptome.models.control import Control

INDEX = "model_index.json"
PARTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
#: the class of a part that is built from a configuration which does not say
_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
_PICKLED = (".ckpt", ".bin", ".pt", ".pth", ".pkl")
CONVERT = (
    "It is a pickle, which may run code when it is read. Convert it once, where you trust it:\n"
    "  python -c \"from diffusers import DiffusionPipeline as P; P.from_pretrained('FOLDER', use_safetensors=False).save_pretrained('OUT')\"\n"
    "  and for a single file StableDiffusionPipeline.from_single_file('FILE.ckpt').save_pretrained('OUT'); then name OUT."
)


def diffusers() -> Any:
    """The library.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module("diffusers")
    except ModuleNotFoundError:
        raise MissingExtraError("diffusers", "diffusion") from None


def pipeline_folder(name: str, revision: str | None = None, variant: str | None = None) -> Path:
    """The folder of a pipeline: a local one, or the hub's files that are needed, fetched; pickled weights are not.

    Raises:
        ModelError: there is none, or it is a single file.
    """
    path = Path(name).expanduser()
    if path.suffix.lower() in _PICKLED:
        raise ModelError(f"{name}: {CONVERT}")
    if path.suffix.lower() == ".safetensors":
        raise ModelError(
            f"{name} is one file of a whole model. Make a pipeline's folder of it:\n"
            f"  python -c \"from diffusers import StableDiffusionPipeline as P; P.from_single_file('{name}').save_pretrained('OUT')\""
        )
    if path.is_dir():
        return path
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(f"{name}: no such folder of a pipeline, and no hub id (owner/name).")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    weights = f"*/*.{variant}*.safetensors" if variant else "*/*.safetensors"
    wanted = [INDEX, "*/*.json", "*/*.txt", "*/*.model", weights, "vae/*.safetensors"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(f"the pipeline {name} cannot be had from the hub: {error}") from error


def read_index(folder: Path) -> dict[str, Any]:
    """The content of model_index.json.

    Raises:
        ModelError: there is none.
    """
    try:
        found = json.loads((folder / INDEX).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder} is no folder of a diffusers pipeline: its {INDEX} cannot be read ({error})."
        ) from error
    if not isinstance(found, dict) or "_class_name" not in found:
        raise ModelError(f"{folder / INDEX} names no pipeline.")
    return found


def loaded_part(
    name: str, part: Part | None, folder: Path | None, weights: bool, settings: Any
) -> nn.Module | None:
    """A part of a pipeline: the one that the recipe names, else the pipeline's own; None where there is neither.

    Raises:
        ModelError: it cannot be had, or has pickled weights alone.
    """
    if part is not None:
        return _of_part(name, part, weights)
    told = None if folder is None else read_index(folder).get(name)
    if folder is None or not isinstance(told, list) or not all(told):
        return None
    dtype = settings.dtype if name != "vae" else "float32"  # SDXL's overflows in half precision
    return _read(str(told[0]), str(told[1]), folder, name, _dtype(dtype), settings.variant)


def _of_part(name: str, part: Part, weights: bool) -> nn.Module:
    if name.startswith("text_encoder"):
        if part.from_config is not None and part.from_config.get("model_type") == "clip_text_model":
            kind = str((part.from_config.get("architectures") or ["CLIPTextModel"])[0])
            config = {k: v for k, v in part.from_config.items() if k not in ("model_type", "architectures")}
            import transformers

            made: nn.Module = getattr(transformers, kind)(transformers.CLIPTextConfig(**config))
            return made.eval()
        return load_part("AutoModel", part, weights).eval()
    if part.name is not None:
        path = Path(part.name).expanduser()
        if path.suffix.lower() in _PICKLED:
            raise ModelError(f"{part.name}: {CONVERT}")
        kind = _CLASSES.get(name, "AutoModel")
        return _read("diffusers", kind, path if path.is_dir() else part.name, None, _dtype(part.dtype), None)
    config = dict(part.from_config or {})
    kind = config.pop("_class_name", None) or _CLASSES.get(name) or ""
    built: nn.Module = _class("diffusers", kind, name).from_config(config)
    return built


def _dtype(name: str) -> Any:
    return None if name == "auto" else getattr(torch, name)


def _class(library: str, name: str, where: str) -> Any:
    """A class of diffusers or transformers.

    Raises:
        ModelError: another library, or no such class.
    """
    if library not in ("diffusers", "transformers"):
        raise ModelError(f"{where} is of {library!r}, which is not loaded here.")
    home = diffusers() if library == "diffusers" else importlib.import_module("transformers")
    found = getattr(home, name, None)
    if not isinstance(found, type):
        close = did_you_mean(name, [n for n in dir(home) if n[0].isupper()])
        raise ModelError(f"{where}: {library} has no class {name!r}.{close}")
    return found


def _read(
    library: str, kind: str, folder: Path | str, part: str | None, dtype: Any, variant: str | None
) -> nn.Module:
    """A model of diffusers or transformers from its folder, or the folder of this name in a pipeline's."""
    place = Path(folder) / part if part is not None else Path(folder)
    if place.is_dir() and not any(place.glob("*.safetensors")):
        pickled = [f.name for f in sorted(place.iterdir()) if f.suffix in _PICKLED]
        if pickled:
            raise ModelError(f"{place / pickled[0]}: {CONVERT}")
    how = {"torch_dtype" if library == "diffusers" else "dtype": dtype} if dtype is not None else {}
    if variant and any(place.glob(f"*.{variant}.*safetensors*")):
        how["variant"] = variant
    if part is not None:
        how["subfolder"] = part
    model = _class(library, kind, str(place))
    try:
        with quiet():
            made: nn.Module = model.from_pretrained(str(folder), use_safetensors=True, **how)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{part or kind} of {folder} cannot be loaded: {error}") from error
    return made.eval()


def load_tokenizer(name: str, settings: Any, folder: Path | None) -> Any:
    """A tokenizer: the one that the recipe names, the pipeline's, or the text encoder's own; None where there is no such encoder."""
    from transformers import AutoTokenizer

    encoder = getattr(settings, name.replace("tokenizer", "text_encoder"))
    asked: str | None = getattr(settings, name)
    where = {}
    if asked is None and folder is not None and (folder / name).is_dir():
        asked, where = str(folder), {"subfolder": name}
    if asked is None and encoder is not None:
        asked = encoder.name
    if asked is None:
        return None
    try:
        return AutoTokenizer.from_pretrained(asked, **where)
    except (OSError, ValueError) as error:
        raise ModelError(f"the {name} {asked} cannot be loaded: {error}") from error


def load_scheduler(folder: Path | None, own: dict[str, Any]) -> Any:
    """The scheduler of a pipeline, with a recipe's settings over its own.

    Raises:
        ModelError: no such class, or settings that it does not take.
    """
    told: dict[str, Any] = {}
    if folder is not None:
        try:
            told = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder}: its scheduler's configuration cannot be read ({error}).") from error
    content = {k: v for k, v in {**told, **own}.items() if k not in ("_diffusers_version",)}
    name = str(content.pop("_class_name", "DDIMScheduler"))
    kind = _class("diffusers", name, "model.scheduler")
    if name.startswith("PNDM"):  # it keeps several steps; what it is trained with is the same
        kind = diffusers().DDIMScheduler
    known = set(
        kind.__init__.__wrapped__.__code__.co_varnames if hasattr(kind.__init__, "__wrapped__") else ()
    )
    stray = [key for key in own if key != "_class_name" and known and key not in known]
    if stray:
        raise ModelError(f"model.scheduler: {name} has no setting {stray[0]!r}.{did_you_mean(stray[0], known)}")  # fmt: skip
    return kind.from_config(content)


def pipeline_of(model: Any) -> Any:
    """A diffusers pipeline around a model's own parts; nothing is copied.

    Raises:
        ModelError: its kind is none of diffusers'.
    """
    kind = getattr(diffusers(), model.kind, None)
    if kind is None:
        raise ModelError(f"a model of the kind {model.kind!r} is no pipeline of diffusers.")
    given = {**model.parts(), **model.tokenizers, "scheduler": model.scheduler}
    wanted, _ = kind._get_signature_keys(kind)
    parts = {name: given.get(name) for name in wanted}
    extra = {"requires_safety_checker": False} if model.kind == "StableDiffusionPipeline" else {}
    if model.kind == "StableDiffusionXLPipeline":
        extra = {"force_zeros_for_empty_prompt": model.force_zeros, "add_watermarker": False}
    return kind(**parts, **extra)


def write_pipeline(model: Any, folder: Path, own: dict[str, Any], control: Control | None = None) -> None:
    """Write a model's parts as a pipeline's folder, whole or not at all; `own` goes into its index, and a ControlNet beside the parts."""
    parts = {**model.parts(), **model.tokenizers, "scheduler": model.scheduler}
    index: dict[str, Any] = {"_class_name": model.kind, **(own if model.kind in own else {})}
    if model.kind == "StableDiffusionXLPipeline":
        index["force_zeros_for_empty_prompt"] = model.force_zeros
    with atomic_folder(folder, only=(INDEX, CONTROL, *parts)) as staging:
        if control is not None:
            control.write(staging / CONTROL)
        for name, part in parts.items():
            part.save_pretrained(staging / name)
            kind = type(part)
            index[name] = [kind.__module__.partition(".")[0], kind.__name__]
        (staging / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
