"""LoftQ: LoRA that starts as the leading part of what a quantised base lacks of the full-precision one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core import packed
from adaptome.core.attaching import attach
from adaptome.core.errors import HostError, MethodError
from adaptome.core.hosts import Host
from adaptome.core.plan import Plan
from adaptome.forms.starts import full_weight
from adaptome.methods.low_rank.lora import LoRA, LoRAAdapter, balanced, leading
from adaptome.methods.low_rank.lora_starts import factors_of, hosts_of, plain


def loftq(
    model: nn.Module,
    full: nn.Module | Mapping[str, Tensor],
    method: LoRA | None = None,
    targets: str | Sequence[str] = "all-linear",
    name: str = "default",
    *,
    steps: int = 1,
    **how: Any,
) -> Plan:
    r"""Attach LoRA to a quantised base so that base and adapter together start as near as they can to the full-precision weights.

        for t = 1 .. steps:    Q = quantise(W - s B A),    s B A = the r leading singular triplets of W - Q

    The first Q is the base as it is: with one step nothing of it changes. With more, its weights are quantised anew by their own
    library and settings, so that the adapter belongs to the base that this leaves: save that too.
    Source: Li et al. 2023, arXiv:2310.08659, algorithm 1.

    Args:
        model: the quantised base.
        full: the same model before it was quantised, or its state dict.
        method: LoRA's settings.
        targets: quantised layers, as for `attach`.
        name: of the adapter.
        steps: of the alternation.
        how: further arguments of `attach`.

    Raises:
        MethodError: the method has a start of its own, r is above a weight's rank, or there are no steps.
        HostError: a target is not quantised.
        DataError: `full` lacks a weight, or has it in another shape.
    """
    method = plain("loftq", method)
    if steps < 1:
        raise MethodError(f"loftq: steps = {steps} must be at least 1.")
    hosts = hosts_of(model, targets, method)
    whole = [host.name for host in hosts if not host.packed]
    if whole:
        raise HostError(
            f"loftq: {whole[0]} is not quantised: there is nothing that its start could make up for.\n  Quantise the base first, or attach lora as it is."
        )
    weights = dict(full.named_parameters()) if isinstance(full, nn.Module) else full
    wanted = [full_weight("loftq", host, weights) for host in hosts]
    made = {host.name: _alternate(host, W, method.r, steps) for host, W in zip(hosts, wanted, strict=True)}
    plan = attach(model, method, name, targets=[f"={path}" for path in made], **how)
    for path, adapter in factors_of(model, name, LoRAAdapter):
        with torch.no_grad():
            A, B = balanced(*made[path], adapter.scale)
            adapter.A.copy_(A)
            adapter.B.copy_(B)
    return plan


@torch.no_grad()
def _alternate(host: Host, W: Tensor, r: int, steps: int) -> tuple[Tensor, Tensor]:
    """A and B of the last step; the host's weight is then the last Q."""
    A, B = leading(W - host.weight().to(W), r)
    for _ in range(steps - 1):
        packed.install(
            host.layer,
            packed.repack(host.layer, host.native(W - B @ A), host.parameter),
            host.parameter,
        )
        A, B = leading(W - host.weight().to(W), r)
    return A, B
