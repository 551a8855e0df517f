"""Where a small network `A` goes in a sub-layer `f`, an attention or an MLP:

    series, after       z = f(x);  y = z + A(z)          series, before     y = f(x + A(x))
    parallel, before    y = f(x) + A(x)                  parallel, after    z = f(x);  y = z + A(z)

The host is the sub-layer's module; a linear map of it (its last, for what acts on z); or, for `f(x) + A(x)` where no module is the sub-layer
alone (BERT's attention ends in the sum with its input, its MLP is no module), its first map and its last one: the first's adapter makes
A(x) when x passes there, the last's adds it.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Adapter, Frozen
from adaptome.core.errors import StateError, TargetError
from adaptome.core.hosts import Host, first_input
from adaptome.core.method import Method, option, settings
from adaptome.core.steer import steered
from adaptome.core.wrapper import hidden as hidden
from adaptome.core.wrapper import with_hidden as with_hidden

#: roles of a sub-layer's first and last map -> which sub-layer
FIRST = {"q": "attention", "qkv": "attention", "up": "mlp", "gate-up": "mlp"}
LAST = {"o": "attention", "down": "mlp"}


class Insertion(NamedTuple):
    """How `A` meets the layer: beside it or in series; on its input or its output; with that added once more; across two maps."""

    parallel: bool
    before: bool
    residual: bool
    across: bool = False


#: in series, on the layer's output
BEHIND = Insertion(parallel=False, before=False, residual=True)


@settings
class InsertedMethod(Method):
    """Base of methods that put one small network of bottleneck b on each host: settings that all of them have."""

    around_experts = True

    size: int = option(64, at_least=1, help="the bottleneck b")
    reduction: float = option(0.0, at_least=0, help="b = round(d / reduction) in place of size; 0: size")
    scale: float | Literal["learned"] = option(1.0, help="s; 'learned' trains one number per adapter")
    drop: int = option(
        0, at_least=0, help="AdapterDrop: training skips the first n blocks, n drawn from 0 to this"
    )

    def how(self) -> Insertion:
        """The insertion."""
        raise TypeError(f"{type(self).__name__} defines no insertion.")

    def numbers(self, host: Host, fan_in: int, fan_out: int) -> int:
        """Trained numbers of the network between these widths, by formula."""
        raise TypeError(f"{type(self).__name__} has no parameter formula.")

    def network(self, host: Host, shared: nn.Module | None) -> Inserted:
        """The adapter that holds the network."""
        raise TypeError(f"{type(self).__name__} builds no network.")

    def bottleneck(self, width: int) -> int:
        """b where the network reads activations of this width."""
        return max(1, round(width / self.reduction)) if self.reduction else self.size

    def sized(self, value: int) -> Method:
        return self.replace(size=value, reduction=0.0)

    def widths(self, host: Host) -> tuple[int, int]:
        """What the network reads and what it makes."""
        how = self.how()
        if how.across and host.kind == "linear":
            return host.fan_in, host.fan_in
        if how.parallel and how.before:
            return host.fan_in, host.fan_out
        width = host.fan_in if how.before else host.fan_out
        return width, width

    def ends(self, host: Host) -> bool:
        """Whether it is the last map of a sub-layer whose network sits on the first."""
        return self.how().across and host.kind == "linear" and host.role in LAST

    def admits(self, host: Host) -> str | None:
        if host.kind == "linear" and self.how().across and host.role not in {**FIRST, **LAST}:
            return (
                "it runs beside a whole sub-layer: a module (targets='mlp-blocks' or 'attention-blocks'), or its first and last map "
                f"(('up', 'down') or ('q', 'o')), of which this layer, {host.role!r}, is neither"
            )
        return None if host.kind in ("linear", "module") else super().admits(host)

    def parameters(self, host: Host) -> int:
        if self.ends(host):
            return 0
        return self.numbers(host, *self.widths(host)) + (self.scale == "learned")

    def shared(self, hosts: Sequence[Host]) -> nn.Module | None:
        return Crossing(hosts) if self.how().across and any(h.kind == "linear" for h in hosts) else None

    def adapter(self, host: Host, shared: nn.Module | None = None) -> Adapter:
        return Last(host, shared) if self.ends(host) else self.network(host, shared)

    def drawn(self, step: int) -> int:
        """How many of the first blocks step `step` skips."""
        return random.Random(f"adapterdrop:{step}").randint(0, self.drop)

    def on_step(
        self, adapters: Mapping[str, Adapter], shared: nn.Module | None, step: int, total: int
    ) -> None:
        for adapter in adapters.values():
            if isinstance(adapter, Droppable):
                adapter.drawn = self.drawn(step)


@settings
class SublayerMethod(InsertedMethod):
    """Base of methods whose network may have any of the insertions."""

    form: Literal["series", "parallel"] = option("series", help="in series with the sub-layer, or beside it")
    place: Literal["after", "before"] = option(
        "after", help="whether the network reads the output or the input"
    )
    residual: bool | None = option(
        None, help="whether what it reads is added to what it makes; None: in series, not beside"
    )

    def how(self) -> Insertion:
        parallel, before = self.form == "parallel", self.place == "before"
        residual = not parallel if self.residual is None else self.residual
        return Insertion(parallel, before, residual, across=parallel and before)


@settings
class BesideMethod(SublayerMethod):
    """Base of those whose paper puts the network beside the whole sub-layer."""

    form: Literal["series", "parallel"] = option(
        "parallel", help="in series with the sub-layer, or beside it"
    )
    place: Literal["after", "before"] = option(
        "before", help="whether the network reads the output or the input"
    )


class Droppable(Adapter):
    """Base of adapters that are skipped in the first blocks: as drawn in training, and as steered (`ad.steer(drop=n)`) always."""

    own_strength = True
    drawn: int = 0

    def skipped(self) -> bool:
        """Whether this forward goes without the adapter."""
        index = self.host.index
        if self.may_idle and self.training:
            _check_wrapper(self)
        return index is not None and index < int(steered("drop", self.drawn if self.training else 0))


def _check_wrapper(adapter: Adapter) -> None:
    """Raise StateError when DDP runs the model and expects a gradient of every parameter in every step."""
    if torch.compiler.is_compiling():
        return
    ddp: Any = getattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", None)
    if ddp is not None and (ddp.static_graph or not ddp.find_unused_parameters):
        raise StateError(
            f"{adapter.host.name or 'the root'} is left out of some training steps (AdapterDrop, drop=), and DistributedDataParallel waits for its gradient.\n"
            "  Wrap with DistributedDataParallel(model, find_unused_parameters=True), without static_graph; in the Trainer, ddp_find_unused_parameters=True."
        )


class Inserted(Droppable):
    """Base of adapters that are one small network; subclasses implement `network(h)`.

    Args:
        host: a linear layer or a module.
        how: the insertion.
        scale: s, or 'learned' for a trained scalar that starts at 1.
        drop: how many of the first blocks a training step may skip.
        shared: the method's state that all its adapters use.
    """

    def __init__(
        self,
        host: Host,
        how: Insertion,
        scale: float | Literal["learned"] = 1.0,
        drop: int = 0,
        shared: nn.Module | None = None,
    ):
        super().__init__(host, shared)
        self.how = how
        self.may_idle = host.index is not None and host.index < drop
        self.s: nn.Parameter | float = nn.Parameter(torch.ones(())) if scale == "learned" else float(scale)

    def network(self, h: Tensor) -> Tensor:
        """`A(h)` without the scale, computed in h's precision."""
        raise TypeError(f"{type(self).__name__} defines no network.")

    def bypass(self, h: Tensor) -> Tensor:
        """`s A(h)`."""
        made = self.network(h)
        if isinstance(self.s, Tensor):
            return made * self.s.to(made.dtype)
        return made if self.s == 1.0 else made * self.s

    def with_residual(self, h: Tensor) -> Tensor:
        """What meets the layer: `s A(h)`, with h itself where the insertion keeps it; by the adapter's strength."""
        new = h + self.bypass(h) if self.how.residual else self.bypass(h)
        if self.strength == 1.0:
            return new
        # beside the layer nothing is what leaves it as it was; in series, h
        return self.share(new) if self.how.parallel else torch.lerp(h, new.to(h.dtype), self.strength)

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
        how = self.how
        if self.skipped():
            return frozen(*args, **kwargs)
        if how.across and self.host.kind == "linear":
            output = frozen(*args, **kwargs)
            self.shared.put(self.host.path, self.with_residual(first_input(self.host.layer, args, kwargs)))
            return output
        if how.before:
            x = first_input(self.host.layer, args, kwargs)
            new = self.with_residual(x)
            if how.parallel:
                return plus(frozen(*args, **kwargs), new)
            changed = [new if a is x else a for a in args]
            return frozen(*changed, **{k: new if v is x else v for k, v in kwargs.items()})
        output = frozen(*args, **kwargs)
        new = self.with_residual(hidden(output))
        return plus(output, new) if how.parallel else with_hidden(output, new)


