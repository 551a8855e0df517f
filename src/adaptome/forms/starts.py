"""What starts from a quantised base share: the full-precision weights beside it, and a report of what they made up for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adaptome.core.errors import DataError
from adaptome.core.hosts import Host, host_of
from adaptome.core.method import Method
from adaptome.core.plan import Plan, table
from adaptome.core.targets import resolve


@dataclass(frozen=True)
class Started:
    """One layer's start.

    Attributes:
        name: of the layer.
        before: norm of what its outputs lack on the calibration inputs (without data: of what its weight lacks).
        after: the same with the adapter.
        seconds: that the start took.
    """

    name: str
    before: float
    after: float
    seconds: float


@dataclass(frozen=True)
class StartReport:
    """What was attached, and what the start made up for. Prints as a table."""

    plan: Plan
    layers: tuple[Started, ...]

    def __str__(self) -> str:
        rows = [
            (x.name, f"{x.before:.3e}", f"{x.after:.3e}", f"{x.after / max(x.before, 1e-300):.0%}", f"{x.seconds:.2f}")
            for x in self.layers
        ]  # fmt: skip
        return f"{self.plan.method}: {self.plan.trainable:,} trained\n" + table(
            ("layer", "error before", "after", "left", "seconds"), rows
        )


def hosts_of(model: nn.Module, targets: str | Sequence[str], method: Method) -> list[Host]:
    """The targets' hosts, which the method must admit."""
    hosts = [host_of(m.module, m.path, m.parameter, m.role, m.layer) for m in resolve(model, targets)]
    for host in hosts:
        method.check(host)
    return hosts


def full_weight(what: str, host: Host, weights: Mapping[str, Tensor]) -> Tensor:
    """The host's weight in full precision, canonical, in at least float32 on its device.

    Raises:
        DataError: there is none, or it has another shape.
    """
    key = f"{host.path}.{host.parameter}" if host.path else host.parameter
    if key not in weights:
        raise DataError(
            f"{what}: the full-precision weights hold no {key!r}; they must be of the same model."
        )
    W = host.canonical(weights[key].detach())
    if W.shape != host.shape:
        raise DataError(
            f"{what}: {key} is {list(W.shape)} in full precision and {list(host.shape)} in the base."
        )
    return W.to(host.device, torch.promote_types(W.dtype, torch.float32))


def damped(G: Tensor | None, n: int, damping: float, device: torch.device) -> Tensor:
    """G, float64, with a share of its mean diagonal added; without one the identity.

    Raises:
        DataError: it holds NaN or infinity.
    """
    eye = torch.eye(n, dtype=torch.float64, device=device)
    if G is None:
        return eye
    if not torch.isfinite(G).all():
        raise DataError("the calibration inputs of a layer hold NaN or infinity.\n  Calibrate in float32.")
    mean = G.diagonal().mean()
    return G.to(device) + eye * (damping * mean if mean > 0 else 1.0)


def size(D: Tensor, G: Tensor) -> float:
    """`||D X||` for `G = X X^T`."""
    return float(((D @ G) * D).sum().clamp_min(0).sqrt())
