"""EVA: LoRA whose A starts as the main directions of each layer's inputs, with ranks where they explain most.

Data is run through the model as it is: call `model.eval()` before, to leave dropout out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.attaching import attach
from adaptome.core.errors import DataError, MethodError
from adaptome.core.inputs import Run, collect, run
from adaptome.core.plan import Plan
from adaptome.methods.low_rank.lora import LoRA, LoRAAdapter
from adaptome.methods.low_rank.lora_starts import factors_of, linear_hosts, plain


def eva(
    model: nn.Module,
    batches: Iterable[Any],
    method: LoRA | None = None,
    targets: str | Sequence[str] = "all-linear",
    name: str = "default",
    *,
    rho: float = 1.0,
    run: Run = run,
    **how: Any,
) -> Plan:
    r"""Attach LoRA with A = the right-singular vectors of the layers' inputs, B = 0: the directions in which the inputs vary most.

        X = U diag(sigma) V^T,    A = the first r rows of V^T;    share of direction j: sigma_j^2 / sum sigma^2

    With rho > 1 the ranks are given out anew: of the directions of all layers those with the largest shares, r a layer on average and
    at most rho r in one; a layer without any gets no adapter. alpha moves along, so that s is the same everywhere. X is seen batch by
    batch, `2 rho r` directions of it kept; tokens that a batch's `attention_mask` hides are left out. The model starts as the base.
    Source: Paischer et al. 2024, arXiv:2410.07170 (which stops when the directions have settled; here every batch is seen).

    Args:
        model: the base, quantised or not.
        batches: of the data to train on; a few will do.
        method: LoRA's settings.
        targets: linear layers, as for `attach`.
        name: of the adapter.
        rho: how many times r the rank of a layer may be.
        run: runs the model on a batch.
        how: further arguments of `attach`.

    Raises:
        MethodError: the method has a start of its own, or rho is below 1.
        HostError: a target is no linear layer.
        DataError: there are no batches, or they hold fewer tokens than r.
    """
    method = plain("eva", method)
    if rho < 1:
        raise MethodError(f"eva: rho = {rho} is below 1: the layers could not hold r a layer on average.")
    hosts, most = linear_hosts("eva", model, targets, method), math.ceil(rho * method.r)
    spectra = collect(model, batches, hosts, run, lambda old, x: _seen(old, x, 2 * most))
    shares = [(s.square() / total)[:most] for s, _, total in spectra.values()]
    few = min(len(share) for share in shares)
    if few < method.r:
        raise DataError(
            f"eva: the batches hold {few} directions and r is {method.r}. Give more of them, or set a smaller r."
        )
    flat = torch.cat([share.double().cpu() for share in shares])
    owner = torch.cat([torch.full((len(share),), i) for i, share in enumerate(shares)])
    ranks = owner[flat.argsort(descending=True, stable=True)[: method.r * len(hosts)]].bincount(
        minlength=len(hosts)
    )
    per_layer = {
        f"={host.name}": {"r": r, "alpha": method.scale * (r**0.5 if method.rslora else r)}
        for host, r in zip(hosts, ranks.tolist(), strict=True)
        if r
    }
    plan = attach(model, method, name, targets=list(per_layer), per_layer=per_layer, **how)
    for path, adapter in factors_of(model, name, LoRAAdapter):
        with torch.no_grad():
            adapter.A.copy_(spectra[path][1][: adapter.A.shape[0]])
    return plan


Spectrum = tuple[Tensor, Tensor, Tensor]


def _seen(old: Spectrum | None, x: Tensor, keep: int) -> Spectrum:
    """Singular values, right-singular vectors and squared norm of all inputs so far, with those of x `[tokens, in]` (incremental SVD)."""
    total = x.square().sum()
    if old is not None:
        S, V, before = old
        x, total = torch.cat([S[:, None] * V, x]), total + before
    _, S, V = torch.linalg.svd(x, full_matrices=False)
    return S[:keep], V[:keep], total
