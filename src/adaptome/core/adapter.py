"""The mechanism: an adapter wraps a frozen layer's forward, and the layer's class is swapped to let it.

An adapted layer is the same object; its class becomes a generated subclass `Adapted<Class>`, its adapters live in the
ModuleDict `layer.adaptome`. State-dict keys of the base, isinstance checks, tied weights and hooks stay as they were.

Composition, said once. Weight adapters act on the weight in attach order, W -> W1 -> W2; activation adapters wrap around all of
them. A weight adapter that has a fast form on its host adds its term to the output; one that has none changes the parameter
itself: the generated class reads that parameter through a property, so the layer's own forward runs with the new value. When
one of these comes after a fast one, the fast one is applied to the weight too. The results are the same.
"""

from __future__ import annotations

import functools
import threading
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adaptome.core.errors import MergeError, StateError
from adaptome.core.hosts import Host, at_hand
from adaptome.core.steer import steered
from adaptome.core.wrapper import Adapter as Adapter
from adaptome.core.wrapper import Frozen as Frozen
from adaptome.core.wrapper import WeightAdapter as WeightAdapter
from adaptome.core.wrapper import overrides_of, overriding

#: the fact under which `adaptome.core.rows` tells which adapters the rows of a batch have: by id of the layer
ROWS = "per_row"
#: the modules under which a layer keeps its adapters, and a model what they share
ATTRIBUTE, SHARED = "adaptome", "adaptome_shared"


class Adapted:
    """Mixin of every generated class. State it keeps on the layer, outside of parameters and buffers:

    _chain      adapters that run around the forward, innermost first
    _overrides  parameter name -> weight adapters that change it in place of a fast form, in order
    _host       the layer's host
    _instance_forward  a forward that something had put on the object itself before we came, or None
    _values     during the forward: parameters as its adapters changed them, so that experts read one by one are changed once
    _in_thread  while rows of a batch have adapters of their own: by thread, what is changed in place of _overrides
    _mode       of a batch norm: whether it would be in training mode were it not frozen
    """

    _base: ClassVar[type[nn.Module]]
    _chain: tuple[Adapter, ...]
    _overrides: dict[str, tuple[WeightAdapter, ...]]
    _host: Host

    def frozen_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's own forward, reading changed parameters."""
        instance = self.__dict__.get("_instance_forward")
        if instance is not None:
            return instance(*args, **kwargs)
        overrides = overrides_of(self)
        if self._host.parameter in overrides and self._host.packed:
            if torch.is_grad_enabled():
                # The backward dequantises again, so that training does not hold a dense weight for every layer.
                return checkpoint(self._run_dense, overrides, *args, use_reentrant=False, **kwargs)
            return self._run_dense(overrides, *args, **kwargs)
        if not overrides or torch.compiler.is_compiling():
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        self.__dict__["_values"] = {}
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.__dict__.pop("_values", None)

    def _run_dense(self, overrides: dict[str, tuple[WeightAdapter, ...]], *args: Any, **kwargs: Any) -> Any:
        frozen = Frozen(self, ())
        # the backward, which runs this again, is outside of the rows' own
        elsewhere = overrides is not self._overrides
        with overriding(self, overrides) if elsewhere else nullcontext():
            bias = frozen.weight("bias") if self._host.has("bias") or "bias" in overrides else None
            return self._host.run_dense(frozen.weight(), bias, *args, **kwargs)

    def train(self, mode: bool = True) -> Any:
        """As the base's, but the running statistics of a frozen batch norm stay as they are."""
        if "_mode" in self.__dict__:
            self.__dict__["_mode"], mode = mode, False
        return super().train(mode)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (self._base, tuple(type(self)._readable)), self.__dict__  # type: ignore[attr-defined]


class AdaptedSequential(Adapted):
    """Of a Sequential: it runs, counts and shows its own modules, not what is kept beside them."""

    _modules: dict[str, nn.Module]

    def _own(self) -> list[tuple[str, nn.Module]]:
        return [(name, m) for name, m in self._modules.items() if name not in (ATTRIBUTE, SHARED)]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter([module for _, module in self._own()])

    def __len__(self) -> int:
        return len(self._own())

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._base(OrderedDict(self._own()[index]))
        return self._own()[index][1]


def _rebuild(base: type[nn.Module], readable: tuple[str, ...]) -> nn.Module:
    layer: Any = base
    cls: Any = adapted_class(layer, readable)
    made: nn.Module = cls.__new__(cls)
    return made


def _is_away(value: Tensor, adapters: tuple[WeightAdapter, ...]) -> bool:
    """Whether a parameter is offloaded or sharded now: what brings it in (accelerate, FSDP2) reads it too, and must see it as it is."""
    if value.is_meta:
        return _offloaded(adapters)
    return hasattr(value, "device_mesh") and any(hasattr(p, "device_mesh") for p in adapters[0].parameters())


