"""GLoRA: weight and bias are scaled and shifted by trained terms of a chosen form."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptome.core.adapter import WeightAdapter
from adaptome.core.errors import MethodError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.low_rank import kaiming

Support = Literal["lora", "vector", "constant", "none"]


@register(
    "glora",
    subcategory="low-rank, generalised",
    export="delta",
    hosts=("linear", "conv"),
    source="Chavan et al. 2023, arXiv:2306.07967",
)
class GLoRA(Method):
    r"""GLoRA: weight and bias are scaled and shifted by trained terms of a chosen form.

        W' = W + W * A + B,    b' = b + b * D + E + W C;    with product='matrix': W + W A + B

    when        scale and shift of weights and biases in one method that merges; LoRA, SSF and bias tuning are cases of it
    shapes      A, B: 'lora' [out, r] [r, in], 'vector' [out, 1], 'constant' [1], 'none'; C: 'lora' [in, r] [r, 1], 'vector' [in]; D, E:
                'vector' [out], 'constant' [1]; C, D and E only where the layer has a bias
    init        the first factor of 'lora' ~ U(-1/sqrt(r), 1/sqrt(r)), all else 0: starts as the base
    parameters  with 'lora' and 'vector': 2 r (in + out) per layer, and in + 2 out with a bias
    product     'entries' multiplies entry by entry, as the authors' code; 'matrix' is a product with A [in, r] [r, in], as in LyCORIS
    forward     the layer reads W' and b'
    composition C reads the base's own weight, whatever other adapters make of it
    search      the paper picks the forms by an evolutionary search; here they are settings
    merge       exact
    export      peft-lora by SVD, its error told; refused on a layer whose bias changes
    source      Chavan et al. 2023, arXiv:2306.07967
    """

    r: int = option(4, at_least=1, help="rank of 'lora' forms")
    A: Support = option("lora", help="form of the weight's scale")
    B: Support = option("lora", help="form of the weight's shift")
    C: Literal["lora", "vector", "none"] = option("vector", help="form of the prompt-like shift W C")
    D: Literal["vector", "constant", "none"] = option("vector", help="form of the bias's scale")
    E: Literal["vector", "constant", "none"] = option("vector", help="form of the bias's shift")
    product: Literal["entries", "matrix"] = option(
        "entries", help="how W and A are multiplied; 'matrix' with A='lora'"
    )

    def validate(self) -> None:
        if self.product == "matrix" and self.A != "lora":
            raise MethodError(f"glora: product='matrix' needs A='lora'; A is {self.A!r}.")
        if self.A == self.B == "none":
            raise MethodError(
                "glora: A and B are both 'none'; the weight would not change. Give one of them a form."
            )

    def parameters(self, host: Host) -> int:
        return sum(_count(form, *shape, self.r) for form, shape in self.terms(host).values())

    def terms(self, host: Host) -> dict[str, tuple[Support, tuple[int, int]]]:
        """Form and shape of every term that a layer has."""
        out, width = host.fan_out, host.fan_in
        shapes = {"A": (width if self.product == "matrix" else out, width), "B": (out, width)}
        if host.has("bias"):
            shapes |= {"C": (width, 1), "D": (out, 1), "E": (out, 1)}
        return {
            name: (form, shape) for name, shape in shapes.items() if (form := getattr(self, name)) != "none"
        }

    def adapter(self, host: Host, shared: nn.Module | None = None) -> GLoRAAdapter:
        return GLoRAAdapter(self, host)


def _count(form: Support, rows: int, columns: int, r: int) -> int:
    return {"lora": r * (rows + columns), "vector": rows, "constant": 1, "none": 0}[form]


class Term(nn.Module):
    """One trained term of a chosen form."""

    def __init__(self, form: Support, rows: int, columns: int, r: int):
        super().__init__()
        if form == "lora":
            self.down = nn.Parameter(kaiming(torch.empty(rows, r)))
            self.up = nn.Parameter(torch.zeros(r, columns))
        else:
            self.value = nn.Parameter(torch.zeros(rows if form == "vector" else 1, 1))

    def forward(self) -> Tensor:
        """`[rows, columns]`, or what broadcasts to it."""
        return self.down @ self.up if hasattr(self, "up") else self.value


class GLoRAAdapter(WeightAdapter):
    """A to E of one layer, those that it has."""

    def __init__(self, method: GLoRA, host: Host):
        super().__init__(host)
        self.matrix = method.product == "matrix"
        self.terms = nn.ModuleDict(
            {name: Term(form, *shape, method.r) for name, (form, shape) in method.terms(host).items()}
        )
        self.changes = ("weight", "bias") if host.has("bias") else ("weight",)

    def changed(self, name: str, value: Tensor) -> Tensor:
        terms: dict[str, Any] = dict(self.terms.items())
        before = value if name == "weight" else value[:, None]
        scale, shift = ("A", "B") if name == "weight" else ("D", "E")
        after = before
        if scale in terms and self.matrix and name == "weight":
            after = after + before @ terms["A"].down.to(value.dtype) @ terms["A"].up.to(value.dtype)
        elif scale in terms:
            after = after + before * terms[scale]().to(value.dtype)
        if shift in terms:
            after = after + terms[shift]().to(value.dtype)
        if name == "bias" and "C" in terms:
            after = after + self.host.weight().to(value.dtype) @ terms["C"]().to(value.dtype)
        return after if name == "weight" else after[:, 0]
