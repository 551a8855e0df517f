"""Inputs of the right shape for a model, to run it on the meta device: no data, no tokenizer, no processor.

The first input's name tells what a model eats (`main_input_name` of transformers); the config tells the sizes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.errors import ModelError

__all__ = ["example_inputs"]


def example_inputs(
    model: nn.Module,
    batch: int,
    length: int,
    *,
    device: torch.device | str = "meta",
    dtype: torch.dtype | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Keyword arguments for one training step of `model`; with labels where its head takes them.

    Args:
        model: of transformers or diffusers.
        batch: samples.
        length: tokens of text, frames of a waveform, tokens of a conditioning text; at most what the model has
            positions for. Images, spectrograms and latents have the size that the config gives.
        device: where the inputs lie.
        dtype: of the floating-point inputs; by default that of the model's first floating-point parameter.
        seed: draw numbers and tokens (none with a meaning of its own); None for zeros. Labels are zeros.

    Raises:
        ModelError: the model's inputs are not known; pass your own.
    """
    if dtype is None:
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    kind = _kind(model)
    if kind not in _MAKERS:
        raise ModelError(
            f"The inputs of {type(model).__name__} are not known (its main input is {kind!r}; known: "
            f"{', '.join(_MAKERS)}).\n  Pass them: inputs={{'name': tensor, ...}}, on the meta device."
        )
    return _MAKERS[kind](_Maker(model, batch, length, torch.device(device), dtype, seed))


class _Maker:
    """Sizes of one model, and tensors of a batch."""

    def __init__(
        self,
        model: nn.Module,
        batch: int,
        length: int,
        device: torch.device,
        dtype: torch.dtype,
        seed: int | None,
    ):
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)
        self.model, self.batch, self.device, self.dtype = model, batch, device, dtype
        self.config: Any = model.config
        self.length = min(
            length, self.first("max_position_embeddings", "n_positions", of=self.text) or length
        )

    @property
    def text(self) -> Any:
        get = getattr(self.config, "get_text_config", None)
        return get() if get else self.config

    def first(self, *names: str, of: Any = None) -> Any:
        """The first of these entries that the config has."""
        config = self.config if of is None else of
        return next((v for n in names if (v := getattr(config, n, None)) is not None), None)

    def ids(self, *shape: int) -> Tensor:
        return torch.zeros(self.batch, *shape, dtype=torch.long, device=self.device)

    def tokens(self, *shape: int) -> Tensor:
        vocabulary = self.first("vocab_size", of=self.text)
        if self.generator is None or not vocabulary:
            return self.ids(*shape)
        special = {
            value
            for config in (self.config, self.text)
            for key, value in vars(config).items()
            if key.endswith(("token_id", "token_index"))
        }
        plain = torch.tensor([token for token in range(min(vocabulary, 1000)) if token not in special])
        drawn = torch.randint(len(plain), (self.batch, *shape), generator=self.generator)
        return plain[drawn].to(self.device)

    def values(self, *shape: int) -> Tensor:
        if self.generator is not None:
            return torch.randn(self.batch, *shape, generator=self.generator).to(self.device, self.dtype)
        return torch.zeros(self.batch, *shape, dtype=self.dtype, device=self.device)

    def labels(self, length: int) -> dict[str, Tensor]:
        """`labels` where the forward takes them: one each token, or one each sample."""
        name = type(self.model).__name__
        if "labels" not in inspect.signature(self.model.forward).parameters:
            return {}
        if name.endswith(("ForSequenceClassification", "ForImageClassification", "ForAudioClassification")):
            return {"labels": self.ids()}
        if name.endswith(
            (
                "LMHeadModel",
                "ForCausalLM",
                "ForMaskedLM",
                "ForTokenClassification",
                "ForConditionalGeneration",
            )
        ):
            return {"labels": self.ids(length)}
        return {}


def _kind(model: nn.Module) -> str:
    if not hasattr(model, "config"):
        return "none"
    parameters = inspect.signature(model.forward).parameters
    for first in ("query_embeds", "sample"):  # of the Q-Former, which inherits a wrong name, and of diffusers
        if next(iter(parameters), None) == first:
            return first
    if {"input_ids", "pixel_values"} <= set(parameters) and hasattr(model.config, "projection_dim"):
        return "image and text"
    return str(getattr(model, "main_input_name", "none"))


