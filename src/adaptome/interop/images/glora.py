"""GLoRA as LyCORIS has it: dW = (W a1 a2 + b1 b2) alpha / r, our `glora` with product='matrix' and nothing of the bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from adaptome.core.errors import KeyMismatchError, MergeError
from adaptome.interop.images.algorithms import Algorithm, Roles, matrix, number

_FORMS = {"A": "lora", "B": "lora", "C": "none", "D": "none", "E": "none", "product": "matrix"}
_NAMES = {"a1": "terms.A.down", "a2": "terms.A.up", "b1": "terms.B.down", "b2": "terms.B.up"}


class GLoRA(Algorithm):
    """a1 [in, r], a2 [r, in], b1 [out, r], b2 [r, in]; linear layers."""

    method = "glora"
    marks = ("a1", "a2", "b1", "b2")
    roles = (*marks, "alpha")
    needed = marks

    def read(self, roles: Roles, layer: nn.Module, where: str) -> tuple[dict[str, Any], Roles]:
        if not isinstance(layer, nn.Linear):
            raise KeyMismatchError(f"{where}: glora on a convolution is not read.\n  Nothing was loaded.")
        ours = {key: matrix(roles[role], where, role) for role, key in _NAMES.items()}
        r = ours["terms.A.up"].shape[0]
        scale = number(roles, "alpha", r, where) / r
        return {"r": r, **_FORMS}, {k: v * scale if k.endswith(".up") else v for k, v in ours.items()}

    def write(self, adapter: Any) -> Roles:
        own = dict(adapter.named_parameters())
        if set(own) != set(_NAMES.values()) or not adapter.matrix or adapter.host.kind != "linear":
            raise MergeError(
                f"{adapter.host.name}: LyCORIS has glora on linear layers with A='lora', B='lora', C, D and E 'none' and product='matrix'.\n  Merge, or give rank= for LoRA."
            )
        if adapter.strength != 1.0:
            raise MergeError(f"{adapter.host.name} runs with another weight than 1, which glora has no place for.")  # fmt: skip
        made = {role: own[key].detach().float().cpu().clone() for role, key in _NAMES.items()}
        return made | {"alpha": torch.tensor(float(made["a2"].shape[0]))}
