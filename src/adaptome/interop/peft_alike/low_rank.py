"""PEFT's low-rank types that are ours under other names."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from adaptome.core.errors import FormatError, MergeError
from adaptome.core.state import Attachment
from adaptome.interop.peft_alike.base import STARTS, Alike, Setting
from adaptome.interop.peft_types import Parts


class DeLoRAType(Alike):
    """A, B and lambda; the lengths of the base's columns are in PEFT's file too, and made anew here."""

    type, method = "DELORA", "delora"
    keys: ClassVar = {"A": "delora_A", "B": "delora_B", "lambda_": "delora_lambda", "c": "delora_w_norm"}
    dimensions: ClassVar = {"A": 2, "B": 2}
    optional = ("c",)
    known = STARTS | {"delora_lambda", "lambda_pattern", "module_dropout", "rank_pattern"}
    both: ClassVar = {
        "r": Setting("r", 8), "strength": Setting("delora_lambda", 15.0), "dropout": Setting("module_dropout", 0.0),
    }  # fmt: skip
    size, pattern = ("r", "A", 0), "rank_pattern"

    def ours(self, config: dict[str, Any], parts: Parts, layer: nn.Module | None) -> Parts:
        return {name: value for name, value in parts.items() if name != "c"}

    def theirs(self, adapter: Any) -> Parts:
        return super().theirs(adapter) | {"c": adapter.c.detach().cpu().clone()}


class GLoRAType(Alike):
    """The terms A to E, in PEFT with one form for A and B and one for D and E, and zeros in the place of one that a layer has not."""

    type, method = "GLORA", "glora"
    keys: ClassVar = {
        f"terms.{term}.{ours}": f"glora_{term}.{theirs}"
        for term in "ABCDE" for ours, theirs in (("down", "Xd"), ("up", "Xu"), ("value", "X"), ("zeros", "zeros"))
    }  # fmt: skip
    optional = tuple(keys)
    known = STARTS | {"config_A_B", "config_C", "config_D_E"}
    both: ClassVar = {
        "r": Setting("r", 8), "A": Setting("config_A_B", "lora"), "B": Setting("config_A_B", "lora"), "C": Setting("config_C", "lora"),
        "D": Setting("config_D_E", "constant"), "E": Setting("config_D_E", "constant"),
    }  # fmt: skip

    def ours(self, config: dict[str, Any], parts: Parts, layer: nn.Module | None) -> Parts:
        return {
            k: v[:, None] if k.endswith("value") and v.dim() == 1 else v
            for k, v in parts.items()
            if not k.endswith("zeros")
        }

    def theirs(self, adapter: Any) -> Parts:
        own = {
            k: v[:, 0] if v.shape == (1, 1) or k.endswith(("D.value", "E.value")) else v
            for k, v in super().theirs(adapter).items()
        }
        out, width = adapter.host.fan_out, adapter.host.fan_in
        shapes = {"A": (out, width), "B": (out, width), "C": (width, 1), "D": (out,), "E": (out,)}
        missing = {term: shape for term, shape in shapes.items() if term not in adapter.terms}
        return own | {f"terms.{term}.zeros": torch.zeros(shape) for term, shape in missing.items()}

    def config(self, attachment: Attachment) -> dict[str, Any]:
        method: Any = attachment.method
        if method.A != method.B or method.D != method.E or method.product != "entries":
            raise MergeError(
                "PEFT's GLoRA has one form for A and B, one for D and E, and multiplies by entries.\n  Export as peft-lora, or merge."
            )
        return super().config(attachment)


class GraLoRAType(Alike):
    """A and B by block, transposed; those of the whole are layers there."""

    type, method = "GRALORA", "gralora"
    keys: ClassVar = {
        "A": "gralora_A", "B": "gralora_B", "A_all": "gralora_A_general.weight", "B_all": "gralora_B_general.weight",
    }  # fmt: skip
    dimensions: ClassVar = {"A": 3, "B": 3, "A_all": 2, "B_all": 2}
    optional = ("A_all", "B_all")
    known = STARTS | {"alpha", "gralora_dropout", "gralora_k", "hybrid_r"}
    both: ClassVar = {
        "r": Setting("r", 32), "k": Setting("gralora_k", 2), "hybrid_r": Setting("hybrid_r", 0), "alpha": Setting("alpha", 64),
        "dropout": Setting("gralora_dropout", 0.0),
    }  # fmt: skip

    def ours(self, config: dict[str, Any], parts: Parts, layer: nn.Module | None) -> Parts:
        return parts | {name: parts[name].mT.contiguous() for name in "AB"}

    def theirs(self, adapter: Any) -> Parts:
        own = super().theirs(adapter)
        return own | {name: own[name].mT.contiguous() for name in "AB"}


class HiRAType(Alike):
    """A and B."""

    type, method = "HIRA", "hira"
    keys: ClassVar = {"A": "hira_A", "B": "hira_B"}
    dimensions: ClassVar = {"A": 2, "B": 2}
    known = STARTS | {"hira_dropout", "rank_pattern"}
    both: ClassVar = {"r": Setting("r", 32)}
    size, pattern = ("r", "A", 0), "rank_pattern"


class MiSSType(Alike):
    """D transposed, `[r, out]`; of 'bat' as it is."""

    type, method = "MISS", "miss"
    keys: ClassVar = {"D": "miss_block"}
    dimensions: ClassVar = {"D": 2}
    known = STARTS | {"miss_dropout", "mini_r"}
    both: ClassVar = {
        "r": Setting("r", 64), "rows": Setting("mini_r", 1), "dropout": Setting("miss_dropout", 0.0),
        "form": Setting("init_weights", True, (("miss", True), ("miss", False), ("mini", "mini"), ("bat", "bat"))),
    }  # fmt: skip
    size = ("r", "D", 0)

    def settings(self, config: dict[str, Any], path: str, parts: Parts) -> dict[str, Any]:
        return {"r": parts["D"].shape[-1 if parts["D"].dim() == 3 else 0]}

    def ours(self, config: dict[str, Any], parts: Parts, layer: nn.Module | None) -> Parts:
        D = parts["D"]
        return {"D": D if D.dim() == 3 else D.t().contiguous()}

    def theirs(self, adapter: Any) -> Parts:
        D = adapter.D.detach().cpu().clone()
        return {"D": D if D.dim() == 3 else D.t().contiguous()}


class PEANuTType(Alike):
    """A and B, and the network's layers, which are one tensor here."""

    deepest = 16
    type, method = "PEANUT", "peanut"
    keys: ClassVar = {
        "A": "peanut_A.weight", "B": "peanut_B.weight",
        **{f"E.{i}": f"peanut_encoders.{i}.weight" for i in range(deepest)}, **{f"D.{i}": f"peanut_decoders.{i}.weight" for i in range(deepest)},
    }  # fmt: skip
    dimensions: ClassVar = dict.fromkeys(keys, 2)
    optional = tuple(name for name in keys if "." in name)
    known = STARTS | {"act_fn", "depth", "scaling"}
    both: ClassVar = {
        "r": Setting("r", 32), "depth": Setting("depth", 0), "scale": Setting("scaling", 1.0),
        "activation": Setting("act_fn", "relu", tuple((n, n) for n in ("relu", "gelu", "silu", "tanh", "sigmoid"))),
    }  # fmt: skip

    def ours(self, config: dict[str, Any], parts: Parts, layer: nn.Module | None) -> Parts:
        found = {name: parts[name] for name in "AB"}
        for name in "ED":
            layers = [parts[f"{name}.{i}"] for i in range(self.deepest) if f"{name}.{i}" in parts]
            if layers and all(v.shape == layers[0].shape for v in layers):
                found[name] = torch.stack(layers)
        return found

    def theirs(self, adapter: Any) -> Parts:
        own = super().theirs(adapter)
        return {name: own[name] for name in "AB"} | {
            f"{name}.{i}": layer.clone() for name in "ED" if name in own for i, layer in enumerate(own[name])
        }


