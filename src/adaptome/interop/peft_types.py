"""PEFT's types that are one method of ours each: what their tensors and settings are called, for writing and for reading.

A type is a class here; LoRA, whose form every weight method has, is in `peft` and `peft_reading`, LoHa and LoKr are in `peft_products`,
prompts in `peft_prompts`.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adaptome.core.errors import FormatError, KeyMismatchError, MergeError
from adaptome.core.hosts import Conv1DHost, Host
from adaptome.core.state import Attachment, tensors_of
from adaptome.interop.peft_names import PREFIX, target_modules

Parts = dict[str, Tensor]


class PeftType(ABC):
    """How one type is read and written; subclasses say what differs.

    Attributes:
        method: ours.
        keys: our name of a tensor -> PEFT's.
        known: settings that are read, or act on training alone.
        kinds: of hosts that PEFT has it for.
    """

    method: ClassVar[str]
    keys: ClassVar[dict[str, str]]
    known: ClassVar[frozenset[str]] = frozenset()
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    #: least dimensions of a tensor, where not one
    dimensions: ClassVar[dict[str, int]] = {}
    #: keys of tensors of no one layer
    shared: ClassVar[tuple[str, ...]] = ()
    #: tensors that a layer may lack
    optional: ClassVar[tuple[str, ...]] = ()

    def needed(self, parts: Parts) -> list[str]:
        """What a layer lacks, by PEFT's names."""
        return [
            theirs for ours, theirs in self.keys.items() if ours not in parts and ours not in self.optional
        ]

    # -- reading ---------------------------------------------------------------------------------------------------

    def once(self, config: dict[str, Any]) -> dict[str, Any]:
        """The method's settings that all layers share."""
        return {}

    def settings(self, config: dict[str, Any], path: str, parts: Parts) -> dict[str, Any]:
        """The settings of one layer, from the configuration and its tensors (by our names, as PEFT stores them)."""
        return {}

    def common(self, per_layer: list[dict[str, Any]]) -> dict[str, Any]:
        """Settings for the method as a whole that every one of these layers admits."""
        return per_layer[0] if per_layer else {}

    def ours(self, config: dict[str, Any], parts: Parts, layer: nn.Module | None) -> Parts:
        """One layer's tensors as our adapter has them; the layer is None where the model has none of that name."""
        return parts

    def finish(self, attachment: Attachment, config: dict[str, Any], whole: Parts) -> Parts:
        """What the attached adapter needs besides, from tensors of no one layer; raises FormatError when those do not fit."""
        return {}

    # -- writing ---------------------------------------------------------------------------------------------------

    def theirs(self, adapter: Any) -> Parts:
        """One adapter's tensors by our names, as PEFT stores them."""
        return {name: value.detach().cpu().clone() for name, value in adapter.named_parameters()}

    @abstractmethod
    def config(self, attachment: Attachment) -> dict[str, Any]:
        """PEFT's settings."""

    def select(self, attachment: Attachment, names: list[str]) -> dict[str, Any]:
        """The settings that name the targets among the modules of the model."""
        return {"target_modules": target_modules(attachment.adapters, names)}

    def whole(self, attachment: Attachment) -> Parts:
        """Tensors of no one layer."""
        return {}

    def tensors(self, attachment: Attachment) -> Parts:
        """All tensors by PEFT's names.

        Raises:
            MergeError: PEFT has no such adapter on a layer.
        """
        found: Parts = {}
        for path, adapter in attachment.adapters.items():
            self.check(adapter.host)
            if adapter.strength != 1.0:
                raise MergeError(
                    f"{attachment.name!r} runs with weight {adapter.strength}, which {self.method} has no place for in PEFT.\n"
                    "  ad.activate it with weight 1, or export as peft-lora."
                )
            found |= {
                f"{PREFIX}{path}.{self.keys[name]}": value for name, value in self.theirs(adapter).items()
            }
        return found | self.whole(attachment)

    def check(self, host: Host) -> None:
        """Raise MergeError for a layer that PEFT does not put this type on."""
        if host.kind not in self.kinds:
            raise MergeError(
                f"{host.name} is a {host!r}: PEFT has {self.method} on {' and '.join(self.kinds)} layers only.\n"
                "  Merge into the model instead, or leave it out of the targets."
            )


