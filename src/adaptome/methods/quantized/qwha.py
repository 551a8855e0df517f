"""QWHA: a sparse update in the Walsh-Hadamard domain, begun where quantisation lost most."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.attaching import attach
from adaptome.core.errors import HostError
from adaptome.core.hosts import Host
from adaptome.core.inputs import Run, collect, gram, run
from adaptome.core.method import Method, get_method, option, register
from adaptome.core.state import attachment_of
from adaptome.forms.delta import Delta
from adaptome.forms.hadamard import factors, transform
from adaptome.forms.sparse_rows import sparse_product
from adaptome.forms.starts import Started, StartReport, damped, full_weight, hosts_of, size


@register(
    "qwha", subcategory="spectral", export="delta", hosts=("linear", "conv", "parameter"),
    source="Jeon et al. 2025, arXiv:2509.17428, sections 3 and 4",
)  # fmt: skip
class QWHA(Method):
    r"""QWHA: a sparse update in the Walsh-Hadamard domain, begun where quantisation lost most.

        y = W x + alpha F (H^-1 x),    F sparse: F[E] = c

    when        the base has 4 bits or fewer, and the unquantised one is at hand for `qwha(model, full, ...)`
    shapes      W [out, in] frozen; H [in, in] orthonormal, on the input side alone; p places E of F [out, in], c [p]
    init        by name alone: E drawn evenly over the rows, c = 0: starts as the base
                `qwha(model, full, method, batches=...)`: for D = W0 - W and G = X X^T, row i gets a part of p in proportion to
                (||D_i X||)^t ('weight': ||D_i||), in it the coefficients (D H)_ij of largest magnitude, weighted by (H^T G H)_jj^1/2,
                and c_i = the least-squares solution on them: the model starts as near to the full one as that comes
    parameters  r (in + out) per layer, as LoRA's: 159,907,840 for LLaMA-2-7B, all-linear, r = 64
    forward     one fast transform of x and one sparse product of p numbers a token; W stays quantised
    merge       W + alpha F H^-1 is dense; export: peft-lora by SVD with its error told
    source      Jeon et al. 2025, arXiv:2509.17428, sections 3 and 4; the weighted choice is that of the authors' code ('magnitude': the
                paper's). Orders without a known H use a block-diagonal one (`adaptome.forms.hadamard`)
    """

    r: int = option(8, at_least=1, help="as many numbers as LoRA of this rank")
    alpha: float = option(1.0, help="the update is scaled by it")
    allocation: Literal["output", "weight"] = option(
        "output", help="rows are given places by the error of their outputs, or of their weights"
    )
    selection: Literal["weighted", "magnitude"] = option(
        "weighted", help="coefficients are chosen by their effect on outputs, or by magnitude alone"
    )
    temperature: float = option(1.0, at_least=0, help="t: 0 gives every row as many places")

    def parameters(self, host: Host) -> int:
        return min(self.r * (host.fan_in + host.fan_out), host.fan_in * host.fan_out)

    def admits(self, host: Host) -> str | None:
        if host.lead:
            return "it changes one matrix; this is a stack of them"
        return super().admits(host)

    def adapter(self, host: Host, shared: nn.Module | None = None) -> QWHAAdapter:
        return QWHAAdapter(self, host)


class QWHAAdapter(Delta):
    """c and E of one layer: how many places each row has, and their columns, row by row."""

    rebuilt: ClassVar[tuple[str, ...]] = ("H0", "H1", "H2", "H3")
    counts: Tensor
    columns: Tensor

    def __init__(self, method: QWHA, host: Host):
        super().__init__(host, fast=host.kind == "linear")
        self.alpha = method.alpha
        self.stages = len(factors(host.fan_in))
        for i, matrix in enumerate(factors(host.fan_in)):
            self.register_buffer(f"H{i}", matrix)
        p = method.parameters(host)
        self.c = nn.Parameter(torch.zeros(p))
        counts = torch.full((host.fan_out,), p // host.fan_out)
        counts[: p % host.fan_out] += 1
        kind = torch.int16 if host.fan_in < 2**15 else torch.int32
        meta = torch.get_default_device().type == "meta"
        drawn = torch.empty(p) if meta else chosen(torch.rand(host.fan_out, host.fan_in), counts)
        self.register_buffer("counts", counts.to(torch.int32))
        self.register_buffer("columns", drawn.to(kind))

    def matrices(self) -> list[Tensor]:
        """The factors of H."""
        return [self.get_buffer(f"H{i}") for i in range(self.stages)]

    def places(self) -> tuple[Tensor, Tensor]:
        """Row and column of every number."""
        rows = torch.arange(len(self.counts), device=self.c.device)
        repeated = rows.repeat_interleave(self.counts.long(), output_size=len(self.c))
        return repeated, self.columns.long()

    def coefficients(self) -> Tensor:
        """F `[out, in]`."""
        return self.c.new_zeros(self.host.shape).index_put(self.places(), self.c)

    def delta(self) -> Tensor:
        return self.alpha * transform(self.coefficients(), self.matrices(), inverse=True)

    def product(self, x: Tensor) -> Tensor:
        z = transform(x, self.matrices()) * self.alpha
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return F.linear(z, self.coefficients().to(z.dtype))
        return sparse_product(z, self.c, self.counts, self.columns, self.host.fan_out)


def chosen(score: Tensor, counts: Tensor) -> Tensor:
    """The columns of each row's `counts[i]` largest scores `[out, in]`, ascending in a row, the rows one after another."""
    most = int(counts.max())
    order = score.topk(most, dim=1).indices
    kept = torch.arange(most, device=score.device) < counts.to(score.device)[:, None]
    n = score.shape[1]
    return order.masked_fill(~kept, n).sort(1).values[kept]


