"""What a model knows of its adapters, and how its layers are told.

All state is on the model itself: adapters on their layers, shared state in `model.adaptome_shared`, and one `State` under
`model._adaptome`, so that copying or pickling the model takes everything along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core import adapter as swap
from adaptome.core import packed
from adaptome.core.adapter import Adapted, Adapter
from adaptome.core.errors import StateError, did_you_mean
from adaptome.core.method import Method
from adaptome.core.plan import Entry, Plan
from adaptome.core.targets import Targets
from adaptome.core.trained import Trained

STATE, SHARED = "_adaptome", swap.SHARED


@dataclass
class Attachment:
    """One named adapter of a model: its method, where it sits, and how it was made.

    `adapters` maps the target's full name to the adapter there; `heads` likewise for modules trained whole.
    """

    name: str
    method: Method
    targets: Targets | None
    exclude: Targets | None
    layers: Any
    train: tuple[str, ...]
    per_layer: dict[str, dict[str, Any]]
    seed: int
    dtype: torch.dtype | None
    plan: Plan
    adapters: dict[str, Adapter] = field(default_factory=dict)
    heads: dict[str, Trained] = field(default_factory=dict)
    shared: nn.Module | None = None
    merged: bool = False
    #: while it is inactive: which of its tensors, by module and name, ask for a gradient when it is active
    resting: set[str] | None = None

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The plan's entries."""
        return self.plan.entries

    def all(self) -> dict[str, Adapter]:
        """Adapters and heads by target name."""
        return {**self.adapters, **self.heads}

    def modules(self) -> list[nn.Module]:
        """Adapters, heads and shared state."""
        return [*self.all().values(), *([self.shared] if self.shared is not None else [])]


@dataclass
class State:
    """Everything a model knows of its adapters."""

    attachments: dict[str, Attachment] = field(default_factory=dict)
    active: list[str] = field(default_factory=list)
    #: names of the base's parameters that trained before the first attach
    trained_before: tuple[str, ...] = ()
    disabled: bool = False
    #: of `check_gradients`: whether it waits for gradients, how often it has looked, and the adapters that one reached
    unsettled: bool = True
    looks: int = 0
    reached: set[str] = field(default_factory=set)


def find_root(model: nn.Module) -> nn.Module:
    """The module that carries the adapters' state: the model, or the one inside a wrapper (DDP, compiled, your own).

    Raises:
        StateError: when nothing is attached.
    """
    if STATE in model.__dict__:
        return model
    roots = [m for m in model.modules() if STATE in m.__dict__]
    if len(roots) == 1:
        return roots[0]
    if not roots:
        raise StateError(
            f"nothing is attached to this {type(model).__name__}.\n  Attach first: ad.attach(model, 'lora')."
        )
    raise StateError(
        f"{len(roots)} modules inside this {type(model).__name__} carry adapters; call the verb on the one you mean."
    )


def root_of(model: nn.Module) -> nn.Module:
    """The module that carries, or will carry, the adapters' state: not torch.compile's wrapper, so that names do not depend on it.

    Raises:
        StateError: when several modules inside carry adapters.
    """
    if adapters(model):
        return find_root(model)
    while "_orig_mod" in model._modules:
        model = model._orig_mod  # type: ignore[assignment]
    return model


def state_of(model: nn.Module) -> State:
    """The state of a model's adapters; StateError when nothing is attached."""
    state: State = find_root(model).__dict__[STATE]
    return state


def adapters(model: nn.Module) -> dict[str, Attachment]:
    """The attachments by name; empty when nothing is attached."""
    return dict(state_of(model).attachments) if any(STATE in m.__dict__ for m in model.modules()) else {}


def attachment_of(model: nn.Module, name: str) -> Attachment:
    """One attachment.

    Raises:
        StateError: naming those there are.
    """
    known = state_of(model).attachments
    if name not in known:
        raise StateError(
            f"no adapter is called {name!r}.{did_you_mean(name, known)} Attached: {', '.join(known)}."
        )
    return known[name]


def is_ours(name: str) -> bool:
    """Whether a parameter's or module's qualified name lies inside an adapter."""
    parts = name.split(".")
    return swap.ATTRIBUTE in parts or SHARED in parts