class IA3Type(PeftType):
    """l, `[out, 1]` or `[1, in]`; those on the input are `feedforward_modules`."""

    method = "ia3"
    keys: ClassVar = {"l": "ia3_l"}
    known = frozenset({"feedforward_modules", "init_ia3_weights"})
    kinds = ("linear", "conv")

    def settings(self, config: dict[str, Any], path: str, parts: Parts) -> dict[str, Any]:
        # a convolution's factors lie along its channels on either side; only the names tell which
        if parts["l"].dim() > 2:
            inner = config.get("feedforward_modules") or []
            on_input = any(path == name or path.endswith(f".{name}") for name in inner)
        else:
            on_input = parts["l"].shape[0] == 1
        return {"side": "input" if on_input else "output"}

    def ours(self, config: dict[str, Any], parts: Parts, layer: nn.Module | None) -> Parts:
        return {"l": parts["l"].flatten()}

    def theirs(self, adapter: Any) -> Parts:
        l = adapter.l.detach().cpu().clone()
        if adapter.host.kind == "conv":
            return {"l": l.view(1, -1, *[1] * len(adapter.host.layer.kernel_size))}
        return {"l": l[None] if adapter.on_input else l[:, None]}

    def config(self, attachment: Attachment) -> dict[str, Any]:
        return {
            "peft_type": "IA3", "init_ia3_weights": True, "fan_in_fan_out": _transposed(attachment),
        }  # fmt: skip

    def select(self, attachment: Attachment, names: list[str]) -> dict[str, Any]:
        adapters: dict[str, Any] = attachment.adapters
        sides = [[p for p, a in adapters.items() if a.on_input == side] for side in (True, False)]
        # one list holds the other, so no ending may be of both sides
        inner, outer = (target_modules(side, names) if side else [] for side in sides)
        if isinstance(inner, list) and isinstance(outer, list):
            return {"target_modules": sorted({*inner, *outer}), "feedforward_modules": inner}
        return {"target_modules": _regex(list(adapters)), "feedforward_modules": _regex(sides[0])}


class NormType(PeftType):
    """The norm's own parameters, where ours are what is added to them."""

    method = "norm-tuning"
    keys: ClassVar = {"weight": "ln_tuning_layers.weight", "bias": "ln_tuning_layers.bias"}
    optional = ("bias",)
    kinds = ("norm",)

    def settings(self, config: dict[str, Any], path: str, parts: Parts) -> dict[str, Any]:
        return {"bias": "bias" in parts}

    def ours(self, config: dict[str, Any], parts: Parts, layer: nn.Module | None) -> Parts:
        base = {} if layer is None else layer._parameters
        return {
            n: v - b.detach().to(v) if (b := base.get(n)) is not None and b.shape == v.shape else v
            for n, v in parts.items()
        }

    def theirs(self, adapter: Any) -> Parts:
        own = dict(adapter.named_parameters())
        base = {n: adapter.host.stored(n).detach() for n in ("weight", "bias") if adapter.host.has(n)}
        return {n: (v + own[n].detach().to(v) if n in own else v).cpu().clone() for n, v in base.items()}

    def config(self, attachment: Attachment) -> dict[str, Any]:
        return {"peft_type": "LN_TUNING"}


class AdaLoRAType(PeftType):
    """P, E `[r, 1]` and Q. PEFT divides alpha by the rank at the start + 1e-5, which it keeps when triplets are dropped."""

    method = "adalora"
    keys: ClassVar = {"P": "lora_B", "E": "lora_E", "Q": "lora_A"}
    dimensions: ClassVar = {"P": 2, "E": 2, "Q": 2}
    known = frozenset({
        "beta1", "beta2", "deltaT", "init_r", "orth_reg_weight", "rank_pattern", "target_r", "tfinal", "tinit", "total_step",
    })  # fmt: skip

    def once(self, config: dict[str, Any]) -> dict[str, Any]:
        return {"dropout": config.get("lora_dropout", 0.0)}

    def settings(self, config: dict[str, Any], path: str, parts: Parts) -> dict[str, Any]:
        r, start = parts["E"].shape[0], config.get("init_r", 12)
        # a layer that lost triplets keeps its divisor; one that lost all has nothing to scale
        alpha = config.get("lora_alpha") or start
        return {"r": r, "init_r": r, "alpha": alpha * r / (start + 1e-5)}

    def ours(self, config: dict[str, Any], parts: Parts, layer: nn.Module | None) -> Parts:
        return {**parts, "E": parts["E"].flatten()}

    def finish(self, attachment: Attachment, config: dict[str, Any], whole: Parts) -> Parts:
        # the averages of importance are not in PEFT's file: they begin again
        return {
            key: value.detach().clone()
            for key, value in tensors_of(attachment).items()
            if key.rpartition(".")[2] == "kept" or key.rpartition(".")[2][:2] in ("I_", "U_")
        }

    def theirs(self, adapter: Any) -> Parts:
        own = super().theirs(adapter)
        return {**own, "E": own["E"][:, None]}

    def config(self, attachment: Attachment) -> dict[str, Any]:
        adapters: dict[str, Any] = attachment.adapters
        scales = {a.scale for a in adapters.values()}
        ranks = {a.E.numel() for a in adapters.values()}
        if len(scales) > 1 or len(ranks) > 1:
            raise MergeError(
                "adalora by layer has one rank and alpha for all in PEFT's files.\n  Export as peft-lora, which is exact too."
            )
        [r], [scale] = ranks, scales
        method: Any = attachment.method
        return {
            "peft_type": "ADALORA", "init_r": r, "r": r, "target_r": method.r, "lora_alpha": scale * (r + 1e-5), "lora_dropout": 0.0,
            "bias": "none", "fan_in_fan_out": _transposed(attachment), "beta1": method.beta1, "beta2": method.beta2,
            "orth_reg_weight": method.orthogonal, "deltaT": method.interval, "total_step": 1, "rank_pattern": None,
        }  # fmt: skip


