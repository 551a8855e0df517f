"""PEFT's configurations of scales, norms and spectra."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from adaptome.interop.peft_reading import pattern
from adaptome.peft.configs.base import Targeted
from adaptome.peft.targets import names


@dataclass
class IA3Config(Targeted):
    """IA3; `feedforward_modules` are scaled on their inputs."""

    kind: ClassVar[str] = "IA3"

    feedforward_modules: list[str] | str | None = None
    init_ia3_weights: bool = True

    def method(self) -> tuple[str, dict[str, Any]]:
        return "ia3", {}

    def layer(self, path: str, module: nn.Module | None) -> dict[str, Any]:
        if self.target_modules is None and self.feedforward_modules is None:
            return {}
        return {"side": "input" if names(self.feedforward_modules or [], path) else "output"}


@dataclass
class LNTuningConfig(Targeted):
    """Norm tuning."""

    kind: ClassVar[str] = "LN_TUNING"

    def method(self) -> tuple[str, dict[str, Any]]:
        return "norm-tuning", {}


@dataclass
class FourierFTConfig(Targeted):
    """FourierFT."""

    kind: ClassVar[str] = "FOURIERFT"

    n_frequency: int = 1000
    scaling: float = 150.0
    random_loc_seed: int = 777
    n_frequency_pattern: dict[str, int] = field(default_factory=dict)
    init_weights: bool = True

    def method(self) -> tuple[str, dict[str, Any]]:
        return "fourierft", {
            "n": self.n_frequency,
            "alpha": self.scaling,
            "position_seed": self.random_loc_seed,
        }

    def layer(self, path: str, module: nn.Module | None) -> dict[str, Any]:
        return {"n": pattern(self.n_frequency_pattern, path, self.n_frequency)}
