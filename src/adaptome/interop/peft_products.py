"""LoHa and LoKr as PEFT stores them: what its tensors and settings are called, for writing and for reading."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from adaptome.core.adapter import Adapter
from adaptome.core.errors import MergeError
from adaptome.core.hosts import Conv1DHost
from adaptome.core.state import Attachment

#: method -> our name of a tensor -> PEFT's
KEYS = {
    "loha": {"A1": "hada_w1_b", "B1": "hada_w1_a", "A2": "hada_w2_b", "B2": "hada_w2_a"},
    "lokr": {
        "C": "lokr_w1", "Cb": "lokr_w1_a", "Ca": "lokr_w1_b", "D": "lokr_w2", "B": "lokr_w2_a", "A": "lokr_w2_b",
    },
}  # fmt: skip
#: settings of PEFT's that are read, or act on training alone
KNOWN = {
    "alpha", "decompose_both", "decompose_factor", "init_weights", "module_dropout", "rank_dropout", "rank_dropout_scale",
}  # fmt: skip


def product_tensors(attachment: Attachment) -> dict[str, Tensor]:
    """The tensors of every adapter by PEFT's names, without its prefix.

    Raises:
        MergeError: PEFT has no such adapter on a layer, or computes something else.
    """
    tensors: dict[str, Tensor] = {}
    for path, adapter in attachment.adapters.items():
        host = adapter.host
        if not same_in_peft(adapter):
            raise MergeError(
                f"{path}: PEFT computes something else than a Kronecker product of a whole second factor on a Conv1d.\n"
                "  Merge into the model instead, or leave it out of the targets."
            )
        if not isinstance(host.layer, (nn.Linear, nn.Conv1d, nn.Conv2d)) or isinstance(host, Conv1DHost):
            raise MergeError(
                f"{path} is a {host!r}: peft-{attachment.method.name} is written for linear layers, Conv1d and Conv2d.\n"
                "  Merge into the model instead, or leave it out of the targets."
            )
        for name, parameter in adapter.named_parameters():
            value = parameter.detach().cpu().clone()
            if name == "D" and host.kind == "conv":
                kernel = host.stored("weight").shape[2:]
                value = value.view(value.shape[0], -1, *kernel)
            tensors[f"{path}.{KEYS[attachment.method.name][name]}"] = value
    return tensors


def same_in_peft(adapter: Adapter) -> bool:
    """Whether PEFT computes the same: on a Conv1d it takes the product with a three-dimensional w2 along the wrong axes."""
    return not (isinstance(adapter.host.layer, nn.Conv1d) and adapter._parameters.get("D") is not None)


def product_config(attachment: Attachment) -> dict[str, Any]:
    """PEFT's settings: the ranks and alphas as the adapters have them, layer by layer where they differ.

    Raises:
        MergeError: layers differ in a setting that PEFT has once for all.
    """
    method: Any = attachment.method
    fixed = {"factor", "decompose_both"} & {key for own in attachment.per_layer.values() for key in own}
    if fixed:
        raise MergeError(
            f"per_layer sets {', '.join(sorted(fixed))}, which PEFT has once for all layers.\n  Export with one setting, or merge."
        )
    adapters: dict[str, Any] = attachment.adapters
    ranks = {path: _rank(dict(adapter.named_parameters())) for path, adapter in adapters.items()}
    alphas = {path: a.scale * a.strength * ranks[path] for path, a in adapters.items()}
    config = {
        "peft_type": method.name.upper(), "r": next(iter(ranks.values())), "alpha": next(iter(alphas.values())),
        "rank_pattern": _pattern(ranks), "alpha_pattern": _pattern(alphas), "rank_dropout": 0.0, "module_dropout": 0.0,
        "init_weights": True, "use_effective_conv2d": False,
    }  # fmt: skip
    if method.name == "lokr":
        config |= {"decompose_factor": method.factor, "decompose_both": method.decompose_both}
    return config


def _rank(own: dict[str, Tensor]) -> int:
    """The rank of an adapter; where both factors are whole matrices, one that makes PEFT keep them whole."""
    if "A1" in own:
        return own["A1"].shape[0]
    return own["B"].shape[1] if "B" in own else own["Cb"].shape[1] if "Cb" in own else max(own["D"].shape)


def _pattern(values: dict[str, Any]) -> dict[str, Any]:
    """Nothing where all are equal; else each, longer paths first, for PEFT takes the first that a path ends in."""
    if len(set(values.values())) == 1:
        return {}
    return {path: values[path] for path in sorted(values, key=len, reverse=True)}
