"""lwf: on the new rows, what the model says of the old labels stays what it said before the task.

    L + lambda T^2 KL(softmax(o'/T) || softmax(o/T))

o' are the logits of the model before the task. Li & Hoiem 2016, arXiv:1606.09282.
"""

from __future__ import annotations

from pydantic import Field
from torch import nn

from adaptome.continual.loop import Loop, Past
from adaptome.continual.losses import PREVIOUS, Former
from adaptome.continual.strategy import Strategy, StrategySettings, register_strategy
from adaptome.objectives import Term


class LwFSettings(StrategySettings):
    strength: float = Field(default=1.0, ge=0, description="lambda")
    temperature: float = Field(default=2.0, gt=0, description="T")


@register_strategy("lwf")
class LwF(Strategy):
    """Learn without saying otherwise of the old labels."""

    Settings = LwFSettings

    def __init__(self, settings: StrategySettings):
        super().__init__(settings)
        self._before: dict[str, nn.Module] = {}

    def begin(self, loop: Loop) -> None:
        self._before = {PREVIOUS: Past(loop.model, loop.values())} if loop.at else {}

    def added(self, loop: Loop) -> list[Term]:
        if not self._before:
            return []
        return [Term(Former(loop.before, self.settings.temperature, loop.ahead), self.settings.strength)]

    def teachers(self, loop: Loop) -> dict[str, nn.Module]:
        return self._before