def _parameter_property(name: str) -> property:
    def read(self: Any) -> Tensor | None:
        value = self._parameters[name]
        adapters = overrides_of(self).get(name, ())
        if not adapters or (value is not None and _is_away(value, adapters)):
            return value
        if value is None:
            value = self._host.stored_or_zeros(name)
        values = self.__dict__.get("_values")
        if values is None:
            return _changed(name, value, adapters)
        # what was made without gradient must not serve where it is wanted, nor what was made as another thread steers
        key = (name, torch.is_grad_enabled(), threading.get_ident())
        if key not in values:
            values[key] = _changed(name, value, adapters)
        made: Tensor = values[key]
        return made

    return property(read)


def _changed(name: str, value: Tensor, adapters: tuple[WeightAdapter, ...]) -> Tensor:
    """The parameter with all adapters applied, in its own type."""
    dtype = value.dtype
    check_replaced(name, adapters)
    for adapter in adapters:
        if "_hf_hook" in adapter.__dict__:
            with at_hand(adapter.modules()):
                value = adapter.apply_to(name, value)
        else:
            value = adapter.apply_to(name, value)
    return value.to(dtype)


def check_replaced(name: str, adapters: tuple[WeightAdapter, ...]) -> None:
    """Raise StateError when one of the adapters replaces the parameter that an earlier one of another name has changed."""
    for position, adapter in enumerate(adapters):
        if position and adapter.replaces and adapter.strength == 1.0:
            host = adapter.host
            keys = {id(a): key for key, a in getattr(host.layer, ATTRIBUTE).items()}
            first, last = keys.get(id(adapters[0]), "?"), keys.get(id(adapter), "?")
            raise StateError(
                f"{host.path or 'the root'}.{name} is trained whole in {last!r}, which would replace what {first!r} makes of it: both are active.\n"
                f"  Run one of them, ad.activate(model, {last!r}); or give {last!r} a weight below 1 to mix them."
            )


def _offloaded(adapters: tuple[WeightAdapter, ...]) -> bool:
    """Whether a layer on the meta device waits for its weights; where its adapters are there too, all is shapes alone."""
    return any("_hf_hook" in a.__dict__ or not all(p.is_meta for p in a.parameters()) for a in adapters)