def tensors_of(attachment: Attachment, rebuilt: bool = False) -> dict[str, Tensor]:
    """Everything of an attachment that a file must hold: parameters and buffers, each tensor once.

    Args:
        attachment: of a model.
        rebuilt: also what settings and seed rebuild.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for path, module in named_modules(attachment).items():
        left_out = (
            set() if rebuilt else set(getattr(module, "rebuilt", ())) - set(getattr(module, "given", ()))
        )
        for key, value in module.state_dict(keep_vars=True).items():
            if key not in left_out and id(value) not in seen:
                seen.add(id(value))
                found[f"{path}.{key}" if path else key] = value
    return found


def named_modules(attachment: Attachment) -> dict[str, Any]:
    """Adapters and heads by target name, and the shared state under 'shared'."""
    modules: dict[str, Any] = dict(attachment.all())
    if attachment.shared is not None:
        modules["shared"] = attachment.shared
    return modules


def distributed_wrapper(model: nn.Module) -> str | None:
    """'DistributedDataParallel', 'FSDPModule' or 'FullyShardedDataParallel' when the model, or a part of it, is wrapped by it."""
    wrappers = {"DistributedDataParallel", "FSDPModule", "FullyShardedDataParallel"}
    for cls in {c for m in model.modules() for c in type(m).__mro__}:
        # told by name, so that nothing distributed is imported
        if cls.__name__ in wrappers and cls.__module__.startswith(("torch.nn.parallel", "torch.distributed")):
            return cls.__name__
    return None


def refuse_sharded(model: nn.Module, what: str) -> None:
    """Raise StateError when the model's parameters are sharded: what replaces them or their layers' classes would be undone."""
    wrapper = distributed_wrapper(model)
    if wrapper in ("FSDPModule", "FullyShardedDataParallel"):
        raise StateError(
            f"this model is sharded ({wrapper}): {what} would be undone by the next forward.\n"
            "  ad.save it, and ad.load it on a model that is not."
        )


def rest_or_wake(attachment: Attachment, active: bool) -> None:
    """Let an inactive attachment ask for no gradient, and an active one for those it asked for before."""
    if active == (attachment.resting is None):
        return
    named = {
        f"{i}.{key}": parameter
        for i, module in enumerate(attachment.modules())
        for key, parameter in module.named_parameters()
    }
    asking = (
        {name for name, p in named.items() if p.requires_grad}
        if attachment.resting is None
        else attachment.resting
    )
    attachment.resting = None if active else asking
    for name in asking:
        named[name].requires_grad_(active)


def rearrange(root: nn.Module, rest: bool = True) -> None:
    """Make every adapted layer run what the state says; with `rest` what is inactive asks for no gradient."""
    state: State = root.__dict__[STATE]
    for name, attachment in state.attachments.items() if rest else ():
        rest_or_wake(attachment, name in state.active and not attachment.merged)
    run_only(root, [] if state.disabled else [n for n in state.active if not state.attachments[n].merged])
    ignore_on_save(root)


def run_only(root: nn.Module, names: list[str]) -> None:
    """Let every adapted layer run these adapters, whatever the state says."""
    for module in root.modules():
        if isinstance(module, Adapted):
            swap.arrange(module, names)
    for module in root.modules():
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerEncoder)):
            swap.keep_off_fast_path(module)


def forget(root: nn.Module, names: Sequence[str]) -> None:
    """Remove attachments and what they put on the model; merged weights stay as they are."""
    state: State = root.__dict__[STATE]
    for name in names:
        attachment = state.attachments.pop(name)
        state.active = [n for n in state.active if n != name]
        for adapter in attachment.all().values():
            swap.take(adapter.host, name)
        for home in [m for m in root.modules() if name in getattr(m, SHARED, ())]:
            del getattr(home, SHARED)[name]
            if not getattr(home, SHARED):
                delattr(home, SHARED)
    if state.attachments:
        for module in list(root.modules()):
            if (
                isinstance(module, Adapted)
                and not getattr(module, swap.ATTRIBUTE)
                and not isinstance(module, nn.modules.batchnorm._BatchNorm)
            ):
                swap.restore(module)
        rearrange(root)
        return
    for module in list(root.modules()):
        if isinstance(module, Adapted):
            swap.restore(module)
    packed.release(root)
    for module in root.modules():
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerEncoder)):
            swap.keep_off_fast_path(module)
    ignore_on_save(root)
    del root.__dict__[STATE]
    parameters = dict(root.named_parameters())
    for parameter in state.trained_before:
        if parameter in parameters and parameters[parameter].is_floating_point():
            parameters[parameter].requires_grad_(True)


def ignore_on_save(root: nn.Module) -> None:
    """Let transformers' save_pretrained write the base as always: tell it which keys are ours."""
    for module in root.modules():
        ignored = getattr(module, "_keys_to_ignore_on_save", None)
        if isinstance(ignored, set):
            ignored -= {key for key in ignored if is_ours(key)}
            # not by state_dict(), whose hooks reshard under FSDP2
            tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
            ignored |= {key for key, _ in tensors if is_ours(key)}
