"""Tiny pipelines of diffusers with random weights, written as folders; and a tiny model of pixels."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.interop import image_models as tiny

#: kind of pipeline -> its denoiser, and the text encoders that it has with their widths (and that of a projection)
KINDS = {
    "StableDiffusionPipeline": ("unet", tiny.unet, (("clip", 16),)),
    "StableDiffusionXLPipeline": ("unet", tiny.xl, (("clip", 8), ("clip", 8, 8))),
    "StableDiffusion3Pipeline": ("transformer", tiny.sd3, (("clip", 8, 4), ("clip", 8, 4), ("t5", 16))),
    "FluxPipeline": ("transformer", tiny.flux, (("clip", 8), ("t5", 16))),
    "PixArtSigmaPipeline": ("transformer", tiny.pixart, (("t5", 12),)),
}
#: settings of a UNet over pixels, 8 on a side, for recipes
PIXELS = {
    "sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": [8, 16], "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 384, "attention_head_dim": 2, "norm_num_groups": 4,
}  # fmt: skip


def pipeline_folder(kind: str, folder: Path) -> Path:
    """A whole pipeline, as diffusers writes it."""
    torch.manual_seed(0)
    part, denoiser, encoders = KINDS[kind]
    made = {part: denoiser(), "vae": vae(kind), "scheduler": scheduler(kind)}
    for number, (encoder, *widths) in enumerate(encoders):
        ending = "" if number == 0 else f"_{number + 1}"
        made[f"text_encoder{ending}"], made[f"tokenizer{ending}"] = ENCODERS[encoder](*widths)
    if kind == "StableDiffusionPipeline":
        made |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = getattr(diffusers, kind)(**made)
    pipeline.save_pretrained(folder)
    return folder


def scheduler(kind: str):
    if kind in ("StableDiffusion3Pipeline", "FluxPipeline"):
        dynamic = kind == "FluxPipeline"
        return diffusers.FlowMatchEulerDiscreteScheduler(
            shift=1.0 if dynamic else 3.0, use_dynamic_shifting=dynamic
        )
    return diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


def vae(kind: str):
    flat = kind in ("StableDiffusion3Pipeline", "FluxPipeline")
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=1 if kind == "FluxPipeline" else 4, norm_num_groups=2, sample_size=16, scaling_factor=0.5,
        shift_factor=0.1 if flat else None,
    )  # fmt: skip


def clip(width: int, projection: int = 0):
    words = ["<|startoftext|>", "<|endoftext|>", *[f"{c}{end}" for c in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]]  # fmt: skip
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, vocab_size=len(words),
        projection_dim=projection or width, bos_token_id=0, eos_token_id=1, max_position_embeddings=77,
    )  # fmt: skip
    tokenizer = CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=77)
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval(), tokenizer


def t5(width: int):
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *[(c, -2.0) for c in "abcdefghijklmnopqrstuvwxyz"]]  # fmt: skip
    config = T5Config(vocab_size=64, d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval(), T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=77)


ENCODERS = {"clip": clip, "t5": t5}


TINY_BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 128}  # fmt: skip


def model_of_pixels(folder: Path) -> dict:
    """A recipe's model section: pictures of 16 pixels a side, v prediction; its tokenizer is written to the folder."""
    clip(16)[1].save_pretrained(folder)
    return {
        "composite": "text-to-image", "unet": {"from_config": {**PIXELS, "in_channels": 12, "out_channels": 12, "cross_attention_dim": 16}},
        "text_encoder": {"from_config": TINY_BERT}, "tokenizer": str(folder), "text_length": 24, "patch": 2,
        "scheduler": {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"},
    }  # fmt: skip
