"""FISH mask: train the entries of the weights with the most Fisher information."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.attaching import attach
from adaptome.core.errors import DataError, HostError, MethodError
from adaptome.core.hosts import Host, host_of
from adaptome.core.method import Method, option, register
from adaptome.core.plan import Plan
from adaptome.core.state import attachment_of
from adaptome.core.targets import resolve
from adaptome.forms.sparse import SparseAdapter, places, size


@register(
    "fish-mask", category="selective", subcategory="automatic", structure_changed=False,
    source="Sung et al. 2021, arXiv:2111.09839, section 3",
)  # fmt: skip
class FishMask(Method):
    r"""FISH mask: train the entries of the weights with the most Fisher information.

        W' = W + M * D,    M has its n ones where F = mean_x (d log p(y | x) / dW)^2 is largest

    when        far less than 1 % of the weights may change, and a few batches are at hand to choose them
    shapes      W [out, in]; stored are the n places and the n values, never D
    init        values 0: starts as the base
    use         `fish_mask(model, batches, loss, k)` scores a few batches, takes the k best entries of all layers together and attaches;
                attached by name, without scores, it takes the n largest weights of each layer
    parameters  n per layer, k in all
    forward     as sparse-delta
    merge       exact; export: peft-lora by SVD, its error told
    source      Sung et al. 2021, arXiv:2111.09839, section 3: the empirical Fisher information, its diagonal, chosen once
    """

    n: int = option(1000, at_least=1, help="trained entries per weight")

    def parameters(self, host: Host) -> int:
        return min(self.n, size(host))

    def adapter(self, host: Host, shared: nn.Module | None = None) -> SparseAdapter:
        return SparseAdapter(host, places(host, self.n, "largest"))


Loss = Callable[[nn.Module, Any], Tensor]


def fisher(
    model: nn.Module, batches: Iterable[Any], loss: Loss, targets: str | Sequence[str] = "all-linear"
) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information of every target's weight, `[*, out, in]` by name.

    Args:
        model: the base; it is run as it is (call `eval()` before, to leave dropout out) and left unchanged.
        batches: a few; of one sample each for the exact value, larger ones square the mean of their samples' gradients.
        loss: of the model on a batch, the mean of -log p(y | x).
        targets: as for `attach`.

    Raises:
        HostError: a target is quantised.
        DataError: there are no batches.
    """
    hosts = [host_of(m.module, m.path, m.parameter, m.role, m.layer) for m in resolve(model, targets)]
    packed = [host.name for host in hosts if host.packed]
    if packed:
        raise HostError(
            f"{packed[0]} is quantised: its weight has no gradient to score.\n  Score the full-precision base; the adapter loads on the quantised one."
        )
    weights = [host.stored(host.parameter) for host in hosts]
    trained = [weight.requires_grad for weight in weights]
    scores = [torch.zeros(host.shape, device=host.device) for host in hosts]
    count = 0
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for batch in batches:
            gradients = torch.autograd.grad(loss(model, batch), weights, allow_unused=True)
            for host, score, gradient in zip(hosts, scores, gradients, strict=True):
                if gradient is not None:
                    score += host.canonical(gradient).float().square()
            count += 1
    finally:
        for weight, was in zip(weights, trained, strict=True):
            weight.requires_grad_(was)
    if not count:
        raise DataError("fish-mask: there are no batches to score.")
    return {host.name: score / count for host, score in zip(hosts, scores, strict=True)}


def fish_mask(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    k: int,
    targets: str | Sequence[str] = "all-linear",
    name: str = "default",
    **how: Any,
) -> Plan:
    """Score the weights and attach a mask on the k entries with the largest scores of all layers together.

    Args:
        model, batches, loss, targets: as for `fisher`.
        k: trained numbers in all; layers without one of them get no adapter.
        name: of the adapter.
        how: further arguments of `attach`.

    Raises:
        MethodError: k is not between 1 and the number of weights.
    """
    scores = fisher(model, batches, loss, targets)
    total = sum(score.numel() for score in scores.values())
    if not 1 <= k <= total:
        raise MethodError(f"fish-mask: k = {k} is not between 1 and the {total:,} weights of the targets.")
    best = {path: score.flatten().topk(min(k, score.numel())) for path, score in scores.items()}
    threshold = torch.cat([b.values.cpu() for b in best.values()]).topk(k).values[-1]
    above = {path: int((b.values > threshold).sum()) for path, b in best.items()}
    left = k - sum(above.values())  # of the entries that equal the threshold, those that come first
    chosen: dict[str, Tensor] = {}
    for path, found in best.items():
        equal = min(int((found.values == threshold).sum()), left)
        left -= equal
        if above[path] + equal:
            chosen[path] = found.indices[: above[path] + equal]
    per_layer = {f"={path}": {"n": len(index)} for path, index in chosen.items()}
    plan = attach(model, FishMask(n=1), name, targets=list(per_layer), per_layer=per_layer, **how)
    for path, index in chosen.items():
        adapter = attachment_of(model, name).adapters[path]
        assert isinstance(adapter, SparseAdapter)
        adapter.index.copy_(index.sort().values)
    return plan
