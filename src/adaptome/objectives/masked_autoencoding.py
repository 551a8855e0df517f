r"""masked-autoencoding: the pixels of patches that the encoder did not see are to be told from those it did.

    L = mean over masked patches n of mean_j (o_nj - y_nj)^2,    y_n = (x_n - mean(x_n)) / sqrt(var(x_n) + 1e-6)  with norm_pixels

where     x_n are the pixels of a patch, o_n what the model's decoder says of it; patches that were seen have no part in it
reads     the outputs: reconstruction and target [B, n, p], the pixels of the patches as the decoder orders them, and masked [B, n] of bool; where
          patches of several groups of channels differ in p, lists of these
source    He et al. 2022, arXiv:2111.06377
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from adaptome.core.errors import TrainingError
from adaptome.objectives.base import Objective, Seen, TermSettings, output, register_objective


class MaskedAutoencodingSettings(TermSettings):
    norm_pixels: bool = Field(default=True, description="each patch by its own mean and variance")


@register_objective("masked-autoencoding")
class MaskedAutoencoding(Objective):
    """The squared error of masked patches' pixels."""

    Settings = MaskedAutoencodingSettings

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        asking = "the objective 'masked-autoencoding'"
        said, target, masked = (
            output(outputs, name, asking) for name in ("reconstruction", "target", "masked")
        )
        groups = (said, target, masked) if isinstance(said, (list, tuple)) else ([said], [target], [masked])
        total: Tensor | float = 0.0
        count: Tensor | float = 0.0
        for o, y, m in zip(*groups, strict=True):
            y = normalised(y.float()) if self.settings.norm_pixels else y.float()
            errors = (o.float() - y).square().mean(-1)
            # where, not a product: what is seen must not reach the loss even if it is no number
            total, count = total + errors.where(m, errors.new_zeros(())).sum(), count + m.sum()
        if not isinstance(count, Tensor) or int(count) == 0:
            raise TrainingError(
                f"{asking}: no patch of the batch is masked. Raise task.hidden and task.hidden_chance."
            )
        assert isinstance(total, Tensor)
        return total / count


def normalised(patches: Tensor) -> Tensor:
    """Patches [..., p] with mean 0 and variance 1 each."""
    spread = patches.var(-1, keepdim=True)  # by p - 1, as in the authors' code
    return (patches - patches.mean(-1, keepdim=True)) / (spread + 1e-6).sqrt()
