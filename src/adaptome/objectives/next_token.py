r"""next-token: the tokens that each example goes on with, by a model that sums their losses itself.

    L = sum_k nll_k / sum_k n_k,    nll_k = -sum_i log p(u_i | ..., u_<i),    over all examples of the batch

The model's outputs name nll [batch] and n [batch], so that a batch that is run in parts (`training.gradient_cache`) has the mean over all its
tokens and not a mean of the parts' means. Bengio et al. 2003; beside a contrastive term: VladVA, arXiv:2412.04378, equation 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from adaptome.objectives.base import Objective, Seen, TermSettings, output, register_objective


class NextTokenSettings(TermSettings):
    losses: str = Field(default="caption_nll", description="output with each example's summed loss [batch]")
    counts: str = Field(default="caption_tokens", description="output with its number of tokens [batch]")


@register_objective("next-token")
class NextToken(Objective):
    """The mean loss of the tokens that examples go on with; 0 in a batch where none goes on."""

    Settings = NextTokenSettings

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        asking = "the objective 'next-token'"
        losses = output(outputs, self.settings.losses, asking)
        counts = output(outputs, self.settings.counts, asking)
        mean: Tensor = losses.sum() / counts.sum().clamp(min=1)
        return mean
