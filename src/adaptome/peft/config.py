"""PEFT's configurations, with its names and defaults, and what each means as a method of ours."""

from __future__ import annotations

import enum
import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from adaptome.core.errors import CheckpointError, FormatError, MethodError, TornFileError, did_you_mean
from adaptome.core.files import write_atomic
from adaptome.core.hosts import host_of
from adaptome.interop.peft_names import CONFIG
from adaptome.interop.peft_prompts import PROMPTS


class TaskType(str, enum.Enum):
    """What the model is for."""

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


class PeftType(str, enum.Enum):
    """The types that are here."""

    LORA = "LORA"
    ADALORA = "ADALORA"
    IA3 = "IA3"
    LOHA = "LOHA"
    LOKR = "LOKR"
    VERA = "VERA"
    FOURIERFT = "FOURIERFT"
    BOFT = "BOFT"
    OFT = "OFT"
    LN_TUNING = "LN_TUNING"
    PROMPT_TUNING = "PROMPT_TUNING"
    P_TUNING = "P_TUNING"
    PREFIX_TUNING = "PREFIX_TUNING"
    ADAPTOME = "ADAPTOME"


@dataclass
class PeftConfig:
    """What all types have."""

    kind: ClassVar[str] = ""

    task_type: str | None = None
    inference_mode: bool = False
    base_model_name_or_path: str | None = None
    revision: str | None = None
    auto_mapping: dict[str, Any] | None = None
    peft_type: str | None = None

    def __post_init__(self) -> None:
        self.peft_type = PeftType(self.kind) if self.kind else self.peft_type
        if self.task_type is not None and self.task_type not in list(TaskType):
            raise MethodError(
                f"task_type={self.task_type!r} is none of PEFT's.{did_you_mean(self.task_type, [t.value for t in TaskType])}"
            )

    @property
    def starts_as_base(self) -> bool:
        """Whether outputs are the base's at the start: not with False for `init_weights`, `init_lora_weights` or `init_ia3_weights`."""
        return all(getattr(self, f"init_{kind}weights", True) is not False for kind in ("", "lora_", "ia3_"))

    @property
    def is_prompt_learning(self) -> bool:
        """Whether it is a prompt or prefix."""
        return self.kind in PROMPTS.values()

    def check(self) -> None:
        """Raise MethodError for a setting that PEFT has and we have not."""

    def method(self) -> tuple[str, dict[str, Any]]:
        """Our method and its settings."""
        raise MethodError(f"{type(self).__name__} names no method; use one of its subclasses.")

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: the content of adapter_config.json."""
        return {k: _plain(v) for k, v in asdict(self).items()}

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write adapter_config.json."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        write_atomic(
            Path(save_directory) / CONFIG, json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **changes: Any
    ) -> PeftConfig:
        """The configuration of a folder, of the class that its type has.

        Raises:
            CheckpointError: there is no such folder; FormatError: a type that is not here.
        """
        path = Path(pretrained_model_name_or_path) / CONFIG
        if not path.is_file():
            raise CheckpointError(f"{pretrained_model_name_or_path} has no {CONFIG}.")
        try:
            content = json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise TornFileError(f"{path} is not whole JSON ({error}).") from error
        if not isinstance(content, dict):
            raise FormatError(f"{path} is not a PEFT configuration.")
        kind = content.get("peft_type")
        if kind not in CONFIGS:
            raise FormatError(f"{path} is of type {kind!r}; here are {', '.join(CONFIGS)}.")
        known = {f.name for f in fields(CONFIGS[kind])}
        return CONFIGS[kind](**{k: v for k, v in content.items() if k in known} | changes)


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    return sorted(value) if isinstance(value, (set, frozenset)) else value


@dataclass
class Targeted(PeftConfig):
    """Types that sit on layers: lists are names or endings of names, a string is a regular expression or 'all-linear'."""

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    fan_in_fan_out: bool = False
    bias: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            setattr(self, name, set(value) if isinstance(value, (list, tuple)) else value)

    def check(self) -> None:
        if self.bias != "none":
            raise MethodError(
                f"bias={self.bias!r}: biases are not trained beside another method here.\n  Attach 'bitfit' as an adapter of its own."
            )

    def layer(self, path: str, module: nn.Module | None) -> dict[str, Any]:
        """The settings of one layer that differ from the method's."""
        return {}


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
        from adaptome.interop.peft_reading import pattern

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
class IA3Config(Targeted):
    """IA3; `feedforward_modules` are scaled on their inputs."""

    kind: ClassVar[str] = "IA3"

    feedforward_modules: list[str] | str | None = None
    init_ia3_weights: bool = True

    def method(self) -> tuple[str, dict[str, Any]]:
        return "ia3", {}

    def layer(self, path: str, module: nn.Module | None) -> dict[str, Any]:
        from adaptome.peft.targets import names

        if self.target_modules is None and self.feedforward_modules is None:
            return {}
        return {"side": "input" if names(self.feedforward_modules or [], path) else "output"}


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
        from adaptome.interop.peft_reading import pattern

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
        from adaptome.interop.peft_reading import pattern

        return {"n": pattern(self.n_frequency_pattern, path, self.n_frequency)}


