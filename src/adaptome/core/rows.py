"""Another adapter for every row of one batch.

    with ad.per_row(model, ["style", None, "domain"]):
        model(x)                                # x [3, ...]; the second row runs the base

A layer is run once for all rows. What it gives is handed to each adapter for its own rows, sorted by adapter; adapters of low rank that share a
layer run in two batched products where rows have few tokens (`Adapter.together`). Only an adapter that changes what its layer takes in, or the weight itself where it has no
cheaper form, runs the layer again, on its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adaptome.core.adapter import ROWS, Adapted, Adapter, Frozen, WeightAdapter, arranged
from adaptome.core.errors import HostError, StateError
from adaptome.core.hosts import first_input
from adaptome.core.state import STATE, Attachment, State, attachment_of, find_root
from adaptome.core.steer import facts, steer, steered
from adaptome.core.wrapper import caches, hidden, overrides_of, overriding, with_hidden

#: the adapters of a sample, none for the base
Names = tuple[str, ...]
Where = slice | Tensor


@contextmanager
def per_row(model: nn.Module, names: Sequence[str | Sequence[str] | None]) -> Iterator[None]:
    """Run each row of the batch with an adapter of its own, for the time of the block and in this thread.

    The adapters that are active elsewhere do not run. Where a layer sees several rows of a sample, its windows or beams, each of them has the
    sample's adapter, so that `model.generate` works with a cache, with beams and with several returned sequences. An adapter runs at the strength
    that it was activated with last.

    Args:
        model: with adapters.
        names: for every sample of the batch an adapter, several that run together in their order, or None for the base.

    Raises:
        StateError: an unknown or merged adapter, no names, or a model whose first dimension is not the batch.
        HostError: an adapter that cannot run on some rows alone, with the reason.
    """
    root = find_root(model)
    if not names or isinstance(names, str):
        raise StateError("per_row needs a name, or None, for every sample of the batch: a list.")
    rows = Rows(tuple((name,) if isinstance(name, str) else tuple(name or ()) for name in names))
    for attachment in [attachment_of(model, name) for name in dict.fromkeys(chain(*rows.order))]:
        _check(attachment)
    _check_batch_first(root)
    own = {id(m): Placed(m, rows) for m in root.modules() if isinstance(m, Adapted)}
    with steer(**{ROWS: {**(steered(ROWS) or {}), **own}}):
        yield


@contextmanager
def running_only(model: nn.Module, part: nn.Module, keep: Callable[[str], bool]) -> Iterator[None]:
    """Of the adapters that run now, let a part of the model run only some, for the time of the block and in this thread.

    A part that is run once for each of several inputs, as a Q-Former that modalities share, so has other adapters each time; those elsewhere in
    the model run as they do.

    Args:
        model: with adapters, or without.
        part: of it.
        keep: whether the adapter of a name runs.

    Raises:
        StateError: the adapters' state is on another module, so that what runs is not known here.
    """
    state: State | None = model.__dict__.get(STATE)
    adapted = [m for m in part.modules() if isinstance(m, Adapted)]
    if state is None:
        if adapted:
            raise StateError(
                f"adapters are on a part of this {type(model).__name__}, but were attached to another module.\n  Attach them to the {type(model).__name__} itself."
            )
        yield
        return
    active = [] if state.disabled else [n for n in state.active if not state.attachments[n].merged]
    names = tuple(name for name in active if keep(name))
    if len(names) == len(active):
        yield
        return
    rows = Rows((names,))
    own = {id(m): Placed(m, rows) for m in adapted}
    with steer(**{ROWS: {**(steered(ROWS) or {}), **own}}):
        yield


def _check(attachment: Attachment) -> None:
    name, method = attachment.name, attachment.method.name
    if attachment.merged:
        raise StateError(
            f"{name!r} is merged into the weights, which all rows have in common.\n  Take it out first: ad.unmerge(model)."
        )
    for path, adapter in attachment.all().items():
        reason = adapter.row_refusal()
        if reason:
            raise HostError(
                f"{name!r} ({method}) on {path} cannot run on some rows of a batch alone: {reason}.\n"
                f"  Run its rows as a batch of their own: ad.activate(model, {name!r})."
            )


def _check_batch_first(root: nn.Module) -> None:
    """Raise StateError where an attention or recurrent layer beside adapters takes the batch second: theirs are then no samples either."""
    for path, module in root.named_modules():
        second = [m for m in module.children() if getattr(m, "batch_first", None) is False]
        if second and any(isinstance(m, Adapted) for m in module.modules()):
            raise StateError(
                f"{path or 'the root'} has a {type(second[0]).__name__} with the batch second, batch_first=False: the rows of its layers are no samples.\n"
                "  Build it with batch_first=True."
            )


class Rows:
    """Which adapters every sample has."""

    def __init__(self, names: tuple[Names, ...]):
        self.names = names
        self.order = list(dict.fromkeys(names))
        self._spread: dict[tuple[int, torch.device], Spread] = {}

    def spread(self, count: int, device: torch.device, path: str) -> Spread:
        """The adapters of the rows that a layer sees.

        Raises:
            StateError: there are not equally many of every sample.
        """
        batch = len(self.names)
        if count % batch:
            raise StateError(
                f"per_row names adapters for {batch} samples, but {path or 'the root'} sees {count} rows, which is no multiple of it.\n"
                "  Name one for every sample of the batch; a layer that sees what all samples share cannot have an adapter per row."
            )
        key = count, device
        if key not in self._spread:
            self._spread[key] = Spread(self, count // batch, device)
        return self._spread[key]


class Spread:
    """The same for rows of activations, `each` of every sample.

    groups      (names, their rows), one after another
    """

    def __init__(self, rows: Rows, each: int, device: torch.device):
        self.each, self.names = each, rows.order
        numbers = [rows.order.index(name) for name in rows.names]
        of_row = [n for n in numbers for _ in range(each)]
        sorted_ = sorted(range(len(of_row)), key=of_row.__getitem__)
        self.back: Tensor | None = None
        if sorted_ != list(range(len(sorted_))):
            back = torch.empty(len(sorted_), dtype=torch.long)
            back[sorted_] = torch.arange(len(sorted_))
            self.back = back.to(device)
        self.samples = {name: [i for i, n in enumerate(rows.names) if n == name] for name in rows.order}
        self.groups = [(name, self._where(samples, device)) for name, samples in self.samples.items()]

    def _where(self, samples: list[int], device: torch.device) -> Where:
        """A slice, which copies nothing, where they lie together."""
        first, end = samples[0], samples[-1] + 1
        if end - first == len(samples):
            return slice(first * self.each, end * self.each)
        return torch.tensor([i * self.each + k for i in samples for k in range(self.each)], device=device)

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """What the groups gave, in the order of the rows."""
        whole = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
        return whole if self.back is None else whole[self.back]


class Stack(NamedTuple):
    """What the adapters of a sample are on a layer."""

    chain: tuple[Adapter, ...]
    overrides: dict[str, tuple[WeightAdapter, ...]]


class Placed:
    """The rows on one layer."""

    def __init__(self, layer: Any, rows: Rows):
        self.rows = rows
        every = {names: Stack(*arranged(layer, list(names))) for names in rows.order}
        self.stacks = {name: stack for name, stack in every.items() if stack.chain or stack.overrides}
        self._kept: dict[Hashable, tuple[int, Any]] = {}

    def run(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The layer on a batch."""
        with overriding(layer, {}):
            if not self.stacks:
                return Frozen(layer, ())(*args, **kwargs)
            if len(self.rows.order) == 1:
                (stack,) = self.stacks.values()
                with overriding(layer, stack.overrides):
                    return Frozen(layer, stack.chain)(*args, **kwargs)
            x = first_input(layer, args, kwargs)
            spread = self.rows.spread(x.shape[0], x.device, layer._host.name)
            made = self._together(layer, spread, args, kwargs)
            return self._one_by_one(layer, spread, x, args, kwargs) if made is None else made

    def _together(self, layer: Any, spread: Spread, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if any(len(stack.chain) != 1 or stack.overrides for stack in self.stacks.values()):
            return None
        members = {name: stack.chain[0] for name, stack in self.stacks.items()}
        kinds = {type(a).together.__func__ for a in members.values()}  # type: ignore[attr-defined]
        if len(kinds) > 1:
            return None
        first = next(iter(members.values()))
        return type(first).together(members, Group(spread, self), Frozen(layer, ()), *args, **kwargs)

    def _one_by_one(
        self, layer: Any, spread: Spread, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        base = Once(Frozen(layer, ()), args, kwargs)
        parts, like = [], None
        for name, where in spread.groups:
            stack = self.stacks.get(name)
            if stack is None:
                parts.append(hidden(base())[where])
                continue
            a, k = _cut(layer, x, where, args, kwargs)
            with (
                overriding(layer, stack.overrides),
                steer(**_facts_of(spread.samples[name], len(self.rows.names))),
            ):
                like = OfRows(layer, stack.chain, Part(base, where, a, k, self._alone(name, spread)))(*a, **k)
            parts.append(hidden(like))
        return with_hidden(base() if base.output is not None else like, spread.joined(parts))

    def _alone(self, name: Names, spread: Spread) -> dict[int, Placed]:
        """The fact under which layers inside this one see these rows alone."""
        count = len(spread.samples[name])
        known: dict[int, Placed] = steered(ROWS)
        mine = Rows((name,) * count)
        return {
            key: placed.only(name, mine) if placed.rows is self.rows else placed
            for key, placed in known.items()
        }

    def only(self, name: Names, rows: Rows) -> Placed:
        """The same layer for rows of one kind."""
        made = Placed.__new__(Placed)
        made.rows, made._kept = rows, {}
        made.stacks = {name: self.stacks[name]} if name in self.stacks else {}
        return made


class Group(NamedTuple):
    """What `Adapter.together` is told of the rows."""

    spread: Spread
    placed: Placed

    def keep(self, key: Hashable, members: Sequence[nn.Module], make: Callable[[], Any]) -> Any:
        """What `make` gives of the adapters' tensors, kept while these rows run and nothing trains or changes them."""
        tensors = [t for m in members for t in (*m.parameters(), *m.buffers())]
        if torch.compiler.is_compiling() or (
            torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        ):
            return make()
        version = sum(0 if t.is_inference() else t._version for t in tensors)
        kept = self.placed._kept.get(key)
        if kept is None or kept[0] != version:
            kept = self.placed._kept[key] = (version, make())
        return kept[1]


class Once:
    """The layer without adapters on the whole batch, run when it is first asked for."""

    def __init__(self, frozen: Frozen, args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.frozen, self.args, self.kwargs = frozen, args, kwargs
        self.output: Any = None

    def __call__(self) -> Any:
        if self.output is None:
            with overriding(self.frozen.layer, {}):
                self.output = self.frozen(*self.args, **self.kwargs)
        return self.output


class Part(NamedTuple):
    """The rows of one kind: what the layer is called with for them, and where it has been run already."""

    base: Once
    where: Where
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    alone: dict[int, Placed]


class OfRows(Frozen):
    """A layer before an adapter, for some rows of a batch: called with what the batch was called with, it is not run again."""

    __slots__ = ("part",)

    def __init__(self, layer: Any, below: tuple[Adapter, ...], part: Part):
        super().__init__(layer, below)
        self.part = part

    def beneath(self) -> Frozen:
        return OfRows(self.layer, self.below[:-1], self.part)

    @property
    def pristine(self) -> bool:
        return False  # what would run the weight itself is to take what the batch's one run gave

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.below:
            return super().__call__(*args, **kwargs)
        part, changed = self.part, self.layer._host.path
        same = len(args) == len(part.args) and kwargs.keys() == part.kwargs.keys()
        same = same and all(a is b for a, b in zip(args, part.args, strict=True))
        same = same and all(kwargs[key] is part.kwargs[key] for key in kwargs)
        if same and not overrides_of(self.layer):
            output = part.base()
            return with_hidden(output, hidden(output)[part.where])
        if self.layer._host.kind == "module" and (_tensors(args, kwargs) > 1 or caches(args, kwargs)):
            raise HostError(
                f"an adapter changes what {changed} ({type(self.layer).__name__}) takes in, and it would run again on some rows: with a mask, positions or a cache it cannot.\n"
                "  Put the adapter on the layer's output or on its linear maps, or run its rows as a batch of their own."
            )
        with steer(**{ROWS: part.alone}):
            return super().__call__(*args, **kwargs)


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How many tensors a layer was called with, those in tuples counted too."""
    flat = [
        v for value in (*args, *kwargs.values()) for v in (value if isinstance(value, tuple) else (value,))
    ]
    return sum(isinstance(v, Tensor) for v in flat)


def _cut(
    layer: Any, x: Tensor, where: Where, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with the rows of the activations alone; a module's masks and caches are of the whole batch, and stay."""
    part = x[where]

    def cut(value: Any) -> Any:
        if value is x:
            return part
        own = layer._host.kind != "module" and isinstance(value, Tensor) and value.dim() == x.dim()
        return value[where] if own and value.shape[0] == x.shape[0] else value

    return tuple(cut(a) for a in args), {key: cut(value) for key, value in kwargs.items()}


def _facts_of(samples: list[int], batch: int) -> dict[str, Any]:
    """Of the facts that are told for every sample, those of some: tensors [batch, ...] and lists."""
    found: dict[str, Any] = {}
    for name, value in facts().items():
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == batch:
            found[name] = value[samples]
        elif isinstance(value, list) and len(value) == batch:
            found[name] = [value[i] for i in samples]
    return found
