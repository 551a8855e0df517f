"""AdaLoRA: a rank budget that moves to the layers where it matters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Adapter
from adaptome.core.errors import MethodError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.low_rank import LowRank
from adaptome.forms.sharded import mean_over_processes, whole, write


@register(
    "adalora", subcategory="low-rank, adaptive", export="low-rank",
    source="Zhang et al. 2023, arXiv:2303.10512, sections 3.1-3.3",
)  # fmt: skip
class AdaLoRA(Method):
    r"""AdaLoRA: a rank budget that moves to the layers where it matters.

        y = W x + (alpha / r0) P diag(E) Q x,    loss + orthogonal * mean_M |M M^T - 1|_F^2  over all Q and P^T

    when        layers need different ranks, and the total is known, not the split
    shapes      W [out, in] frozen; P [out, r0], E [r0], Q [r0, in]; a triplet is a column of P, its entry of E and its row of Q
    init        P, Q ~ N(0, 0.02^2), E = 0: starts as the base; r0 = `init_r`
    budget      b(t) = n (r + (r0 - r) (1 - (t - ti) / (T - ti - tf))^3) triplets in all n layers, from n r0 (t < ti) to n r (the last tf
                steps); after the steps that `interval` divides, and after T - tf, the least important are zeroed; they may come back
                until then
    importance  of a triplet: s(E) + mean s(P column) + mean s(Q row), s = I U, I and U the moving averages of |w dL/dw| and of how far
                it strays from I; w as the step left it, dL/dw as the optimiser took it (clipped), up to T - tf
    parameters  r0 (in + out) + r0 per layer: 6,292,224 for LLaMA-2-7B, q and v, r = 8, r0 = 12
    stored      the averages too, so that a resumed run repeats the bits: three times the parameters
    merge       exact; export: peft-lora, exact
    source      Zhang et al. 2023, arXiv:2303.10512, sections 3.1-3.3; times and importance as the authors' and PEFT's code have them
                (the authors' last allocation is a step after T - tf where `interval` does not divide it); PEFT takes the penalty's norms unsquared
    """

    r: int = option(8, at_least=1, help="triplets per layer at the end, on average")
    init_r: int | None = option(
        None, at_least=1, help="triplets per layer at the start; 1.5 r when not given"
    )
    alpha: float = option(16.0, help="the update is scaled by alpha / init_r")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input")
    orthogonal: float = option(0.5, at_least=0, help="weight of the orthogonality term in the loss")
    start: float = option(0.1, at_least=0, below=1, help="share of the steps before pruning begins (ti / T)")
    settled: float = option(0.3, at_least=0, below=1, help="share of the steps after pruning ends (tf / T)")
    interval: int = option(10, at_least=1, help="steps between prunings")
    beta1: float = option(0.85, at_least=0, below=1, help="of the average of |w dL/dw|")
    beta2: float = option(0.85, at_least=0, below=1, help="of the average of its deviation")

    @property
    def initial(self) -> int:
        """r0."""
        return -(-3 * self.r // 2) if self.init_r is None else self.init_r

    def validate(self) -> None:
        if self.initial < self.r:
            raise MethodError(f"adalora: init_r = {self.init_r} is below r = {self.r}.")
        if self.start + self.settled >= 1:
            raise MethodError(
                f"adalora: start = {self.start} and settled = {self.settled} leave no steps to prune in."
            )

    def budget(self, step: int, total: int, first: int, last: int) -> int:
        """b(t), from `first` to `last` triplets."""
        begin, end = int(self.start * total), total - int(self.settled * total)
        left = 1 - (step - begin) / max(end - begin, 1)
        return first if step <= begin else last if step >= end else int(last + (first - last) * left**3)

    def parameters(self, host: Host) -> int:
        return self.initial * (host.fan_in + host.fan_out + 1) * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> LowRank:
        return AdaLoRAAdapter(self, host)

    def on_step(
        self, adapters: Mapping[str, Adapter], shared: nn.Module | None, step: int, total: int
    ) -> None:
        layers: list[Any] = list(adapters.values())
        begin, end = int(self.start * total), total - int(self.settled * total)
        for layer in layers:
            layer.watch()
            if step < end:
                layer.average(self.beta1, self.beta2)
            layer.forget()
        allocating = begin < step <= end and (step % self.interval == 0 or step == end)
        if allocating:
            first = sum(layer.E.numel() for layer in layers)
            last = sum(layer.target for layer in layers)
            _keep(layers, self.budget(step, total, first, last))
        if allocating or step > end:
            for layer in layers:
                layer.prune()

    def penalty(self, adapters: Mapping[str, Any], shared: nn.Module | None) -> Tensor | None:
        """`orthogonal` times the mean of `|M M^T - 1|_F^2` over all Q and P^T."""
        if not self.orthogonal:
            return None
        matrices = [M for layer in adapters.values() for M in (layer.Q, layer.P.mT)]
        device = matrices[0].device
        terms = [
            (M @ M.mT - torch.eye(M.shape[-2], device=M.device, dtype=M.dtype)).square().sum((-2, -1)).mean()
            for M in matrices
        ]
        return self.orthogonal * torch.stack([t.to(device) for t in terms]).mean()


class AdaLoRAAdapter(LowRank):
    """P, E and Q of one layer, and what is known of their importance."""

    kept: Tensor

    def __init__(self, method: AdaLoRA, host: Host):
        r = method.initial
        super().__init__(host, method.alpha / r, method.dropout)
        self.target = method.r * host.copies
        self.P = nn.Parameter(torch.randn(*host.lead, host.fan_out, r) * 0.02)
        self.E = nn.Parameter(torch.zeros(*host.lead, r))
        self.Q = nn.Parameter(torch.randn(*host.lead, r, host.fan_in) * 0.02)
        self.register_buffer("kept", torch.ones(*host.lead, r, dtype=torch.bool))
        for name, parameter in list(self.named_parameters()):
            self.register_buffer(f"I_{name}", torch.zeros(parameter.shape))
            self.register_buffer(f"U_{name}", torch.zeros(parameter.shape))
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.E[..., None] * self.Q, self.P

    def train(self, mode: bool = True) -> Any:
        """Also see to it that gradients are watched: wrappers such as FSDP put new parameters in."""
        super().train(mode)
        if mode:
            self.watch()
        return self

    def watch(self) -> None:
        """Note the gradient whenever it is ready; the last of an accumulation is that of the whole step."""
        for name, parameter in self.named_parameters():
            hooks: Any = parameter._post_accumulate_grad_hooks
            watched = any(isinstance(h, _Watch) and h.adapter is self for h in (hooks or {}).values())
            if parameter.requires_grad and not watched:
                parameter.register_post_accumulate_grad_hook(_Watch(self, name))

    @torch.no_grad()
    def average(self, beta1: float, beta2: float) -> None:
        """Take the step's `|w dL/dw|` into the averages; the gradient is that of all processes."""
        parameters = dict(self.named_parameters())
        for name, (gradient, copy) in sorted(self._seen.items()):  # in one order on every process
            parameter = parameters[name]
            # what was clipped is the gradient itself; zero_grad(set_to_none=False) has zeroed it by now
            zeroed = parameter.grad is gradient and not whole(gradient).any()
            I, U = self.get_buffer(f"I_{name}"), self.get_buffer(f"U_{name}")
            product = whole(parameter * (copy if zeroed else gradient))
            seen = mean_over_processes(product.to(I.dtype)).abs()
            I.lerp_(seen, 1 - beta1)
            U.lerp_((seen - I).abs(), 1 - beta2)

    def forget(self) -> None:
        """Let go of the step's gradients."""
        self._seen = {}

    def importance(self) -> Tensor:
        """Of each triplet, `[*, r0]`."""
        s = {name: self.get_buffer(f"I_{name}") * self.get_buffer(f"U_{name}") for name in "PEQ"}
        return s["E"] + s["P"].mean(-2) + s["Q"].mean(-1)

    @torch.no_grad()
    def prune(self) -> None:
        """Zero the triplets that are not kept."""
        write(self.E, whole(self.E).masked_fill(~self.kept, 0))


class _Watch:
    """A hook on one parameter of an adapter."""

    def __init__(self, adapter: AdaLoRAAdapter, name: str):
        self.adapter, self.name = adapter, name

    @torch.no_grad()
    def __call__(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.adapter._seen[self.name] = parameter.grad, parameter.grad.clone()


def _keep(layers: list[AdaLoRAAdapter], count: int) -> None:
    """Keep the `count` most important triplets of all layers; of equal ones, those that come first."""
    scores = torch.cat([layer.importance().flatten().cpu() for layer in layers])
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[scores.sort(descending=True, stable=True).indices[:count]] = True
    for layer, part in zip(layers, kept.split([layer.E.numel() for layer in layers]), strict=True):
        layer.kept.copy_(part.view(layer.kept.shape))
