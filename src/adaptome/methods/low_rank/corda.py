"""CorDA: LoRA that starts from a part of the weight, cut where the inputs' covariance says.

Data is run through the model as it is: call `model.eval()` before, to leave dropout out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptome.core.attaching import attach
from adaptome.core.errors import DataError, MethodError
from adaptome.core.inputs import Run, collect, run
from adaptome.core.plan import Plan
from adaptome.methods.low_rank.lora import FromWeight, LoRA
from adaptome.methods.low_rank.lora_starts import factors_of, linear_hosts, plain


def corda(
    model: nn.Module,
    batches: Iterable[Any],
    method: LoRA | None = None,
    targets: str | Sequence[str] = "all-linear",
    name: str = "default",
    *,
    mode: Literal["instruction", "knowledge"] = "instruction",
    run: Run = run,
    **how: Any,
) -> Plan:
    r"""Attach LoRA that starts from a part of W, cut along the inputs' covariance; the start is subtracted, so the model starts as the base.

        W C = U diag(S) V^T,    C = X^T X;    s B0 A0 = U_r diag(S_r) V_r^T C^-1,    W' = W + s (B A - B0 A0)

    'instruction': r is the leading components on the inputs of the task to learn. 'knowledge': the last ones on inputs whose knowledge
    is to be kept. C is scaled to a mean diagonal of 1, and a hundredth of the identity is added, doubled until C can be inverted. A0 and
    B0 are saved with the adapter, for they hang on the data; export and merge are as LoRA's (rank 2r).
    Source: Yang et al. 2024, arXiv:2406.05223.

    Args:
        model, batches, method, targets, name, run, how: as for `eva`; C takes `[in, in]` numbers for every different input.
        mode: which part is adapted.

    Raises:
        MethodError: the method has a start of its own, or r is above a weight's rank.
        HostError: a target is no linear layer.
        DataError: there are no batches, or they give numbers that are not finite.
    """
    method = plain("corda", method).replace(init="corda")  # type: ignore[assignment]
    assert isinstance(method, LoRA)
    hosts = linear_hosts("corda", model, targets, method)
    if mode not in ("instruction", "knowledge"):
        raise MethodError(f"corda: mode = {mode!r} must be 'instruction' or 'knowledge'.")
    moments = collect(
        model, batches, hosts, run, lambda old, x: x.t() @ x if old is None else old + x.t() @ x
    )
    plan = attach(model, method, name, targets=[f"={host.name}" for host in hosts], **how)
    for path, adapter in factors_of(model, name, FromWeight):
        W = adapter.host.weight()
        A, B = oriented(W.to(moments[path].dtype), moments[path].to(W.device), method.r, mode)
        adapter.begin(A, B)
    return plan


def oriented(W: Tensor, C: Tensor, r: int, mode: str) -> tuple[Tensor, Tensor]:
    """A `[r, in]` and B `[out, r]` with B A the leading, or last, components of W along the covariance C `[in, in]`."""
    eye, damping = torch.eye(len(C), dtype=C.dtype, device=C.device), 0.01
    mean = C.diagonal().mean()
    if not mean.isfinite():
        raise DataError("corda: the inputs of a layer hold NaN or infinity, and have no covariance.")
    C = C / mean.clamp_min(torch.finfo(C.dtype).tiny)
    while True:
        damped = C + damping * eye
        inverse, info = torch.linalg.inv_ex(damped)
        if not info and (damped @ inverse - eye).norm() <= 0.05:
            break
        damping *= 2
    U, S, Vh = torch.linalg.svd(W @ damped, full_matrices=False)
    part = slice(r) if mode == "instruction" else slice(len(S) - r, len(S))
    root = S[part].sqrt()
    return root[:, None] * (Vh[part] @ inverse), U[:, part] * root
