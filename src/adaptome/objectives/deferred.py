r"""A language model's loss without its logits: they are made a few rows at a time, and only where someone reads them.

    with deferred_logits(model):
        loss = model(**batch).loss          # batch with labels; as before, in less memory and time

The logits of n tokens over a vocabulary of V are the largest tensor of a training step, n V numbers, and autograd keeps them twice.
Within the block the head (`get_output_embeddings`) returns a tensor that stands for them. The cross-entropy of transformers' causal language
models takes it in rows, leaves out those whose label is -100, and while a few rows' logits are there forms their gradient

    dL/dz = softmax(z) - (1 - s) e_y - s / V

and sends it through the head at once: two products with its weight where a frozen head needs one more to make the logits again. Anything
else that reads the logits gets all of them, as the head alone would have made them, so that no model comes out otherwise.
The order of work is that of Hsu et al. 2024, Liger Kernel, arXiv:2410.10989, section 3.2, for any head that autograd can run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Adapted
from adaptome.core.errors import StateError
from adaptome.core.steer import is_steered
from adaptome.objectives.chunked import Head, chunked_loss


@dataclass
class Seen:
    """What the loss saw since the block began, summed over tokens.

    Attributes:
        tokens, correct, entropy: labels that count, those of them that were the likeliest, and the entropy in nats of what was foreseen.
        items: what the last loss was divided by.
        unread: whether there was a loss, and nobody made the logits whole.
    """

    tokens: int = 0
    items: Any = None
    correct: Tensor | float = 0.0
    entropy: Tensor | float = 0.0
    unread: bool = False


@dataclass
class _Block:
    """One block of `deferred_logits`: its settings, and what it saw."""

    smoothing: float
    seen: Seen = field(default_factory=Seen)


@contextlib.contextmanager
def deferred_logits(model: nn.Module, smoothing: float = 0.0) -> Iterator[Seen | None]:
    """Let a causal language model compute its loss without keeping logits, within the block.

    Args:
        model: a model of transformers, with adapters or without.
        smoothing: share of the target spread over the vocabulary.

    Yields:
        what the loss counts; None where nothing is deferred: there is no such head, or the loss is the model's own.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    head = head_of(model)
    if head is None:
        yield None
        return
    block, run = _Block(smoothing), head.forward
    own: dict[str, Any] = model.__dict__
    kept = {"_loss_function": own.get("_loss_function")}, {"forward": head.__dict__.get("forward")}
    plain = model.loss_function

    def defer(hidden: Tensor) -> Tensor:
        return run(hidden) if _unfit(head, hidden) else DeferredLogits(hidden, run, head, block)

    def loss(logits: Tensor, labels: Tensor | None, vocab_size: int, *args: Any, **kwargs: Any) -> Tensor:
        if type(logits) is not DeferredLogits or logits.shape[-1] != vocab_size or args:
            return plain(logits, labels, vocab_size, *args, **kwargs)  # type: ignore[operator]
        return logits.loss(labels, **kwargs)

    own["_loss_function"] = torch.compiler.disable(loss)
    head.__dict__["forward"] = torch.compiler.disable(defer)
    try:
        yield block.seen
    finally:
        for there, before in zip((own, head.__dict__), kept, strict=True):
            for name, value in before.items():
                if value is None:
                    there.pop(name, None)
                else:
                    there[name] = value


def head_of(model: nn.Module) -> nn.Module | None:
    """The linear layer that makes the logits, where the model's loss is the plain one of the next token and the layer can run by rows."""
    found = getattr(model, "get_output_embeddings", lambda: None)()
    if found is None or not isinstance(getattr(found, "out_features", None), int):
        return None
    from transformers.loss.loss_utils import ForCausalLMLoss

    if getattr(model, "loss_function", None) is not ForCausalLMLoss:
        return None
    hooked = (
        found._forward_hooks or found._forward_pre_hooks or found._backward_hooks or found._backward_pre_hooks
    )
    if hooked or "_hf_hook" in found.__dict__:  # someone wants to see its output, or brings its weight in
        return None
    return found if isinstance(found, nn.Module) and _by_rows(found) else None


