"""Which layers a model of transformers runs without using what they put out, found by one step on shapes alone.

Some classes have layers that only others of their family need: the pooler of a masked language model, the norm behind a vision tower whose
patches are averaged. An adapter there would never get a gradient, so that methods keep their defaults off them.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adaptome.core.example_inputs import example_inputs
from adaptome.core.whole import LENGTH, REFUSALS

#: by class and configuration
_KNOWN: dict[tuple[type, str], frozenset[str]] = {}


def unused(model: nn.Module) -> frozenset[str]:
    """Paths of the modules that are called in a forward and whose own parameters nothing in the output depends on.

    A second model of the same class and configuration is made and run on the meta device. Where that is not possible (a class that is
    not transformers', unknown inputs, an operation without a meta form) it is empty: nothing is known.
    """
    config: Any = getattr(model, "config", None)
    cls: Any = getattr(type(model), "_base", type(model))
    if not hasattr(config, "to_json_string") or not hasattr(cls, "main_input_name"):
        return frozenset()
    key = (cls, config.to_json_string(use_diff=False))
    if key not in _KNOWN:
        try:
            _KNOWN[key] = _traced(cls, copy.deepcopy(config))
        except REFUSALS:
            _KNOWN[key] = frozenset()
    return _KNOWN[key]


def _traced(cls: Any, config: Any) -> frozenset[str]:
    with torch.device("meta"):
        # in bfloat16, the one type that every operation has a meta form for
        twin: nn.Module = cls(config).to(torch.bfloat16).eval()
    called: set[nn.Module] = set()
    for module in twin.modules():
        module.register_forward_pre_hook(lambda module, args: called.add(module))
    inputs = example_inputs(twin, 1, LENGTH)
    if "input_ids" in inputs and "attention_mask" in inspect.signature(twin.forward).parameters:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with _Yes():
        total = sum(_differentiable(twin(**inputs)))
    if not isinstance(total, Tensor):
        return frozenset()
    total.backward()
    return frozenset(
        path
        for path, module in twin.named_modules()
        if module in called
        and (own := [p for p in module._parameters.values() if p is not None])
        and all(p.grad is None for p in own)
    )


class _Yes(TorchDispatchMode):
    """Answers what a model asks of numbers that are not there, such as whether a mask is all ones."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return args[0].dtype == torch.bool or 1
        return func(*args, **(kwargs or {}))


def _differentiable(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output.sum()] if output.requires_grad and output.is_floating_point() else []
    inner = (
        output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    )
    return [term for value in inner for term in _differentiable(value)]
