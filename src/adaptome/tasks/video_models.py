"""The model that answers questions about videos, and what goes with it, as a model section names them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from adaptome.core.errors import RecipeError
from adaptome.models import Part, is_composite, load_composite, part_config
from adaptome.models.base import read_configuration
from adaptome.models.modular_qa import ModularQA
from adaptome.tasks.base import ModelSpec
from adaptome.tasks.models import load_feature_extractor, load_tokenizer, resolve
from adaptome.tasks.pixels import load_pixel_processor
from adaptome.tasks.video_inputs import Modality, QuestionProcessor

MODEL, BASE = "modular-qa", "Salesforce/blip2-flan-t5-xl"


def load_question_processor(model: ModelSpec) -> tuple[QuestionProcessor, list[Modality]]:
    """The tokenizer of the language model with what makes pixels and spectrograms; and the model's modalities."""
    settings = settings_of(model)
    base = Part.model_validate(settings["base"])
    if base.name is not None:
        base = base.model_copy(update={"name": resolve(base.name)})
    config = part_config(base)
    name = model.name or base.name
    words: Any = SimpleNamespace(name=name, revision=base.revision, tokenizer=model.tokenizer)
    pixels = SimpleNamespace(name=name, revision=base.revision, tokenizer=None)
    extractor = None
    if settings.get("audio_encoder") is not None:
        part = Part.model_validate(settings["audio_encoder"])
        hearing: Any = SimpleNamespace(name=part.name, revision=part.revision, from_config=part.from_config, tokenizer=None)  # fmt: skip
        extractor = load_feature_extractor(hearing)
    size = int(config.vision_config.image_size)
    made = QuestionProcessor(load_tokenizer(words), size, load_pixel_processor(pixels), extractor)
    return made, known_modalities(settings, config.qformer_config.encoder_hidden_size)


def load_modular(model: ModelSpec) -> ModularQA:
    """A `modular-qa`: as the section names it, or that of a folder with the modalities that the section adds.

    Raises:
        RecipeError: the section names another kind of model. ModelError: it cannot be had.
    """
    own: dict[str, Any] = dict(getattr(model, "settings", {}))
    found: Any
    if model.name is not None and is_composite(model.name):
        kept = {key: own[key] for key in ("modalities", "fusion", "fusion_start") if key in own}
        found = ModularQA.extended(Path(model.name), **kept)
        return found
    if getattr(model, "composite", None) != MODEL:
        raise RecipeError(
            f"task video-qa works with model: {{composite: {MODEL}, base: {BASE}, modalities: {{...}}}}, or a folder of one."
        )
    base = Part.model_validate(own.get("base") or BASE)
    if base.name is not None:
        base = base.model_copy(update={"name": resolve(base.name)})
    section = SimpleNamespace(composite=MODEL, name=None, settings={**own, "base": base.model_dump()})
    found = load_composite(section, MODEL)
    return found


def settings_of(model: ModelSpec) -> dict[str, Any]:
    """A modular-qa's settings as a model section says them, over those of the folder that it names."""
    own = {key: value for key, value in getattr(model, "settings", {}).items() if value is not None}
    if model.name is None or not is_composite(model.name):
        return {"base": BASE, **own}
    _, stored = read_configuration(Path(model.name))
    modalities = {**stored["modalities"], **(own.get("modalities") or {})}
    return {**stored, "modalities": modalities}


def known_modalities(settings: Mapping[str, Any], inner: int) -> list[Modality]:
    """The modalities of a model's settings, in their order."""
    given = settings.get("modalities") or {"rgb": {}}
    return [
        Modality(name, (one or {}).get("kind", "frames"), (one or {}).get("width") or inner)
        for name, one in given.items()
    ]
