r"""dinov2: several views of a picture are to have one description, which a teacher gives that follows the model.

    L = dino L_dino + ibot L_ibot + koleo L_koleo
    L_dino  = mean over pairs (teacher's global view t, model's other view s) of -sum_k p_t[k] log softmax(o_s / student)[k]
    L_ibot  = mean over global views of the mean over their masked patches of -sum_k p[k] log softmax(o / student)[k]
    L_koleo = sum over global views of -mean_i log min_j |x_i - x_j|

where     o are logits over prototypes of the first token or the patches, p the teacher's, spread over prototypes (`self_distillation`)
teacher   an exponential mean of what trains, momentum m from `momentum` to 1 by a cosine; its temperature rises in `warm_up`
reads     the batch: pixel_values [B, V, C, H, W], masks [B, V, N] of bool; the outputs: first [B, V, D], patches [B, V, N, D], local [B, L, D]
end       the run ends with the teacher's tensors (`keep: student` leaves the model's), as DINOv2's released weights are
source    Oquab et al. 2023, arXiv:2304.07193; iBOT: Zhou et al. 2021, arXiv:2111.07832
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import TrainingError
from adaptome.objectives.base import Objective, Seen, TermSettings, column, output, register_objective
from adaptome.objectives.self_distillation import Distilled, koleo, sinkhorn, taught

ASKING = "the objective 'dinov2'"


class DinoSettings(TermSettings):
    dino: float = Field(default=1.0, ge=0, description="weight of the pictures' term")
    ibot: float = Field(default=1.0, ge=0, description="weight of the masked patches' term")
    koleo: float = Field(default=0.1, ge=0, description="weight of what spreads features")
    prototypes: int = Field(default=65536, ge=2, description="K")
    hidden: int = Field(default=2048, ge=1, description="width of the head's layers")
    bottleneck: int = Field(default=256, ge=1, description="width before the prototypes")
    apart: bool = Field(
        default=False, description="a head of their own for patches, as in DINOv2's largest models"
    )
    student: float = Field(default=0.1, gt=0, description="the model's temperature")
    teacher: tuple[float, float] = Field(
        default=(0.04, 0.07), description="the teacher's temperature at first, and after `warm_up`"
    )
    warm_up: float = Field(default=0.3, ge=0, le=1, description="share of training in which it rises")
    momentum: float = Field(default=0.992, ge=0, le=1, description="of the teacher at first; 1 at the end")
    centring: Literal["sinkhorn", "softmax", "none"] = Field(
        default="sinkhorn",
        description="how the teacher's scores are spread over prototypes; none lets them collapse",
    )
    hold: float = Field(
        default=0.01, ge=0, le=1, description="share of training in which the prototypes do not move"
    )
    keep: Literal["teacher", "student"] = Field(
        default="teacher", description="whose tensors the run ends with"
    )


@register_objective("dinov2")
class DinoV2(Objective):
    """Self-distillation of views and of masked patches, with a teacher that follows the model."""

    Settings = DinoSettings

    def parts(self, model: nn.Module) -> nn.Module | None:
        own = self.settings
        return Distilled(width_of(model), own.hidden, own.bottleneck, own.prototypes, own.apart)

    def begin(self, model: nn.Module, parts: nn.Module | None) -> None:
        assert isinstance(parts, Distilled)
        parts.begin(model)

    def stepped(self, model: nn.Module, parts: nn.Module | None, progress: float) -> None:
        assert isinstance(parts, Distilled)
        parts.follow(model, momentum(self.settings.momentum, progress))

    @property
    def replaces(self) -> bool:
        return bool(self.settings.keep == "teacher")

    def end(self, model: nn.Module, parts: nn.Module | None) -> None:
        assert isinstance(parts, Distilled)
        if self.replaces:
            parts.take_over(model)

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        own, parts = self.settings, seen.parts
        assert isinstance(parts, Distilled)
        first, patches = (output(outputs, name, ASKING) for name in ("first", "patches"))
        masks = column(batch, "masks", ASKING).to(first.device)
        local = outputs.get("local")
        if first.shape[1] + (0 if local is None else local.shape[1]) < 2:
            raise TrainingError(
                f"{ASKING} compares views, and a picture has one. Give task.views at least 2."
            )
        held = seen.progress < own.hold
        targets, patch_targets = self._targets(batch, masks, seen)
        views = first if local is None else torch.cat([first, local], 1)
        said = (
            (parts(views.flatten(0, 1), held=held) / own.student)
            .log_softmax(-1)
            .unflatten(0, views.shape[:2])
        )
        total = own.dino * view_loss(said, targets)
        if own.ibot:
            told = (parts(patches[masks], patches=True, held=held) / own.student).log_softmax(-1)
            total = total + own.ibot * patch_loss(told, patch_targets, masks)
        if own.koleo:
            total = total + own.koleo * sum(koleo(seen.gather(one.contiguous())) for one in first.unbind(1))
        return total

    def _targets(self, batch: Mapping[str, Any], masks: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
        """The teacher's shares [B, V, K] of the global views, and [n, K] of the masked patches, in their order."""
        own, parts = self.settings, seen.parts
        assert isinstance(parts, Distilled)
        training = seen.model.training
        with taught(seen.model, parts.values()):
            found = seen.model(pixel_values=column(batch, "pixel_values", ASKING))
            first = parts(found["first"].flatten(0, 1))
            patches = parts(found["patches"][masks], patches=True) if own.ibot else first[:0]
        at = temperature(own.teacher, own.warm_up, seen.progress)
        shares = self._spread(first, at, parts, False, training).unflatten(0, masks.shape[:2])
        return shares, self._spread(patches, at, parts, True, training)

    def _spread(self, logits: Tensor, at: float, parts: Distilled, patches: bool, training: bool) -> Tensor:
        logits, kind = logits.float(), self.settings.centring
        if kind == "sinkhorn":
            return sinkhorn(logits, at, together=training)
        if kind == "none":
            return (logits / at).softmax(-1)
        centre = parts.patch_centre if patches else parts.centre
        shares = ((logits - centre) / at).softmax(-1)
        if training:  # the batch's own mean counts from the next one on
            parts.recentre(logits, patches)
        return shares