#: PEFT draws from U(-sqrt(6 / in), sqrt(6 / in)), ours from U(-sqrt(1 / in), sqrt(1 / in)), both from the seed
_WIDER = 6.0**0.5


class VeRAType(PeftType):
    """b and d, beside one pair for all layers that is drawn from a seed; PEFT's is wider by sqrt(6) on both sides, so d differs by 6."""

    method = "vera"
    keys: ClassVar = {"b": "vera_lambda_b", "d": "vera_lambda_d"}
    shared = ("base_model.vera_A", "base_model.vera_B")
    known = frozenset({"d_initial", "projection_prng_key", "save_projection", "vera_dropout", "init_weights"})

    def once(self, config: dict[str, Any]) -> dict[str, Any]:
        return {
            "r": config.get("r", 256), "dropout": config.get("vera_dropout", 0.0), "d_initial": 6.0 * config.get("d_initial", 0.1),
            "projection_seed": config.get("projection_prng_key", 0),
        }  # fmt: skip

    def settings(self, config: dict[str, Any], path: str, parts: Parts) -> dict[str, Any]:
        if parts["d"].shape != (config.get("r", 256),):  # before factors of that many rows are drawn
            raise KeyMismatchError(
                f"{path}: r is {config.get('r', 256)}, and vera_lambda_d has {list(parts['d'].shape)}."
            )
        return {}

    def ours(self, config: dict[str, Any], parts: Parts, layer: nn.Module | None) -> Parts:
        return {"b": parts["b"], "d": 6.0 * parts["d"]}

    def finish(self, attachment: Attachment, config: dict[str, Any], whole: Parts) -> Parts:
        stored = {name: whole.get(f"base_model.vera_{name}") for name in "AB"}
        for name, value in stored.items():
            drawn = attachment.shared.get_buffer(name) * _WIDER  # type: ignore[union-attr]
            same = value is None or (
                value.shape == drawn.shape and torch.allclose(value.float(), drawn.float().cpu(), 1e-4, 1e-5)
            )
            if not same:
                raise FormatError(
                    f"vera_{name} is not what the seed {config.get('projection_prng_key')} gives for these layers, and only the seed is kept here.\n"
                    "  Convert it with PEFT's convert_to_lora, or merge it there."
                )
        return {}

    def theirs(self, adapter: Any) -> Parts:
        own = super().theirs(adapter)
        return {"b": own["b"], "d": own["d"] / 6.0}

    def select(self, attachment: Attachment, names: list[str]) -> dict[str, Any]:
        """The settings that name the targets among the modules of the model."""
        return {"target_modules": target_modules(attachment.adapters, names)}

    def whole(self, attachment: Attachment) -> Parts:
        shared: Any = attachment.shared
        return {
            f"base_model.vera_{name}": (shared.get_buffer(name).float() * _WIDER).cpu().clone()
            for name in "AB"
        }

    def config(self, attachment: Attachment) -> dict[str, Any]:
        method: Any = attachment.method
        return {
            "peft_type": "VERA", "r": method.r, "projection_prng_key": method.projection_seed, "save_projection": True,
            "vera_dropout": 0.0, "d_initial": method.d_initial / 6.0, "bias": "none", "fan_in_fan_out": _transposed(attachment),
        }  # fmt: skip


