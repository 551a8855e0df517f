"""DiffoRA's search: a logit for every module, the gates made of them, and what they select."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Adapter
from adaptome.core.hosts import Host
from adaptome.forms.bilevel import Bilevel
from adaptome.forms.low_rank import FactorPair
from adaptome.forms.sharded import drawing, still, write

if TYPE_CHECKING:
    from adaptome.methods.low_rank.diffora import DiffoRA


class Matrix(Bilevel):
    """The logits of all modules, one row a block, and what was chosen."""

    chosen: Tensor
    discrete: Tensor

    def __init__(self, hosts: Sequence[Host], lookahead: float):
        super().__init__("diffora", lookahead)
        self.names = [host.name for host in hosts]
        self.rows = [-1 if host.index is None else host.index for host in hosts]
        self.logits = nn.Parameter(torch.randn(len(hosts)) * 1e-3)
        self.register_buffer("chosen", torch.ones(len(hosts), dtype=torch.bool))
        self.register_buffer("discrete", torch.tensor(False))


class Candidate(FactorPair):
    """The pair of one module while it is searched, gated."""

    rebuilt = ("members",)
    members: Tensor

    def __init__(self, method: DiffoRA, host: Host, shared: Matrix):
        super().__init__(host, method.r, method.scale, method.dropout, shared)
        self.relaxation, self.scaled = method.relaxation, method.scaled
        self.own = shared.names.index(host.name)
        members = [i for i, row in enumerate(shared.rows) if row == shared.rows[self.own]]
        self.place = members.index(self.own)
        self.register_buffer("members", torch.tensor(members))

    def gate(self) -> Tensor:
        """g."""
        matrix: Matrix = self.shared
        logits = still(matrix.logits) if matrix.phase == "adapters" else matrix.logits
        logits = (logits.full_tensor() if hasattr(logits, "full_tensor") else logits).to(self.B.dtype)
        if self.relaxation == "sigmoid":
            soft = logits[self.own].sigmoid()
        else:
            soft = logits[self.members].softmax(0)[self.place] * (len(self.members) if self.scaled else 1)
        return torch.where(matrix.discrete, matrix.chosen[self.own].to(soft.dtype), soft)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.shared.seen(self.A), self.shared.seen(self.B) * self.gate()

    @torch.no_grad()
    def redraw(self) -> None:
        """Start again, the same on every process and at every resume."""
        drawn = torch.rand(self.A.shape, generator=drawing(f"diffora:{self.host.name}"), device="cpu") * 2 - 1
        write(self.A, drawn * self.host.fan_in**-0.5)
        self.B.zero_()


def gates_of(adapters: Mapping[str, Adapter]) -> dict[str, float]:
    """g of every module."""
    return {name: float(a.gate()) for name, a in adapters.items() if isinstance(a, Candidate)}


def select(method: DiffoRA, shared: Matrix, gates: Mapping[str, float]) -> list[str]:
    """The modules with the largest gates, of every row or of all; of equal ones, those that come first."""
    rows: dict[int, list[str]] = {}
    for name, row in zip(shared.names, shared.rows, strict=True):
        rows.setdefault(row if method.scope == "row" else 0, []).append(name)
    best = {
        name
        for members in rows.values()
        for name in sorted(members, key=lambda n: -gates[n])[: math.ceil(method.ratio * len(members) - 1e-9)]
    }
    return [name for name in shared.names if name in best]


def smallest_gram_eigenvalue(outputs: Tensor, parameters: Sequence[Tensor]) -> float:
    """The smallest eigenvalue of the Gram matrix of the outputs' gradients, by which the paper bounds convergence and generalisation.

    Args:
        outputs: `[samples]`, one number for each sample of a small batch, with its graph.
        parameters: of the modules in question.
    """
    rows = []
    for output in outputs:
        gradients = torch.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
        rows.append(torch.cat([g.double().flatten() for g in gradients if g is not None]))
    J = torch.stack(rows)
    return float(torch.linalg.eigvalsh(J @ J.T)[0])
