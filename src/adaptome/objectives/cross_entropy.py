r"""cross-entropy: the negative log probability of the labels, smoothed if asked.

    L = 1/N sum_n [ (1 - s) (-log p_n[y_n]) + s / K sum_k (-log p_n[k]) ],    p_n = softmax(o_n)

over the labels that are not -100; N is their number, or that of the whole accumulated batch. A causal language model's logits are
held against the next token. Smoothing: Szegedy et al. 2016, arXiv:1512.00567, section 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import TrainingError
from adaptome.objectives.base import Objective, Seen, TermSettings, column, output, register_objective


class CrossEntropySettings(TermSettings):
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of the target spread over all labels"
    )
    logits: str = Field(default="logits", description="the output it reads: [..., labels]")
    labels: str = Field(default="labels", description="the batch's column of label numbers; -100 is left out")
    class_weights: list[float] | None = Field(
        default=None, description="a weight for each label; their mean is kept at 1 by you"
    )


@register_objective("cross-entropy")
class CrossEntropy(Objective):
    """The negative log probability of the labels, with label smoothing and class weights."""

    Settings = CrossEntropySettings
    per_item = True

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        settings, asking = self.settings, "the objective 'cross-entropy'"
        logits, labels = output(outputs, settings.logits, asking), column(batch, settings.labels, asking)
        if labels.is_floating_point():
            raise TrainingError(
                f"{asking} needs label numbers; the column {settings.labels!r} holds {str(labels.dtype).removeprefix('torch.')}.\n"
                "  For several labels an example, use the objective 'model'."
            )
        if next_token(seen.model):
            logits, labels = logits[..., :-1, :], labels[..., 1:]
        logits, labels = logits.flatten(0, -2).float(), labels.flatten().to(logits.device)
        weights = settings.class_weights
        total = nn.functional.cross_entropy(
            logits,
            labels,
            None if weights is None else torch.tensor(weights, device=logits.device),
            label_smoothing=settings.label_smoothing,
            reduction="sum",
        )
        counted = seen.items if seen.items is not None else (labels != -100).sum().clamp(min=1)
        return total / counted


def next_token(model: nn.Module) -> bool:
    """Whether the model's logits at a token are of the next one: transformers' causal language models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    return any(kind.__name__ in causal for kind in type(model).__mro__)
