r"""How pictures are made noisy for training, by what a diffusers scheduler says of its model.

    z = alpha x + sigma e,   e ~ N(0, 1)

    diffusion   alpha^2 = cumprod(1 - beta), sigma^2 = 1 - alpha^2, t whole          Ho et al. 2020, arXiv:2006.11239
    flow        alpha = 1 - sigma, sigma = shift u / (1 + (shift - 1) u), t = T sigma  Esser et al. 2024, arXiv:2403.03206, section 5.3.2

    what the model predicts     epsilon   e                          (noise)
                                v         alpha e - sigma x          Salimans & Ho 2022, arXiv:2202.00512
                                sample    x
                                flow      e - x                      Lipman et al. 2022, arXiv:2210.02747

Everything drawn for an example, its time and noise, follows from the one number that its batch gives it: a teacher sees the same, and a run
that is resumed goes on with the same, on whatever device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from adaptome.core.errors import ModelError

Predicts = Literal["epsilon", "v", "sample", "flow"]
_NAMES: dict[str, Predicts] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}


@dataclass(frozen=True)
class Times:
    """Which times are trained on.

    Args:
        density: 'uniform', or 'logit-normal': u = sigmoid(mean + deviation n).
        least, most: the share of the way to noise that they are from and to.
    """

    density: Literal["uniform", "logit-normal"] = "uniform"
    mean: float = 0.0
    deviation: float = 1.0
    least: float = 0.0
    most: float = 1.0

    def draw(self, generator: torch.Generator) -> Tensor:
        """u, a scalar in [least, most]."""
        u = (
            torch.rand((), generator=generator)
            if self.density == "uniform"
            else (self.mean + self.deviation * torch.randn((), generator=generator)).sigmoid()
        )
        return self.least + (self.most - self.least) * u


@dataclass(frozen=True)
class Drawn:
    """What was drawn for a batch: times [B] as the model takes them, alpha and sigma [B], and the noise, of the latents' shape."""

    times: Tensor
    alpha: Tensor
    sigma: Tensor
    noise: Tensor


class Process:
    """The noise process of a scheduler.

    Args:
        scheduler: one of diffusers'.

    Raises:
        ModelError: it has neither cumulative alphas nor flow matching, or an unknown prediction type.
    """

    def __init__(self, scheduler: Any):
        self.steps = int(scheduler.config.num_train_timesteps)
        self.flow = "FlowMatch" in type(scheduler).__name__
        self.shift = 1.0
        self.alphas: Tensor | None = None
        self.predicts: Predicts = "flow"
        if self.flow:
            dynamic = scheduler.config.get("use_dynamic_shifting", False)
            self.shift = 1.0 if dynamic else float(scheduler.config.get("shift", 1.0))
            return
        if getattr(scheduler, "alphas_cumprod", None) is None:
            raise ModelError(
                f"{type(scheduler).__name__} has no cumulative alphas: training needs a DDPM-like or a flow-matching scheduler."
            )
        self.alphas = scheduler.alphas_cumprod.double()
        told = scheduler.config.get("prediction_type", "epsilon")
        if told not in _NAMES:
            raise ModelError(
                f"the scheduler's prediction_type {told!r} is not known; there are {', '.join(_NAMES)}."
            )
        self.predicts = _NAMES[told]

    def at(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Times as the model takes them, alpha and sigma, at shares u [B] of the way to noise (0 clean, 1 noise)."""
        if self.alphas is None:
            sigma = self.shift * u / (1 + (self.shift - 1) * u)
            return self.steps * sigma, 1 - sigma, sigma
        times = (u * self.steps).long().clamp(max=self.steps - 1)
        squares = self.alphas[times]
        return times, squares.sqrt().float(), (1 - squares).sqrt().float()

    def draw(
        self, latents: Tensor, numbers: Tensor, times: Times | None = None, offset: float = 0.0
    ) -> Drawn:
        """Times and noise for latents [B, ...], each from its own number.

        Args:
            numbers: [B], whole.
            offset: of the noise that is one number for each channel (Guttenberg 2023: "Diffusion with offset noise").
        """
        times, us, noises = times or Times(), [], []
        for number in numbers.tolist():
            generator = torch.Generator().manual_seed(int(number))
            us.append(times.draw(generator))
            noise = torch.randn(latents.shape[1:], generator=generator)
            if offset:
                flat = torch.randn(noise.shape[:1], generator=generator)
                noise = noise + offset * flat.view(-1, *[1] * (noise.dim() - 1))
            noises.append(noise)
        at, alpha, sigma = (value.to(latents.device) for value in self.at(torch.stack(us)))
        return Drawn(at, alpha, sigma, torch.stack(noises).to(latents))

    def target(self, clean: Tensor, drawn: Drawn) -> Tensor:
        """What the model is to predict, of the latents' shape."""
        if self.predicts == "epsilon":
            return drawn.noise
        if self.predicts == "sample":
            return clean
        if self.predicts == "flow":
            return drawn.noise - clean
        return over(drawn.alpha, clean) * drawn.noise - over(drawn.sigma, clean) * clean


def noisy(clean: Tensor, drawn: Drawn) -> Tensor:
    """z = alpha x + sigma e."""
    return over(drawn.alpha, clean) * clean + over(drawn.sigma, clean) * drawn.noise


def over(values: Tensor, like: Tensor) -> Tensor:
    """[B] as [B, 1, ...], to be multiplied with `like`."""
    return values.to(like).view(-1, *[1] * (like.dim() - 1))
