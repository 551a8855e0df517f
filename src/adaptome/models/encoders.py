"""Vision encoders as parts: loading one, and its feature maps whatever its architecture.

plain          ViT, DINOv2, DINOv3, ...: patch tokens of chosen blocks, the final norm applied, all at one stride
hierarchical   Swin's and SegFormer's stages, SAM2's Hiera trunk: one map a stage, each at twice the stride of the one before
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.errors import ModelError
from adaptome.models.base import Part, load_part, part_config, quiet
from adaptome.models.spectral import KEY, Bands, group_channels


def load_encoder(part: Part, weights: bool) -> nn.Module:
    """The vision encoder of a part: the part itself, or the vision side of a model of pictures and text.

    ViT's pooler, a dense layer after the first token, is left out: most checkpoints have no weights for it.

    Raises:
        ModelError: it cannot be had.
    """
    from transformers import MODEL_MAPPING

    config = part_config(part)
    config = getattr(config, "vision_config", config)
    if getattr(config, KEY, None) is not None:
        return _grouped(part, weights, config)
    if config.model_type == "vit_mae":
        return _plain_mae(part, weights, config)
    kind: Any = MODEL_MAPPING.get(type(config), None)
    dense = kind is not None and "add_pooling_layer" in inspect.signature(kind).parameters
    own = {"add_pooling_layer": False} if dense and not hasattr(config, "depths") else {}  # Swin's is a mean
    return load_part("AutoModel", part, weights, config, **own)


def _grouped(part: Part, weights: bool, config: Any) -> nn.Module:
    """An encoder whose configuration groups bands, as `spectral.group_channels` made it."""
    from transformers import MODEL_MAPPING

    bands = Bands(
        groups=getattr(config, KEY),
        start="random",
        image_size=config.image_size,
        patch_size=config.patch_size,
    )
    kind: Any = MODEL_MAPPING[type(config)]
    dense = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind).parameters else {}

    def build(self: Any, given: Any) -> None:
        kind.__init__(self, given, **dense)
        group_channels(self, bands)

    # transformers knows by the class how a checkpoint's names are written
    grouped: Any = type(kind.__name__, (kind,), {"__init__": build, "__module__": kind.__module__})
    if not weights or part.name is None:
        made: nn.Module = grouped(config)
    else:
        try:
            with quiet():
                made, told = grouped.from_pretrained(
                    part.name, config=config, revision=part.revision, output_loading_info=True
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"the part {part.name} cannot be had: {error}") from error
        if told["missing_keys"]:
            raise ModelError(
                f"the part {part.name}: its checkpoint has no {sorted(told['missing_keys'])[0]}."
            )
    made.__class__ = kind
    dtype = part.dtype if part.dtype != "auto" else "float32"
    return made.to(getattr(torch, dtype))


def _plain_mae(part: Part, weights: bool, config: Any) -> nn.Module:
    """The encoder of a masked autoencoder as a plain ViT: ViTMAEModel hides patches at random in every forward."""
    from transformers import ViTConfig, ViTModel

    names = (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "hidden_dropout_prob",
        "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps", "image_size", "patch_size", "num_channels", "qkv_bias",
    )  # fmt: skip
    plain: Any = ViTConfig(**{name: getattr(config, name) for name in names})
    plain._attn_implementation = part.attention or "sdpa"
    made: Any = ViTModel(plain, add_pooling_layer=False)
    if weights:
        theirs = load_part("AutoModel", part, weights, config)
        made.load_state_dict(theirs.state_dict())
        made = made.to(next(theirs.parameters()).dtype)
    built: nn.Module = made
    return built


def load_dense_encoder(part: Part, weights: bool) -> nn.Module:
    """An encoder of maps: of SAM2 the trunk alone, without its neck, memory, prompts and mask decoder; of others `load_encoder`.

    Raises:
        ModelError: it cannot be had, or gives no maps.
    """
    config = part_config(part)
    vision = getattr(config, "vision_config", config)
    if getattr(vision, "backbone_config", None) is not None and "sam2" in str(vision.model_type):
        whole: Any = load_part("AutoModel", part, weights, None if weights else config)
        found: nn.Module = getattr(whole, "vision_encoder", whole).backbone
    else:
        found = load_encoder(part, weights)
    map_widths(found)
    return found


def is_segformer(encoder: nn.Module) -> bool:
    """Whether it is SegFormer's encoder (MiT), whose stages have widths and strides of their own."""
    return hasattr(encoder.config, "sr_ratios")


def is_hierarchical(encoder: nn.Module) -> bool:
    """Whether the encoder's maps shrink from stage to stage."""
    config: Any = encoder.config
    return hasattr(config, "embed_dim_per_stage") or hasattr(config, "depths")


