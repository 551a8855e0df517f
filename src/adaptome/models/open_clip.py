"""Dual encoders of open_clip, such as BiomedCLIP, as parts: `encoder: hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224`.

A folder with open_clip_config.json, as the hub's has it, is one too. The attentions of timm's vision transformers make q, k and v by one
map [3 d, d]; it is split into three, so that each is a layer of its own: three spectra of length d and not one (CLIP-SVD, arXiv:2509.03740).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.errors import MissingExtraError, ModelError
from adaptome.models.base import Part

HUB, FILE = "hf-hub:", "open_clip_config.json"


def open_clip_source(name: str | None) -> str | None:
    """What open_clip calls a model of this name; None where the name is none of open_clip's."""
    if name is None:
        return None
    if name.startswith(HUB):
        return name
    return f"local-dir:{name}" if (Path(name) / FILE).is_file() else None


def load_open_clip(part: Part, weights: bool) -> OpenClip:
    """The part by open_clip: with its weights, or as it is built.

    Raises:
        MissingExtraError: open_clip is not installed. ModelError: the model cannot be had.
    """
    open_clip = _open_clip()
    try:
        # the checkpoint holds the text encoder too: it is not fetched by itself
        source = str(open_clip_source(part.name))
        made = open_clip.create_model(source, load_weights=weights, pretrained_hf=False)
    except (OSError, RuntimeError, ValueError, KeyError, FileNotFoundError) as error:
        raise ModelError(f"the part {part.name} cannot be had by open_clip: {error}") from error
    dtype: Any = torch.float32 if part.dtype == "auto" else getattr(torch, part.dtype)
    return OpenClip(made).to(dtype)


def load_open_clip_processors(name: str) -> tuple[Any, Any]:
    """Tokenizer and what makes pixels of a PIL picture, of a model of open_clip.

    Raises:
        MissingExtraError: open_clip is not installed. ModelError: they cannot be had.
    """
    open_clip = _open_clip()
    source = str(open_clip_source(name))
    try:
        tokenizer = open_clip.get_tokenizer(source)
        with _without_warnings():  # that this model, which gives its pixels alone, has no weights
            made = open_clip.create_model_and_transforms(source, load_weights=False, pretrained_hf=False)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ModelError(f"the tokenizer and pixels of {name} cannot be had by open_clip: {error}") from error
    return tokenizer, made[2]


@contextmanager
def _without_warnings() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError:
        raise MissingExtraError("open_clip_torch", "open-clip") from None
    return open_clip


class OpenClip(nn.Module):
    """A model of open_clip that answers as transformers' do."""

    config = None

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.clip = clip
        split_qkv(clip)

    @property
    def logit_scale(self) -> Tensor:
        """Its logarithm."""
        found: Tensor = self.clip.logit_scale  # type: ignore[assignment]
        return found

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """[batch, d]."""
        found: Tensor = self.clip.encode_image(pixel_values)  # type: ignore[operator]
        return found

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """[texts, d]; the text encoder tells padding by its ids."""
        found: Tensor = self.clip.encode_text(input_ids)  # type: ignore[operator]
        return found


class SplitLinear(nn.Module):
    """A map [3 d, d] as the three maps that it is made of."""

    def __init__(self, fused: nn.Linear):
        super().__init__()
        for number, name in enumerate(("q_proj", "k_proj", "v_proj")):
            rows = slice(number * fused.out_features // 3, (number + 1) * fused.out_features // 3)
            part = nn.Linear(
                fused.in_features, fused.out_features // 3, bias=fused.bias is not None,
                device=fused.weight.device, dtype=fused.weight.dtype,
            )  # fmt: skip
            with torch.no_grad():
                part.weight.copy_(fused.weight[rows])
                if fused.bias is not None:
                    part.bias.copy_(fused.bias[rows])
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._modules[name](x) for name in ("q_proj", "k_proj", "v_proj")], dim=-1)  # type: ignore[misc]


def split_qkv(model: nn.Module) -> int:
    """Split every fused map of queries, keys and values called `qkv`; returns how many."""
    found = [
        (parent, child)
        for parent in list(model.modules())
        for name, child in parent.named_children()
        if name == "qkv" and isinstance(child, nn.Linear) and child.out_features % 3 == 0
    ]
    for parent, child in found:
        parent.qkv = SplitLinear(child)
    return len(found)