class VBLoRAType(Alike):
    """The logits of one layer, and the bank that all share."""

    type, method = "VBLORA", "vb-lora"
    keys: ClassVar = {"A": "vblora_logits_A", "B": "vblora_logits_B"}
    dimensions: ClassVar = {"A": 3, "B": 3}
    shared = ("base_model.vblora_vector_bank",)
    known = STARTS | {
        "init_logits_std", "init_vector_bank_bound", "num_vectors", "save_only_topk_weights", "topk", "vblora_dropout", "vector_length",
    }  # fmt: skip
    both: ClassVar = {
        "r": Setting("r", 4), "bank": Setting("num_vectors", 256), "size": Setting("vector_length", 256), "top_k": Setting("topk", 2),
        "bound": Setting("init_vector_bank_bound", 0.02), "std": Setting("init_logits_std", 0.1), "dropout": Setting("vblora_dropout", 0.0),
    }  # fmt: skip

    def once(self, config: dict[str, Any]) -> dict[str, Any]:
        if config.get("save_only_topk_weights"):
            raise FormatError(
                "save_only_topk_weights=True keeps too little to train it again, and is not read here.\n  Merge it with PEFT instead."
            )
        return super().once(config)

    def finish(self, attachment: Attachment, config: dict[str, Any], whole: Parts) -> Parts:
        bank = whole.get(self.shared[0])
        if bank is None:
            raise FormatError(f"the bank of vectors, {self.shared[0]}, is missing.")
        return {"shared.vectors": bank}

    def whole(self, attachment: Attachment) -> Parts:
        shared: Any = attachment.shared
        return {self.shared[0]: shared.vectors.detach().cpu().clone()}
