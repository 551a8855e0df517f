"""PEFT's configurations of types that are ours under other names: the fields alone; `interop.peft_alike` says what they mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from adaptome.core.errors import FormatError, MethodError
from adaptome.core.state import Attachment
from adaptome.interop.peft_alike import ALIKE
from adaptome.interop.peft_reading import pattern
from adaptome.peft.configs.base import Targeted


@dataclass
class _Alike(Targeted):
    init_weights: bool | str | None = True

    #: dropout that PEFT has and the method here has not
    without: ClassVar[str] = ""

    def check(self) -> None:
        super().check()
        if self.without and getattr(self, self.without):
            raise MethodError(f"{type(self).__name__}: {self.without} is not here.\n  Set it to 0.")

    def method(self) -> tuple[str, dict[str, Any]]:
        form = ALIKE[self.kind]
        try:
            return form.method, form.asked(self.to_dict())
        except FormatError as error:
            raise MethodError(f"{type(self).__name__}: {error}") from error

    def layer(self, path: str, module: nn.Module | None) -> dict[str, Any]:
        form = ALIKE[self.kind]
        by_layer = getattr(self, form.pattern) if form.pattern else None
        if not by_layer or form.size is None:
            return {}
        asked = form.both[form.size[0]]
        return {form.size[0]: pattern(by_layer, path, getattr(self, asked.theirs))}


@dataclass
class BeftConfig(_Alike):
    """BEFT: a shift of a layer's outputs."""

    kind: ClassVar[str] = "BEFT"


@dataclass
class C3AConfig(_Alike):
    """C3A; by default it does not start as the base."""

    kind: ClassVar[str] = "C3A"

    block_size: int = 256
    block_size_pattern: dict[str, int] = field(default_factory=dict)
    init_weights: bool | str | None = "xavier_uniform"

    @property
    def starts_as_base(self) -> bool:
        return self.init_weights is True

    def check(self) -> None:
        super().check()
        if self.init_weights not in (True, False, "gaussian", "kaiming_uniform", "xavier_uniform"):
            raise MethodError(f"C3AConfig: init_weights={self.init_weights!r} is none of PEFT's.")

    @torch.no_grad()
    def start(self, attachment: Attachment) -> None:
        for adapter in attachment.adapters.values():
            w, inputs, outputs = adapter.get_parameter("w"), adapter.host.fan_in, adapter.host.fan_out
            if self.init_weights == "gaussian":
                w.normal_()
                continue
            bound = (
                inputs**-0.5 if self.init_weights == "kaiming_uniform" else (6 / (inputs + outputs)) ** 0.5
            )
            w.uniform_(-bound, bound)


@dataclass
class DeftConfig(_Alike):
    """DEFT; `init_scale` acts on the start alone."""

    kind: ClassVar[str] = "DEFT"

    r: int = 8
    decomposition_method: str = "relu"
    init_scale: float = 1.0
    alpha: int | None = None
    para: bool = False
    deft_dropout: float = 0.0

    @property
    def starts_as_base(self) -> bool:
        return True  # what is drawn is a subspace, which init_weights=False draws too

    def check(self) -> None:
        super().check()
        if self.init_scale != 1.0 or self.init_weights is not True:
            raise MethodError("DeftConfig: init_scale and init_weights are not here; the start is the base.")


@dataclass
class DeloraConfig(_Alike):
    """DeLoRA."""

    kind: ClassVar[str] = "DELORA"

    r: int = 8
    delora_lambda: float = 15
    module_dropout: float = 0.0
    rank_pattern: dict[str, int] = field(default_factory=dict)
    lambda_pattern: dict[str, float] = field(default_factory=dict)

    def layer(self, path: str, module: nn.Module | None) -> dict[str, Any]:
        strength = pattern(self.lambda_pattern, path, None)
        return super().layer(path, module) | ({} if strength is None else {"strength": strength})


@dataclass
class GloraConfig(_Alike):
    """GLoRA."""

    kind: ClassVar[str] = "GLORA"

    r: int = 8
    config_A_B: str = "lora"
    config_C: str = "lora"
    config_D_E: str = "constant"


@dataclass
class GraloraConfig(_Alike):
    """GraLoRA."""

    kind: ClassVar[str] = "GRALORA"

    r: int = 32
    hybrid_r: int = 0
    alpha: int = 64
    gralora_dropout: float = 0.0
    gralora_k: int = 2


@dataclass
class HiraConfig(_Alike):
    """HiRA."""

    kind: ClassVar[str] = "HIRA"
    without: ClassVar[str] = "hira_dropout"

    r: int = 32
    hira_dropout: float = 0.0
    rank_pattern: dict[str, int] = field(default_factory=dict)


@dataclass
class HRAConfig(_Alike):
    """HRA; reflections come in pairs unless they are made orthonormal."""

    kind: ClassVar[str] = "HRA"

    r: int = 8
    apply_GS: bool = False


@dataclass
class MissConfig(_Alike):
    """MiSS; `init_weights` "bat" and "mini" are its other forms."""

    kind: ClassVar[str] = "MISS"

    r: int = 64
    miss_dropout: float = 0.0
    mini_r: int = 1


@dataclass
class PeanutConfig(_Alike):
    """PEANuT."""

    kind: ClassVar[str] = "PEANUT"

    r: int = 32
    depth: int = 0
    act_fn: str = "relu"
    scaling: float = 1.0


@dataclass
class RoadConfig(_Alike):
    """RoAd; `variant` is road_1, road_2 or road_4."""

    kind: ClassVar[str] = "ROAD"

    variant: str = "road_1"
    group_size: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self.variant = str(getattr(self.variant, "value", self.variant))


@dataclass
class ShiraConfig(_Alike):
    """SHiRA; its places are drawn by torch's generator, or by `random_seed`."""

    kind: ClassVar[str] = "SHIRA"

    r: int = 32
    mask_type: str = "random"
    random_seed: int | None = None

    def check(self) -> None:
        super().check()
        if self.mask_type != "random" or self.random_seed is not None:
            raise MethodError(
                "ShiraConfig: mask_type is 'random' and random_seed is None here.\n  Seed torch, or take AdaptomeConfig('shira', mask='largest')."
            )


@dataclass
class VBLoRAConfig(_Alike):
    """VB-LoRA; it does not start as the base."""

    kind: ClassVar[str] = "VBLORA"

    r: int = 4
    num_vectors: int = 256
    vector_length: int = 256
    topk: int = 2
    save_only_topk_weights: bool = False
    vblora_dropout: float = 0.0
    init_vector_bank_bound: float = 0.02
    init_logits_std: float = 0.1


@dataclass
class WaveFTConfig(_Alike):
    """WaveFT; `proportional_parameters` gives a layer as many numbers as its share of a LoRA's."""

    kind: ClassVar[str] = "WAVEFT"

    n_frequency: int = 2592
    scaling: float = 25.0
    wavelet_family: str = "db1"
    use_idwt: bool = True
    random_loc_seed: int = 777
    n_frequency_pattern: dict[str, int] = field(default_factory=dict)
    proportional_parameters: bool = False

    def check(self) -> None:
        super().check()
        if self.proportional_parameters:
            raise MethodError(
                "WaveFTConfig: proportional_parameters is not here; name counts in n_frequency_pattern."
            )
