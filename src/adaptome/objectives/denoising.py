r"""noise-prediction, v-prediction, flow-matching: how far a denoiser is from its target, weighed by the noise of each example.

    z = alpha x + sigma e,    L = mean_i w(snr_i) |s(z_i) - y_i|^2,    snr = alpha^2 / sigma^2

    noise-prediction   y = e                        Ho et al. 2020, arXiv:2006.11239
    v-prediction       y = alpha e - sigma x        Salimans & Ho 2022, arXiv:2202.00512
    flow-matching      y = e - x                    Lipman et al. 2022, arXiv:2210.02747

    min_snr g          w = min(snr, g) / snr for noise, min(snr, g) / (snr + 1) for v           Hang et al. 2023, arXiv:2303.09556
    prior_weight l     L = mean over the subject's pictures + l mean over the class's           Ruiz et al. 2022, arXiv:2208.12242

dco: the denoiser is to do better than the base on the subject's pictures, no more (direct consistency optimisation).

    L = -log sigmoid(-b (l - l_base)),    l the mean squared error on the same noise; log 2 at the start
                                                                                              Lee et al. 2024, arXiv:2402.12004

The model tells what it predicts (`predicts`), its prediction and target, alpha and sigma.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from adaptome.core.errors import TrainingError
from adaptome.objectives.base import Needs, Objective, Seen, TermSettings, output, register_objective


class PriorSettings(TermSettings):
    prior_weight: float = Field(
        default=1.0, ge=0, description="weight of the class's pictures, where there are such"
    )


class DiffusionSettings(PriorSettings):
    min_snr: float | None = Field(
        default=None, gt=0, description="g, the largest signal-to-noise ratio that counts in full (5)"
    )


class Denoising(Objective):
    """The squared error of what a denoiser predicts."""

    Settings = PriorSettings
    predicts: ClassVar[str] = ""

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        asking = f"the objective {self.name!r}"
        told = getattr(seen.model, "predicts", None)
        if told != self.predicts:
            fitting = {cls.predicts: name for name, cls in _OF_KIND.items()}
            raise TrainingError(
                f"{asking} is for a model that predicts {self.predicts}; this one predicts {told}."
                + (f"\n  Use {fitting[told]}." if told in fitting else "\n  Use the objective `model`.")
            )
        errors = squared_errors(outputs, asking) * self.weights(outputs, asking)
        return with_prior(errors, batch, self.settings.prior_weight)

    def weights(self, outputs: Any, asking: str) -> Tensor | float:
        """w of each example [B]."""
        return 1.0


class _WithSnr(Denoising):
    Settings = DiffusionSettings

    def weights(self, outputs: Any, asking: str) -> Tensor | float:
        if self.settings.min_snr is None:
            return 1.0
        alpha, sigma = (output(outputs, name, asking).double() for name in ("alpha", "sigma"))
        return min_snr(alpha, sigma, self.settings.min_snr, self.predicts).float()


@register_objective("noise-prediction")
class NoisePrediction(_WithSnr):
    """The squared error of the noise (epsilon prediction)."""

    predicts = "epsilon"


@register_objective("v-prediction")
class VPrediction(_WithSnr):
    """The squared error of the velocity."""

    predicts = "v"


@register_objective("flow-matching")
class FlowMatching(Denoising):
    """The squared error of the flow from pictures to noise."""

    predicts = "flow"


_OF_KIND: dict[str, type[Denoising]] = {
    "noise-prediction": NoisePrediction,
    "v-prediction": VPrediction,
    "flow-matching": FlowMatching,
}


class DcoSettings(PriorSettings):
    beta: float = Field(default=1000.0, description="b; below 0 the loss is the plain squared error")


@register_objective("dco")
class DirectConsistency(Objective):
    """Do better than the base on the subject's pictures, by a logistic loss of the two errors' difference."""

    Settings = DcoSettings

    def needs(self) -> Needs:
        return Needs(teacher="base" if self.settings.beta >= 0 else None)

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        asking, beta = "the objective 'dco'", self.settings.beta
        errors = squared_errors(outputs, asking)
        if beta >= 0:
            errors = -F.logsigmoid(-beta * (errors - squared_errors(seen.teacher, asking)))
        return with_prior(errors, batch, self.settings.prior_weight)


def squared_errors(outputs: Any, asking: str) -> Tensor:
    """The mean squared error of each example [B]."""
    said, target = (output(outputs, name, asking).float() for name in ("prediction", "target"))
    return (said - target).square().flatten(1).mean(1)


def min_snr(alpha: Tensor, sigma: Tensor, most: float, predicts: str) -> Tensor:
    """Weights [B] of errors in the noise ('epsilon') or velocity ('v'); where there is no signal, those of the limit."""
    signal, noise = alpha.square(), sigma.square()
    # min(snr, g) / snr and min(snr, g) / (snr + 1), without dividing by an alpha of 0
    if predicts == "epsilon":
        return torch.where(signal > most * noise, most * noise / signal.clamp_min(1e-30), 1.0)
    return torch.minimum(signal, most * noise) / (signal + noise)


def with_prior(errors: Tensor, batch: Mapping[str, Any], weight: float) -> Tensor:
    """The mean over the subject's examples and, where the batch has such, `weight` times that over the class's (`prior` [B])."""
    prior = batch.get("prior")
    if prior is None or not prior.any():
        return errors.mean()
    prior = prior.to(errors.device, torch.bool)
    own = errors[~prior].mean() if (~prior).any() else errors.new_zeros(())
    return own + weight * errors[prior].mean()
