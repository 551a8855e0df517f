"""CLoQ: LoRA that starts where a quantised base's outputs come nearest to those of the full-precision one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.attaching import attach
from adaptome.core.errors import HostError
from adaptome.core.inputs import Run, collect, gram, run
from adaptome.forms.starts import Started, StartReport, damped, full_weight, size
from adaptome.methods.low_rank.lora import LoRA, LoRAAdapter, balanced, leading
from adaptome.methods.low_rank.lora_starts import factors_of, linear_hosts, plain


def cloq(
    model: nn.Module,
    full: nn.Module | Mapping[str, Tensor],
    batches: Iterable[Any],
    method: LoRA | None = None,
    targets: str | Sequence[str] = "all-linear",
    name: str = "default",
    *,
    damping: float = 1e-2,
    run: Run = run,
    **how: Any,
) -> StartReport:
    r"""Attach LoRA to a quantised base at the B A that brings the layers' outputs nearest to those of the full-precision weights.

        min over B A of rank r of ||(W0 - W - s B A) X||_F:    G = X X^T = R R^T,    s B A = [(W0 - W) R]_r R^-1

    with [.]_r the r leading singular triplets and R = U S^1/2 of G = U S U^T. It differs from LoftQ by the inputs alone: with inputs that are
    all alike, G = I, it is LoftQ with one step.
    Source: Deng et al. 2025, arXiv:2501.18475.

    Args:
        model: the quantised base.
        full: the same model before it was quantised, or its state dict.
        batches: calibration data.
        method: LoRA's settings.
        targets: quantised linear layers, as for `attach`.
        name: of the adapter.
        damping: share of G's mean diagonal that is added to it.
        run: runs the model on a batch.
        how: further arguments of `attach`.

    Raises:
        MethodError: the method has a start of its own, or r is above a weight's rank.
        HostError: a target is no linear layer, or not quantised.
        DataError: `full` lacks a weight or has it in another shape, or the batches do not reach all layers.
    """
    method = plain("cloq", method)
    hosts = linear_hosts("cloq", model, targets, method)
    if whole := [host.name for host in hosts if not host.packed]:
        raise HostError(
            f"cloq: {whole[0]} is not quantised: there is nothing that its start could make up for.\n  Quantise the base first, or attach lora as it is."
        )
    weights = dict(full.named_parameters()) if isinstance(full, nn.Module) else full
    D = {host.name: (full_weight("cloq", host, weights) - host.weight()).double() for host in hosts}
    grams = collect(model, batches, hosts, run, gram)
    plan = attach(model, method, name, targets=[f"={host.name}" for host in hosts], **how)
    layers = []
    for path, adapter in factors_of(model, name, LoRAAdapter):
        begin, E = time.perf_counter(), D.pop(path)
        G = damped(grams[path], E.shape[1], damping, E.device)
        A, B = nearest_outputs(E, G, method.r)
        with torch.no_grad():
            A, B = balanced(A, B, adapter.scale)
            adapter.A.copy_(A)
            adapter.B.copy_(B)
        left = size(E - adapter.scale * (B @ A), G)
        layers.append(Started(path, size(E, G), left, time.perf_counter() - begin))
    return StartReport(plan, tuple(layers))


def nearest_outputs(D: Tensor, G: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """A `[r, in]` and B `[out, r]` with the least `||(D - B A) X||` for the positive definite `G = X X^T`."""
    S, U = torch.linalg.eigh(G)
    root = S.clamp_min(torch.finfo(S.dtype).tiny).sqrt()
    A, B = leading(D @ (U * root), r)
    return A @ (U / root).t(), B
