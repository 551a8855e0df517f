"""PEFT's configurations of low-rank updates and their products."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from adaptome.core.errors import MethodError, did_you_mean
from adaptome.interop.peft_reading import pattern
from adaptome.peft.configs.base import Targeted


@dataclass
class LoraConfig(Targeted):
    """LoRA, rsLoRA, DoRA, and the starts of A and B."""

    kind: ClassVar[str] = "LORA"

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str = True
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    target_parameters: list[str] | None = None

    def method(self) -> tuple[str, dict[str, Any]]:
        settings: dict[str, Any] = {
            "r": self.r,
            "alpha": self._alpha(self.r, self.lora_alpha),
            "dropout": self.lora_dropout,
        }
        if self.use_dora:
            return "dora", settings
        start = str(self.init_lora_weights).lower().partition("_niter")[0]
        known = {
            "true": "kaiming",
            "false": "kaiming",
            "gaussian": "gaussian",
            "pissa": "pissa",
            "olora": "olora",
        }
        if start not in known:
            raise MethodError(
                f"init_lora_weights={self.init_lora_weights!r} is not here.{did_you_mean(start, known)} Others are ad.eva, ad.corda and ad.loftq."
            )
        return "lora", settings | {"rslora": self.use_rslora, "init": known[start]}

    def _alpha(self, r: int, alpha: float) -> float:
        return alpha * r**0.5 if self.use_dora and self.use_rslora else alpha

    def layer(self, path: str, module: nn.Module | None) -> dict[str, Any]:
        r = pattern(self.rank_pattern, path, self.r)
        alpha = pattern(self.alpha_pattern, path, self.lora_alpha)
        return {"r": r, "alpha": self._alpha(r, alpha)} if (r, alpha) != (self.r, self.lora_alpha) else {}


@dataclass
class AdaLoraConfig(LoraConfig):
    """AdaLoRA; its steps are shares of total_step."""

    kind: ClassVar[str] = "ADALORA"

    target_r: int = 8
    init_r: int = 12
    tinit: int = 0
    tfinal: int = 0
    deltaT: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.5
    total_step: int | None = None

    def method(self) -> tuple[str, dict[str, Any]]:
        if not self.total_step or self.total_step <= 0:
            raise MethodError("AdaLoraConfig needs total_step, how many steps will be trained.")
        return "adalora", {
            "r": self.target_r, "init_r": self.init_r, "alpha": self.lora_alpha * self.init_r / (self.init_r + 1e-5), "dropout": self.lora_dropout,
            "start": self.tinit / self.total_step, "settled": self.tfinal / self.total_step, "interval": self.deltaT,
            "beta1": self.beta1, "beta2": self.beta2, "orthogonal": self.orth_reg_weight,
        }  # fmt: skip

    def layer(self, path: str, module: nn.Module | None) -> dict[str, Any]:
        return {}


@dataclass
class _Product(Targeted):
    r: int = 8
    alpha: float = 8
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    use_effective_conv2d: bool = False
    init_weights: bool = True
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)

    def check(self) -> None:
        super().check()
        if self.use_effective_conv2d or self.rank_dropout or self.module_dropout:
            raise MethodError(
                f"{type(self).__name__}: rank_dropout, module_dropout and use_effective_conv2d are not here."
            )

    def layer(self, path: str, module: nn.Module | None) -> dict[str, Any]:
        return {
            "r": pattern(self.rank_pattern, path, self.r),
            "alpha": pattern(self.alpha_pattern, path, self.alpha),
        }


@dataclass
class LoHaConfig(_Product):
    """LoHa."""

    kind: ClassVar[str] = "LOHA"

    def method(self) -> tuple[str, dict[str, Any]]:
        return "loha", {"r": self.r, "alpha": self.alpha}


@dataclass
class LoKrConfig(_Product):
    """LoKr."""

    kind: ClassVar[str] = "LOKR"

    decompose_both: bool = False
    decompose_factor: int = -1

    def method(self) -> tuple[str, dict[str, Any]]:
        return "lokr", {"r": self.r, "alpha": self.alpha, "factor": self.decompose_factor, "decompose_both": self.decompose_both}  # fmt: skip


@dataclass
class VeraConfig(Targeted):
    """VeRA."""

    kind: ClassVar[str] = "VERA"

    r: int = 256
    projection_prng_key: int = 0
    save_projection: bool = True
    vera_dropout: float = 0.0
    d_initial: float = 0.1
    init_weights: bool = True

    def method(self) -> tuple[str, dict[str, Any]]:
        # PEFT's shared factors are wider by sqrt(6) each
        return "vera", {"r": self.r, "d_initial": 6 * self.d_initial, "dropout": self.vera_dropout, "projection_seed": self.projection_prng_key}  # fmt: skip
