"""What other code bases call the layers of diffusers' models: the latent diffusion UNet, Flux and SD3.

A scheme maps a foreign name to parts of it: layers here, each with its rows of the foreign weight. Flux and SD3 hold queries, keys and values
in one weight, `qkv`, rows in that order; a single block of Flux holds the MLP's first layer behind them, `linear1`. The last modulation of
both has its two halves the other way round (shift before scale).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Part:
    """One layer here, and which rows of the foreign weight are its own (None: all, in this order; swapped: the halves the other way round)."""

    path: str
    rows: tuple[int, int] | None = None
    swapped: bool = False


Scheme = dict[str, tuple[Part, ...]]

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}  # fmt: skip
_AROUND = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip


def ldm(unet: Any, layers: list[str]) -> Scheme:
    """The names of the UNet of latent diffusion (`input_blocks`, `middle_block`, `output_blocks`), which kohya trains SDXL under.

    Args:
        unet: diffusers' UNet2DConditionModel.
        layers: the names of its layers.
    """
    blocks: dict[str, str] = {}
    count = 1
    for i, down in enumerate(unet.down_blocks):
        for j in range(len(down.resnets)):
            blocks[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{count}.0"
            blocks[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{count}.1"
            count += 1
        if getattr(down, "downsamplers", None):
            blocks[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{count}.0.op"
            count += 1
    middle = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
    blocks |= {f"mid_block.{ours}": f"middle_block.{theirs}" for ours, theirs in middle.items()}
    count = 0
    for i, up in enumerate(unet.up_blocks):
        for j in range(len(up.resnets)):
            blocks[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{count}.0"
            blocks[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{count}.1"
            count += 1
        place = 2 if getattr(up, "attentions", None) else 1
        blocks[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{count - 1}.{place}.conv"
    scheme: Scheme = {}
    for path in layers:
        if (name := _AROUND.get(path) or _in_block(path, blocks)) is not None:
            scheme[name] = (Part(path),)
    return scheme


def _in_block(path: str, blocks: dict[str, str]) -> str | None:
    parts = path.split(".")
    for cut in range(len(parts), 1, -1):
        block = blocks.get(".".join(parts[:cut]))
        if block is not None:
            inner = ".".join(parts[cut:])
            if ".resnets." in f"{path}.":
                inner = _RESNET.get(inner, inner)
            return f"{block}.{inner}" if inner else block
    return None


#: foreign name within a block -> the layers here that it holds, in the order of its rows
_FLUX_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.proj": ("attn.to_out.0",), "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",), "img_mod.lin": ("norm1.linear",), "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",), "txt_mlp.0": ("ff_context.net.0.proj",), "txt_mlp.2": ("ff_context.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
}  # fmt: skip
_FLUX_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear2": ("proj_out",), "modulation.lin": ("norm.linear",),
}  # fmt: skip
_FLUX_AROUND = {
    "img_in": "x_embedder", "txt_in": "context_embedder", "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2", "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2", "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2", "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}  # fmt: skip
_SD3_BLOCK = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"), "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"), "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.mlp.fc1": ("ff.net.0.proj",), "x_block.mlp.fc2": ("ff.net.2",), "x_block.adaLN_modulation.1": ("norm1.linear",),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",), "context_block.mlp.fc2": ("ff_context.net.2",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
}  # fmt: skip
_SD3_AROUND = {
    "x_embedder.proj": "pos_embed.proj", "context_embedder": "context_embedder", "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2", "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2", "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}  # fmt: skip


def flux(model: nn.Module, layers: list[str]) -> Scheme:
    """The names of Flux as its authors released it (`double_blocks`, `single_blocks`)."""
    blocks = {"transformer_blocks": ("double_blocks", _FLUX_DOUBLE), "single_transformer_blocks": ("single_blocks", _FLUX_SINGLE)}  # fmt: skip
    return _of_blocks(model, layers, blocks, _FLUX_AROUND)


def sd3(model: nn.Module, layers: list[str]) -> Scheme:
    """The names of Stable Diffusion 3 as its authors released it (`joint_blocks`)."""
    scheme = _of_blocks(model, layers, {"transformer_blocks": ("joint_blocks", _SD3_BLOCK)}, _SD3_AROUND)
    last = len(model.transformer_blocks) - 1  # type: ignore[arg-type]
    # the last block's context is only normed, by the kind of norm whose halves are the other way round
    key = f"joint_blocks.{last}.context_block.adaLN_modulation.1"
    if key in scheme and f"transformer_blocks.{last}.attn.to_add_out" not in layers:
        scheme[key] = tuple(Part(part.path, part.rows, swapped=True) for part in scheme[key])
    return scheme


def _of_blocks(
    model: nn.Module,
    layers: list[str],
    blocks: dict[str, tuple[str, dict[str, tuple[str, ...]]]],
    around: dict[str, str],
) -> Scheme:
    scheme: Scheme = {}
    for theirs, ours in around.items():
        if ours in layers:
            scheme[theirs] = (Part(ours, swapped="adaLN" in theirs),)
    for ours, (theirs, inner) in blocks.items():
        numbers = sorted({int(m[1]) for path in layers if (m := re.match(rf"{ours}\.(\d+)\.", path))})
        for i in numbers:
            for name, held in inner.items():
                paths = [f"{ours}.{i}.{path}" for path in held]
                if all(path in layers for path in paths):
                    scheme[f"{theirs}.{i}.{name}"] = _side_by_side(model, paths)
    return scheme


def _side_by_side(model: nn.Module, paths: list[str]) -> tuple[Part, ...]:
    if len(paths) == 1:
        return (Part(paths[0]),)
    parts, at = [], 0
    for path in paths:
        rows: Any = model.get_submodule(path)
        parts.append(Part(path, (at, at + rows.out_features)))
        at += rows.out_features
    return tuple(parts)


#: class in diffusers -> its names elsewhere
SCHEMES: dict[str, Callable[[Any, list[str]], Scheme]] = {
    "UNet2DConditionModel": ldm, "FluxTransformer2DModel": flux, "SD3Transformer2DModel": sd3,
}  # fmt: skip


def scheme_of(model: nn.Module, layers: list[str]) -> Scheme:
    """What another code base calls a model's layers; nothing where there is none that we know."""
    classes = [cls.__name__ for cls in type(model).__mro__]
    return next((make(model, layers) for name, make in SCHEMES.items() if name in classes), {})
