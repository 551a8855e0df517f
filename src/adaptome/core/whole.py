"""Probes: of a layer, and of the whole model: what it puts out, through its own path, before and after its layers were changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.errors import AdaptomeError, ModelError
from adaptome.core.example_inputs import example_inputs
from adaptome.core.hosts import Host

#: what models raise for inputs that they do not take
REFUSALS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError,
    AdaptomeError,
)  # fmt: skip

#: tokens of the probe
LENGTH = 8


def probe_of(model: nn.Module) -> dict[str, Any] | None:
    """Inputs for one forward, drawn from a seed; None for a model whose inputs are not known, or that has tensors on the meta device."""
    if any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()]):
        return None
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        return example_inputs(model, 1, LENGTH, device=device, seed=0)
    except (ModelError, AttributeError):  # or a configuration without the sizes that its kind has
        return None


@torch.no_grad()
def outputs_of(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Every floating-point tensor of the model's output; the same random numbers for each call.

    Args:
        model: run as it is.
        inputs: keyword arguments, or the one positional argument.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        output = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    return list(_tensors(output))


def outputs_or_none(model: nn.Module, inputs: Any) -> list[Tensor] | None:
    """As `outputs_of`; None where there are no inputs, or the model does not take them."""
    if inputs is None:
        return None
    try:
        return outputs_of(model, inputs)
    except REFUSALS:
        return None


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output.detach().clone()
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _tensors(value)


def difference(before: list[Tensor], after: list[Tensor]) -> float:
    """The largest difference between two outputs, relative to the largest number of the tensor it is in; infinite where shapes differ."""
    if [t.shape for t in before] != [t.shape for t in after]:
        return float("inf")
    return max(
        (_relative(b.double(), a.double()) for b, a in zip(before, after, strict=True) if b.numel()),
        default=0.0,
    )


def _relative(before: Tensor, after: Tensor) -> float:
    finite = before.isfinite()  # masked logits are minus infinity
    if not torch.equal(finite, after.isfinite()):
        return float("inf")
    if not finite.any():
        return 0.0
    before, after = before[finite], after[finite]
    return float((after - before).abs().max() / before.abs().max().clamp_min(1e-12))


def probe(host: Host) -> Tensor | None:
    """A small input of the layer, from its own generator; None for kinds that have no plain input."""
    generator = torch.Generator().manual_seed(0)
    layer = host.layer
    if host.kind == "linear":
        x = torch.randn(4, host.fan_in, generator=generator)
    elif host.kind == "conv":
        size = [2 * d * (k - 1) + 3 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        x = torch.randn(2, layer.in_channels, *size, generator=generator)
    elif host.kind == "embedding":
        return torch.randint(host.fan_in, (64,), generator=generator).to(host.device)
    else:
        return None
    return x.to(host.device, host.dtype)
