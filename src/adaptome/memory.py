"""What one training step keeps in memory, counted and not guessed.

The model runs forward and backward on the meta device: every operation is done on shapes alone, so neither
weights nor memory are needed, and whatever an adapter, a checkpointed block or a loss keeps is seen because it
happens. What cannot run on the meta device as it runs on a GPU (fused attention, fused dropout) is put in its place.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["OPTIMIZERS", "Footprint", "footprint", "imagined", "optimizer_bytes", "shadow"]


@dataclass(frozen=True)
class Footprint:
    """Bytes of one training step beyond what existed before it (weights, buffers, inputs).

    saved      kept by autograd from the forward to the backward: the activations
    gradients  of the trainable parameters, all there at the end of the backward
    peak       the most that was alive at once, anywhere in forward and backward, gradients among it
    """

    saved: int
    gradients: int
    peak: int


def shadow(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy of `model` on the meta device that takes no memory; tied tensors stay tied.

    Args:
        model: on any device; it is not changed.
        dtype: of the copy's floating-point parameters; by default each keeps its own.
    """
    memo: dict[int, Any] = {}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(_to_meta(p, dtype), requires_grad=p.requires_grad)
    for b in model.buffers():
        memo[id(b)] = _to_meta(b, None)
    return copy.deepcopy(model, memo)


