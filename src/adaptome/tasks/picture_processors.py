"""Processors of vision-language models on Pillow: a picture and a text around it -> tokens with the picture's places, and pixels. torchvision is not needed."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from adaptome.core.errors import MissingExtraError, RecipeError
from adaptome.models.base import Part, is_composite, part_config, read_configuration
from adaptome.tasks.base import ModelSpec
from adaptome.tasks.models import load_config, load_image_processor, load_tokenizer, resolve

#: composite model -> its part
PARTS = {"lvlm-embedder": "lvlm", "dual-encoder": "encoders"}
#: what SmolVLM's own processor has beside Idefics3's is for videos
_PICTURES_ALONE = {"smolvlm": "Idefics3Processor"}


class Source(NamedTuple):
    """Where a model comes from, and what it is.

    kind: the composite model. config: of its part. place: name, revision, from_config and tokenizer of the part.
    """

    kind: str
    config: Any
    place: Any


def source_of(model: ModelSpec) -> Source:
    """What a recipe's `model` section names: a composite model, a folder of one, or a model of transformers.

    Raises:
        RecipeError: it is neither a vision-language model nor a pair of encoders.
    """
    kind, settings = getattr(model, "composite", None), dict(getattr(model, "settings", {}))
    if kind is None and model.name is not None and is_composite(model.name):
        kind, settings = read_configuration(Path(model.name))
        place = SimpleNamespace(name=model.name, revision=None, from_config=None, tokenizer=model.tokenizer)
        return Source(kind, part_config(Part.model_validate(settings[_part(kind)])), place)
    if kind is not None:
        part = Part.model_validate(settings.get(_part(kind)) or {})
        place = SimpleNamespace(
            name=part.name and resolve(part.name), revision=part.revision, from_config=part.from_config, tokenizer=model.tokenizer,
        )  # fmt: skip
        return Source(kind, part_config(part), place)
    config = load_config(model)
    return Source(kind_of(config), config, model)


def _part(kind: str) -> str:
    if kind not in PARTS:
        raise RecipeError(
            f"model.composite={kind!r}: pictures and texts are compared by {' or '.join(PARTS)}."
        )
    return PARTS[kind]


def kind_of(config: Any) -> str:
    """Which composite model is built around a model of this configuration.

    Raises:
        RecipeError: none.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as LVLMS

    if config.model_type in LVLMS:
        return "lvlm-embedder"
    if hasattr(config, "text_config") and hasattr(config, "vision_config"):
        return "dual-encoder"
    raise RecipeError(
        f"model: {config.model_type} reads no pictures with texts. Give a vision-language model (llava, qwen2_vl, smolvlm, idefics3), or a pair "
        "of encoders (clip, siglip)."
    )


class PictureProcessor:
    """Tokenizer and image processor of one model.

    Args:
        inner: transformers' processor of the model; None for a pair of encoders, and where `marks` says how pictures are written.
        marks: the picture's token and how many patches one stands for (Qwen2-VL).
    """

    def __init__(
        self, tokenizer: Any, pictures: Any, inner: Any = None, marks: tuple[str, int] | None = None
    ):
        self.tokenizer, self.pictures, self.inner, self.marks = tokenizer, pictures, inner, marks

    @property
    def picture(self) -> str:
        """How a picture is written in a text without a chat template."""
        if self.marks is not None:
            return f"<|vision_start|>{self.marks[0]}<|vision_end|>"
        return str(getattr(self.inner, "image_token", "<image>"))

    @property
    def chat_template(self) -> str | None:
        return getattr(self.inner, "chat_template", None) or getattr(self.tokenizer, "chat_template", None)

    def pixels(self, images: Sequence[Any]) -> dict[str, Any]:
        """The pixels of pictures, a batch."""
        return dict(self.pictures(images=list(images), return_tensors="pt"))

    def __call__(self, text: str, image: Any) -> dict[str, Any]:
        """Tokens (`input_ids` [1, L]) and pixels of one picture in a text."""
        if self.marks is None:
            return dict(self.inner(text=[text], images=[[image]], return_tensors="pt"))
        made = self.pixels([image])
        token, merged = self.marks
        places = int(made["image_grid_thw"].prod()) // merged
        ids = self.tokenizer(text.replace(token, token * places), return_tensors="pt")["input_ids"]
        kinds = (ids == self.tokenizer.convert_tokens_to_ids(token)).int()
        return {"input_ids": ids, "mm_token_type_ids": kinds, **made}

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        if self.inner is not None:
            self.inner.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.pictures.save_pretrained(folder)


def load_picture_processor(source: Source) -> PictureProcessor:
    """The processor that goes with a model; one that is built from a configuration takes its tokenizer from `model.tokenizer`.

    Raises:
        RecipeError: a file of it cannot be had. MissingExtraError: this family's needs torchvision.
    """
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    place, kind = source.place, source.config.model_type
    tokenizer, pictures = load_tokenizer(place), _pictures(source)
    if source.kind == "dual-encoder":
        return PictureProcessor(tokenizer, pictures)
    if kind in ("qwen2_vl", "qwen2_5_vl"):
        return PictureProcessor(tokenizer, pictures, marks=("<|image_pad|>", pictures.merge_size**2))
    name = _PICTURES_ALONE.get(kind, PROCESSOR_MAPPING_NAMES.get(kind, ""))
    made = getattr(transformers, name, None)
    if made is None:
        raise RecipeError(f"model: transformers has no processor for {kind}.")
    if "video_processor" in made.get_attributes():
        return PictureProcessor(tokenizer, pictures, _with_videos(place, kind))
    told = _told(made, place)
    takes = inspect.signature(made.__init__).parameters
    own = {
        key: value
        for key, value in told.items()
        if key in takes and key not in ("image_processor", "tokenizer")
    }
    own = {**_from_config(source.config), **own}
    return PictureProcessor(tokenizer, pictures, made(image_processor=pictures, tokenizer=tokenizer, **own))


def _told(made: Any, place: Any) -> dict[str, Any]:
    """What the model's files say of its processor."""
    name = place.tokenizer or place.name
    if name is None or not (Path(resolve(name)).is_dir() or "/" in name):
        return {}
    try:
        found: dict[str, Any] = made.get_processor_dict(resolve(name))[0]
    except OSError:  # older checkpoints have none beside those of tokenizer and image processor
        return {}
    return found


def _with_videos(place: Any, kind: str) -> Any:
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(
            resolve(str(place.tokenizer or place.name)), revision=place.revision
        )
    except ImportError as error:
        raise MissingExtraError("torchvision", "vision") from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"model: the processor of {kind} could not be loaded: {error}") from error


def _pictures(source: Source) -> Any:
    """The image processor; of a model that is built from a configuration, one that makes its size."""
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    place = source.place
    if place.name is not None or (place.tokenizer is not None and Path(place.tokenizer).is_dir()):
        return load_image_processor(place)
    found = IMAGE_PROCESSOR_MAPPING_NAMES.get(source.config.model_type, {})
    side = getattr(getattr(source.config, "vision_config", None), "image_size", None)
    if "pil" not in found or not isinstance(side, int):
        raise RecipeError(
            f"model.from_config: no image processor can be made for {source.config.model_type}. Name a folder that has one: model.tokenizer."
        )
    size = {"height": side, "width": side}
    return getattr(transformers, found["pil"])(size=size, crop_size=size)


def _from_config(config: Any) -> dict[str, Any]:
    """How many places a picture takes, of models that are built from a configuration."""
    if config.model_type != "llava":
        return {}
    return {
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": 1,
    }
