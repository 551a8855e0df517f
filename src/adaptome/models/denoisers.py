"""How the denoisers of diffusers are called: UNets, PixArt, SD3 and Flux, each with its conditions; and how texts become these.

A condition is a mapping of tensors whose rows are examples: `hidden` [B, L, D], where the model has them `mask` [B, L] and `pooled` [B, P].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.errors import ModelError

Condition = Mapping[str, Tensor]


def denoise(
    model: Any, latents: Tensor, times: Tensor, condition: Condition, sizes: Tensor, guidance: float
) -> Tensor:
    """What a denoiser predicts of noisy latents [B, C, h, w], of their shape.

    Args:
        times: [B], as the scheduler counts them.
        sizes: [B, 6] of pictures in pixels: height and width as they were, top and left of the crop, height and width now.
        guidance: of models that have it as an input (Flux).

    Raises:
        ModelError: a denoiser that is not known here.
    """
    kind = type(model).__mro__  # an adapted model is of a class made from its own
    names = {one.__name__ for one in kind}
    for name, call in CALLS.items():
        if name in names:
            return call(model, latents, times, condition, sizes, guidance)
    raise ModelError(
        f"{type(model).__name__} is no denoiser that is known here; there are {', '.join(CALLS)}."
    )


def _unet(model: Any, z: Tensor, t: Tensor, given: Condition, sizes: Tensor, guidance: float) -> Tensor:
    added = None
    if model.config.addition_embed_type == "text_time":
        added = {"text_embeds": given["pooled"], "time_ids": sizes.to(given["pooled"])}
    found: Tensor = model(
        z, t, encoder_hidden_states=given["hidden"], encoder_attention_mask=given.get("mask"),
        added_cond_kwargs=added, return_dict=False,
    )[0]  # fmt: skip
    return found


def _pixart(model: Any, z: Tensor, t: Tensor, given: Condition, sizes: Tensor, guidance: float) -> Tensor:
    added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if model.use_additional_conditions:
        high, wide = sizes[:, 4:5].to(z), sizes[:, 5:6].to(z)
        added = {"resolution": torch.cat([high, wide], 1), "aspect_ratio": high / wide}
    found: Tensor = model(
        z, encoder_hidden_states=given["hidden"], encoder_attention_mask=given.get("mask"), timestep=t,
        added_cond_kwargs=added, return_dict=False,
    )[0]  # fmt: skip
    return found.chunk(2, 1)[0] if found.shape[1] == 2 * z.shape[1] else found  # the other half is a variance


def _sd3(model: Any, z: Tensor, t: Tensor, given: Condition, sizes: Tensor, guidance: float) -> Tensor:
    found: Tensor = model(
        hidden_states=z, timestep=t, encoder_hidden_states=given["hidden"], pooled_projections=given["pooled"],
        return_dict=False,
    )[0]  # fmt: skip
    return found


def _flux(model: Any, z: Tensor, t: Tensor, given: Condition, sizes: Tensor, guidance: float) -> Tensor:
    high, wide = z.shape[2] // 2, z.shape[3] // 2
    packed = nn.functional.pixel_unshuffle(z, 2).flatten(2).mT
    places = torch.zeros(high, wide, 3, device=z.device, dtype=z.dtype)
    places[..., 1] += torch.arange(high, device=z.device)[:, None]
    places[..., 2] += torch.arange(wide, device=z.device)[None]
    scale = None
    if model.config.guidance_embeds:
        scale = torch.full((len(z),), guidance, device=z.device, dtype=torch.float32)
    found: Tensor = model(
        hidden_states=packed, timestep=t.to(z) / 1000, guidance=scale, pooled_projections=given["pooled"],
        encoder_hidden_states=given["hidden"], txt_ids=z.new_zeros(given["hidden"].shape[1], 3),
        img_ids=places.flatten(0, 1), return_dict=False,
    )[0]  # fmt: skip
    return nn.functional.pixel_shuffle(found.mT.unflatten(2, (high, wide)), 2)


CALLS: dict[str, Callable[[Any, Tensor, Tensor, Condition, Tensor, float], Tensor]] = {
    "UNet2DConditionModel": _unet,
    "PixArtTransformer2DModel": _pixart,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
}


# -- texts -----------------------------------------------------------------------------------------------------------


def _named(*names: str) -> Callable[[Any], dict[str, Tensor]]:
    """A pipeline's answer as a condition: the names of what stands where in it, '' for what is left."""

    def condition(found: Any) -> dict[str, Tensor]:
        return {name: value for name, value in zip(names, found, strict=True) if name}

    return condition


_SD = _named("hidden", "")
_XL = _named("hidden", "", "pooled", "")
_PIXART = _named("hidden", "mask", "", "")
#: pipeline of diffusers -> what its `encode_prompt` is given beside texts and device, and what it answers
ENCODERS: dict[str, tuple[dict[str, Any], Callable[[Any], dict[str, Tensor]]]] = {
    "StableDiffusionPipeline": (dict(num_images_per_prompt=1, do_classifier_free_guidance=False), _SD),
    "StableDiffusionXLPipeline": (dict(do_classifier_free_guidance=False), _XL),
    "StableDiffusion3Pipeline": (
        dict(prompt_2=None, prompt_3=None, do_classifier_free_guidance=False),
        _XL,
    ),
    "FluxPipeline": ({}, _named("hidden", "pooled", "")),
    "PixArtAlphaPipeline": (dict(do_classifier_free_guidance=False), _PIXART),
    "PixArtSigmaPipeline": (dict(do_classifier_free_guidance=False), _PIXART),
}


def encode_by_pipeline(pipeline: Any, texts: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    """The condition that a diffusers pipeline makes of texts."""
    settings, condition = ENCODERS[type(pipeline).__name__]
    return condition(pipeline.encode_prompt(list(texts), device=device, **settings))


def encode_plainly(
    encoder: nn.Module, tokenizer: Any, texts: Sequence[str], length: int, device: torch.device
) -> dict[str, Tensor]:
    """The last hidden states of any text encoder, texts padded or cut to `length` tokens."""
    batch = tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
    return {
        "hidden": encoder(input_ids=ids, attention_mask=mask).last_hidden_state,
        "mask": mask,
    }