def _to_meta(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    keep = dtype is None or not tensor.is_floating_point()
    return torch.empty_like(tensor.detach(), device="meta", dtype=tensor.dtype if keep else dtype)


def imagined(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Make a copy that `shadow` made one of fake tensors on the CPU, in place: these know what autocast does, as the meta device does not.

    Use it within `mode`.
    """
    known: dict[int, Tensor] = {}

    def made(tensor: Tensor) -> Tensor:
        fake = torch.empty_like(tensor.detach(), device="cpu")
        if isinstance(tensor, nn.Parameter):
            fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
        return known.setdefault(id(tensor), fake)

    with mode:
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                own: dict[str, Any] = tensors
                own.update({name: made(t) for name, t in own.items() if t is not None})
    return model


def footprint(
    model: nn.Module,
    inputs: Mapping[str, Any],
    loss: Callable[[Any], Tensor] | None = None,
    *,
    fused: bool = True,
    padded: bool = False,
) -> Footprint:
    """Run one forward and backward of `model` as it stands and count what they keep.

    Works on the meta device (see `shadow`) and on real tensors alike; the gradients are dropped afterwards.

    Args:
        model: its mode (train or eval) and its trainable parameters are taken as they are.
        inputs: keyword arguments of its forward, on the model's device.
        loss: makes a scalar of the output; by default the output's `loss`, else the sum of its first tensor.
        fused: with the kernels of a GPU; False for those of a CPU, whose attention is fused where nothing drops out only, and
            whose dropout keeps its noise in the input's type.
        padded: some rows of the batch are shorter than others, so that attention takes a mask.
    """
    there = tree_leaves([list(model.parameters()), list(model.buffers()), dict(inputs)])
    known = {_key(t) for t in there if isinstance(t, Tensor)}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _key(tensor) not in known:
            saved[_key(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.grad for p in trained]
    with ExitStack() as stack:
        stack.callback(_restore, trained, before)
        _restore(trained, [None] * len(trained))
        alive = stack.enter_context(_Alive(known))
        stack.enter_context(_Fused(fused, padded))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            value = (loss or scalar)(model(**inputs))
        total = sum(saved.values())
        if value.requires_grad:
            _backward(value)
        gradients = sum(p.grad.numel() * p.grad.element_size() for p in trained if p.grad is not None)
    return Footprint(saved=total, gradients=gradients, peak=alive.peak)


def scalar(output: Any) -> Tensor:
    """The output's own loss, else the sum of its first floating-point tensor."""
    loss = getattr(output, "loss", None)
    if isinstance(loss, Tensor):
        return loss
    return next(t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()).sum()


def _backward(value: Tensor) -> None:
    """`value.backward()` with `_Fused` still on: the public calls are functions that a mode handles, and a mode is off
    inside what it handles, so blocks recomputed during the backward would run unfused."""
    torch.autograd.Variable._execution_engine.run_backward(
        (value,), (torch.ones_like(value),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _restore(parameters: Iterable[nn.Parameter], gradients: Iterable[Tensor | None]) -> None:
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = gradient


class _Alive(TorchDispatchMode):
    """Adds up the storages that operations make, and takes them off when they are freed."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known = set(known)
        self.now = 0
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:  # a sparse one is seen by its parts
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


class _Fused(TorchFunctionMode):
    """Runs attention and dropout as a GPU's fused kernels do, whatever the device.

    Without it the meta device falls back to attention that keeps its [.., n, n] probabilities, and to dropout
    that keeps its noise in the input's type instead of one byte an element. With `fused` off, attention alone is put right,
    where a CPU fuses it.
    """

    def __init__(self, fused: bool = True, padded: bool = False) -> None:
        super().__init__()
        self.fused, self.padded = fused, padded

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and (self.fused or not _drops(*args, **kwargs)):
            return _attention(*args, **kwargs)
        if func is F.dropout and self.fused:
            return _dropout(*args, **kwargs)
        if args and isinstance(args[0], Tensor) and _shape_alone(args[0]):
            return _without_values(func, args, kwargs, self.padded)
        return func(*args, **kwargs)


def _drops(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, *more: Any, **kwargs: Any) -> bool:  # fmt: skip
    """Whether this attention has dropout."""
    return dropout_p > 0


def _shape_alone(tensor: Tensor) -> bool:
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def _without_values(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], padded: bool) -> Any:
    """Answer what models ask of values that do not exist, as for a batch of finite numbers.

    Is every position unmasked: where the batch is not padded. Is every sequence unpacked: yes. Is any number infinite: no.
    """
    if func is Tensor.__contains__:
        return False
    if func is Tensor.__bool__:
        asked = getattr(args[0], "asked", None)
        return not (asked == "any" or (asked == "all" and padded))
    out = func(*args, **kwargs)
    for name in ("any", "all"):
        if func in (getattr(torch, name), getattr(Tensor, name)) and out.dim() == 0:
            out.asked = name
    return out


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    trained_mask = attn_mask is not None and attn_mask.requires_grad
    if trained_mask or query.dim() != 4:  # these no fused kernel takes
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, float("-inf"))
    out, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale
    )
    return out


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0.0:
        return input
    return torch.native_dropout(input, p, True)[0]


#: bytes of an optimizer's state for one parameter, as its authors' code keeps it
OPTIMIZERS: dict[str, Callable[[Tensor], int]] = {
    "adamw": lambda p: 2 * p.numel() * p.element_size(),
    "adam": lambda p: 2 * p.numel() * p.element_size(),
    # bitsandbytes: two moments of one byte, an fp32 maximum per 256 elements; small tensors stay in fp32
    "adamw-8bit": lambda p: (
        2 * (p.numel() + 4 * -(-p.numel() // 256)) if p.numel() >= 4096 else 8 * p.numel()
    ),
    "adafactor": lambda p: 4 * _rows_and_columns(p),
    "lion": lambda p: p.numel() * p.element_size(),
    "sgd": lambda p: 0,
    "sgd-momentum": lambda p: p.numel() * p.element_size(),
}


def _rows_and_columns(p: Tensor) -> int:
    return p.numel() if p.dim() < 2 else p.numel() // p.shape[-1] + p.numel() // p.shape[-2]


def optimizer_bytes(parameters: Iterable[Tensor], optimizer: str) -> int:
    """Bytes of the optimizer's state for these parameters, step counters aside.

    Raises:
        KeyError: an optimizer that is not known.
    """
    return sum(OPTIMIZERS[optimizer](p) for p in parameters)