class Last(Droppable):
    """On the last map of a sub-layer: adds what the adapter of the first one made."""

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
        output = frozen(*args, **kwargs)
        return output if self.skipped() else plus(output, self.shared.get(self.host.path))


class Crossing(nn.Module):
    """What the first maps of sub-layers hand to the last ones. Holds one tensor a kind of sub-layer: that of the block which runs now.

    Args:
        hosts: first and last maps; each first one is paired with the last one nearest to it in the tree.

    Raises:
        TargetError: a map is without its partner.
    """

    def __init__(self, hosts: Sequence[Host]):
        super().__init__()
        linear = [host for host in hosts if host.kind == "linear"]
        last = [host for host in linear if host.role in LAST]
        self.first_of: dict[str, str] = {}
        self.kind_of: dict[str, str] = {}
        self.held = Held()
        for first in (host for host in linear if host.role in FIRST):
            kind = FIRST[first.role]
            near = max(
                (h for h in last if LAST[h.role] == kind), key=lambda h: _common(first, h), default=None
            )
            if near is None or near.path in self.first_of or near.fan_out != first.fan_in:
                raise TargetError(_unpaired(first))
            self.first_of[near.path] = first.path
            self.kind_of[first.path] = kind
        alone = [host for host in last if host.path not in self.first_of]
        if alone:
            raise TargetError(_unpaired(alone[0]))

    def put(self, path: str, value: Tensor) -> None:
        """What the adapter on this first map made."""
        self.held.values[self.kind_of[path]] = (path, value)

    def get(self, path: str) -> Tensor:
        """What is to be added at this last map.

        Raises:
            StateError: its first map was not run before it.
        """
        first = self.first_of[path]
        found, value = self.held.values.get(self.kind_of[first], ("", None))
        if found != first or value is None:
            raise StateError(
                f"{path} was run without {first} before it, whose adapter reads the sub-layer's input.\n"
                "  Something reads that layer's weight without calling it: put the adapter on the whole module instead."
            )
        return value


class Held(threading.local):
    """Tensors of the forward that runs in this thread; copies and pickles of the model leave them behind."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[str, Tensor]] = {}

    def __reduce__(self) -> Any:
        return Held, ()


def _common(a: Host, b: Host) -> int:
    """How many names the two paths begin with alike."""
    pairs = zip(a.path.split("."), b.path.split("."), strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), len(b.path))


def _unpaired(host: Host) -> str:
    kind = {**FIRST, **LAST}[host.role]
    wanted = {"mlp": "('up', 'down')", "attention": "('q', 'o')"}[kind]
    return (
        f"{host.path}, a {host.role!r}, has no partner among the targets: beside a sub-layer the adapter needs its first map and its last one.\n"
        f"  Write targets={wanted}, or the whole module ('{kind}-blocks') where it has one."
    )


def plus(output: Any, added: Tensor) -> Any:
    """The output with something added to its activations."""
    z = hidden(output)
    return with_hidden(output, z + added.to(z))
