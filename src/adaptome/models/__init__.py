"""Composite models: architectures that transformers and diffusers do not have, made of theirs. One file each, found by registration.

    model: {composite: siamese-change, encoder: facebook/dinov3-vitb16-pretrain-lvd1689m, width: 128}     # in a recipe

    model = composite_models()["siamese-change"].from_settings(encoder={"from_config": {...}})
    model.save_pretrained("folder"); type(model).from_pretrained("folder")
    ad.attach(model, "lora", targets="encoder.attention")      # a role within a part

A model in another package registers itself the same way and is named under the entry point `adaptome.models`.
"""

from adaptome.models.base import (
    CompositeModel,
    CompositeSettings,
    Part,
    composite_models,
    is_composite,
    load_composite,
    load_part,
    part_config,
    register_model,
)

__all__ = [
    "CompositeModel",
    "CompositeSettings",
    "Part",
    "composite_models",
    "is_composite",
    "load_composite",
    "load_part",
    "part_config",
    "register_model",
]
