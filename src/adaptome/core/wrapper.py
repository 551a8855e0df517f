"""What an adapter is: a wrapper around a frozen layer's forward, in nests of any depth. `adaptome.core.adapter` puts it on the layer."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adaptome.core.errors import HostError, StateError
from adaptome.core.host import Host

#: arguments under which models are handed what they fill; those of today have `get_seq_length` besides
CACHES = ("past_key_values", "past_key_value", "layer_past", "cache_params", "state")


class Adapter(nn.Module):
    """The trainable part on one host: `forward(frozen, *args, **kwargs)` with `frozen` the layer as it stood before.

    Subclasses implement `forward`, or derive from `WeightAdapter` when they change what the layer's weight does.
    """

    #: parameters of the layer that the adapter changes; empty for activation adapters
    changes: tuple[str, ...] = ()
    #: those of them that it makes, starting from zeros, where the layer has a place for one but none (a linear layer without bias);
    #: what only some other adapter changes is skipped where it does not exist
    creates: tuple[str, ...] = ()
    #: tensors (parameters or buffers) that are never saved because the settings and the seed rebuild them
    rebuilt: ClassVar[tuple[str, ...]] = ()
    #: those of them that were set from outside, so that nothing rebuilds them: they are saved
    given: tuple[str, ...] = ()
    #: parameters that the method never trains
    frozen: ClassVar[tuple[str, ...]] = ()
    #: whether its parameters stay in at least float32, whatever type is asked for
    exact: ClassVar[bool] = False
    #: whether it is left out of some forwards by what is steered, so that a step may give it no gradient
    may_idle: bool = False
    #: the share of the adapter's effect, set by `activate(weights=...)`
    strength: float = 1.0
    #: whether it takes its strength into account itself; else the layer is run once more without it, and the outputs are mixed
    own_strength: ClassVar[bool] = False
    #: whether it takes up training examples before training begins: between `begin_taking` and `end_taking` it keeps what its layer is given, and the
    #: labels that are steered
    takes_examples: ClassVar[bool] = False

    def __init__(self, host: Host, shared: nn.Module | None = None):
        super().__init__()
        self.host = host
        # in a tuple, so that it is no submodule: the model's root holds it, once for all adapters
        self._shared = (shared,)

    @property
    def shared(self) -> Any:
        """The method's state that all its adapters use."""
        return self._shared[0]

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
        """Run the layer with the adapter around it."""
        raise HostError(f"{type(self).__name__} defines no forward.")

    def limits(self) -> dict[str, Any]:
        """Of tensors that hold indices: how many things they choose from; a list where the rows choose from different ones."""
        return {}

    def begin_taking(self) -> None:
        """From here on take up examples."""

    def end_taking(self, whole: bool = True) -> None:
        """Make what follows from the examples that were taken; where not all could be (`whole`), forget them."""

    def derive(self) -> None:
        """Make again what follows from tensors that were set from outside."""

    def share(self, added: Tensor) -> Tensor:
        """What it adds to activations, times its strength."""
        return added if self.strength == 1.0 else added * self.strength

    def row_refusal(self) -> str | None:
        """Why some rows of a batch cannot run with it while others do not (`ad.per_row`); None when they can."""
        host = self.host
        if host.read:
            return "the model reads its layer's weight, once for all rows, instead of calling the layer"
        if host.role == "expert":
            return "an expert is given tokens of all rows, and does not know whose they are"
        if host.kind == "backbone":
            return "it changes what a whole backbone takes in or gives out, for all rows alike"
        if host.kind in ("experts", "vector", "parameter") and not host.has_product:
            return f"{host.name} is read by a module's own forward, once for all rows"
        return None

    @classmethod
    def together(
        cls, members: Mapping[Any, Any], rows: Any, frozen: Frozen, *args: Any, **kwargs: Any
    ) -> Any:
        """Run several of a kind at once, each on its rows of the batch; None where there is no better form than one after another.

        Args:
            members: the adapters of one layer, by whose rows they are.
            rows: which rows those are, a `core.rows.Group`.
            frozen: the layer without adapters.
            args, kwargs: what the layer was called with.
        """
        return None

    def extra_repr(self) -> str:
        return repr(self.host)


class WeightAdapter(Adapter):
    """An adapter that changes parameters of its layer; it merges by writing what `changed` returns."""

    own_strength = True
    #: whether `forward` gives the same result without building the changed parameters
    fast: bool = False
    #: whether `changed` is the same whatever the value before, so that what an earlier adapter made of it would be lost
    replaces: bool = False
    #: whether `changed` adds what does not depend on the value, so that the order among such adapters does not matter
    additive: ClassVar[bool] = False

    def __init__(self, host: Host, shared: nn.Module | None = None):
        super().__init__(host, shared)
        self.changes = (host.parameter,)

    def changed(self, name: str, value: Tensor) -> Tensor:
        """The layer's parameter `name` in canonical form, as this adapter makes it from `value` (its value before)."""
        raise HostError(f"{type(self).__name__} defines no changed parameters.")

    def check_merge(self) -> None:
        """Raise MergeError when there is no one changed weight now, as under facts that differ between the samples of a batch."""

    def apply_to(self, name: str, value: Tensor) -> Tensor:
        """`changed`, with the adapter's strength, on the stored layout; computed in at least float32."""
        self.check_merge()
        before = self.host.canonical(value)
        exact = torch.promote_types(before.dtype, torch.float32)
        after = self.changed(name, before.to(exact))
        if self.strength != 1.0:
            after = torch.lerp(before.to(after.dtype), after, self.strength)
        return self.host.native(after)


