r"""cross-tune: a network between what a frozen model makes of a text and what it makes of the labels' descriptions (CrossTune).

The text's states H [L, d] and those of each class's description E [M, d] are given; nothing of the model that made them is here. With
`direction: label` every description asks the text, and one scorer serves all classes:

    u = MHA(LN(e), LN(H), LN(H)),    v = e + u,    r = v + FFN(LN(v)),    s_c = w . LN(r) + b

e is the mean of E over its tokens (`query: pooled`), or E itself with the mean taken after the attention (`query: tokens`); a class of
several descriptions has the mean of their scores. So classes can be exchanged, and new ones need no new parameters. `match: product`
is an option of ours, a direct comparison of the answer with the whole text: s_c += a cos(P LN(r), P' mean(LN(H))).
With `direction: text` the text asks all descriptions, and a linear layer has a row for each class: s = W LN(r) + b.

parameters  label: 4 (d^2 + d) attention, 2 d f + f + d FFN of width f (none for f = 0), 2 d for each of the LayerNorms (four; three
            without FFN), d + 1 scorer, whatever the number of classes; product: 2 d^2 + 1 more
init        attention Xavier with biases 0, scorer 0: all classes alike at the start; with product the attention's and the FFN's last layer 0
            and P, P' the identity, a = 10: it starts as the nearest description by cosine
source      Luo et al. 2024, arXiv:2403.12468; no code was published, so shapes, direction and head are a reconstruction
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.errors import ModelError
from adaptome.models.base import CompositeModel, CompositeSettings, register_model

SHARPNESS = 10.0


class CrossTuneSettings(CompositeSettings):
    width: int = Field(default=0, ge=0, description="d, of a state; of a recipe's run the task tells it")
    labels: int = Field(default=0, ge=0, description="classes; read with direction: text alone; likewise")
    heads: int = Field(default=8, ge=1, description="of the attention; must divide the width")
    feed_forward: int = Field(default=2048, ge=0, description="f, width of the feed-forward layer; 0: none")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="on attention and feed-forward")
    direction: Literal["label", "text"] = Field(default="label", description="which of them asks the other")
    query: Literal["pooled", "tokens"] = Field(
        default="pooled", description="what asks: a mean, or every token"
    )
    match: Literal["scorer", "product"] = Field(
        default="scorer", description="how an answer becomes a score; product compares it with the text too"
    )


class LabelAttention(nn.Module):
    """The layers of the network; see the head of the file."""

    def __init__(self, settings: CrossTuneSettings):
        super().__init__()
        self.settings = told = settings
        d = told.width
        self.ask_norm, self.told_norm, self.last_norm = (nn.LayerNorm(d) for _ in range(3))
        self.query, self.key, self.value, self.out = (nn.Linear(d, d) for _ in range(4))
        for linear in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.inner_norm: nn.Module | None = None
        self.up: nn.Linear | None = None
        self.down: nn.Linear | None = None
        if told.feed_forward:
            self.inner_norm = nn.LayerNorm(d)
            self.up, self.down = nn.Linear(d, told.feed_forward), nn.Linear(told.feed_forward, d)
        self.scorer = nn.Linear(d, 1 if told.direction == "label" else told.labels)
        nn.init.zeros_(self.scorer.weight)
        nn.init.zeros_(self.scorer.bias)
        if told.match == "product":
            self.answer_map, self.text_map = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
            nn.init.eye_(self.answer_map.weight)
            nn.init.eye_(self.text_map.weight)
            self.sharpness = nn.Parameter(torch.tensor(SHARPNESS).log())
            nn.init.zeros_(self.out.weight)
            if self.down is not None:
                nn.init.zeros_(self.down.weight)
                nn.init.zeros_(self.down.bias)

    def forward(self, states: Tensor, mask: Tensor, names: Tensor, there: Tensor, share: Tensor) -> Tensor:
        """Scores [batch, C].

        Args:
            states, mask: of the texts, [batch, L, d] and [batch, L].
            names, there: of D descriptions, [D, M, d] and [D, M].
            share: of each description in its class's score, [C, D].
        """
        if self.settings.direction == "text":
            return self._by_text(states, mask, names, there)
        return self._by_label(states, mask, names, there, share)

    def _by_label(self, states: Tensor, mask: Tensor, names: Tensor, there: Tensor, share: Tensor) -> Tensor:
        told = self.told_norm(states)
        if self.settings.query == "pooled":
            e = mean(names, there)[None]  # [1, D, d]
            v = e + self._attended(self.ask_norm(e).expand(len(states), -1, -1), told, mask)
        else:
            flat = names.flatten(0, 1)[None]
            u = self._attended(self.ask_norm(flat).expand(len(states), -1, -1), told, mask)
            v = mean((flat + u).view(len(states), *names.shape), there.expand(len(states), -1, -1))
        r = self.last_norm(self._fed(v))  # [batch, D, d]
        scores = self.scorer(r).squeeze(-1)
        if self.settings.match == "product":
            answers = F.normalize(self.answer_map(r), dim=-1)
            whole = F.normalize(self.text_map(mean(told, mask)), dim=-1)
            scores = scores + self.sharpness.exp() * torch.einsum("bcd,bd->bc", answers, whole)
        found: Tensor = scores @ share.T
        return found

    def _by_text(self, states: Tensor, mask: Tensor, names: Tensor, there: Tensor) -> Tensor:
        if self.settings.query == "pooled":
            told, told_mask = (
                mean(names, there)[None],
                torch.ones(1, len(names), dtype=torch.bool, device=mask.device),
            )
            asking = mean(states, mask)[:, None]
        else:
            told, told_mask, asking = names.flatten(0, 1)[None], there.flatten()[None], states
        size = len(states)
        u = self._attended(
            self.ask_norm(asking), self.told_norm(told).expand(size, -1, -1), told_mask.expand(size, -1)
        )
        v = asking + u
        v = v[:, 0] if self.settings.query == "pooled" else mean(v, mask)
        scores: Tensor = self.scorer(self.last_norm(self._fed(v)))
        return scores

    def _attended(self, asking: Tensor, told: Tensor, mask: Tensor) -> Tensor:
        """MHA of asking [B, Q, d] over told [B, L, d]."""
        heads = self.settings.heads

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (heads, -1)).transpose(1, 2)

        found = F.scaled_dot_product_attention(
            split(self.query(asking)), split(self.key(told)), split(self.value(told)), mask[:, None, None, :],
            dropout_p=self.settings.dropout if self.training else 0.0,
        )  # fmt: skip
        made: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return made

    def _fed(self, v: Tensor) -> Tensor:
        if self.up is None or self.down is None or self.inner_norm is None:
            return v
        inner = F.dropout(F.gelu(self.up(self.inner_norm(v))), self.settings.dropout, self.training)
        return v + F.dropout(self.down(inner), self.settings.dropout, self.training)


@register_model("cross-tune")
class CrossTune(CompositeModel):
    """Scores of texts for classes told by descriptions; `describe` gives it these."""

    Settings = CrossTuneSettings

    def build(self) -> None:
        """The network, which is all that trains."""
        told = self.settings
        if told.width < 1 or told.width % told.heads:
            raise ModelError(
                f"model.heads={told.heads} does not divide the width {told.width} of the black box's states. Take one of {_divisors(told.width)}."
            )
        if told.match == "product" and told.direction == "text":
            raise ModelError("model.match=product belongs to direction: label; leave it out.")
        self.network = LabelAttention(told)
        self.described = 0

    # -- descriptions --------------------------------------------------------------------------------------------------

    def describe(self, classes: Sequence[Sequence[Tensor]]) -> None:
        """Set the classes: the states [M, d] of the descriptions of each, one or several.

        Raises:
            ModelError: states of another width; or another number of classes than `direction: text` has rows for.
        """
        told, flat = self.settings, [states for one in classes for states in one]
        wrong: list[object] = [
            tuple(s.shape) for s in flat if s.dim() != 2 or s.shape[1] != told.width or not len(s)
        ]
        if wrong or not flat or not all(classes):
            raise ModelError(
                f"a description's states are {wrong[0] if wrong else 'missing'}; expected [tokens, {told.width}]."
            )
        if told.direction == "text" and len(classes) != told.labels:
            raise ModelError(
                f"{len(classes)} classes are described; the network has rows for {told.labels}. Only direction: label takes new ones."
            )
        states, mask = padded(flat)
        owner = torch.tensor([c for c, one in enumerate(classes) for _ in one])
        share = F.one_hot(owner, len(classes)).T.float()
        device = self.device
        self.register_buffer("label_states", states.float().to(device), persistent=False)
        self.register_buffer("label_mask", mask.to(device), persistent=False)
        self.register_buffer("label_share", (share / share.sum(1, keepdim=True)).to(device), persistent=False)
        self.described = len(classes)

    def forward(self, states: Tensor, mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits [batch, C] of texts' states [batch, L, d], whose mask [batch, L] is true at real tokens.

        With labels [batch] the cross-entropy as `loss`, first.

        Raises:
            ModelError: no classes were described.
        """
        if not self.described:
            raise ModelError("the network knows no classes: give it their descriptions with `describe`.")
        dtype = self.network.out.weight.dtype
        names, there = self.get_buffer("label_states").to(dtype), self.get_buffer("label_mask")
        logits: Tensor = self.network(
            states.to(dtype), mask.bool(), names, there, self.get_buffer("label_share").to(dtype)
        )
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits.float(), labels), "logits": logits}


def mean(states: Tensor, mask: Tensor) -> Tensor:
    """The mean [..., d] of states [..., L, d] over the tokens that the mask [..., L] holds."""
    share = mask.to(states.dtype).unsqueeze(-1)
    return (states * share).sum(-2) / share.sum(-2).clamp(min=1)


def padded(rows: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """States [L_i, d] as one tensor [n, max L, d] with zeros behind, and the mask [n, max L] of what is real."""
    tensors = [torch.as_tensor(row) for row in rows]
    lengths = torch.tensor([len(row) for row in tensors])
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True), torch.arange(int(lengths.max())) < lengths[
        :, None
    ]


def _divisors(d: int) -> str:
    return ", ".join(str(n) for n in (1, 2, 4, 6, 8, 12, 16) if d and d % n == 0) or "(no states)"
