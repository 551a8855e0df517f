r"""prompted-classifier: pictures and texts in one space, and classes told by the texts that name them.

    f = I(picture) / |I(picture)|  [batch, d],    t_c = T(text of class c) / |T(text of class c)|,    logits_c = s f . t_c

where      I and T are the encoders with their projections, s = exp(logit scale), at most 100, which does not train in classes
classes    `class_ids` [C, length] stand in the batch, so that a model has no classes of its own and any names can be asked for. With
           `class_groups` [C] and `groups` [batch] a picture is told from the classes of its group alone: the others' logits are -inf, and
           texts of groups that no picture of the batch has are not encoded
head       `fix` keeps the texts' features, as the base makes them, as the rows s t_c of a frozen linear layer `head`, for methods on classifiers
context    ids below 0 stand for trained vectors (CoOp): where nothing on the token table is active that knows them, `plain_ids` take their place
pairs      `input_ids` [batch, length] beside the pictures: the embeddings of both, and CLIP's loss on them
encoders   transformers' models with get_image_features and get_text_features: CLIP, SigLIP, ALIGN, vision-text-dual-encoder; open_clip's
source     Radford et al. 2021, arXiv:2103.00020; its few-shot use with trained encoders: CLIP-SVD, arXiv:2509.03740
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Adapted
from adaptome.core.errors import ModelError
from adaptome.models.base import CompositeModel, CompositeSettings, Part, load_part, register_model
from adaptome.models.open_clip import load_open_clip, open_clip_source

#: the largest scale that CLIP is trained with
MOST = 100.0


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

    def class_features(self, classes: Mapping[str, Tensor | None], kept: Tensor | None = None) -> Tensor:
        """Features [C, d] of class texts: `class_ids`, with `class_mask` and `plain_*` where there are such; of some rows with `kept`."""
        ids, mask = classes["class_ids"], classes.get("class_mask")
        assert ids is not None
        if bool((ids < 0).any()) and not self._knows_contexts():
            ids, mask = classes.get("plain_ids"), classes.get("plain_mask")
            if ids is None or self.training:
                raise ModelError(
                    "the texts of the classes have places for trained vectors (task.context), and no method on the token table fills them.\n"
                    "  Train coop (method: {name: coop, p: ...}), or leave task.context out."
                )
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

    def fix(self, classes: Mapping[str, Tensor | None]) -> None:
        """Keep these classes as a frozen layer: `head`, [C, d], without a bias."""
        with torch.no_grad():
            features = self.class_features({k: None if v is None else v.to(self.device) for k, v in classes.items()})  # fmt: skip
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
        class_ids: Tensor | None = None,
        class_mask: Tensor | None = None,
        class_groups: Tensor | None = None,
        plain_ids: Tensor | None = None,
        plain_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """With `input_ids` a batch of pairs, else pictures with `class_ids`; what comes out is described above.

        Args:
            labels: [batch], numbers of classes; the mean cross-entropy is then the `loss`.
        """
        f = self.image_features(pixel_values)
        if input_ids is not None:
            return self._pairs(f, self.text_features(input_ids, attention_mask))
        apart = class_groups is not None and groups is not None
        kept = torch.isin(class_groups, groups) if apart else None  # type: ignore[arg-type]
        if self.head is not None:
            logits = self.head(f.to(self.head.weight.dtype))
        else:
            kept = None if kept is None or bool(kept.all()) else kept
            texts = self.class_features(
                {"class_ids": class_ids, "class_mask": class_mask, "plain_ids": plain_ids, "plain_mask": plain_mask}, kept
            )  # fmt: skip
            logits = self.scale().detach().to(f) * f @ texts.T
            if kept is not None:
                logits = logits.new_full((len(f), len(kept)), -torch.inf).index_copy(
                    1, kept.nonzero()[:, 0], logits
                )
        if apart:
            logits = logits.masked_fill(class_groups[None] != groups[:, None], -torch.inf)  # type: ignore[index]
        made = {"logits": logits, "image_embeds": f}
        return made if labels is None else {"loss": F.cross_entropy(logits.float(), labels), **made}

    def _pairs(self, f: Tensor, t: Tensor) -> dict[str, Tensor]:
        logits = self.scale().to(f) * f @ t.T
        own = torch.arange(len(f), device=f.device)
        loss = (F.cross_entropy(logits.float(), own) + F.cross_entropy(logits.T.float(), own)) / 2
        return {"loss": loss, "image_embeds": f, "text_embeds": t}


def _unit(features: Any) -> Tensor:
    # newer versions of transformers give the encoder's whole output
    found: Tensor = getattr(features, "pooler_output", features)
    return F.normalize(found, dim=-1)
