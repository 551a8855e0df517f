"""OFT and RandLoRA as PEFT stores them: types whose function there is another than the paper's by default."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from adaptome.core.errors import FormatError, MergeError
from adaptome.core.hosts import Conv1DHost
from adaptome.core.state import Attachment
from adaptome.interop.peft_alike import ALIKE
from adaptome.interop.peft_types import TYPES as SAME
from adaptome.interop.peft_types import Parts, PeftType


class OFTType(PeftType):
    """Q `[blocks, b (b - 1) / 2]`. By default PEFT turns by a series, of the rotation the other way round: its Q is ours, negated."""

    method = "oft"
    keys: ClassVar = {"Q": "oft_R.weight"}
    known = frozenset({
        "block_share", "coft", "eps", "init_weights", "module_dropout", "num_cayley_neumann_terms", "oft_block_size", "use_cayley_neumann",
    })  # fmt: skip

    def once(self, config: dict[str, Any]) -> dict[str, Any]:
        return {
            "block_share": bool(config.get("block_share")), "series": self._series(config), "dropout": config.get("module_dropout", 0.0),
            "coft": bool(config.get("coft")), "eps": config.get("eps", 6e-5),
        }  # fmt: skip

    def _series(self, config: dict[str, Any]) -> int:
        if not config.get("use_cayley_neumann", True):
            return 0
        terms = config.get("num_cayley_neumann_terms", 5)
        if terms < 3:
            raise FormatError(
                f"num_cayley_neumann_terms = {terms} is no Cayley-Neumann series in PEFT, and not read here.\n  Merge it with PEFT instead."
            )
        return max(2, terms - 2)  # PEFT's 3 is its 4

    def settings(self, config: dict[str, Any], path: str, parts: Parts) -> dict[str, Any]:
        return {"size": round((1 + (1 + 8 * parts["Q"].shape[-1]) ** 0.5) / 2)}

    def ours(self, config: dict[str, Any], parts: Parts, layer: nn.Module | None) -> Parts:
        return {"Q": -parts["Q"] if self._series(config) else parts["Q"]}

    def finish(self, attachment: Attachment, config: dict[str, Any], whole: Parts) -> Parts:
        for path, adapter in attachment.adapters.items():
            if adapter.host.kind != "linear":
                raise FormatError(
                    f"{path}: PEFT's OFT computes something else on a {adapter.host!r}; it is not read."
                )
        return {}

    def theirs(self, adapter: Any) -> Parts:
        Q = adapter.Q.detach().cpu().clone()
        return {"Q": -Q if adapter.series else Q}

    def config(self, attachment: Attachment) -> dict[str, Any]:
        adapters: dict[str, Any] = attachment.adapters
        method: Any = attachment.method
        if len({(a.b, a.series, a.eps, len(a.Q) == 1) for a in adapters.values()}) > 1 or method.series == 1:
            raise MergeError(
                "PEFT has one size for all layers, and series of 2 terms at least. Export as peft-lora, or merge."
            )
        return {
            "peft_type": "OFT", "r": 0, "oft_block_size": method.size, "block_share": method.block_share, "coft": method.coft, "eps": method.eps, "bias": "none",
            "use_cayley_neumann": bool(method.series), "num_cayley_neumann_terms": method.series + 2, "module_dropout": method.dropout,
            "fan_in_fan_out": all(isinstance(a.host, Conv1DHost) for a in adapters.values()),
        }  # fmt: skip


class RandLoRAType(PeftType):
    """lambda `[r, n]` and gamma `[n, m]` beside one pair of bases, which the folder must hold: PEFT draws it in a type that hangs on the machine."""

    method = "randlora"
    keys: ClassVar = {
        "lambda_": "randlora_lambda", "gamma": "randlora_gamma", "A": "randlora_A", "B": "randlora_B",
    }  # fmt: skip
    shared = ("base_model.randlora_A", "base_model.randlora_B")
    optional = ("A", "B")
    known = frozenset({
        "init_weights", "projection_prng_key", "randlora_alpha", "randlora_dropout", "save_projection", "sparse", "very_sparse",
    })  # fmt: skip

    def once(self, config: dict[str, Any]) -> dict[str, Any]:
        return {
            "r": config.get("r", 32), "alpha": float(config.get("randlora_alpha", 640)), "pairs": "peft",
            "dropout": config.get("randlora_dropout", 0.0), "projection_seed": config.get("projection_prng_key", 0),
        }  # fmt: skip

    def ours(self, config: dict[str, Any], parts: Parts, layer: nn.Module | None) -> Parts:
        return {"lambda_": parts["lambda_"].t().contiguous(), "gamma": parts["gamma"]}

    def finish(self, attachment: Attachment, config: dict[str, Any], whole: Parts) -> Parts:
        shared: Any = attachment.shared
        found: Parts = {}
        for name in "AB":
            value = next((v for k, v in whole.items() if k.endswith(f".randlora_{name}")), None)
            if value is None:
                raise FormatError(
                    "this folder does not hold its random bases, and PEFT draws them in a type that hangs on the machine.\n"
                    "  Load it in PEFT and save it again with save_projection=True."
                )
            value = value.float().flatten(0, 1) if name == "A" else value.float()
            if value.shape != shared.get_buffer(name).shape:
                raise FormatError(
                    f"randlora_{name} is {list(value.shape)}; these layers need {list(shared.get_buffer(name).shape)}."
                )
            found[f"shared.{name}"] = value
        return found

    def tensors(self, attachment: Attachment) -> Parts:
        raise MergeError(
            "PEFT's folders of randlora are read and not written.\n  Export as peft-lora with a rank, or merge."
        )

    def config(self, attachment: Attachment) -> dict[str, Any]:
        return {"peft_type": "RANDLORA"}


#: PEFT's name -> how it is read and written, of all types
TYPES: dict[str, PeftType] = SAME | ALIKE | {"OFT": OFTType(), "RANDLORA": RandLoRAType()}
