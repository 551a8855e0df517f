"""DiffuseKronA: the update is a Kronecker product of two full factors of chosen shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.errors import HostError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.kronecker import Kronecker


@register(
    "diffusekrona",
    subcategory="Kronecker product",
    export="delta",
    default_targets="attention",
    budget_setting="a2",
    source="Marjit et al. 2024, arXiv:2402.17412, section 3",
)
class DiffuseKronA(Method):
    r"""DiffuseKronA: the update is a Kronecker product of two full factors of chosen shape.

        W' = W + s A (x) B;    (A (x) B) x = A X B^T with x seen as X [a2, b2]

    when        image generation from a few pictures of a subject, with smaller files than LoRA's
    shapes      A [a1, a2], B [b1, b2]; out = a1 b1, in = a2 b2; rank(A (x) B) = rank A rank B, up to full;
                convolutions: a2 divides the channels, B has the kernel's columns
    init        A ~ N(0, 1 / a1^2), B = 0: starts as the base
    parameters  p + in out / p with p = a1 a2: 3,874,560 for the attention of SDXL's UNet, 64 x 4
    forward     a2 b1 (b2 + a1) products a token (or a1 b2 (a2 + b1), when fewer) against the layer's in out: 1/16 at
                1280 x 1280 with 64 x 4; the backward keeps x alone
    merge       exact, in the layout of torch.kron (the authors' code permutes the outputs: see their flattening)
    source      Marjit et al. 2024, arXiv:2402.17412, section 3
    """

    a1: int = option(64, at_least=1, help="rows of A; must divide the layer's outputs")
    a2: int = option(4, at_least=1, help="columns of A; must divide the layer's inputs")
    scale: float = option(1.0, help="of the update")
    nearest: bool = option(False, help="where a1 or a2 does not divide, take the nearest divisor")

    def fitting(self, host: Host) -> dict[str, Any]:
        near = self.replace(nearest=True)
        assert isinstance(near, DiffuseKronA)
        fits = self.given & {"a1", "a2"} or near.sides(host) == (self.a1, self.a2)
        return {} if fits else {"nearest": True}

    def sides(self, host: Host) -> tuple[int, int]:
        """a1 and a2 on this host.

        Raises:
            HostError: when they do not divide its sides.
        """
        kernel = host.stored("weight")[0, 0].numel() if host.kind == "conv" else 1
        sides = []
        for name, wanted, size in (
            ("a1", self.a1, host.fan_out),
            ("a2", self.a2, host.fan_in // kernel),
        ):
            near = min((d for d in range(1, size + 1) if size % d == 0), key=lambda d: (abs(d - wanted), d))
            if near != wanted and not self.nearest:
                raise HostError(
                    f"{name} = {wanted} does not divide {size}; the nearest divisor is {near} (nearest=True takes it)"
                )
            sides.append(near)
        return sides[0], sides[1]

    def admits(self, host: Host) -> str | None:
        reason = super().admits(host)
        if reason is None:
            try:
                self.sides(host)
            except HostError as error:
                return str(error)
        return reason

    def parameters(self, host: Host) -> int:
        a1, a2 = self.sides(host)
        return (a1 * a2 + (host.fan_out // a1) * (host.fan_in // a2)) * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> Kronecker:
        return DiffuseKronAAdapter(self, host)


class DiffuseKronAAdapter(Kronecker):
    """A and B of one layer."""

    def __init__(self, method: DiffuseKronA, host: Host):
        super().__init__(host, method.scale)
        a1, a2 = method.sides(host)
        self.A = nn.Parameter(torch.randn(*host.lead, a1, a2) / a1)
        self.B = nn.Parameter(torch.zeros(*host.lead, host.fan_out // a1, host.fan_in // a2))

    def pair(self) -> tuple[Tensor, Tensor]:
        return self.A, self.B
