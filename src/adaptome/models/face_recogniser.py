r"""face-recogniser: an encoder of faces, their embedding, and the angles to the people of training.

    z = BN(W dropout(BN(flatten(encoder(image)))) + c)  [batch, D],    cos_k = <z, w_k> / (|z| |w_k|)  [batch, K]

shapes    w_k are the rows of the head [K, D], one for each person of the training data; the paper's encoder gives 25 tokens of 1536: W [512, 38400]
sampled   with `sample` below 1 only the batch's own people and as many others as make up that share of K are compared to (Partial FC): `logits`
          are then [batch, S], and `targets` [batch] say which column is a row's own
mirrored  outside training, z is that of the picture plus that of its mirror image (`mirrored`)
norms     batch norms keep the statistics they came with: those of few faces would drift, and no adapter keeps them. `norm: none` has neither of them
source    Narayan et al. 2024, arXiv:2412.07771; Partial FC: An et al. 2021, arXiv:2203.15565
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.errors import ModelError
from adaptome.core.parts import checked
from adaptome.models.base import CompositeModel, CompositeSettings, Part, register_model
from adaptome.models.encoders import load_encoder
from adaptome.models.face_swin import KIND, FaceSwin, FaceSwinConfig
from adaptome.models.likeness import products

#: how long the model's own loss makes the cosines: the usual scale of margin losses
SCALE = 64.0


def load_face_encoder(part: Part, weights: bool) -> nn.Module:
    """The encoder of a part: a face-swin by its configuration, or any vision encoder of transformers.

    Raises:
        ModelError: it cannot be had.
    """
    if part.from_config is None or part.from_config.get("model_type") != KIND:
        return load_encoder(part, weights)
    made = FaceSwin(checked(FaceSwinConfig, part.from_config, "model.encoder", KIND))
    return made if part.dtype == "auto" else made.to(getattr(torch, part.dtype))


class FaceRecogniserSettings(CompositeSettings):
    encoder: Part = Field(description="a face-swin, or a vision encoder of transformers")
    people: int = Field(default=0, ge=0, description="people of the training data; the task knows it")
    width: int = Field(default=512, ge=1, description="D, of the embedding")
    feature: Literal["tokens", "mean", "first"] = Field(
        default="tokens", description="what is embedded: all tokens in a row, their mean, or the first one"
    )
    norm: Literal["batch", "none"] = Field(
        default="batch", description="batch norms around the embedding's linear layer"
    )
    dropout: float = Field(default=0.25, ge=0, lt=1, description="before the embedding's linear layer")
    sample: float = Field(
        default=1.0, gt=0, le=1, description="share of the people that a batch is compared to in training"
    )
    mirrored: bool = Field(default=True, description="outside training, add the mirror image's embedding")


@register_model("face-recogniser")
class FaceRecogniser(CompositeModel):
    """Embeddings of faces, and cosines to the people of training."""

    Settings = FaceRecogniserSettings
    loaders: ClassVar = {"encoder": load_face_encoder}
    encoder: nn.Module

    def build(self) -> None:
        settings = self.settings
        self.embedding = Embedding(self._features(), settings.width, settings.norm, settings.dropout)
        self.renew_head(settings.people)

    def renew_head(self, people: int) -> None:
        """A head for other people, drawn anew."""
        self.settings.people = people
        self.head = Head(people, self.settings.width)

    @property
    def side(self) -> int:
        """Of the pictures, in pixels."""
        config: Any = self.encoder.config
        size = config.image_size
        return int(size if isinstance(size, int) else size[0])

    def _features(self) -> int:
        """How many numbers the encoder gives of a picture."""
        like, mode = next(self.encoder.parameters()), self.encoder.training
        self.encoder.eval()
        with torch.no_grad():
            count = self._tokens(
                torch.zeros(1, 3, self.side, self.side, device=like.device, dtype=like.dtype)
            ).shape[1]
        self.encoder.train(mode)
        return int(count)

    def _tokens(self, pixel_values: Tensor) -> Tensor:
        tokens: Tensor = self.encoder(pixel_values=pixel_values).last_hidden_state
        kind = self.settings.feature
        return tokens.flatten(1) if kind == "tokens" else tokens.mean(1) if kind == "mean" else tokens[:, 0]

    def features(self, pixel_values: Tensor) -> Tensor:
        """Embeddings [batch, D], not normalised, of pixels [batch, 3, side, side].

        Raises:
            ModelError: pictures of another size.
        """
        if tuple(pixel_values.shape[-2:]) != (self.side, self.side):
            raise ModelError(
                f"the recogniser takes faces of {self.side} x {self.side} pixels, not {tuple(pixel_values.shape[-2:])}. Set task.image_size={self.side}."
            )
        made: Tensor = self.embedding(self._tokens(pixel_values))
        if self.settings.mirrored and not self.training:
            made = made + self.embedding(self._tokens(pixel_values.flip(-1)))
        return made

    def forward(
        self, pixel_values: Tensor, people: Tensor | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Embeddings [batch, D] and their norms [batch].

        Args:
            pixel_values: [batch, 3, side, side].
            people: the number of each face's person [batch]: adds cosines as `logits`, and `targets` [batch], which column is whose.
            labels: the same: adds the cross-entropy of 64 times the cosines as `loss`, without a margin.
        """
        z = self.features(pixel_values).float()
        made = {"embeddings": z, "norms": z.norm(dim=-1)}
        people = labels if people is None else people
        if people is None:
            return made
        cosines, targets = self.head(z, people, self.settings.sample if self.training else 1.0)
        made |= {"logits": cosines, "targets": targets}
        return made if labels is None else {"loss": F.cross_entropy(SCALE * cosines, targets), **made}


class Embedding(nn.Module):
    """Numbers of a picture [batch, n] -> its embedding [batch, D]."""

    def __init__(self, features: int, width: int, norm: str, dropout: float):
        super().__init__()
        self.before = HeldNorm(features) if norm == "batch" else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(features, width)
        self.after = HeldNorm(width) if norm == "batch" else nn.Identity()
        nn.init.trunc_normal_(self.linear.weight, std=0.02 if norm == "batch" else features**-0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.after(self.linear(self.dropout(self.before(x))))
        return made


class HeldNorm(nn.BatchNorm1d):
    """A batch norm whose statistics stay as they are, in training too."""

    def train(self, mode: bool = True) -> HeldNorm:
        super().train(False)
        return self


class Head(nn.Module):
    """A direction for each person; gives the cosines to them."""

    def __init__(self, people: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(people, width))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, z: Tensor, people: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Cosines [batch, S], and the column of each row's own person [batch].

        Args:
            z: embeddings [batch, D]. people: [batch].
            share: of the people that are compared to; all of the batch's own are among them.
        """
        weight: Tensor = self.weight
        if share < 1:
            chosen, people = sampled(people, len(weight), share)
            weight = weight[chosen]
        return products(F.normalize(z, dim=-1), F.normalize(weight.to(z.dtype), dim=-1)), people


def sampled(people: Tensor, count: int, share: float) -> tuple[Tensor, Tensor]:
    """Numbers of the people of a batch and of others drawn at random, together `share` of `count` or more; and the batch's places among them."""
    drawn = torch.rand(count, device=people.device)
    drawn[people] = 2.0  # before all others
    own = int(people.unique().numel())
    chosen = drawn.topk(max(own, round(share * count))).indices.sort().values
    return chosen, torch.searchsorted(chosen, people)
