r"""positive-negative: the right class, and for every class whether it is shown, both by log-odds of what it shows and does not show.

    L(o, y) = -log softmax(o)_y  +  n [ -log sigmoid(o_y) - 1/(C-1) sum_{c != y} log sigmoid(-o_c) ]
    loss    = L(o, y)  +  u sum_m L(o_m, y)                 m: the streams that an example has, each by itself

where     o are log-odds s^+ - s^- of each class. n = 0 with a model without negative texts is DFER-CLIP's loss
shapes    o [batch, C]; o_m [batch, streams, C] with which of them are there [batch, streams]
source    FineCLIPER, arXiv:2407.02157, whose loss is told in words; this form, n = 1 and u = 0 are a reading of them
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from adaptome.objectives.base import Objective, Seen, TermSettings, column, output, register_objective


class PositiveNegativeSettings(TermSettings):
    negative: float = Field(default=1.0, ge=0, description="n, the share of shown or not shown")
    streams: float = Field(default=0.0, ge=0, description="u, the share of each stream by itself")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="of the first part's targets")
    logits: str = Field(default="logits", description="the output with o")
    labels: str = Field(default="labels", description="the batch's column of class numbers")


@register_objective("positive-negative")
class PositiveNegative(Objective):
    """Cross-entropy over the classes, and a decision about each of them."""

    Settings = PositiveNegativeSettings

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        own, asking = self.settings, "the objective 'positive-negative'"
        labels = column(batch, own.labels, asking)
        loss = self._of(output(outputs, own.logits, asking), labels).mean()
        if own.streams:
            each, there = (output(outputs, name, asking) for name in ("stream_logits", "available"))
            many = labels[:, None].expand(there.shape)
            losses = self._of(each.flatten(0, 1), many.flatten()).view(there.shape)
            loss = loss + own.streams * (losses * there).sum(1).mean()
        return loss

    def _of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """L of each row [n, C]."""
        own = self.settings
        logits = logits.float()
        loss = F.cross_entropy(logits, labels, reduction="none", label_smoothing=own.label_smoothing)
        return loss + own.negative * decisions(logits, labels) if own.negative else loss


def decisions(logits: Tensor, labels: Tensor) -> Tensor:
    """-log sigmoid(o_y) - mean over c != y of log sigmoid(-o_c), of logits [n, C] and labels [n]: [n]."""
    right = F.one_hot(labels, logits.shape[-1]).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, right, reduction="none")
    wrong = (losses * (1 - right)).sum(-1) / max(logits.shape[-1] - 1, 1)
    return (losses * right).sum(-1) + wrong