def map_widths(encoder: nn.Module) -> list[int]:
    """Channels of a hierarchical encoder's maps, one a stage; of a plain one's every block.

    Raises:
        ModelError: the encoder has no patches.
    """
    config: Any = encoder.config
    if hasattr(config, "embed_dim_per_stage"):
        return list(config.embed_dim_per_stage)
    if is_segformer(encoder):
        return list(config.hidden_sizes)
    if hasattr(config, "depths"):
        return [config.embed_dim * 2**stage for stage in range(len(config.depths))]
    if not hasattr(config, "patch_size") or not hasattr(config, "num_hidden_layers"):
        raise ModelError(
            f"{type(encoder).__name__} gives no feature maps here. Take a vision transformer with patches (ViT, DINOv2, DINOv3), Swin, SegFormer or SAM2."
        )
    return [int(config.hidden_size)] * int(config.num_hidden_layers)


def stride(encoder: nn.Module) -> int:
    """Pixels on whose multiples the sides of pictures must be for this encoder."""
    config: Any = encoder.config
    if hasattr(config, "embed_dim_per_stage"):
        # the window's position table is laid over whole windows, and each pooling halves the map
        patch, window = config.patch_stride[0], config.window_size_per_stage[0]
        pooled = config.query_stride[0] ** config.num_query_pool_stages
        return int(patch) * math.lcm(int(window), int(pooled))
    if is_segformer(encoder):
        return math.prod(config.strides)
    if hasattr(config, "depths"):
        return int(config.patch_size) * 2 ** (len(config.depths) - 1)
    return int(config.patch_size)


def smallest(encoder: nn.Module) -> int:
    """Pixels on the shorter side that this encoder takes at least: in Swin a window must fit the last stage's map."""
    config: Any = encoder.config
    return stride(encoder) * int(getattr(config, "window_size", 1)) if hasattr(config, "depths") else stride(encoder)  # fmt: skip


def default_taps(encoder: nn.Module, count: int = 4) -> list[int]:
    """The last block of each of `count` equal parts of a plain encoder: 5, 11, 17, 23 of 24."""
    layers = len(map_widths(encoder))
    if layers < count:
        raise ModelError(f"{type(encoder).__name__} has {layers} blocks; {count} maps are asked for.")
    return [round(layers * (i + 1) / count) - 1 for i in range(count)]


def feature_maps(encoder: nn.Module, pixels: Tensor, taps: Sequence[int] = ()) -> list[Tensor]:
    """Maps [batch, channels, height, width] of pixels [batch, 3, height, width].

    Args:
        pixels: sides that `stride` divides.
        taps: numbers, from 0, of a plain encoder's blocks; ignored by hierarchical ones, which give one map a stage.
    """
    config: Any = encoder.config
    if hasattr(config, "embed_dim_per_stage"):
        stages: Any = encoder(pixel_values=pixels).intermediate_hidden_states
        return [stage.permute(0, 3, 1, 2) for stage in stages]
    if is_segformer(encoder):
        return list(encoder(pixel_values=pixels, output_hidden_states=True).hidden_states)
    if hasattr(config, "depths"):
        return swin_maps(encoder, pixels)
    given: dict[str, Any] = {"output_hidden_states": True}
    if "interpolate_pos_encoding" in inspect.signature(type(encoder).forward).parameters:
        given["interpolate_pos_encoding"] = True
    states: Any = encoder(pixel_values=pixels, **given).hidden_states
    height, width = (side // int(config.patch_size) for side in pixels.shape[-2:])
    norm: Any = getattr(encoder, "norm", None) or getattr(encoder, "layernorm", None) or nn.Identity()
    maps = []
    for tap in taps:
        tokens = norm(states[tap + 1])[:, -height * width :]  # what stands first are no patches
        maps.append(tokens.transpose(1, 2).unflatten(2, (height, width)))
    return maps


def swin_maps(encoder: nn.Module, pixels: Tensor, merged: bool = False) -> list[Tensor]:
    """A map of each stage of a Swin encoder.

    Args:
        pixels: sides that `stride` divides.
        merged: as the next stage takes it, its patches merged (twice the channels at half the size; the last stage's as it is);
            else what the last block of the stage gives, the last stage's behind the encoder's norm.
    """
    inner: Any = encoder
    kept: list[Tensor] = []
    stages = [stage if merged else stage.blocks[-1] for stage in inner.encoder.layers]

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    hooks = [stage.register_forward_hook(keep) for stage in stages]
    try:
        encoder(pixel_values=pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return [as_map(encoder, tokens, pixels, i, merged) for i, tokens in enumerate(kept)]


def as_map(encoder: nn.Module, tokens: Tensor, pixels: Tensor, stage: int, merged: bool) -> Tensor:
    """A Swin stage's tokens [batch, n, channels] as a map [batch, channels, h, w]; see `swin_maps`."""
    config: Any = encoder.config
    last = len(config.depths) - 1
    if stage == last and not merged:
        norm: Any = encoder.layernorm
        tokens = norm(tokens)
    halved = min(stage + merged, last)
    height, width = (side // (int(config.patch_size) * 2**halved) for side in pixels.shape[-2:])
    return tokens.transpose(1, 2).unflatten(2, (height, width))
