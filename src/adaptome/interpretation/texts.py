"""Directions described by texts: where what a layer writes ends up in the space that texts live in.

Attention outputs and MLP down maps write into the residual stream, which a final norm and a linear map take to the texts' space: the
projection of a CLIP encoder, whose text encoder embeds the texts; or a language model's output head, whose rows are its tokens. A
direction u written there moves the projection along

    e = P (gamma * (u - mean(u)))          (no mean in an RMS norm; a language model's P is the identity)

and its texts are those with the largest cosine to e, once the texts' mean, which all of them share, is taken off. What comes between the
layer and the end of the stream is left out, as in the logit lens; so is a norm that a block puts on its own output (Gemma 2). Directions
that other maps write have no such space and get no texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.anatomy import Anatomy
from adaptome.core.errors import DataError, ModelError
from adaptome.core.hosts import host_of
from adaptome.core.model import disabled
from adaptome.core.state import adapters
from adaptome.interpretation.directions import DirectionChange

#: roles of the maps that write into the residual stream
WRITERS = ("o", "down")
#: directions drawn to tell what cosine chance gives
DRAWS = 256
#: texts embedded at a time
BATCH = 64


@dataclass(frozen=True)
class Reader:
    """What takes a residual stream to the texts' space: `centred` and `gain` of the final norm, and P, None for the identity."""

    gain: Tensor
    centred: bool
    P: Tensor | None

    def __call__(self, u: Tensor) -> Tensor:
        """Unit images of directions `[*, width]`."""
        u = u.to(self.gain)
        u = (u - u.mean(-1, keepdim=True) if self.centred else u) * self.gain
        return F.normalize(u if self.P is None else u @ self.P.mT, dim=-1)


@dataclass(frozen=True)
class TextSpace:
    """Texts and the way to them.

    Attributes:
        texts: what directions are described by.
        embeddings: `[texts, dim]`, their mean taken off, of unit length.
        readers: the path of a backbone -> how its residual stream is read.
    """

    texts: tuple[str, ...]
    embeddings: Tensor
    readers: dict[str, Reader]

    def reader(self, layer: str) -> Reader | None:
        """That of the backbone a layer is in."""
        return next((r for path, r in self.readers.items() if f".{layer}.".find(f".{path}.") >= 0), None)

    def chance(self, reader: Reader) -> float:
        """The mean cosine of a random direction with its nearest text: what a description must exceed to mean something."""
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(DRAWS, len(reader.gain), generator=generator)
        return float((reader(drawn) @ self.embeddings.T).amax(-1).mean())


@torch.no_grad()
def describe(
    directions: Iterable[DirectionChange], space: TextSpace, count: int = 3
) -> tuple[DirectionChange, ...]:
    """The directions with the texts nearest each end, where they are written into a residual stream that the space reads.

    Args:
        directions: as `direction_changes` gives them.
        space: of `text_space`.
        count: texts for each end.
    """
    found = []
    for direction in directions:
        reader = space.reader(direction.layer)
        if direction.role in WRITERS and reader is not None and len(direction.u) == len(reader.gain):
            cosines = space.embeddings @ reader(direction.u)
            towards, against = (_nearest(space.texts, end, count) for end in (cosines, -cosines))
            direction = replace(direction, towards=towards, against=against)
        found.append(direction)
    return tuple(found)


def _nearest(texts: Sequence[str], cosines: Tensor, count: int) -> tuple[tuple[str, float], ...]:
    best = cosines.topk(min(count, len(texts)))
    return tuple(
        (texts[i], float(cosine))
        for i, cosine in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    )