def budgets(errors: Tensor, total: int, most: int, temperature: float = 1.0) -> Tensor:
    """AdaAlloc: how many of `total` places each row gets, in proportion to its error `[out]` to the power of the temperature, at most `most`.

    What the bound and rounding down leave over is shared out equally among rows with room; the last few go to those with fewest.
    """
    share = errors.double().pow(temperature)
    share = share / share.sum() if share.sum() > 0 else torch.full_like(share, 1 / len(share))
    counts = (total * share).floor().long().clamp_max(most)
    while (left := total - int(counts.sum())) > 0:
        room = counts < most
        each = left // int(room.sum())
        if each:
            counts = torch.where(room, (counts + each).clamp_max(most), counts)
        else:
            by_error = errors.argsort(descending=True, stable=True)
            fewest = counts.masked_fill(~room, most + 1)[by_error].argsort(stable=True)[:left]
            counts[by_error[fewest]] += 1
    return counts


def refined(DGH: Tensor, K: Tensor, counts: Tensor, columns: Tensor, rows_at_once: int = 64) -> Tensor:
    """c, row by row: the solutions of `c_i K[S_i, S_i] = (D G H)[i, S_i]`, K = H^T G H.

    Rows of like counts are solved together, filled up with the identity.
    """
    c = torch.empty(len(columns), dtype=K.dtype, device=K.device)
    first = counts.cumsum(0) - counts
    for rows in counts.argsort().split(rows_at_once):
        n = int(counts[rows].max())
        if n == 0:
            continue
        inner = torch.arange(n, device=K.device)
        used = inner < counts[rows][:, None]
        places = (first[rows][:, None] + inner).clamp_max(len(columns) - 1)
        S = columns[places].masked_fill(~used, 0)
        both = used[:, :, None] & used[:, None, :]
        A = torch.where(both, K[S[:, :, None], S[:, None, :]], torch.eye(n, dtype=K.dtype, device=K.device))
        b = DGH[rows[:, None], S].masked_fill(~used, 0)
        solution = torch.cholesky_solve(b[..., None], torch.linalg.cholesky(A))[..., 0]
        c[places[used]] = solution[used]
    return c


def qwha(
    model: nn.Module,
    full: nn.Module | Mapping[str, Tensor],
    method: QWHA | None = None,
    targets: str | Sequence[str] = "all-linear",
    name: str = "default",
    *,
    batches: Iterable[Any] | None = None,
    run: Run = run,
    damping: float = 1e-4,
    refine: bool = True,
    **how: Any,
) -> StartReport:
    """Attach QWHA to a quantised base so that base and adapter together start as near to the full-precision outputs as p numbers allow.

    Args:
        model: the quantised base (a full-precision one lacks nothing, and starts at 0).
        full: the same model before it was quantised, or its state dict.
        method: QWHA's settings.
        targets: linear layers, as for `attach`.
        name: of the adapter.
        batches: calibration data, not of the test set; None takes all inputs to be alike, G = I.
        run: runs the model on a batch.
        damping: share of G's mean diagonal that is added to it.
        refine: solve for the values; else the coefficients of D are taken as they are.
        how: further arguments of `attach`.

    Raises:
        HostError: a target is no linear layer.
        DataError: `full` lacks a weight or has it in another shape, or the batches do not reach all layers.
    """
    chosen_method = get_method(QWHA if method is None else method)
    assert isinstance(chosen_method, QWHA)
    hosts = hosts_of(model, targets, chosen_method)
    if other := [host.name for host in hosts if host.kind != "linear"]:
        raise HostError(f"qwha reads the inputs of linear layers; {other[0]} is none. Name other targets.")
    weights = dict(full.named_parameters()) if isinstance(full, nn.Module) else full
    D = {host.name: (full_weight("qwha", host, weights) - host.weight()).double() for host in hosts}
    grams = {} if batches is None else collect(model, batches, hosts, run, gram)
    plan = attach(model, chosen_method, name, targets=[f"={host.name}" for host in hosts], **how)
    layers = []
    for path, adapter in attachment_of(model, name).adapters.items():
        assert isinstance(adapter, QWHAAdapter)
        layers.append(_begin(path, adapter, chosen_method, D.pop(path), grams.get(path), damping, refine))
    return StartReport(plan, tuple(layers))


@torch.no_grad()
def _begin(
    path: str, adapter: QWHAAdapter, method: QWHA, D: Tensor, G: Tensor | None, damping: float, refine: bool
) -> Started:
    begin = time.perf_counter()
    G = damped(G, D.shape[1], damping, D.device)
    K = transform(transform(G).t())
    a, DG = transform(D), D @ G
    errors = (DG * D).sum(1).clamp_min(0).sqrt() if method.allocation == "output" else D.norm(dim=1)
    counts = budgets(errors, len(adapter.c), D.shape[1], method.temperature)
    score = a.abs() * K.diagonal().clamp_min(0).sqrt() if method.selection == "weighted" else a.abs()
    columns = chosen(score, counts)
    rows = torch.arange(len(D), device=D.device).repeat_interleave(counts)
    c = refined(transform(DG), K, counts, columns) if refine else a[rows, columns]
    adapter.counts.copy_(counts)
    adapter.columns.copy_(columns)
    adapter.c.copy_(c / adapter.alpha)
    found = torch.zeros_like(D).index_put((rows, columns), c)
    return Started(path, size(D, G), size(D - transform(found, inverse=True), G), time.perf_counter() - begin)