class Frozen:
    """The layer as it stood before an adapter: call it, or ask for its weight."""

    __slots__ = ("below", "layer")

    def __init__(self, layer: Any, below: tuple[Adapter, ...]):
        self.layer, self.below = layer, below

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.below:
            return self.layer.frozen_forward(*args, **kwargs)
        adapter, frozen = self.below[-1], self.beneath()
        if adapter.strength == 1.0 or adapter.own_strength:
            return adapter(frozen, *args, **kwargs)
        _refuse_cache(adapter, args, kwargs)
        return _mix(frozen(*args, **kwargs), adapter(frozen, *args, **kwargs), adapter.strength)

    def beneath(self) -> Frozen:
        """What the last adapter runs."""
        return Frozen(self.layer, self.below[:-1])

    @property
    def pristine(self) -> bool:
        """Whether nothing has changed the base weight before this adapter."""
        # torch.compile cannot trace `not` of a tuple
        return len(self.below) + len(overrides_of(self.layer)) == 0 and "_unmerged" not in self.layer.__dict__

    def weight(self, name: str = "weight") -> Tensor:
        """The parameter in canonical form, dense, with the weight adapters before this one applied.

        Asking for the weight of a packed layer dequantises it.
        """
        host: Host = self.layer._host
        value = (
            host.current_weight()
            if name == host.parameter
            else host.canonical(host.stored_or_zeros(name).detach())
        )
        stack: list[Any] = [
            *overrides_of(self.layer).get(name, ()),
            *(a for a in self.below if name in a.changes),
        ]
        for adapter in stack:
            value = host.canonical(adapter.apply_to(name, host.native(value)))
        return value

    def bias(self) -> Tensor | None:
        """The layer's bias, with the weight adapters before this one applied; None when it has none."""
        bias: Tensor | None = self.layer.bias
        changing = [adapter for adapter in self.below if "bias" in adapter.changes]
        if not changing or (bias is None and not any("bias" in adapter.creates for adapter in changing)):
            return bias
        return self.weight("bias")


def overrides_of(layer: Any) -> dict[str, tuple[WeightAdapter, ...]]:
    """The adapters that change a layer's parameters, by parameter, in this thread."""
    own = layer.__dict__.get("_in_thread")
    found: dict[str, tuple[WeightAdapter, ...]] = (
        own.get(threading.get_ident(), layer._overrides) if own else layer._overrides
    )
    return found


@contextmanager
def overriding(layer: Any, overrides: dict[str, tuple[WeightAdapter, ...]]) -> Iterator[None]:
    """Let other adapters change a layer's parameters for the time of the block, in this thread."""
    # it stays, when empty: another thread may be about to write to it
    own = layer.__dict__.setdefault("_in_thread", {})
    key = threading.get_ident()
    before = own.get(key)
    own[key] = overrides
    try:
        yield
    finally:
        if before is None:
            del own[key]
        else:
            own[key] = before


def hidden(output: Any) -> Tensor:
    """The activations in a module's output: itself, or a tuple's first element.

    Raises:
        HostError: for any other output.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return output[0]
    raise HostError(
        f"the layer returns a {type(output).__name__}: adapters need a tensor, or a tuple that begins with one."
    )


def with_hidden(output: Any, value: Tensor) -> Any:
    """The output with its activations replaced."""
    return value if isinstance(output, Tensor) else (value, *output[1:])


def caches(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a layer was called with a cache."""
    named = any(kwargs.get(name) is not None for name in CACHES)
    return named or any(hasattr(value, "get_seq_length") for value in (*args, *kwargs.values()))


def _refuse_cache(adapter: Adapter, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise StateError for a share of the effect beside a cache: two runs of the layer would both fill it."""
    if caches(args, kwargs):
        raise StateError(
            f"{adapter.host.name or 'the root'} runs with weight {adapter.strength} and a cache, which base and adapter would both fill.\n"
            "  Run it with use_cache=False, or with weight 1."
        )


def _mix(before: Any, after: Any, share: float) -> Any:
    """Interpolate tensor outputs; of tuples the first element, of models' outputs the tensors that both have in one shape."""
    if isinstance(after, tuple):
        return (_mix(before[0], after[0], share), *after[1:])
    if isinstance(after, dict):
        mixed = {
            key: torch.lerp(before[key], value, share)
            for key, value in after.items()
            if isinstance(value, Tensor)
            and value.is_floating_point()
            and getattr(before.get(key), "shape", None) == value.shape
        }
        return type(after)(**{**after, **mixed})
    return torch.lerp(before, after, share)
