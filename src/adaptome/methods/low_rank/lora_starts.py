"""Starts of LoRA that are made from data, or from what quantisation lost.

    eva(model, batches, LoRA(r=8))      A = the main directions of each layer's inputs, and ranks where they explain most
    corda(model, batches, LoRA(r=8))    B A = a part of the weight, cut where the inputs' covariance says
    loftq(model, full, LoRA(r=8))       B A = the leading part of what a quantised base lacks of the full one
    cloq(model, full, batches, ...)     the same, measured by the layers' outputs on data

Each attaches a LoRA and sets its factors. Data is run through the model as it is: call `model.eval()` before, to leave dropout out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptome.core.attaching import attach
from adaptome.core.errors import DataError, HostError, MethodError
from adaptome.core.hosts import Host
from adaptome.core.inputs import Run, collect, gram, run
from adaptome.core.method import get_method
from adaptome.core.plan import Plan
from adaptome.core.state import attachment_of
from adaptome.forms.starts import Started, StartReport, damped, full_weight, hosts_of, size
from adaptome.methods.low_rank.lora import FromWeight, LoRA, LoRAAdapter, balanced, leading
from adaptome.quantization import packed

# -- EVA -----------------------------------------------------------------------------------------------------------


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
    method = _plain("eva", method)
    if rho < 1:
        raise MethodError(f"eva: rho = {rho} is below 1: the layers could not hold r a layer on average.")
    hosts, most = _linear("eva", model, targets, method), math.ceil(rho * method.r)
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
    for path, adapter in _factors(model, name, LoRAAdapter):
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


# -- CorDA ---------------------------------------------------------------------------------------------------------


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
    method = _plain("corda", method).replace(init="corda")  # type: ignore[assignment]
    assert isinstance(method, LoRA)
    hosts = _linear("corda", model, targets, method)
    if mode not in ("instruction", "knowledge"):
        raise MethodError(f"corda: mode = {mode!r} must be 'instruction' or 'knowledge'.")
    moments = collect(
        model, batches, hosts, run, lambda old, x: x.t() @ x if old is None else old + x.t() @ x
    )
    plan = attach(model, method, name, targets=[f"={host.name}" for host in hosts], **how)
    for path, adapter in _factors(model, name, FromWeight):
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


# -- LoftQ ---------------------------------------------------------------------------------------------------------


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
    method = _plain("loftq", method)
    if steps < 1:
        raise MethodError(f"loftq: steps = {steps} must be at least 1.")
    hosts = _hosts(model, targets, method)
    _quantised("loftq", hosts)
    weights = dict(full.named_parameters()) if isinstance(full, nn.Module) else full
    wanted = [full_weight("loftq", host, weights) for host in hosts]
    made = {host.name: _alternate(host, W, method.r, steps) for host, W in zip(hosts, wanted, strict=True)}
    plan = attach(model, method, name, targets=[f"={path}" for path in made], **how)
    for path, adapter in _factors(model, name, LoRAAdapter):
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


# -- CLoQ ----------------------------------------------------------------------------------------------------------


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
    method = _plain("cloq", method)
    hosts = _linear("cloq", model, targets, method)
    _quantised("cloq", hosts)
    weights = dict(full.named_parameters()) if isinstance(full, nn.Module) else full
    D = {host.name: (full_weight("cloq", host, weights) - host.weight()).double() for host in hosts}
    grams = collect(model, batches, hosts, run, gram)
    plan = attach(model, method, name, targets=[f"={host.name}" for host in hosts], **how)
    layers = []
    for path, adapter in _factors(model, name, LoRAAdapter):
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


def _quantised(what: str, hosts: Sequence[Host]) -> None:
    plain = [host.name for host in hosts if not host.packed]
    if plain:
        raise HostError(
            f"{what}: {plain[0]} is not quantised: there is nothing that its start could make up for.\n  Quantise the base first, or attach lora as it is."
        )


# -- what they share -----------------------------------------------------------------------------------------------


def _plain(what: str, method: LoRA | None) -> LoRA:
    """The method, which must not bring a start of its own."""
    chosen = get_method(LoRA if method is None else method)
    if not isinstance(chosen, LoRA) or chosen.init != "kaiming":
        raise MethodError(
            f"{what} sets the start of a LoRA; it was given {chosen!r}.\n  Give ad.LoRA(r=...) without init."
        )
    return chosen


def _hosts(model: nn.Module, targets: str | Sequence[str], method: LoRA) -> list[Host]:
    hosts = hosts_of(model, targets, method)
    for host in hosts:
        if method.r > min(host.fan_in, host.fan_out):
            raise MethodError(
                f"r = {method.r} is above the rank of {host.name}, {min(host.fan_in, host.fan_out)}."
            )
    return hosts


def _linear(what: str, model: nn.Module, targets: str | Sequence[str], method: LoRA) -> list[Host]:
    hosts = _hosts(model, targets, method)
    for host in hosts:
        if host.kind != "linear":
            raise HostError(
                f"{what} reads the inputs of linear layers; {host.name} is a {host.kind}. Name other targets."
            )
    return hosts


def _factors(model: nn.Module, name: str, kind: type[Any]) -> list[tuple[str, Any]]:
    adapters = attachment_of(model, name).adapters
    assert all(isinstance(adapter, kind) for adapter in adapters.values())
    return list(adapters.items())