@torch.no_grad()
def text_space(model: nn.Module, tokenizer: Any, texts: Sequence[str] | None = None) -> TextSpace:
    """The space in which a model's residual streams can be compared with texts; its adapters are left out of it.

    Args:
        model: a CLIP of transformers (two encoders with projections), what holds one as `encoder`, or a causal language model with an output head.
        tokenizer: of the model.
        texts: at least two; a language model takes every token of its vocabulary by default, and of longer texts the mean over their tokens.

    Raises:
        ModelError: it has no such space.
        DataError: there are no texts, or only one.
    """
    for clip in (model, getattr(model, "encoder", None)):
        if all(hasattr(clip, part) for part in ("visual_projection", "text_projection", "get_text_features")):
            return _of_clip(clip, getattr(tokenizer, "tokenizer", tokenizer), _several(texts or ()), model)
    ask: Any = getattr(model, "get_output_embeddings", None)
    head = ask() if ask is not None else None
    backbones = [b.path for b in Anatomy(model).backbones]
    readers = _readers(model, {backbones[-1]: None}) if backbones else {}
    if not isinstance(head, nn.Linear) or [len(r.gain) for r in readers.values()] != [head.in_features]:
        raise ModelError(
            f"{type(model).__name__} has no map from its residual stream to texts: neither a CLIP's projections nor a final norm with a "
            "language model's head.\n  Give the space of the CLIP it was taken from: text_space(clip, tokenizer, texts)."
        )
    rows = host_of(head).weight().float().cpu()
    if texts is None:
        tokens = tuple(tokenizer.decode([i]) for i in range(min(len(tokenizer), len(rows))))
        return TextSpace(tokens, _centred(rows[: len(tokens)]), readers)
    given = _several(texts)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in given]
    empty = [text for text, tokens in zip(given, ids, strict=True) if not tokens]
    if empty:
        raise DataError(f"{len(empty)} texts have no tokens, first {empty[0]!r}.")
    return TextSpace(given, _centred(torch.stack([rows[tokens].mean(0) for tokens in ids])), readers)


def _of_clip(clip: Any, tokenizer: Any, texts: tuple[str, ...], root: nn.Module) -> TextSpace:
    projections = {"vision_model": clip.visual_projection, "text_model": clip.text_projection}
    return TextSpace(texts, _centred(_encoded(clip, tokenizer, texts, root)), _readers(clip, projections))


def _several(texts: Sequence[str]) -> tuple[str, ...]:
    """The texts, each once."""
    once = tuple(dict.fromkeys(texts))
    if len(once) < 2:
        raise DataError(f"{len(once)} texts: directions are told apart by at least two different ones.")
    return once


def _centred(rows: Tensor) -> Tensor:
    return F.normalize(rows - rows.mean(0), dim=-1)


def _encoded(model: Any, tokenizer: Any, texts: Sequence[str], root: nn.Module) -> Tensor:
    """Unit embeddings of texts by the base's text encoder; `root` holds the adapters that are left out."""
    found = []
    training = model.training
    model.eval()
    try:
        with disabled(root) if adapters(root) else nullcontext():
            for start in range(0, len(texts), BATCH):
                tokens = tokenizer(
                    list(texts[start : start + BATCH]), padding=True, truncation=True, return_tensors="pt"
                )
                given = {
                    k: v.to(model.device) for k, v in tokens.items() if k in ("input_ids", "attention_mask")
                }
                features = model.get_text_features(**given)
                # newer versions of transformers give the encoder's whole output
                features = getattr(features, "pooler_output", features)
                found.append(F.normalize(features.float().cpu(), dim=-1))
    finally:
        model.train(training)
    return torch.cat(found)


def _readers(model: nn.Module, projections: dict[str, nn.Module | None]) -> dict[str, Reader]:
    """The readers of backbones by path: their last norm outside of the blocks, and the projection."""
    anatomy = Anatomy(model)
    inside = {node for block in anatomy.blocks for node in anatomy.subtree(block)}
    found = {}
    for backbone in anatomy.backbones:
        if backbone.path not in projections:
            continue
        own = anatomy.subtree(backbone)
        last = max((node.order for node in own if node in inside), default=0)
        norms = [n for n in own if n.kind == "norm" and n not in inside and n.order > last]
        if not norms:
            continue
        norm, projection = norms[-1].module, projections[backbone.path]
        P = None if projection is None else host_of(projection).weight().float().cpu()
        found[backbone.path] = Reader(_gain(norm), isinstance(norm, nn.LayerNorm), P)
    return found


def _gain(norm: Any) -> Tensor:
    """gamma of a norm as its forward has it; RMS norms that store it with an offset (Gemma) tell it on a vector of ones."""
    weight = norm._parameters["weight"].detach()
    gain: Tensor = weight if isinstance(norm, nn.LayerNorm) else norm(torch.ones_like(weight))
    return gain.float().cpu()
