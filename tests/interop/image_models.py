"""Tiny image models, their inputs, and a pipeline of diffusers around them."""

from __future__ import annotations

import torch
from diffusers import (
    DDIMScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import adaptome as ad


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unet(**more):
    torch.manual_seed(0)
    settings = dict(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    return UNet2DConditionModel(**{**settings, **more}).eval()


def xl():
    return unet(addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=32, use_linear_projection=True)  # fmt: skip


def text(kind=CLIPTextModel):
    torch.manual_seed(1)
    config = CLIPTextConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=50, projection_dim=16, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    return kind(config).eval()


def text_2():
    return text(CLIPTextModelWithProjection)


def pixart():
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        sample_size=8, num_layers=1, num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, cross_attention_dim=16,
        caption_channels=12, norm_num_groups=4,
    )  # fmt: skip
    return model.eval()


def sd3():
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16,
        caption_projection_dim=16, pooled_projection_dim=8, out_channels=4, pos_embed_max_size=8, dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )  # fmt: skip
    return model.eval()


def flux(width=8, layers=1):
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=layers, num_single_layers=layers, attention_head_dim=width, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=8, guidance_embeds=True, axes_dims_rope=(2, 2, width - 4),
    )  # fmt: skip
    return model.eval()


@torch.no_grad()
def output(model):
    """What a model makes of fixed inputs."""
    kind = type(model).__name__
    t = torch.tensor([3.0])
    if "UNet" in kind:
        more = {"text_embeds": noise(1, 8), "time_ids": noise(1, 6)} if model.config.addition_embed_type else None  # fmt: skip
        return model(noise(1, 4, 8, 8), t, noise(1, 5, 16), added_cond_kwargs=more).sample
    if "CLIP" in kind:
        return model(torch.tensor([[1, 7, 9, 2]])).last_hidden_state
    if "PixArt" in kind:
        return model(noise(1, 4, 8, 8), noise(1, 5, 12), t, {"resolution": None, "aspect_ratio": None}).sample
    if "SD3" in kind:
        return model(noise(1, 4, 8, 8), noise(1, 5, 16), noise(1, 8), t).sample
    ids = torch.zeros(9, 3)
    return model(noise(1, 4, 4), noise(1, 5, 16), noise(1, 8), t, img_ids=ids[:4], txt_ids=ids[:5], guidance=t).sample  # fmt: skip


def pipeline(**parts):
    """diffusers' pipeline of these parts; what loads LoRA needs no other."""
    none = dict.fromkeys(["vae", "tokenizer", "text_encoder"])
    if "transformer" in parts and "Flux" in type(parts["transformer"]).__name__:
        return FluxPipeline(DDIMScheduler(), **{**none, "text_encoder_2": None, "tokenizer_2": None, **parts})
    if "transformer" in parts:
        others = dict.fromkeys(["text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"])
        return StableDiffusion3Pipeline(scheduler=DDIMScheduler(), **{**none, **others, **parts})
    if "text_encoder_2" in parts:
        return StableDiffusionXLPipeline(scheduler=DDIMScheduler(), tokenizer_2=None, **{**none, **parts})
    return StableDiffusionPipeline(
        **none | parts, scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )  # fmt: skip


def shaken(model, method="lora", targets=None, **settings):
    """A model with an adapter that changes it."""
    ad.attach(model, method, targets=targets, seed=0, **settings)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in ad.parameters_of(model).values():
            value.add_(torch.randn(value.shape, generator=generator) * 0.1)
    return model.eval()


def layers(model, *endings):
    """Its linear layers and convolutions, those of a name with one of the endings."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return [f"={n}" for n, m in model.named_modules() if isinstance(m, kinds) and (not endings or n.endswith(endings))]  # fmt: skip