def view_loss(said: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy over pairs of the teacher's views and the model's others.

    Args:
        said: log probabilities [B, S, K] of all views, the global ones first.
        targets: the teacher's shares [B, V, K] of the global views.
    """
    crossed = -torch.einsum("bvk,bsk->bvs", targets, said.float()).mean(0)  # [V, S]
    others = torch.ones_like(crossed).fill_diagonal_(0)  # no view is told of itself
    return (crossed * others).sum() / others.sum().clamp_min(1)


def patch_loss(told: Tensor, targets: Tensor, masks: Tensor) -> Tensor:
    """The mean over views of the mean cross-entropy over their masked patches; a view without such counts as 0.

    Args:
        told: log probabilities [n, K] of the masked patches, in the order of `masks` [B, V, N].
        targets: the teacher's shares [n, K] of the same.
    """
    counts = masks.sum(-1, keepdim=True).clamp_min(1)
    weights = (1.0 / counts).expand_as(masks)[masks]
    return -((targets * told.float()).sum(-1) * weights).sum() / masks[..., 0].numel()


def momentum(first: float, progress: float) -> float:
    """From `first` at the start to 1 at the end, by a cosine."""
    return 1 - (1 - first) * (math.cos(math.pi * progress) + 1) / 2


def temperature(both: tuple[float, float], warm_up: float, progress: float) -> float:
    """From the one to the other, linearly, while the share of training that is done is below `warm_up`."""
    reached = 1.0 if warm_up == 0 else min(progress / warm_up, 1.0)
    return both[0] + (both[1] - both[0]) * reached


def width_of(model: nn.Module) -> int:
    """D, the width of the model's encoder.

    Raises:
        TrainingError: its configuration does not tell.
    """
    config: Any = getattr(getattr(model, "encoder", model), "config", None)
    if getattr(config, "hidden_size", None) is None:
        raise TrainingError(
            f"{ASKING} needs a vision transformer; {type(model).__name__} tells no hidden_size."
        )
    return int(config.hidden_size)
