r"""prompted-classifier: pictures and texts in one space, and classes told by the texts that name them.

    f = I(picture) / |I(picture)|  [batch, d],    t_c = T(text of class c) / |T(text of class c)|,    logits_c = s f . t_c

where      I and T are the encoders with their projections, s = exp(logit scale), at most 100, which does not train in classes
classes    stand in the batch (`Classes`), so that a model has none of its own and any names can be asked for. With groups of classes [C]
           and `groups` [batch] a picture is told from the classes of its group alone: the others' logits are -inf, and
           texts of groups that no picture of the batch has are not encoded
head       `fix` keeps the texts' features, as the base makes them, as the rows s t_c of a frozen linear layer `head`, for methods on classifiers
context    ids below 0 stand for trained vectors (CoOp): where nothing on the token table is active that knows them, the plain texts take their place
pairs      `input_ids` [batch, length] beside the pictures: the embeddings of both, and CLIP's loss on them
encoders   transformers' models with get_image_features and get_text_features: CLIP, SigLIP, ALIGN, vision-text-dual-encoder; open_clip's
source     Radford et al. 2021, arXiv:2103.00020; its few-shot use with trained encoders: CLIP-SVD, arXiv:2509.03740
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Adapted
from adaptome.core.errors import ModelError
from adaptome.models.base import CompositeModel, CompositeSettings, Part, load_part, register_model
from adaptome.models.likeness import products, uncast
from adaptome.models.open_clip import load_open_clip, open_clip_source

#: the largest scale that CLIP is trained with
MOST = 100.0


@dataclass
class Classes:
    """The texts of classes. It is no tensor, so that a batch that is split over devices keeps it whole.

    Attributes:
        ids, mask: [C, length]. groups: [C], which classes are told apart from each other.
        plain_ids, plain_mask: the texts without trained vectors, where `ids` has places for such.
    """

    ids: Tensor
    mask: Tensor | None = None
    groups: Tensor | None = None
    plain_ids: Tensor | None = None
    plain_mask: Tensor | None = None

    def __post_init__(self) -> None:
        #: whether there are places for trained vectors, and several groups
        self.context = bool((self.ids < 0).any())
        self.several = self.groups is not None and len(self.groups.unique()) > 1


def load_dual(part: Part, weights: bool) -> nn.Module:
    """A model that embeds pictures and texts in one space.

    Raises:
        ModelError: it cannot be had, or embeds pictures or texts alone.
    """
    if open_clip_source(part.name) is not None:
        return load_open_clip(part, weights)
    found = load_part("AutoModel", part, weights)
    lacking = [k for k in ("get_image_features", "get_text_features") if not hasattr(found, k)]
    if lacking:
        raise ModelError(
            f"the part {part.name or type(found).__name__} is a {type(found).__name__}, which has no {' and no '.join(lacking)}.\n"
            "  Take a model of pictures and texts in one space: CLIP, SigLIP, or openai/clip-vit-base-patch16 for one."
        )
    return found


class PromptedClassifierSettings(CompositeSettings):
    encoder: Part = Field(description="a model of pictures and texts in one space (CLIP, SigLIP, BiomedCLIP)")
    scale: float | None = Field(
        default=None, gt=0, description="s in classes; default: the checkpoint's, at most 100"
    )


@register_model("prompted-classifier")
class PromptedClassifier(CompositeModel):
    """A classifier of pictures by the texts of classes."""

    Settings = PromptedClassifierSettings
    loaders: ClassVar = {"encoder": load_dual}
    encoder: Any

    def build(self) -> None:
        self.head: nn.Linear | None = None

    # -- features ------------------------------------------------------------------------------------------------------

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Of length 1 [batch, d], from pixels [batch, 3, height, width]."""
        return _unit(self.encoder.get_image_features(pixel_values=pixel_values))

    def text_features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Of length 1 [texts, d], from ids [texts, length]."""
        told = {} if mask is None else {"attention_mask": mask}
        return _unit(self.encoder.get_text_features(input_ids=ids, **told))

    def scale(self) -> Tensor:
        """s."""
        if self.settings.scale is not None:
            return torch.tensor(float(self.settings.scale))
        own: Tensor = self.encoder.logit_scale
        return own.exp().clamp(max=MOST).reshape(())

    def class_features(self, classes: Classes, kept: Tensor | None = None) -> Tensor:
        """Features [C, d] of the texts of classes; of some rows with `kept`."""
        ids, mask = classes.ids, classes.mask
        if classes.context and not self._knows_contexts():
            if classes.plain_ids is None or self.training:
                raise ModelError(
                    "the texts of the classes have places for trained vectors (task.context), and no method on the token table fills them.\n"
                    "  Train coop (method: {name: coop, p: ...}), or leave task.context out."
                )
            ids, mask = classes.plain_ids, classes.plain_mask
        device = self.device
        ids, mask = ids.to(device), None if mask is None else mask.to(device)
        if kept is not None:
            ids, mask = ids[kept], None if mask is None else mask[kept]
        return self.text_features(ids, mask)

    def _knows_contexts(self) -> bool:
        return isinstance(table := self.token_table(), Adapted) and bool(table._chain)

    def token_table(self) -> nn.Module:
        """The text encoder's embedding of tokens: its longest table."""
        text = getattr(self.encoder, "text_model", self.encoder)
        return max(
            (m for m in text.modules() if isinstance(m, nn.Embedding)), key=lambda table: table.num_embeddings
        )

    def fix(self, classes: Classes) -> None:
        """Keep these classes as a frozen layer: `head`, [C, d], without a bias."""
        with torch.no_grad():
            features = self.class_features(classes)
            rows = self.scale().to(features) * features
        self.head = nn.Linear(rows.shape[1], len(rows), bias=False, device=rows.device, dtype=rows.dtype)
        self.head.weight = nn.Parameter(rows, requires_grad=False)

    # -- the model -----------------------------------------------------------------------------------------------------

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        groups: Tensor | None = None,
        classes: Classes | None = None,
    ) -> dict[str, Tensor]:
        """With `input_ids` a batch of pairs, else pictures with `classes`; what comes out is described above.

        Args:
            labels: [batch], numbers of classes; the mean cross-entropy is then the `loss`.
            groups: [batch], where classes are told apart by groups.
            classes: may be left out where they are fixed.
        """
        f = self.image_features(pixel_values)
        if input_ids is not None:
            return self._pairs(f, self.text_features(input_ids, attention_mask))
        of = None
        if classes is not None and classes.several and groups is not None:
            of = classes.groups.to(f.device)  # type: ignore[union-attr]
        if self.head is not None:
            with uncast(f):
                logits = self.head(f.to(self.head.weight.dtype))
        elif classes is None:
            raise ModelError("there are no classes to tell pictures among: give them, or fix them first.")
        else:
            kept = None if of is None else torch.isin(of, groups)  # type: ignore[arg-type]
            kept = None if kept is None or bool(kept.all()) else kept
            logits = self._scaled(self.scale().detach(), f, self.class_features(classes, kept))
            if kept is not None:
                whole = logits.new_full((len(f), len(kept)), -torch.inf)
                logits = whole.index_copy(1, kept.nonzero()[:, 0], logits)
        if of is not None:
            logits = logits.masked_fill(of[None] != groups[:, None], -torch.inf)  # type: ignore[index]
        made = {"logits": logits, "image_embeds": f}
        return made if labels is None else {"loss": F.cross_entropy(logits.float(), labels), **made}

    def _pairs(self, f: Tensor, t: Tensor) -> dict[str, Tensor]:
        logits = self._scaled(self.scale(), f, t)
        own = torch.arange(len(f), device=f.device)
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        return {"loss": loss, "image_embeds": f, "text_embeds": t}

    @staticmethod
    def _scaled(scale: Tensor, f: Tensor, t: Tensor) -> Tensor:
        likeness = products(f, t)
        return scale.to(likeness) * likeness


def _unit(features: Any) -> Tensor:
    # newer versions of transformers give the encoder's whole output
    found: Tensor = getattr(features, "pooler_output", features)
    return F.normalize(found, dim=-1)
