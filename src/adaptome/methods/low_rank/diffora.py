"""DiffoRA: learn which modules get an adapter, then train those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Adapter, Frozen, WeightAdapter
from adaptome.core.errors import MethodError, did_you_mean
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.core.state import attachment_of
from adaptome.forms.low_rank import FactorPair, LowRank, group_of, kaiming
from adaptome.methods.low_rank.diffora_search import Candidate, Matrix, gates_of, select


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
        return SharedFactors(self, self._pairs(hosts))

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


class SharedFactors(nn.Module):
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
