r"""distillation: the model's predictions, or features, follow a frozen teacher's.

    soft      L = T^2 mean_n KL(softmax(t_n / T) || softmax(o_n / T))        Hinton et al. 2015, arXiv:1503.02531
    hard      L = mean_n -log softmax(o_n)[argmax t_n]                      Touvron et al. 2020, arXiv:2012.12877
    features  L = mean_n (1 - cos(f_n, g_n))

t, g are the teacher's logits and features, o, f the model's; n runs over examples, or over the tokens that have a label.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import TrainingError
from adaptome.objectives.base import (
    Needs,
    Objective,
    Seen,
    TermSettings,
    features,
    output,
    register_objective,
)
from adaptome.objectives.cross_entropy import next_token


class DistillationSettings(TermSettings):
    teacher: str = Field(
        default="base",
        description="base: this model without its adapters; else a hub id or folder, loaded as the task loads its model",
    )
    kind: Literal["soft", "hard", "features"] = Field(default="soft", description="what is followed")
    temperature: float = Field(default=2.0, gt=0, description="T, of soft")
    features: str = Field(
        default="auto", description="of features: the output; auto: see `objectives.features`"
    )
    logits: str = Field(default="logits", description="of soft and hard: the output")


@register_objective("distillation")
class Distillation(Objective):
    """Follow a frozen teacher: its probabilities, its choices or its features."""

    Settings = DistillationSettings

    def needs(self) -> Needs:
        return Needs(
            teacher=self.settings.teacher,
            hidden_states=self.settings.features == "hidden_states",
        )

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        settings, asking = self.settings, "the objective 'distillation'"
        if settings.kind == "features":
            own, led = (
                features(given, batch, settings.features, asking).float() for given in (outputs, seen.teacher)
            )
            _same(own, led)
            return (1 - nn.functional.cosine_similarity(own, led, dim=-1)).mean()
        own, led = (output(given, settings.logits, asking).float() for given in (outputs, seen.teacher))
        _same(own, led)
        own, led = _counted(own, led, batch, seen.model)
        if settings.kind == "hard":
            return nn.functional.cross_entropy(own, led.argmax(-1))
        T = settings.temperature
        p, q = (led / T).log_softmax(-1), (own / T).log_softmax(-1)
        return T * T * nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")


def _same(own: Tensor, led: Tensor) -> None:
    if own.shape != led.shape:
        raise TrainingError(
            f"the objective 'distillation': the teacher gives {list(led.shape)} and the model {list(own.shape)}.\n"
            "  Take a teacher with the model's labels, or its width."
        )


def _counted(own: Tensor, led: Tensor, batch: Mapping[str, Any], model: nn.Module) -> tuple[Tensor, Tensor]:
    """Rows [n, labels]: all examples, or the tokens that count."""
    if own.dim() == 2:
        return own, led
    mask = batch.get("labels")
    mask = batch.get("attention_mask") if mask is None else mask != -100
    if mask is not None and mask.shape == own.shape[:-1]:
        own, led = (o[..., :-1, :] for o in (own, led)) if next_token(model) else (own, led)
        kept = (mask[..., 1:] if next_token(model) else mask).bool()
        return own[kept], led[kept]
    return own.flatten(0, -2), led.flatten(0, -2)