def _text(m: _Maker) -> dict[str, Any]:
    inputs = {"input_ids": m.tokens(m.length), **m.labels(m.length)}
    if getattr(m.config, "is_encoder_decoder", False) and "labels" not in inputs:
        inputs["decoder_input_ids"] = m.tokens(m.length)
    return inputs


def _parts(config: Any) -> list[Any]:
    """The configurations inside one that may tell an image's size: of its vision tower, encoder or backbone."""
    names = ("vision_config", "encoder", "backbone_config")
    return [part for name in names if (part := getattr(config, name, None)) is not None]


def _pixels(m: _Maker, config: Any = None) -> Tensor:
    config = m.config if config is None else config
    size = next((s for c in (config, *_parts(config)) if (s := getattr(c, "image_size", None))), 224)
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return m.values(getattr(config, "num_channels", 3), height, width)


def _image(m: _Maker) -> dict[str, Any]:
    return {"pixel_values": _pixels(m), **m.labels(0)}


def _image_and_text(m: _Maker) -> dict[str, Any]:
    length = min(m.length, m.config.text_config.max_position_embeddings)
    return {
        "input_ids": m.tokens(length),
        "pixel_values": _pixels(m, m.config.vision_config),
        "return_loss": True,
    }


def _features(m: _Maker) -> dict[str, Any]:
    """Whisper: a spectrogram of fixed length in, text out; others take frames `[length, features]`."""
    width = m.first("feature_projection_input_dim", "input_feat_per_channel", of=m.config)
    if width:
        inputs = {"input_features": m.values(4 * m.length, width), **m.labels(m.length)}
        if "labels" not in inputs and getattr(m.config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = m.tokens(m.length)
        return inputs
    frames = 2 * m.config.max_source_positions
    length = min(m.length, m.config.max_target_positions)
    inputs = {"input_features": m.values(m.config.num_mel_bins, frames), **m.labels(length)}
    if "labels" not in inputs and getattr(m.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = m.tokens(length)
    return inputs


def _audio(m: _Maker) -> dict[str, Any]:
    """AST: a spectrogram [frames, mels]; wav2vec2 and its kin: a waveform of `length` frames of the encoder."""
    mels = m.first("num_mel_bins")
    strides = m.first("conv_stride")
    shape = (m.config.max_length, mels) if mels and not strides else (m.length * prod(strides or (1,)),)
    return {"input_values": m.values(*shape), **m.labels(m.length)}


def _queries(m: _Maker) -> dict[str, Any]:
    """BLIP-2's Q-Former: 32 queries look at the 257 patches of a 224-pixel image."""
    return {
        "query_embeds": m.values(32, m.config.hidden_size),
        "encoder_hidden_states": m.values(257, m.config.encoder_hidden_size),
    }


def _latents(m: _Maker) -> dict[str, Any]:
    """A diffusion UNet: latents of the config's size, and a text of at most 77 tokens."""
    c = m.config
    height, width = (
        c.sample_size if isinstance(c.sample_size, (tuple, list)) else (c.sample_size, c.sample_size)
    )
    inputs: dict[str, Any] = {"sample": m.values(c.in_channels, height, width), "timestep": m.ids()}
    if m.first("cross_attention_dim"):
        inputs["encoder_hidden_states"] = m.values(min(m.length, 77), c.cross_attention_dim)
    if m.first("addition_embed_type") == "text_time":  # SDXL: pooled text beside six sizes of the image
        pooled = c.projection_class_embeddings_input_dim - 6 * c.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": m.values(pooled), "time_ids": m.values(6)}
    if m.first("class_embed_type", "num_class_embeds"):
        inputs["class_labels"] = m.ids()
    return inputs


_MAKERS: dict[str, Callable[[_Maker], dict[str, Any]]] = {
    "input_ids": _text,
    "pixel_values": _image,
    "image and text": _image_and_text,
    "input_features": _features,
    "input_values": _audio,
    "query_embeds": _queries,
    "sample": _latents,
}
