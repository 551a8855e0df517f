r"""multimodal-transformer: sequences of features in several modalities, each looking at all others, for one number or some labels (MulT).

    z_m = conv_m(x_m) + positions,    h_{a<-b} = blocks_ab(z_a, z_b)  for a != b,    h_a = blocks_a([h_{a<-b}]_b)
    f = [last(h_a)]_a,    o = W_3 (f + W_2 relu(W_1 f))

shapes    x_m [batch, n_m, F_m], z_m [batch, n_m, d], h_{a<-b} [batch, n_a, d], h_a [batch, n_a, (M - 1) d], f [batch, M (M - 1) d], o [batch, K]
absent    a modality that is not given is a sequence of zeros, as long as one that is given; what looks at it runs as it was trained
loss      |o - y| where K = 1, the cross-entropy elsewhere
source    MulT (Tsai et al. 2019, arXiv:1906.00295), the base of Reza et al. 2023, arXiv:2310.03986, on CMU-MOSI and CMU-MOSEI
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.errors import ModelError
from adaptome.models.attention_blocks import Block, sinusoids
from adaptome.models.base import CompositeModel, CompositeSettings, register_model
from adaptome.models.modalities import check_given, check_names


class MultimodalTransformerSettings(CompositeSettings):
    features: dict[str, int] = Field(
        description="modality -> numbers of a step, e.g. {text: 300, audio: 74, vision: 35}"
    )
    kernels: dict[str, int] = Field(
        default_factory=dict,
        description="modality -> steps that are seen at once where features become tokens; default: 1",
    )
    width: int = Field(default=40, ge=2, description="of the tokens, d")
    layers: int = Field(default=4, ge=1, description="blocks of each pair of modalities")
    own_layers: int = Field(default=3, ge=1, description="blocks of each modality behind them")
    heads: int = Field(default=8, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1, description="behind attentions, and in the head")
    labels: int = Field(default=1, ge=1, description="numbers told; the task knows it")

    @field_validator("features")
    @classmethod
    def _named(cls, features: dict[str, int]) -> dict[str, int]:
        check_names(list(features))
        return features


@register_model("multimodal-transformer")
class MultimodalTransformer(CompositeModel):
    """Tells a number, or labels, by sequences in several modalities."""

    Settings = MultimodalTransformerSettings

    def build(self) -> None:
        own, names = self.settings, list(self.settings.features)
        if own.width % 2:
            raise ModelError(f"model.width={own.width}: positions take an even one.")
        for name in own.kernels:
            if name not in names or own.kernels[name] % 2 == 0:
                raise ModelError(
                    f"model.kernels: {name!r} must be one of {names}, with an odd number of steps."
                )
        self.inputs = nn.ModuleDict({n: _tokens(own.features[n], own.width, own.kernels.get(n, 1)) for n in names})  # fmt: skip
        pairs = {a: [b for b in names if b != a] for a in names}
        self.crossed = nn.ModuleDict(
            {
                a: nn.ModuleDict({b: _blocks(own, own.width, own.layers, True) for b in pairs[a]})
                for a in names
            }
        )
        wide = own.width * (len(names) - 1)
        self.own = nn.ModuleDict({name: _blocks(own, wide, own.own_layers, False) for name in names})
        self.norms = nn.ModuleDict({name: nn.LayerNorm(wide) for name in names})
        total = wide * len(names)
        self.hidden, self.back, self.head = nn.Linear(total, total), nn.Linear(total, total), nn.Linear(total, own.labels)  # fmt: skip
        self.dropout = nn.Dropout(own.dropout)

    @property
    def modalities(self) -> list[str]:
        return list(self.settings.features)

    def tokens(self, sequences: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """z_m of every modality, zeros standing for those that are not given."""
        check_given(sequences, self.modalities)
        like, made = next(iter(sequences.values())), {}
        for name, width in self.settings.features.items():
            x = sequences.get(name)
            if x is None:
                x = like.new_zeros(*like.shape[:2], width)
            if x.shape[-1] != width:
                raise ModelError(
                    f"{name} has {x.shape[-1]} numbers a step, and the model takes {width}: model.features={{{name}: {x.shape[-1]}}}."
                )
            z = self.inputs[name](x.transpose(1, 2)).transpose(1, 2)
            made[name] = z + sinusoids(z.shape[1], z.shape[2]).to(z)
        return made

    def forward(self, sequences: Mapping[str, Tensor], labels: Tensor | None = None) -> dict[str, Tensor]:
        """`logits` [batch, labels]; with labels `loss`, first."""
        z, last = self.tokens(sequences), []
        crossed: Any = self.crossed
        behind: Any = self.own
        for a, others in crossed.items():
            seen = []
            for b, blocks in others.items():
                h = z[a]
                for block in blocks:
                    h = block(h, z[b])
                seen.append(h)
            h = torch.cat(seen, -1)
            for block in behind[a]:
                h = block(h)
            last.append(self.norms[a](h)[:, -1])
        f = torch.cat(last, -1)
        logits = self.head(f + self.back(self.dropout(F.relu(self.hidden(f)))))
        if labels is None:
            return {"logits": logits}
        one = self.settings.labels == 1
        loss = F.l1_loss(logits[:, 0], labels.to(logits.dtype)) if one else F.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def _tokens(features: int, width: int, kernel: int) -> nn.Conv1d:
    return nn.Conv1d(features, width, kernel, padding=kernel // 2, bias=False)


def _blocks(own: Any, width: int, count: int, crossed: bool) -> nn.ModuleList:
    return nn.ModuleList(Block(width, own.heads, crossed, own.dropout) for _ in range(count))