class FourierType(PeftType):
    """c, at places drawn from a seed, which both libraries draw alike."""

    method = "fourierft"
    keys: ClassVar = {"c": "fourierft_spectrum"}
    known = frozenset({
        "n_frequency", "n_frequency_pattern", "random_loc_seed", "scaling", "init_weights",
    })  # fmt: skip

    def once(self, config: dict[str, Any]) -> dict[str, Any]:
        return {"alpha": config.get("scaling", 150.0), "position_seed": config.get("random_loc_seed", 777)}

    def common(self, per_layer: list[dict[str, Any]]) -> dict[str, Any]:
        return {"n": min(own["n"] for own in per_layer)} if per_layer else {}

    def settings(self, config: dict[str, Any], path: str, parts: Parts) -> dict[str, Any]:
        return {"n": parts["c"].shape[0]}

    def config(self, attachment: Attachment) -> dict[str, Any]:
        adapters: dict[str, Any] = attachment.adapters
        if "alpha" in {key for own in attachment.per_layer.values() for key in own}:
            raise MergeError(
                "fourierft by layer has one alpha for all in PEFT's files. Export with one, or merge."
            )
        method: Any = attachment.method
        counts = {path: a.c.numel() for path, a in adapters.items()}
        n = next(iter(counts.values()))
        return {
            "peft_type": "FOURIERFT", "n_frequency": n, "scaling": method.alpha, "random_loc_seed": method.position_seed, "bias": "none",
            "n_frequency_pattern": {} if set(counts.values()) == {n} else counts, "fan_in_fan_out": _transposed(attachment),
        }  # fmt: skip


class BOFTType(PeftType):
    """Whole blocks of which the skew part counts, `[m, blocks, b, b]`, and s `[out, 1]` (on a convolution `[1, out]`)."""

    method = "boft"
    keys: ClassVar = {"Q": "boft_R", "s": "boft_s"}
    dimensions: ClassVar = {"Q": 4}
    known = frozenset({
        "boft_block_num", "boft_block_size", "boft_dropout", "boft_n_butterfly_factor", "init_weights",
    })  # fmt: skip
    kinds = ("linear", "conv")

    def once(self, config: dict[str, Any]) -> dict[str, Any]:
        return {"scale": True, "dropout": config.get("boft_dropout", 0.0)}

    def common(self, per_layer: list[dict[str, Any]]) -> dict[str, Any]:
        return {**per_layer[0], "size": math.gcd(*(own["size"] for own in per_layer))} if per_layer else {}

    def settings(self, config: dict[str, Any], path: str, parts: Parts) -> dict[str, Any]:
        return {"size": parts["Q"].shape[-1], "factors": parts["Q"].shape[0]}

    def ours(self, config: dict[str, Any], parts: Parts, layer: nn.Module | None) -> Parts:
        R, b = parts["Q"], parts["Q"].shape[-1]
        if R.shape[-2] != b:
            raise KeyMismatchError(f"boft_R holds blocks of {R.shape[-2]} x {b}; they must be square.")
        rows, columns = torch.triu_indices(b, b, 1)
        return {"Q": (0.5 * (R - R.mT))[..., rows, columns], "s": parts["s"].flatten()}

    def theirs(self, adapter: Any) -> Parts:
        from adaptome.forms.rotation import skew

        host, Q = adapter.host, adapter.Q.detach().cpu()
        s = torch.ones(host.fan_out) if adapter.s is None else adapter.s.detach().cpu().clone()
        return {"Q": skew(Q, adapter.b).contiguous(), "s": s[None] if host.kind == "conv" else s[:, None]}

    def config(self, attachment: Attachment) -> dict[str, Any]:
        adapters: dict[str, Any] = attachment.adapters
        if len({(a.b, a.m) for a in adapters.values()}) > 1:
            raise MergeError(
                "boft by layer has one block size for all in PEFT's files. Export with one, or merge."
            )
        first = next(iter(adapters.values()))
        return {
            "peft_type": "BOFT", "boft_block_size": first.b, "boft_block_num": 0, "boft_n_butterfly_factor": first.m,
            "boft_dropout": first.dropout, "bias": "none", "fan_in_fan_out": _transposed(attachment),
        }  # fmt: skip


def _regex(paths: list[str]) -> str:
    return "|".join(re.escape(path) for path in sorted(paths)) or "(?!)"


def _transposed(attachment: Attachment) -> bool:
    return all(isinstance(a.host, Conv1DHost) for a in attachment.adapters.values())


#: PEFT's name -> how it is read and written
TYPES: dict[str, PeftType] = {
    "IA3": IA3Type(), "LN_TUNING": NormType(), "ADALORA": AdaLoRAType(), "VERA": VeRAType(), "FOURIERFT": FourierType(), "BOFT": BOFTType(),
}  # fmt: skip
