r"""feature-classifier: a vision encoder, its feature on the unit sphere, and one linear layer.

    x = encoder(image)  [batch, D],    z = x / |x|,    o = W z + b,    W [K, D]

where     D is the encoder's width and K the number of labels. With `normalize: false`, z = x
init      W and b as torch draws those of a linear layer: no temperature, no margin
feature   pooler_output where the encoder gives one (CLIP's is the first token after its last norm), else the first token
source    GenD, arXiv:2508.06248; its encoders are CLIP ViT-L/14, DINOv3 ViT-L/16 and the Perception Encoder
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import ModelError
from adaptome.models.base import CompositeModel, CompositeSettings, Part, register_model
from adaptome.models.encoders import load_encoder


class FeatureClassifierSettings(CompositeSettings):
    encoder: Part = Field(
        description="a vision encoder, or a model that has one beside a text encoder (CLIP)"
    )
    labels: int = Field(default=2, ge=2, description="number of labels; the task knows it")
    feature: Literal["auto", "pooler", "first", "mean"] = Field(
        default="auto",
        description="pooler_output, the first token, the mean over tokens; auto: the pooler where there is one",
    )
    normalize: bool = Field(default=True, description="put the feature on the unit sphere")


@register_model("feature-classifier")
class FeatureClassifier(CompositeModel):
    """A classifier of pictures by their encoder's normalised feature."""

    Settings = FeatureClassifierSettings
    loaders: ClassVar = {"encoder": load_encoder}
    encoder: nn.Module

    def build(self) -> None:
        self.head = nn.Linear(width(self.encoder), self.settings.labels)

    def features(self, pixel_values: Tensor) -> Tensor:
        """The encoder's feature of each picture [batch, D], not normalised, from pixels [batch, 3, height, width].

        Raises:
            ModelError: the settings ask for a pooler, and the encoder has none.
        """
        outputs, kind = self.encoder(pixel_values=pixel_values), self.settings.feature
        pooled = getattr(outputs, "pooler_output", None)
        if kind == "pooler" and pooled is None:
            raise ModelError(
                f"model.feature=pooler: {type(self.encoder).__name__} has none. Take first or mean."
            )
        if kind in ("auto", "pooler") and pooled is not None:
            return pooled.flatten(1)
        tokens: Tensor = outputs.last_hidden_state
        return tokens.mean(1) if kind == "mean" else tokens[:, 0]

    def classify(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [batch, K] and embeddings [batch, D] of features."""
        z = features.float()
        z = nn.functional.normalize(z, dim=-1) if self.settings.normalize else z
        return self.head(z.to(self.head.weight.dtype)), z

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits [batch, K] and embeddings [batch, D]; with labels [batch] the cross-entropy as `loss`, first."""
        logits, embeddings = self.classify(self.features(pixel_values))
        made = {"logits": logits, "embeddings": embeddings}
        if labels is None:
            return made
        return {"loss": nn.functional.cross_entropy(logits.float(), labels), **made}


def width(encoder: nn.Module) -> int:
    """D, by the encoder's configuration; timm's models say it themselves."""
    config: Any = encoder.config
    for found in (
        getattr(config, "hidden_size", None),
        *reversed(getattr(config, "hidden_sizes", None) or ()),
    ):
        if found:
            return int(found)
    inner: Any = getattr(encoder, "timm_model", encoder)
    return int(inner.num_features)
