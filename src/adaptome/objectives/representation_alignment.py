r"""representation-alignment: features within the model, through a small trained head, point where a frozen encoder's do.

    L = -1/N sum_n cos(h(f_n), e_n)

f [tokens, width] is what a chosen module gives, e [tokens, target width] the encoder's features of the same example, h an MLP of
three layers with SiLU, trained with the adapters and of no use afterwards. Where the numbers of tokens differ, f is interpolated
to e's. REPA: Yu et al. 2024, arXiv:2410.06940, equation 8; DivControl, arXiv:2507.23620, section 3, weighs it by 0.05.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import TrainingError
from adaptome.objectives.base import (
    Needs,
    Objective,
    Seen,
    TermSettings,
    Watch,
    column,
    output,
    register_objective,
)


class RepresentationAlignmentSettings(TermSettings):
    module: str = Field(
        description="the module whose output is aligned: a role or pattern that fits one module, e.g. 'transformer.blocks.3'"
    )
    width: int = Field(ge=1, description="width of that output")
    target_width: int = Field(ge=1, description="width of the encoder's features")
    target: str = Field(
        default="features",
        description="the batch's column with the encoder's features [batch, tokens, target_width]",
    )
    teacher: str | None = Field(default=None, description="a model that gives them instead, from the batch")
    teacher_output: str = Field(default="last_hidden_state", description="which of its outputs")
    hidden: int = Field(default=2048, ge=1, description="width within the head; the paper's")


@register_objective("representation-alignment")
class RepresentationAlignment(Objective):
    """Features within the model follow a frozen encoder's, through a head that training alone needs."""

    Settings = RepresentationAlignmentSettings

    def needs(self) -> Needs:
        return Needs(watch=Watch(self.settings.module), teacher=self.settings.teacher)

    def parts(self, model: nn.Module) -> nn.Module | None:
        wide, target = self.settings.hidden, self.settings.target_width
        layers = (
            nn.Linear(self.settings.width, wide),
            nn.SiLU(),
            nn.Linear(wide, wide),
            nn.SiLU(),
            nn.Linear(wide, target),
        )
        return nn.Sequential(*layers)

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        settings, asking = self.settings, "the objective 'representation-alignment'"
        if len(seen.watched) != 1:
            raise TrainingError(
                f"{asking}: module={settings.module!r} fits {len(seen.watched)} modules; name one: {', '.join(list(seen.watched)[:4])}."
            )
        f = next(iter(seen.watched.values()))
        e = (
            column(batch, settings.target, asking)
            if seen.teacher is None
            else output(seen.teacher, settings.teacher_output, asking)
        )
        f, e = _tokens(f), _tokens(e.detach()).float()
        assert seen.parts is not None
        f = seen.parts(f.to(next(seen.parts.parameters()).dtype)).float()
        if f.shape[1] != e.shape[1]:
            f = nn.functional.interpolate(f.mT, size=e.shape[1], mode="linear").mT
        return -nn.functional.cosine_similarity(f, e, dim=-1).mean()


def _tokens(x: Tensor) -> Tensor:
    """[batch, tokens, width], from that or from a map [batch, width, height, across]."""
    return x.flatten(2).mT if x.dim() == 4 else x if x.dim() == 3 else x.unsqueeze(1)
