"""Composite models as tasks load them: as the recipe names one, or around the encoder that it names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from adaptome.models import CompositeModel, composite_models, is_composite, load_composite
from adaptome.tasks.base import ModelSpec
from adaptome.tasks.models import resolve


def encoder_spec(model: ModelSpec) -> Any:
    """Where the encoder comes from, as a model section says it: the section's own source, or that of its part `encoder`."""
    settings: dict[str, Any] = getattr(model, "settings", {})
    given = settings.get("encoder") if model.name is None and model.from_config is None else None
    if given is None:
        return model
    part = {"name": given} if isinstance(given, str) else dict(given)
    keys = ("name", "revision", "from_config")
    return SimpleNamespace(tokenizer=model.tokenizer, **{key: part.get(key) for key in keys})


def load_around(model: ModelSpec, kind: str, place: str = "encoder", **own: Any) -> CompositeModel:
    """The composite model of this kind: as the recipe names it, or around the encoder that it names.

    Args:
        kind: its registered name.
        place: the part that the named model is.
        **own: settings that the task knows.

    Raises:
        RecipeError, ModelError: it cannot be had, or is of another kind.
    """
    settings: dict[str, Any] = dict(getattr(model, "settings", {}))
    composite = getattr(model, "composite", None)
    if composite is not None or (model.name is not None and is_composite(model.name)):
        return load_composite(model, kind, **own)
    part: dict[str, Any] = {
        "name": model.name and resolve(model.name), "revision": model.revision, "from_config": model.from_config,
        "dtype": model.dtype, "attention": model.attention,
    }  # fmt: skip
    return composite_models()[kind].from_settings(**{**settings, place: part, **own})
