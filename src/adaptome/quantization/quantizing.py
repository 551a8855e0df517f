"""The verb: replace a model's linear layers by quantised ones, block by block."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core import packed
from adaptome.core.errors import DataError, HostError, StateError
from adaptome.core.hosts import Host, host_of
from adaptome.core.inputs import Run, collect, gram, run
from adaptome.core.plan import table
from adaptome.core.state import STATE
from adaptome.core.targets import resolve
from adaptome.quantization.schemes import Scheme, check_host, get_scheme


@dataclass(frozen=True)
class Quantised:
    """What became of one layer.

    Attributes:
        name: of the layer. shape: of its weight.
        error: relative Frobenius distance of the new weight from the old one.
        output_error: the same of the layer's outputs on the calibration data; None without.
        before, after: bytes of the weight.
        seconds: that quantising it took.
    """

    name: str
    shape: tuple[int, ...]
    error: float
    output_error: float | None
    before: int
    after: int
    seconds: float

    @property
    def bits(self) -> float:
        """Bits a number, everything counted."""
        return 8 * self.after / (self.shape[0] * self.shape[1])


@dataclass(frozen=True)
class QuantiseReport:
    """What `quantize` did. Prints as a table."""

    scheme: str
    layers: tuple[Quantised, ...]

    @property
    def before(self) -> int:
        """Bytes of the weights before."""
        return sum(layer.before for layer in self.layers)

    @property
    def after(self) -> int:
        """Bytes of the weights after."""
        return sum(layer.after for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {
            "scheme": self.scheme, "before": self.before, "after": self.after,
            "layers": [asdict(layer) | {"bits": layer.bits} for layer in self.layers],
        }  # fmt: skip

    def __str__(self) -> str:
        rows = [
            (
                layer.name,
                f"{list(layer.shape)}",
                f"{layer.bits:.2f}",
                f"{layer.error:.2e}",
                "-" if layer.output_error is None else f"{layer.output_error:.2e}",
                f"{layer.seconds:.2f}",
            )
            for layer in self.layers
        ]
        columns = ("layer", "shape", "bits", "error", "output error", "seconds")
        return f"{self.scheme}: {len(self.layers)} layers, {self.before:,} -> {self.after:,} bytes\n" + table(
            columns, rows
        )


def quantize(
    model: nn.Module,
    scheme: str | Scheme = "uniform",
    *,
    targets: str | Sequence[str] = "all-linear",
    exclude: str | Sequence[str] | None = None,
    batches: Iterable[Any] | None = None,
    run: Run = run,
    **settings: Any,
) -> QuantiseReport:
    """Replace linear layers by quantised ones, in place.

    With a scheme that calibrates, the blocks are done in their order, each on what the blocks before it put out now that they are quantised:
    the batches run once a block.

    Args:
        model: in full precision, without adapters.
        scheme: 'uniform', 'gptq', 'sketch' or 'nf4', or a scheme.
        targets, exclude: linear layers, as for `attach`.
        batches: calibration data; a list or another iterable that can be run through again. 'gptq' needs it, 'sketch' takes it.
        run: runs the model on a batch.
        settings: of the scheme: bits, group, tables, ...

    Raises:
        MethodError: an unknown scheme or setting.
        HostError: a target that is no plain linear layer, or whose weight is shared with another layer.
        DataError: a scheme that calibrates got no batches, or they reach not all layers.
        StateError: adapters are attached.
    """
    chosen = get_scheme(scheme, **settings)
    if STATE in model.__dict__:
        raise StateError("adapters are attached.\n  ad.detach(model) or merge them first, then quantise.")
    found = resolve(model, targets, exclude=exclude)
    hosts = [host_of(m.module, m.path, m.parameter, m.role, m.layer) for m in found]
    for host in hosts:
        check_host(host, chosen)
    _refuse_tied(model, hosts)
    if chosen.calibrates and batches is None:
        raise DataError(
            f"{chosen.name} needs calibration data: give batches=[...], a few thousand tokens of text like that of the task.\n"
            "  Without data, choose scheme 'uniform', 'sketch' or 'nf4'."
        )
    done: list[Quantised] = []
    training = [name for name, m in model.named_modules() if m.training]
    model.eval()
    try:
        for _, group in groupby(hosts, key=lambda host: host.index):
            block = list(group)
            grams = {} if batches is None else collect(model, batches, block, run, gram)
            done += [_replace(model, host, chosen, grams.get(host.name)) for host in block]
    finally:
        for name in training:  # of the new layers too
            model.get_submodule(name).training = True
    describe_layers(model)
    return QuantiseReport(str(chosen), tuple(done))


@torch.no_grad()
def _replace(model: nn.Module, host: Host, scheme: Scheme, G: Tensor | None) -> Quantised:
    begin, W = time.perf_counter(), host.weight()
    made = scheme.layer(host, G)
    seconds = time.perf_counter() - begin
    if host.path:
        model.set_submodule(host.path, made)
    else:
        raise HostError("the model is a single linear layer, which cannot be replaced in itself; wrap it.")
    if W.is_meta:
        error, output_error = 0.0, None
    else:
        D = (packed.dense(made) - W.float()).double()
        error = float(D.norm() / W.norm().clamp_min(1e-30))
        output_error = None if G is None else _norm(D, G) / max(_norm(W.double(), G), 1e-30)
    size = sum(p.numel() * p.element_size() for p in _stored(made))
    before = W.numel() * host.dtype.itemsize
    return Quantised(host.name, tuple(W.shape), error, output_error, before, size, seconds)


def _norm(D: Tensor, G: Tensor) -> float:
    """`||D X||` for `G = X X^T`."""
    return float(((D @ G) * D).sum().clamp_min(0).sqrt())


def _stored(layer: nn.Module) -> list[Tensor]:
    """The tensors that hold a quantised weight: bytes, and with bitsandbytes its statistics."""
    weight: Any = layer._parameters["weight"]
    state = getattr(weight, "quant_state", None)
    extra = [] if state is None else [v for v in state.as_dict().values() if isinstance(v, Tensor)]
    return [weight, *extra]


def _refuse_tied(model: nn.Module, hosts: Sequence[Host]) -> None:
    owners: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(value), []).append(name)
    for host in hosts:
        names = owners[id(host.stored(host.parameter))]
        if len(names) > 1:
            raise HostError(
                f"the weight of {host.name} is shared by {', '.join(names)}: quantising one would untie them.\n  Leave it out: exclude={host.name!r}."
            )


def describe_layers(model: nn.Module) -> None:
    """Write into a transformers model's configuration how its layers are packed, so that `save_pretrained` makes a folder that loads again."""
    if hasattr(model, "config") and hasattr(model, "save_pretrained"):
        from adaptome.quantization.hub import describe

        describe(model)
