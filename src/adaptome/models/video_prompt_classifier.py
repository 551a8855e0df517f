r"""video-prompt-classifier: a clip in several streams, matched by one CLIP with texts of what each class shows and does not show.

    v_m = mean over the T frames of project(vision(x_t)), of length 1        m: frames, parsing, landmarks, ...
    v_m = project(text(d)), of length 1                                      m: description
    s_c^+- = <v_m, t_c^+->/tau,   l_c(v_m) = s_c^+ - s_c^-                   the log-odds of {+, -}; without negative texts l = s^+
    l_c = sum_m w_m l_c(v_m),   w = softmax(g) over the streams that are there

fusion    confidence: g_m = max_c l_c(v_m), no gradient through it; learned: g_m a number of its own; attention: one layer of it over the
          streams' vectors, added to them, its output map starting at 0, whose mean of length 1 is scored
shapes    pixel_values [batch, streams, T, 3, h, w]; available [batch, streams], description last; v [batch, d]; t [classes, d]
time      a vector for each frame is added to all its tokens before the encoder's first norm; it starts at 0
steered   frames = T and stream = m while the vision encoder runs, for adapters that look over time or have sets of their own
source    FineCLIPER, arXiv:2407.02157; its fusion and its loss are not told in full: these are options
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.errors import ModelError
from adaptome.core.steer import steer, steered
from adaptome.models.base import CompositeModel, CompositeSettings, Part, register_model
from adaptome.models.context_words import text_vectors
from adaptome.models.likeness import products

#: the stream of words, of which the others are pictures
DESCRIPTION = "description"


class VideoPromptClassifierSettings(CompositeSettings):
    encoder: Part = Field(description="CLIP: a model of pictures and texts with projections")
    streams: list[str] = Field(
        default=["frames", "parsing", "landmarks", DESCRIPTION],
        min_length=1,
        description="what is seen of a clip, in the order of the batch; description is words, the others pictures",
    )
    frames: int = Field(default=16, ge=1, description="T, the most frames that a clip has")
    labels: int = Field(default=2, ge=2, description="classes; the task knows it")
    context: int = Field(
        default=8, ge=0, description="trained vectors before each class's words; 0 for the words alone"
    )
    negative: bool = Field(default=True, description="score what a class does not show as well")
    temperature: float = Field(default=0.01, gt=0, description="tau")
    fusion: Literal["confidence", "learned", "attention"] = Field(
        default="confidence", description="how the streams are weighed"
    )


@register_model("video-prompt-classifier")
class VideoPromptClassifier(CompositeModel):
    """Tells classes of clips by CLIP and texts."""

    Settings = VideoPromptClassifierSettings
    loaders: ClassVar = {"encoder": "AutoModel"}
    encoder: Any

    def build(self) -> None:
        own, clip = self.settings, self.encoder
        lacking = [name for name in ("text_model", "vision_model", "text_projection", "visual_projection") if not hasattr(clip, name)]  # fmt: skip
        if lacking:
            raise ModelError(
                f"model.encoder: {type(clip).__name__} has no {lacking[0]}. Take a CLIP, as openai/clip-vit-base-patch16."
            )
        if len(set(own.streams)) < len(own.streams) or own.streams[:-1].count(DESCRIPTION):
            raise ModelError(f"model.streams={own.streams}: each once, and {DESCRIPTION!r} last.")
        width = clip.config.text_config.hidden_size
        if own.context:
            self.prompts = Context(1 + own.negative, own.labels, own.context, width)
        self.time = Time(own.frames, clip.config.vision_config.hidden_size)
        clip.vision_model.pre_layrnorm.register_forward_pre_hook(self.time.before)
        if own.fusion == "learned":
            self.fusion: nn.Module = Weights(len(own.streams))
        elif own.fusion == "attention":
            self.fusion = StreamAttention(clip.config.projection_dim)
        self.register_buffer("positive", None, persistent=False)
        self.register_buffer("opposite", None, persistent=False)
        self.in_context = bool(own.context)

    @property
    def visual(self) -> list[str]:
        """The streams of pictures."""
        return [name for name in self.settings.streams if name != DESCRIPTION]

    def set_classes(self, positive: Tensor, opposite: Tensor | None, in_context: bool) -> None:
        """The ids [classes, length] of the classes' texts, and whether places are kept in them for trained context.

        Raises:
            ModelError: context for another number of classes, or texts of what is not shown that are missing.
        """
        own = self.settings
        if in_context and (not own.context or len(positive) != own.labels):
            raise ModelError(
                f"context was trained for {own.labels if own.context else 0} classes; these are {len(positive)}."
            )
        if own.negative and opposite is None:
            raise ModelError("model.negative: there are no texts of what the classes do not show.")
        self.positive, self.in_context = positive.to(self.device), in_context
        self.opposite = opposite.to(self.device) if opposite is not None and own.negative else None

    def classes(self) -> Tensor:
        """t^+, and t^- where there is one: [1 or 2, classes, d], of length 1.

        Raises:
            ModelError: no classes were set.
        """
        if self.positive is None:
            raise ModelError("the model knows no classes yet: set_classes(positive, opposite, in_context).")
        made = []
        for number, ids in enumerate((self.positive, self.opposite)):
            if ids is not None:
                context = self.prompts.vectors[number] if self.in_context else None
                made.append(F.normalize(text_vectors(self.encoder, ids, context).float(), dim=-1))
        return torch.stack(made)

    # -- what is seen ------------------------------------------------------------------------------------------------

    def clip_vectors(self, pixels: Tensor, stream: str) -> Tensor:
        """v [clips, d], of length 1, of pixels [clips, T, 3, h, w]."""
        with steer(frames=pixels.shape[1], stream=stream):
            pooled = self.encoder.vision_model(pixel_values=pixels.flatten(0, 1)).pooler_output
        each = self.encoder.visual_projection(pooled).unflatten(0, pixels.shape[:2])
        return F.normalize(each.float().mean(1), dim=-1)

    def stream_vectors(
        self, pixel_values: Tensor | None, available: Tensor, input_ids: Tensor | None
    ) -> Tensor:
        """v [batch, streams, d]; zeros where a stream is missing, for which nothing is computed."""
        clip = self.encoder
        rows = available.new_zeros(
            *available.shape, clip.config.projection_dim, dtype=torch.float32, device=available.device
        )
        columns = list(rows.unbind(1))
        for number, name in enumerate(self.settings.streams):
            there = available[:, number].nonzero()[:, 0]
            given = input_ids if name == DESCRIPTION else pixel_values
            if not len(there) or given is None:
                continue
            if name == DESCRIPTION:
                found = F.normalize(text_vectors(clip, given[there]).float(), dim=-1)
            else:
                found = self.clip_vectors(given[there, number], name)
            columns[number] = columns[number].index_copy(0, there, found)
        return torch.stack(columns, 1)

    # -- what is told ------------------------------------------------------------------------------------------------

    def scores(self, vectors: Tensor, texts: Tensor) -> Tensor:
        """l [..., classes] of vectors [..., d]."""
        return log_odds(products(vectors, texts.unsqueeze(1) if vectors.dim() > 2 else texts)) / self.settings.temperature  # fmt: skip

    def fused(self, vectors: Tensor, logits: Tensor, available: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
        """l [batch, classes] and w [batch, streams] of each stream's vectors and logits."""
        kind = self.settings.fusion
        if kind == "attention":
            weights = available.float() / available.sum(1, keepdim=True).clamp(min=1)
            mixed = (weights[..., None] * self.fusion(vectors, available)).sum(1)
            return self.scores(F.normalize(mixed, dim=-1), texts), weights
        told = logits.detach().amax(-1) if kind == "confidence" else self.fusion(vectors, available)
        weights = masked_softmax(told, available)
        return (weights[..., None] * logits).sum(1), weights

    def forward(
        self,
        pixel_values: Tensor | None = None,
        available: Tensor | None = None,
        input_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`logits` [batch, classes]; of each stream `stream_logits`, `stream_weights` and `stream_vectors`; with labels `loss`, first.

        Raises:
            ModelError: neither pictures nor words, or an example without any stream.
        """
        if available is None:
            available = self._all_there(pixel_values, input_ids)
        if available.device.type != "meta" and not available.any(1).all():
            raise ModelError("an example has none of the streams.")
        texts = self.classes()
        vectors = self.stream_vectors(pixel_values, available, input_ids)
        each = self.scores(vectors, texts)
        logits, weights = self.fused(vectors, each, available, texts)
        made = {
            "logits": logits, "stream_logits": each, "stream_weights": weights, "available": available,
            "stream_vectors": vectors, "image_embeds": vectors[:, 0],
        }  # fmt: skip
        if self.settings.streams[-1] == DESCRIPTION:
            made["text_embeds"] = vectors[:, -1]
        if labels is None:
            return made
        return {"loss": F.cross_entropy(logits, labels), **made}

    def _all_there(self, pixels: Tensor | None, ids: Tensor | None) -> Tensor:
        given = pixels if pixels is not None else ids
        if given is None:
            raise ModelError("neither pixel_values nor input_ids: there is nothing to see.")
        there = [(ids if name == DESCRIPTION else pixels) is not None for name in self.settings.streams]
        return torch.tensor(there, device=given.device).expand(len(given), -1)


class Context(nn.Module):
    """c [1 or 2, classes, M, width], drawn from N(0, 0.02^2)."""

    def __init__(self, *shape: int):
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(*shape) * 0.02)


class Time(nn.Module):
    """A vector [width] for each frame, from 0 on, added to all its tokens."""

    def __init__(self, frames: int, width: int):
        super().__init__()
        self.vectors = nn.Parameter(torch.zeros(frames, width))

    def before(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The input of the encoder's first norm, [clips T, tokens, width], with them; as the steered frames lie."""
        count = int(steered("frames", 1))
        if count > len(self.vectors):
            raise ModelError(f"a clip of {count} frames; model.frames allows {len(self.vectors)}.")
        states = args[0].unflatten(0, (-1, count)) + self.vectors[:count, None].to(args[0].dtype)
        return (states.flatten(0, 1), *args[1:])


class Weights(nn.Module):
    """g, a number for each stream, from 0 on."""

    def __init__(self, streams: int):
        super().__init__()
        self.g = nn.Parameter(torch.zeros(streams))

    def forward(self, vectors: Tensor, available: Tensor) -> Tensor:
        return self.g.expand(len(vectors), -1)


class StreamAttention(nn.Module):
    """v + O softmax(q k / sqrt d) v' over the streams that are there; O = 0 at the start."""

    def __init__(self, width: int):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, vectors: Tensor, available: Tensor) -> Tensor:
        q, k, v = self.query(vectors), self.key(vectors), self.value(vectors)
        mixed: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=available.bool()[:, None])
        return vectors + self.out(mixed)


def log_odds(scores: Tensor) -> Tensor:
    """s^+ - s^- of scores [1 or 2, ...]; s^+ where it is alone."""
    return scores[0] if len(scores) == 1 else scores[0] - scores[1]


def masked_softmax(told: Tensor, available: Tensor) -> Tensor:
    """Weights [batch, streams] that are 0 where a stream is missing, and 1 together."""
    return told.float().masked_fill(~available.bool(), -torch.inf).softmax(-1)
