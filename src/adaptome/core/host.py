"""A host: one place of a model where an adapter sits, as methods see it. Each kind of layer is one in `adaptome.core.hosts`."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adaptome.core import packed
from adaptome.core.errors import HostError


class Host(ABC):
    """One place of a model where an adapter sits.

    Args:
        layer: the module.
        path: its name in the model, '' for the root.
        parameter: the parameter that weight adapters change (None: 'weight' where there is one).
        role: what the layer does in its architecture ('q', 'down', 'norm', ...), when known.
        index: the number of the block it is in, when known.
    """

    kind: ClassVar[str]
    #: can run `reduce`/`expand` on activations, so that deltas need no dense weight
    has_product: ClassVar[bool] = False

    def __init__(
        self,
        layer: nn.Module,
        path: str = "",
        parameter: str | None = None,
        role: str = "other",
        index: int | None = None,
    ):
        self.layer: Any = layer  # Any: its attributes depend on its kind
        self.path, self.role, self.index = path, role, index
        self.parameter = parameter or "weight"
        #: whether the weight is stored quantised; told once, for forwards ask it
        self.packed = self.has(self.parameter) and packed.is_packed(layer, self.parameter)

    # -- where it is ---------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The target's full name: the layer's path, with the parameter's name when it is not the layer's weight."""
        named = self.kind in ("experts", "parameter", "vector")
        return ".".join(part for part in (self.path, self.parameter if named else "") if part)

    @property
    def device(self) -> torch.device:
        """Where adapters of this host live; the execution device of an offloaded layer."""
        for module in self.layer.modules():
            hook = module.__dict__.get("_hf_hook")
            if hook is not None and getattr(hook, "offload", False):
                return torch.device(hook.execution_device)
        tensor = next(self._tensors(), None)
        return tensor.device if tensor is not None else torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The layer's floating-point type; float32 when it stores packed integers."""
        return next((t.dtype for t in self._tensors() if t.is_floating_point()), torch.float32)

    def _tensors(self) -> Iterator[Tensor]:
        own = self.layer._parameters.get(self.parameter)
        if own is not None:
            yield own
        yield from self.layer.parameters()
        yield from self.layer.buffers()

    def has(self, parameter: str) -> bool:
        """Whether the layer owns this parameter."""
        return self.layer._parameters.get(parameter) is not None

    # -- its shape -----------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def fan_in(self) -> int:
        """Columns of the canonical weight; for a module, the width of its activations."""

    @property
    @abstractmethod
    def fan_out(self) -> int:
        """Rows of the canonical weight; for a module, the width of its activations."""

    @property
    def copies(self) -> int:
        """How many weights are stacked: the number of experts, else 1."""
        return 1

    @property
    def lead(self) -> tuple[int, ...]:
        """Leading dimensions of the canonical weight and of every factor: `(experts,)` or `()`."""
        return ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the canonical weight."""
        return (*self.lead, self.fan_out, self.fan_in)

    @property
    def width(self) -> int:
        """Features of the activations that come out of the layer."""
        return self.fan_out

    # -- its weight ----------------------------------------------------------------------------------------------

    def canonical(self, value: Tensor) -> Tensor:
        """The stored tensor seen as `[out, in]`."""
        return value

    def native(self, value: Tensor) -> Tensor:
        """The inverse of `canonical`."""
        return value

    def weight(self) -> Tensor:
        """The frozen weight `[out, in]`, dequantised and fetched from offload where need be; detached.

        It is the base's own, whatever is merged into the layer now, so that what an adapter makes of it can be made again.
        """
        with unmerged(self.layer):
            return self.current_weight()

    def current_weight(self) -> Tensor:
        """As `weight`, with what is merged into it."""
        with self.at_hand():
            return self.canonical(
                packed.dense(self.layer, self.parameter)
                if self.packed
                else self.stored(self.parameter).detach()
            )

    def stored(self, parameter: str) -> Tensor:
        """The parameter as the layer stores it.

        Raises:
            HostError: when the layer has no such parameter.
        """
        value = self.layer._parameters.get(parameter)
        if value is None:
            own = [k for k, v in self.layer._parameters.items() if v is not None]
            raise HostError(
                f"{self.path or 'the root'} ({type(self.layer).__name__}) has no {parameter}; it has {own or 'no parameters of its own'}."
            )
        return value

    def stored_or_zeros(self, parameter: str) -> Tensor:
        """As `stored`; zeros `[out]` for a parameter that an adapter makes where the layer has none."""
        if self.has(parameter) or parameter not in self.layer._parameters:
            return self.stored(parameter)
        return torch.zeros(self.fan_out, device=self.device, dtype=self.dtype)

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """Bring offloaded weights in for the time of the block."""
        with at_hand([self.layer]):
            yield

    # -- activations ---------------------------------------------------------------------------------------------

    def reduce(self, x: Tensor, A: Tensor) -> Tensor:
        """`A x`: x as the layer takes it, A `[r, in]`; gives activations with r channels."""
        raise HostError(self._no_product())

    def expand(self, z: Tensor, B: Tensor) -> Tensor:
        """`B z`: z from `reduce`, B `[out, r]`; gives activations as the layer puts out."""
        raise HostError(self._no_product())

    def add_expanded(self, y: Tensor, z: Tensor, B: Tensor, scale: float) -> Tensor:
        """`y + scale * B z`, in one kernel where there is one."""
        return torch.add(y, self.expand(z, B), alpha=scale)

    def add(self, y: Tensor, added: Tensor, scale: float) -> Tensor:
        """`y + scale * added`, where `added` is what a weight delta makes of the layer's input."""
        return torch.add(y, added.to(y.dtype), alpha=scale)

    def along_output(self, vector: Tensor) -> Tensor:
        """A vector `[out]` shaped to broadcast against the layer's output."""
        return vector

    def along_input(self, vector: Tensor) -> Tensor:
        """A vector `[in]` shaped to broadcast against the layer's input."""
        return vector

    def never_called(self) -> str | None:
        """Why an adapter here would never run; None where the layer has a forward for it to go around."""
        kind = getattr(type(self.layer), "_base", type(self.layer))
        if self.kind != "module" or kind.forward is not nn.Module.forward:
            return None
        return f"a {kind.__name__} only lists its modules and is never called itself"

    def _no_product(self) -> str:
        return f"{self.name or 'the root'} is a {self.kind} host ({type(self.layer).__name__}): it has no product with a factor."

    def run_dense(self, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        """The layer's forward with another dense weight; packed layers need it, others read the changed parameter."""
        raise HostError(f"{self.name} ({type(self.layer).__name__}) cannot run with a dense weight.")

    def __repr__(self) -> str:
        return f"{self.kind} {self.name or '(root)'} {list(self.shape)}"


@contextmanager
def at_hand(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Bring in, for the time of the block, the tensors that accelerate has offloaded from these very modules."""
    away = [m for m in modules if getattr(m.__dict__.get("_hf_hook"), "offload", False)]
    with ExitStack() as stack:
        if away:
            from accelerate.utils import align_module_device

            for module in away:
                stack.enter_context(align_module_device(module))
        yield


@contextmanager
def unmerged(layer: nn.Module) -> Iterator[None]:
    """The layer with the base's own parameters for the time of the block, whatever is merged into it."""
    own = layer.__dict__.get("_unmerged", {})
    merged = {name: layer._parameters[name] for name in own}
    layer._parameters.update(own)
    try:
        yield
    finally:
        layer._parameters.update(merged)


def autocasting(x: Tensor) -> bool:
    """Whether autocast is on where x is; there is none on the meta device."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def first_input(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The activations a module was called with: its first tensor, positional or by name.

    Raises:
        HostError: when it was called without a tensor.
    """
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    names = list(inspect.signature(type(layer).forward).parameters)[1:]
    raise HostError(f"{type(layer).__name__} was called without a tensor; its forward takes {names}.")