@functools.cache
def adapted_class(base: type[nn.Module], readable: tuple[str, ...] = ()) -> type[Adapted]:
    """The generated subclass of `base` whose parameters `readable` are read through their adapters."""

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        placed = steered(ROWS)
        if placed is not None and id(self) in placed:
            return placed[id(self)].run(self, args, kwargs)
        return Frozen(self, self._chain)(*args, **kwargs)

    forward._adaptome = True  # type: ignore[attr-defined]
    body: dict[str, Any] = {name: _parameter_property(name) for name in readable}
    body |= {
        "forward": forward,
        "_base": base,
        "_readable": readable,
        "__module__": base.__module__,
        # str(class) is then the base's, under which transformers looks up the outputs a model can record
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    if hasattr(base, "base_model_prefix"):
        # transformers knows its models by their class's name, when it records hidden states and when it writes a config
        return type(base.__name__, (Adapted, base), body | {"__qualname__": base.__qualname__})
    mixin = AdaptedSequential if issubclass(base, nn.Sequential) else Adapted
    return type(f"Adapted{base.__name__}", (mixin, base), body)


def put(host: Host, name: str, adapter: Adapter) -> None:
    """Put an adapter on its layer under `name`; the layer becomes an adapted one if it was not."""
    layer = host.layer
    if not isinstance(layer, Adapted):
        prepare(layer, host)
    key = _key(name, host)
    getattr(layer, ATTRIBUTE)[key] = adapter
    readable = set(type(layer)._readable)
    # A packed weight is a code that only its own library reads: another value is run densely, see frozen_forward.
    unread = {host.parameter} if host.packed else set()
    wanted = readable | ({n for n in adapter.changes if n in layer._parameters} - unread)
    if wanted != readable:
        swap(layer, adapted_class(layer._base, tuple(sorted(wanted))))


def prepare(layer: nn.Module, host: Host) -> None:
    """Swap the layer's class, without any adapter yet."""
    layer.__dict__["_host"] = host
    layer.__dict__["_chain"] = ()
    layer.__dict__["_overrides"] = {}
    if "forward" in layer.__dict__ and "_old_forward" not in layer.__dict__:
        layer.__dict__["_instance_forward"] = layer.__dict__.pop("forward")
    base: Any = type(layer)
    swap(layer, adapted_class(base))
    layer.add_module(ATTRIBUTE, nn.ModuleDict())
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        layer.__dict__["_mode"], layer.training = layer.training, False


def swap(layer: nn.Module, cls: type) -> None:
    """Change the layer's class; a hook that remembered the old class's forward is told the new one.

    accelerate's hooks put a `forward` on the object that calls `_old_forward`: bound to the old class it would bypass the adapters.
    """
    layer.__class__ = cls
    if "_old_forward" in layer.__dict__:
        layer.__dict__["_old_forward"] = types.MethodType(cls.forward, layer)  # type: ignore[attr-defined]


def take(host: Host, name: str) -> None:
    """Remove an adapter; without the last one the layer is again what it was: same object, same class."""
    layer: Any = host.layer
    adapters = getattr(layer, ATTRIBUTE)
    del adapters[_key(name, host)]
    if not adapters:
        restore(layer)


def restore(layer: Any) -> None:
    """Give a layer without adapters its own class and attributes back."""
    delattr(layer, ATTRIBUTE)
    swap(layer, layer._base)
    instance = layer.__dict__.pop("_instance_forward", None)
    if instance is not None:
        layer.__dict__["forward"] = instance
    elif hasattr(getattr(layer.__dict__.get("forward"), "__func__", None), "_adaptome"):
        del layer.__dict__["forward"]  # a removed hook's leftover: the adapted class's bound forward
    layer.training = layer.__dict__.pop("_mode", layer.training)
    for state in ("_host", "_chain", "_overrides", "_in_thread"):
        layer.__dict__.pop(state, None)


def _key(name: str, host: Host) -> str:
    return f"{name}:{host.parameter}" if host.kind in ("experts", "parameter", "vector") else name


def adapters_on(layer: nn.Module | Adapted, name: str) -> list[Adapter]:
    """The adapters called `name` on this layer (several when it holds several parameter hosts)."""
    found = getattr(layer, ATTRIBUTE, {})
    return [a for key, a in found.items() if key == name or key.startswith(f"{name}:")]


def arrange(layer: Any, names: list[str]) -> None:
    """Run exactly the adapters called `names`, in that order, by the composition rule."""
    layer.__dict__["_chain"], layer.__dict__["_overrides"] = arranged(layer, names)


def arranged(
    layer: Any, names: list[str]
) -> tuple[tuple[Adapter, ...], dict[str, tuple[WeightAdapter, ...]]]:
    """Of the adapters called `names`, in that order: those that run around the forward, and those that change a parameter."""
    stack = [a for name in names for a in adapters_on(layer, name)]
    weights = [a for a in stack if isinstance(a, WeightAdapter)]
    chain: list[Adapter] = []
    overrides: dict[str, list[WeightAdapter]] = {}
    created = {p for a in weights for p in a.creates}
    # From the last adapter back: fast ones stay fast until one that has no fast form needs the weight they made.
    blocked: set[str] = set()
    for adapter in reversed(weights):
        if adapter.fast and not adapter.host.read and not blocked & set(adapter.changes):
            chain.insert(0, adapter)
            continue
        blocked |= set(adapter.changes)
        for parameter in adapter.changes:
            if adapter.host.has(parameter) or parameter in created:
                overrides.setdefault(parameter, []).insert(0, adapter)
    around = (a for a in stack if not isinstance(a, WeightAdapter))
    return (*chain, *around), {k: tuple(v) for k, v in overrides.items()}


def keep_off_fast_path(module: nn.TransformerEncoderLayer | nn.TransformerEncoder) -> None:
    """Let torch's encoder call its layers while adapters run in them.

    In eval mode its fused kernel reads the weights of the layers without calling them, unless one of its modules has a hook; the encoder
    prepares nested tensors for that kernel, which the layers themselves do not take.
    """
    running = any(isinstance(m, Adapted) and m._chain for m in module.modules() if m is not module)
    if isinstance(module, nn.TransformerEncoderLayer):
        hooks: dict[Any, Any] = module._forward_pre_hooks
        if running:
            hooks[ATTRIBUTE] = _nothing
        else:
            hooks.pop(ATTRIBUTE, None)
    elif running and module.__dict__.get("use_nested_tensor"):
        module.__dict__["_nested"], module.use_nested_tensor = True, False
    elif not running and module.__dict__.pop("_nested", False):
        module.use_nested_tensor = True


def _nothing(module: nn.Module, args: Any) -> None:
    """A forward pre-hook without effect."""


def check_mergeable(adapter: Adapter, method: str) -> WeightAdapter:
    """The adapter as one that can be merged.

    Raises:
        MergeError: for an activation adapter, or one without a merged form under the facts that are steered now.
    """
    if isinstance(adapter, WeightAdapter):
        adapter.check_merge()
        return adapter
    raise MergeError(
        f"{method} on {adapter.host.name} changes activations, not weights: it cannot be merged.\n"
        "  Keep it attached for inference, or name the adapters to merge: merge(model, names=[...])."
    )