def _width(config: PeftConfig, path: str, module: nn.Module | None, count: int) -> dict[str, Any]:
    """The width of blocks where their number is given."""
    if not count or module is None:
        return {}
    inputs = host_of(module, path).fan_in
    if inputs % count:
        raise MethodError(
            f"{type(config).__name__}: {count} blocks do not divide the {inputs} inputs of {path}."
        )
    return {"size": inputs // count}


@dataclass
class BOFTConfig(Targeted):
    """BOFT."""

    kind: ClassVar[str] = "BOFT"

    boft_block_size: int = 4
    boft_block_num: int = 0
    boft_n_butterfly_factor: int = 1
    boft_dropout: float = 0.0
    init_weights: bool = True

    def check(self) -> None:
        super().check()
        if bool(self.boft_block_num) == bool(self.boft_block_size):
            raise MethodError(
                f"BOFTConfig: give either boft_block_size or boft_block_num, the other 0; they are {self.boft_block_size} and {self.boft_block_num}."
            )

    def method(self) -> tuple[str, dict[str, Any]]:
        return "boft", {
            "size": self.boft_block_size or 2,
            "factors": self.boft_n_butterfly_factor,
            "scale": True,
            "dropout": self.boft_dropout,
        }

    def layer(self, path: str, module: nn.Module | None) -> dict[str, Any]:
        return _width(self, path, module, self.boft_block_num)


@dataclass
class OFTConfig(Targeted):
    """OFT; by default turned by PEFT's series."""

    kind: ClassVar[str] = "OFT"

    r: int = 0
    oft_block_size: int = 32
    module_dropout: float = 0.0
    init_weights: bool = True
    coft: bool = False
    eps: float = 6e-5
    block_share: bool = False
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: int = 5

    def check(self) -> None:
        super().check()
        if bool(self.r) == bool(self.oft_block_size):
            raise MethodError(
                f"OFTConfig: give either r or oft_block_size, the other 0; they are {self.r} and {self.oft_block_size}."
            )
        if self.use_cayley_neumann and self.num_cayley_neumann_terms < 4:
            raise MethodError("OFTConfig: num_cayley_neumann_terms is 4 or more here.")

    def method(self) -> tuple[str, dict[str, Any]]:
        terms = self.num_cayley_neumann_terms - 2 if self.use_cayley_neumann else 0
        return "oft", {
            "size": self.oft_block_size or 2, "block_share": self.block_share, "series": terms, "dropout": self.module_dropout,
            "coft": self.coft, "eps": self.eps,
        }  # fmt: skip

    def layer(self, path: str, module: nn.Module | None) -> dict[str, Any]:
        return _width(self, path, module, self.r)


@dataclass
class LNTuningConfig(Targeted):
    """Norm tuning."""

    kind: ClassVar[str] = "LN_TUNING"

    def method(self) -> tuple[str, dict[str, Any]]:
        return "norm-tuning", {}


@dataclass
class _Prompt(PeftConfig):
    num_virtual_tokens: int | None = None
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None
    modules_to_save: list[str] | None = None

    def _count(self) -> int:
        if not self.num_virtual_tokens:
            raise MethodError(f"{type(self).__name__} needs num_virtual_tokens.")
        return self.num_virtual_tokens


@dataclass
class PromptTuningConfig(_Prompt):
    """Prompt tuning; a start from text is `ad.prompt_from`."""

    kind: ClassVar[str] = "PROMPT_TUNING"

    prompt_tuning_init: str = "RANDOM"

    def method(self) -> tuple[str, dict[str, Any]]:
        start = {"RANDOM": "normal", "SAMPLE_VOCAB": "vocabulary"}.get(
            str(self.prompt_tuning_init).rpartition(".")[2]
        )
        if start is None:
            raise MethodError(
                f"prompt_tuning_init={self.prompt_tuning_init!r}: start with RANDOM, and set the words with ad.prompt_from."
            )
        return "prompt-tuning", {"p": self._count(), "place": "front", "init": start}


@dataclass
class PromptEncoderConfig(_Prompt):
    """P-tuning."""

    kind: ClassVar[str] = "P_TUNING"

    encoder_reparameterization_type: str = "MLP"
    encoder_hidden_size: int | None = None

    def method(self) -> tuple[str, dict[str, Any]]:
        made = str(self.encoder_reparameterization_type).rpartition(".")[2].lower()
        hidden = self.encoder_hidden_size or 0
        # of an LSTM PEFT's hidden size is that of one direction
        return "p-tuning", {"p": self._count(), "place": "front", "encoder": made, "hidden": hidden * 2 if made == "lstm" else hidden}  # fmt: skip


@dataclass
class PrefixTuningConfig(_Prompt):
    """Prefix tuning."""

    kind: ClassVar[str] = "PREFIX_TUNING"

    encoder_hidden_size: int | None = None
    prefix_projection: bool = False

    def method(self) -> tuple[str, dict[str, Any]]:
        hidden = (self.encoder_hidden_size or 0) if self.prefix_projection else 0
        return "prefix-tuning", {"p": self._count(), "hidden": hidden, "positions": "after"}


@dataclass
class AdaptomeConfig(Targeted):
    """Any method of ours, by its name and settings; targets in PEFT's way, or in ours with `targets`."""

    kind: ClassVar[str] = "ADAPTOME"

    name: str = "lora"
    settings: dict[str, Any] = field(default_factory=dict)
    targets: list[str] | str | None = None

    def __init__(self, method: str = "lora", *, targets: list[str] | str | None = None, **how: Any):
        own = {f.name for f in fields(Targeted)}
        super().__init__(**{k: v for k, v in how.items() if k in own})
        self.name, self.targets = how.get("name", method), targets
        self.settings = how.get("settings", {k: v for k, v in how.items() if k not in own and k != "name"})

    def method(self) -> tuple[str, dict[str, Any]]:
        return self.name, dict(self.settings)


#: PEFT's type -> its configuration
CONFIGS: dict[str, type[PeftConfig]] = {
    cls.kind: cls
    for cls in (
        LoraConfig, AdaLoraConfig, IA3Config, LoHaConfig, LoKrConfig, VeraConfig, FourierFTConfig, BOFTConfig, OFTConfig, LNTuningConfig,
        PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig, AdaptomeConfig,
    )
}  # fmt: skip