def _by_rows(head: nn.Module) -> bool:
    """Whether rows of its input can be run by themselves, and all that trains in it is found among its own parameters."""
    if not isinstance(head, Adapted):
        return True
    return not head._overrides and all(
        getattr(adapter, "fast", False) and adapter.shared is None and not adapter.may_idle
        for adapter in head._chain
    )


def _unfit(head: nn.Module, hidden: Tensor) -> bool:
    """Whether this call cannot be put off: shapes alone, transforms, weights that are elsewhere, or facts of samples that have rows of their own."""
    if isinstance(head, Adapted) and is_steered():
        return True
    away = any(p.is_meta or hasattr(p, "device_mesh") or p.device != hidden.device for p in head.parameters())
    return away or hidden.is_meta or torch._C._are_functorch_transforms_active() or type(hidden) is not Tensor


#: what asks for no values: it is answered from the tensor's own metadata
_METADATA = {
    getattr(Tensor, name).__get__
    for name in ("shape", "dtype", "device", "layout", "ndim", "is_cuda", "is_cpu", "is_meta", "requires_grad", "is_sparse", "is_quantized")
} | {Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.is_complex, Tensor.__len__}  # fmt: skip
#: maps of each number alone, by one number: models scale and cap their logits by them
_EACH = {"div", "true_divide", "__truediv__", "mul", "__mul__", "__rmul__", "tanh", "float"}


class DeferredLogits(Tensor):
    """Logits `[..., V]` that no one has read: the head's input, the head, and what each number goes through after it."""

    hidden: Tensor
    run: Head
    head: nn.Module
    block: _Block
    _made: Tensor | None

    @staticmethod
    def __new__(
        cls, hidden: Tensor, run: Head, head: nn.Module, block: _Block, dtype: torch.dtype | None = None
    ) -> DeferredLogits:
        width = head.out_features
        assert isinstance(width, int)
        made: DeferredLogits = Tensor._make_wrapper_subclass(
            cls, (*hidden.shape[:-1], width), dtype=dtype or _dtype(hidden), device=hidden.device
        )
        made.hidden, made.run, made.head, made.block, made._made = hidden, run, head, block, None
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        first = args[0] if args else None
        if isinstance(first, DeferredLogits) and first._made is None and _of_each(func, args, kwargs):
            return first._then(lambda z: func(z, *args[1:]))
        read = torch.utils._pytree.tree_map_only(DeferredLogits, DeferredLogits.whole, (args, kwargs or {}))
        return func(*read[0], **read[1])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise StateError(
            f"{func} reads logits that were never made, below what Python sees.\n"
            "  Run the model outside of deferred_logits."
        )

    def whole(self) -> Tensor:
        """All of them, as the head makes them."""
        if self._made is None:
            self.block.seen.unread = False
            self._made = self.run(self.hidden)
        return self._made

    def _then(self, each: Head) -> DeferredLogits:
        run, hidden = self.run, self.hidden
        with torch.no_grad():
            dtype = each(torch.empty(0, dtype=self.dtype, device=self.device)).dtype
        return DeferredLogits(hidden, lambda rows: each(run(rows)), self.head, self.block, dtype)

    def loss(
        self,
        labels: Tensor | None,
        num_items_in_batch: Any = None,
        ignore_index: int = -100,
        shift_labels: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Transformers' loss of the next token."""
        if shift_labels is None:
            assert labels is not None
            shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
        targets = shift_labels.reshape(-1).to(self.hidden.device)
        counts = targets != ignore_index
        rows = self.hidden.reshape(-1, self.hidden.shape[-1])
        seen, tokens = self.block.seen, int(counts.sum())
        if tokens < len(targets):
            rows, targets = rows[counts], targets[counts]
        total, correct, entropy = chunked_loss(rows, targets, self.run, self.head, self.block.smoothing)
        seen.tokens += tokens
        seen.correct, seen.entropy, seen.unread = seen.correct + correct, seen.entropy + entropy, True
        items = seen.items = tokens if num_items_in_batch is None else num_items_in_batch
        return total / (items.to(total.device) if isinstance(items, Tensor) else items)


def _dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _of_each(func: Any, args: Any, kwargs: Any) -> bool:
    name, others = getattr(func, "__name__", ""), args[1:]
    if kwargs:
        return False
    if name == "to":
        return len(others) == 1 and isinstance(others[0], torch.dtype)
    return name in _EACH and all(isinstance(other, (int, float)) for other in others)
