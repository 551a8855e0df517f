"""DiffoRA: learn which modules get an adapter, then train those."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from adaptome.core.adapter import Adapter, Frozen, WeightAdapter
from adaptome.core.errors import MethodError, StateError, did_you_mean
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.core.state import attachment_of
from adaptome.core.steer import require
from adaptome.forms.low_rank import FactorPair, LowRank, group_of, kaiming
from adaptome.forms.sharded import still, write


@register(
    "diffora", subcategory="low-rank, learned selection", export="low-rank",
    source="Jiang et al. 2025, arXiv:2502.08905",
)  # fmt: skip
class DiffoRA(Method):
    r"""DiffoRA: learn which modules get an adapter, then train those.

        y = W x + g (alpha / r) B A x,    g = N softmax(a)_j over the N modules of a block, later 0 or 1

    when        a search for the modules that deserve an adapter can be afforded
    search      with `selected` not given: the first `search` of the steps train the adapters and the logits a in turn, each step one of
                them on its own batch (first-order bilevel; after `warmup` of the search on adapters alone, for B = 0 gives a no
                gradient). Then the K = ceil(ratio N) largest of each block have g = 1, the others 0, and training goes on
    lookahead   xi > 0 is the second order: a step on the logits follows the gradient of L_val(w - xi dL_train(w, a)/dw, a) in a, w being
                A and B of all modules: exactly, by a backward through that one step (no finite differences; attention runs as plain
                products in it). It needs a loop of your own, without gradient checkpointing, that tells the training loss:
                `with ad.steer(train_loss=lambda: loss(model, train_batch)): loss(model, validation_batch).backward()`
    final       `final(model)` gives the method with what was found as `selected`, to attach afresh: selected modules have a pair of
                their own; of the others, those of one role and shape share a pair ('shared_pair'), or B ('shared_B'), or have none
    shapes      A [r, in], B [out, r]; a one number per module
    init        A Kaiming-uniform(a = sqrt 5), B = 0: starts as the base; a ~ N(0, 0.001^2), so g is near 1
    parameters  search: r (in + out) + 1 per module; final: r (in + out) per selected module and per shared pair: 442,368 for RoBERTa-base,
                3 attention modules of 6 in every block, r = 8, and 110,592 for 6 shared pairs
    merge       exact; export: peft-lora, exact
    source      Jiang et al. 2025, arXiv:2502.08905. No code is published; relaxation, sharing, schedule and all defaults are our reading of the
                abstract and of summaries, hence options
    """

    r: int = option(8, at_least=1, help="rank of the update")
    alpha: float = option(16.0, help="the update is scaled by alpha / r")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input")
    selected: tuple[str, ...] | None = option(
        None, help="modules with an adapter of their own; None searches for them"
    )
    ratio: float = option(0.5, above=0, at_most=1, help="share of the modules that is selected")
    scope: Literal["row", "global"] = option("row", help="select in every block, or over all of them")
    relaxation: Literal["softmax", "sigmoid"] = option("softmax", help="how logits become gates")
    scaled: bool = option(True, help="multiply the softmax by N, so that gates are 1 on average")
    search: float = option(0.15, at_least=0, at_most=1, help="share of the steps that search")
    warmup: float = option(0.1, at_least=0, below=1, help="share of the search that trains adapters alone")
    bilevel: bool = option(True, help="train logits and adapters in turn, on separate batches; else together")
    lookahead: float = option(
        0.0,
        at_least=0,
        help="xi, the step of the adapters that the logits look ahead by; 0 is the first order",
    )
    warm_start: bool = option(
        False, help="keep the search's adapters, scaled by their gates, instead of drawing new ones"
    )
    sharing: Literal["shared_pair", "shared_B", "none"] = option(
        "shared_pair", help="what modules that are not selected have"
    )

    def validate(self) -> None:
        if self.lookahead and not self.bilevel:
            raise MethodError(
                "diffora: lookahead is for a search on two levels; set bilevel=True, or lookahead=0."
            )

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.alpha / self.r

    def _pairs(self, hosts: Sequence[Host]) -> dict[str, Host]:
        """Groups of modules that are not selected, each with one of its hosts."""
        own = set(self.selected or ())
        dropped = [host for host in hosts if host.name not in own] if self.sharing != "none" else []
        return {group_of(host): host for host in dropped}

    def parameters(self, host: Host) -> int:
        dropped = self.selected is not None and host.name not in self.selected
        if dropped:
            return self.r * host.fan_in * host.copies if self.sharing == "shared_B" else 0
        return self.r * (host.fan_in + host.fan_out) * host.copies

    def shared_parameters(self, hosts: Sequence[Host]) -> int:
        if self.selected is None:
            return len(hosts)
        whole = self.sharing == "shared_pair"
        return sum(self.r * (h.fan_out + whole * h.fan_in) * h.copies for h in self._pairs(hosts).values())

    def shared(self, hosts: Sequence[Host]) -> nn.Module:
        if self.selected is None:
            return Matrix(hosts, self.lookahead)
        names = [host.name for host in hosts]
        for name in self.selected:
            if name not in names:
                raise MethodError(
                    f"diffora: selected names {name!r}, which is not among the {len(names)} targets.{did_you_mean(name, names)}"
                )
        return Pairs(self, self._pairs(hosts))

    def adapter(self, host: Host, shared: nn.Module | None = None) -> WeightAdapter:
        if isinstance(shared, Matrix):
            return Candidate(self, host, shared)
        if host.name in (self.selected or ()):
            return FactorPair(host, self.r, self.scale, self.dropout)
        return Dropped(host) if self.sharing == "none" else SharedPair(self, host, shared)

    def on_step(
        self, adapters: Mapping[str, Adapter], shared: nn.Module | None, step: int, total: int
    ) -> None:
        if not isinstance(shared, Matrix):
            return
        shared.put_back()
        steps = int(self.search * total)
        if step >= steps and not bool(shared.discrete):
            self._discretise(adapters, shared)
        if step >= steps:
            shared.phase = "adapters"
        elif self.bilevel:
            first = max(int(self.warmup * steps), 1)
            logits = step >= first and (step - first) % 2 == 0
            shared.phase = "logits" if logits else "adapters"
            shared.hold([p for a in adapters.values() for p in a.parameters()] if logits else [shared.logits])

    @torch.no_grad()
    def _discretise(self, adapters: Mapping[str, Adapter], shared: Matrix) -> None:
        gates = gates_of(adapters)
        chosen = set(select(self, shared, gates))
        for name, adapter in adapters.items():
            assert isinstance(adapter, Candidate)
            shared.chosen[shared.names.index(name)] = name in chosen
            if self.warm_start:
                adapter.B.mul_(gates[name])
            else:
                adapter.redraw()
        shared.discrete.fill_(True)


class Matrix(nn.Module):
    """The logits of all modules, one row a block, and what was chosen."""

    chosen: Tensor
    discrete: Tensor

    def __init__(self, hosts: Sequence[Host], lookahead: float):
        super().__init__()
        self.names, self.lookahead = [host.name for host in hosts], lookahead
        self.rows = [-1 if host.index is None else host.index for host in hosts]
        self.logits = nn.Parameter(torch.randn(len(hosts)) * 1e-3)
        self.register_buffer("chosen", torch.ones(len(hosts), dtype=torch.bool))
        self.register_buffer("discrete", torch.tensor(False))
        #: what the coming step trains
        self.phase: Literal["both", "adapters", "logits", "ahead", "behind"] = "both"
        self._held: list[tuple[nn.Parameter, Tensor]] = []
        #: of the second order: the loss that was looked ahead on, and what stands for each of the adapters' tensors
        self._train_loss: Callable[[], Tensor] | None = None
        self._ahead: dict[int, Tensor] = {}

    def hold(self, parameters: Iterable[nn.Parameter]) -> None:
        """Remember what the step must not move: without a gradient, momentum still may."""
        self._held = [(p, p.detach().clone()) for p in parameters]

    @torch.no_grad()
    def put_back(self) -> None:
        """Undo what moved all the same."""
        for parameter, value in self._held:
            parameter.copy_(value)
        self._held = []
        self._train_loss, self._ahead = None, {}

    def seen(self, parameter: nn.Parameter) -> Tensor:
        """A tensor of an adapter as the coming step reads it: itself, itself without gradient, or where a step on the training loss leads."""
        if self.phase in ("both", "adapters"):
            return parameter
        if not self.lookahead or not torch.is_grad_enabled():
            return still(parameter)
        if self.phase == "behind":
            raise StateError(
                "diffora with lookahead: gradient checkpointing would run the training step again with other adapters.\n"
                "  Turn it off for the search, or set lookahead=0."
            )
        if self.phase == "logits":
            train_loss = require("train_loss", "diffora with lookahead")
            if train_loss is not self._train_loss:
                self._look_ahead(train_loss)
        return self._ahead[id(parameter)]

    def _look_ahead(self, train_loss: Callable[[], Tensor]) -> None:
        """Make `w - xi dL_train(w, a) / dw` of all the adapters' tensors w, differentiable in a."""
        w = [parameter for parameter, _ in self._held]
        leaves = [p.detach().requires_grad_() for p in w]
        self.phase, self._ahead = "ahead", {id(p): leaf for p, leaf in zip(w, leaves, strict=True)}
        try:
            with sdpa_kernel(SDPBackend.MATH):  # the other kernels cannot be differentiated twice
                loss, self.phase = train_loss(), "behind"
                steps = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
        finally:
            self.phase, self._train_loss = "logits", None
        self._ahead = {id(p): still(p) - self.lookahead * step for p, step in zip(w, steps, strict=True)}
        self._train_loss = train_loss

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out what belongs to a running graph."""
        return {**self.__dict__, "_train_loss": None, "_ahead": {}}


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
        digest = hashlib.sha256(f"diffora:{self.host.name}".encode()).digest()[:7]
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        drawn = torch.rand(self.A.shape, generator=generator, device="cpu") * 2 - 1
        write(self.A, drawn * self.host.fan_in**-0.5)
        self.B.zero_()


class Pairs(nn.Module):
    """The pairs (or B alone) that modules of one role and shape share."""

    def __init__(self, method: DiffoRA, groups: Mapping[str, Host]):
        super().__init__()
        self.A, self.B = nn.ParameterDict(), nn.ParameterDict()
        for group, host in groups.items():
            self.B[group] = nn.Parameter(torch.zeros(*host.lead, host.fan_out, method.r))
            if method.sharing == "shared_pair":
                self.A[group] = nn.Parameter(kaiming(torch.empty(*host.lead, method.r, host.fan_in)))


class SharedPair(LowRank):
    """A module that was not selected: it shares its factors, or B alone."""

    def __init__(self, method: DiffoRA, host: Host, shared: nn.Module | None):
        super().__init__(host, method.scale, method.dropout, shared)
        self.group = group_of(host)
        own = method.sharing == "shared_B"
        self.A = nn.Parameter(kaiming(torch.empty(*host.lead, method.r, host.fan_in))) if own else None

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.shared.A[self.group] if self.A is None else self.A, self.shared.B[self.group]


class Dropped(WeightAdapter):
    """A module that was not selected and has nothing."""

    fast = True
    additive = True

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
        return frozen(*args, **kwargs)

    def changed(self, name: str, value: Tensor) -> Tensor:
        return value

    def as_lora(self) -> tuple[Tensor, Tensor]:
        """Factors that are 0."""
        host = self.host
        return torch.zeros(*host.lead, 1, host.fan_in), torch.zeros(*host.lead, host.fan_out, 1)


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


@torch.no_grad()
def final(model: nn.Module, name: str = "default") -> DiffoRA:
    """The method with the selection that a search on this model found, or would make now.

    Raises:
        MethodError: the adapter is not a DiffoRA search.
    """
    attachment = attachment_of(model, name)
    shared, method = attachment.shared, attachment.method
    if not isinstance(shared, Matrix) or not isinstance(method, DiffoRA):
        raise MethodError(
            f"{name!r} is {method.name} without a search: attach diffora without `selected` first."
        )
    # once the search is over its gates are 1 and 0, so that they are selected again
    return method.replace(selected=tuple(select(method, shared, gates_of(attachment.adapters))))  # type: ignore[return-value]


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
