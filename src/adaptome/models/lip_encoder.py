r"""Lip reading: frames of a mouth to a feature each, by a 3D convolution, a residual trunk on every frame and a transformer over time.

    z_t = pool(trunk(conv3d(x)_t))                       conv 5 x 7 x 7 over (time, height, width), stride 1 x 2 x 2; residual stages
    h_t = W_join LN([0; W z_t])  or  LN(W z_t)           `fused`: AV-HuBERT's place for sound, which is zero here
    f   = transformer(h)                                 HuBERT's, with its convolution of positions

shapes    x [batch, time, height, width], grey and normalised; f [batch, time, hidden]; time stays
settings  a HubertConfig with three keys more: channels of the stages (64, 128, 256, 512), blocks a stage (2), fused (false)
source    AV-HuBERT (Shi et al.), arXiv:2201.02184: large is {do_stable_layer_norm: true, fused: true, hidden_size: 1024, ...}
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from adaptome.core.errors import ModelError
from adaptome.models.base import Part, part_config
from adaptome.models.modalities import keep_statistics

WEIGHTS = "model.safetensors"
#: names in the authors' checkpoint -> ours, after `encoder.layers.3.` and the like are the same
_THEIRS = (
    (r"feature_extractor_video\.resnet\.frontend3D\.", "frontend."),
    (r"feature_extractor_video\.resnet\.trunk\.layer(\d)\.", lambda m: f"trunk.{int(m[1]) - 1}."),
    (r"feature_extractor_video\.proj\.", "project."),
    (r"layer_norm\.(?=weight|bias)", "norm."),
    (r"post_extract_proj\.", "join."),
    (r"encoder\.pos_conv\.0\.weight_g", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"encoder\.pos_conv\.0\.weight_v", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
)
_IN_LAYER = (
    ("self_attn.", "attention."),
    ("self_attn_layer_norm.", "layer_norm."),
    ("fc1.", "feed_forward.intermediate_dense."),
    ("fc2.", "feed_forward.output_dense."),
)
#: what is theirs alone: the sound's front-end, and what pre-training predicts by
_UNUSED = ("feature_extractor_audio.", "mask_emb", "label_embs_concat", "final_proj.")


class LipEncoder(nn.Module):
    """Frames of a mouth [batch, time, height, width] -> features [batch, time, hidden]."""

    def __init__(self, config: Any):
        super().__init__()
        from transformers.models.hubert import modeling_hubert as hubert

        self.config = config
        channels = list(getattr(config, "channels", None) or (64, 128, 256, 512))
        blocks, self.fused = int(getattr(config, "blocks", 2)), bool(getattr(config, "fused", False))
        first, hidden = channels[0], int(config.hidden_size)
        self.frontend = nn.Sequential(
            nn.Conv3d(1, first, (5, 7, 7), (1, 2, 2), (2, 3, 3), bias=False),
            nn.BatchNorm3d(first),
            nn.PReLU(first),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        )
        stages, before = [], first
        for number, width in enumerate(channels):
            stride = 1 if number == 0 else 2
            stages.append(nn.Sequential(*(Residual(before if k == 0 else width, width, stride if k == 0 else 1) for k in range(blocks))))  # fmt: skip
            before = width
        self.trunk = nn.Sequential(*stages)
        self.project = nn.Linear(before, hidden)
        self.norm = nn.LayerNorm(hidden * 2 if self.fused else hidden)
        self.join = nn.Linear(hidden * 2, hidden) if self.fused else None
        kind = "HubertEncoderStableLayerNorm" if config.do_stable_layer_norm else "HubertEncoder"
        self.encoder = getattr(hubert, kind)(config)

    def train(self, mode: bool = True) -> Self:
        """Batch norms that do not train keep their statistics, which no adapter's file holds."""
        super().train(mode)
        keep_statistics(self)
        return self

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Features of every frame.

        Args:
            frames: [batch, time, height, width].
            mask: [batch, time], true where a clip has a frame.
        """
        x = self.frontend(frames[:, None])  # [batch, channels, time, height / 4, width / 4]
        x = self.trunk(x.transpose(1, 2).flatten(0, 1)).mean((2, 3)).unflatten(0, frames.shape[:2])
        x = self.project(x)
        x = self.norm(torch.cat([torch.zeros_like(x), x], -1) if self.fused else x)
        x = x if self.join is None else self.join(x)
        features: Tensor = self.encoder(x, attention_mask=mask).last_hidden_state
        return features


class Residual(nn.Module):
    """relu(x' + conv(relu(conv(x)))) with batch norms; x' is x, or its map where channels or stride change."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(width), nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(width), nn.PReLU(width)
        same = before == width and stride == 1
        self.downsample = None if same else nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        beside = x if self.downsample is None else self.downsample(x)
        made: Tensor = self.relu2(beside + self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        return made


def load_lip_encoder(part: Part, weights: bool) -> LipEncoder:
    """A lip encoder from its configuration, with the weights of a folder or hub id that has config.json and model.safetensors.

    The weights may have our names or those of the authors' AV-HuBERT, whose checkpoint is to be written as safetensors first.

    Raises:
        ModelError: it cannot be had, or its weights do not fit its configuration.
    """
    config = part_config(part)
    if getattr(config, "model_type", None) != "hubert":
        raise ModelError(
            f"model.video: a lip encoder's configuration is a hubert's, with channels, blocks and fused; found {config.model_type!r}."
        )
    config._attn_implementation = part.attention or "sdpa"
    made = LipEncoder(config)
    if weights and part.name is not None:
        _fill(made, part)
    dtype = None if part.dtype == "auto" else getattr(torch, part.dtype)
    return made.to(dtype) if dtype is not None else made


def _fill(made: LipEncoder, part: Part) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers.utils import cached_file

    try:
        file = cached_file(str(part.name), WEIGHTS, revision=part.revision)
        state = load_file(str(file))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"model.video: {part.name} has no {WEIGHTS} that can be read: {error}") from error
    if any(key.startswith("feature_extractor_video.") for key in state):
        state = {ours(key): value for key, value in state.items() if not key.startswith(_UNUSED)}
    try:
        made.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            f"model.video: the weights of {part.name} do not fit its configuration: {error}"
        ) from error


def ours(key: str) -> str:
    """The name here of a tensor of the authors' checkpoint.

    >>> ours("encoder.layers.3.self_attn.q_proj.weight")
    'encoder.layers.3.attention.q_proj.weight'
    """
    for pattern, name in _THEIRS:
        if (found := re.match(pattern, key)) is not None:
            return (name(found) if callable(name) else name) + key[found.end() :]
    within = re.match(r"encoder\.layers\.\d+\.", key)
    return key if within is None else within[0] + _renamed(key[within.end() :], _IN_LAYER)


def _renamed(key: str, names: Iterable[tuple[str, str]]) -> str:
    return next((new + key.removeprefix(old) for old, new in names if key.startswith(old)), key)
