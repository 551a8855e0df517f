"""The verbs on a model with adapters: detach, activate, disable, and what trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from adaptome.core.errors import GradientError, StateError
from adaptome.core.merging import unmerge
from adaptome.core.plan import Report, count
from adaptome.core.state import (
    STATE,
    adapters,
    attachment_of,
    find_root,
    forget,
    rearrange,
    refuse_sharded,
    state_of,
    tensors_of,
)


def detach(model: nn.Module, name: str | None = None) -> None:
    """Take an adapter off (None: all). Merged ones are unmerged first, so the base's bits are always those of before.

    When the last one goes, every layer has its own class again and trains as it did before the first attach.

    Raises:
        StateError: no adapter has that name.
    """
    root, state = find_root(model), state_of(model)
    refuse_sharded(root, "detaching")
    names = list(state.attachments) if name is None else [attachment_of(model, name).name]
    if any(state.attachments[n].merged for n in names):
        unmerge(root)
    forget(root, names)


def activate(
    model: nn.Module, names: str | Sequence[str], weights: Mapping[str, float] | None = None
) -> None:
    """Run exactly these adapters, in this order (the later around the earlier).

    Args:
        model: with adapters.
        names: of the adapters; an empty list runs the base.
        weights: share of each adapter's effect, 1 unless given: the delta of a weight adapter, the change of the
            output of an activation adapter (of the input, where that is what it changes).

    Raises:
        StateError: unknown name, or a weight for an adapter that is not named.
    """
    root, state = find_root(model), state_of(model)
    wanted = [names] if isinstance(names, str) else list(names)
    for name in [*wanted, *(weights or {})]:
        attachment_of(model, name)
    stray = set(weights or {}) - set(wanted)
    if stray:
        raise StateError(f"weights name {sorted(stray)}, which are not among the activated {wanted}.")
    for name in wanted:
        for adapter in state.attachments[name].all().values():
            adapter.strength = float((weights or {}).get(name, 1.0))
    state.active = wanted
    rearrange(root)


def active(model: nn.Module) -> list[str]:
    """The names of the adapters that were activated, in order; merged ones are in the weights, and `disabled` leaves the list as it is."""
    return list(state_of(model).active)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Run the base alone for the time of the block (merged adapters stay merged). Nests."""
    root, state = find_root(model), state_of(model)
    before, state.disabled = state.disabled, True
    rearrange(root)
    try:
        yield
    finally:
        state.disabled = before
        if STATE in root.__dict__:
            rearrange(root)


# -- what trains ---------------------------------------------------------------------------------------------------


def parameters_of(model: nn.Module, name: str = "default") -> dict[str, nn.Parameter]:
    """The parameters of one adapter, heads and shared state included, every tensor once.

    Keys are the target's name and the tensor's: 'model.layers.0.self_attn.q_proj.A'.
    """
    found = {
        key: value
        for key, value in tensors_of(attachment_of(model, name)).items()
        if isinstance(value, nn.Parameter)
    }
    return found


def set_trainable(model: nn.Module, name: str, trainable: bool = True) -> None:
    """Let an adapter train, or freeze it (what its method keeps frozen stays frozen)."""
    attachment = attachment_of(model, name)
    for module in attachment.modules():
        frozen = getattr(module, "frozen", ())
        for key, parameter in module.named_parameters():
            parameter.requires_grad_(trainable and key not in frozen)


def trainable(model: nn.Module) -> Report:
    """What trains: count, share, bytes, by role; tied and shared tensors once. Works on any model, adapted or not."""
    roles: dict[int, str] = {}
    for attachment in adapters(model).values():
        for kind, group in (("", attachment.adapters), ("head", attachment.heads)):
            for adapter in group.values():
                roles |= {id(p): kind or adapter.host.role for p in adapter.parameters()}
        if attachment.shared is not None:
            roles |= {id(p): "shared" for p in attachment.shared.parameters()}
    tally: dict[str, int] = {}
    names, size = [], 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            role = roles.get(id(parameter), "base")
            tally[role] = tally.get(role, 0) + parameter.numel()
            size += parameter.numel() * parameter.element_size()
            names.append(name)
    return Report(sum(tally.values()), count(model), size, tally, tuple(names))


def on_step(model: nn.Module, step: int, total: int) -> None:
    """Drive the methods' schedules (rank growth, redraws, ...).

    Call with step 0 (or the step a run resumes from) before training, then after each optimiser step `step` of `total`.
    """
    for name in active(model):
        attachment = attachment_of(model, name)
        attachment.method.on_step(attachment.adapters, attachment.shared, step, total)


def penalty(model: nn.Module) -> Tensor | None:
    """The methods' own terms of the loss (orthogonality, load balance, ...), summed; None when there are none."""
    terms = [
        t
        for a in (attachment_of(model, n) for n in active(model))
        if (t := a.method.penalty(a.adapters, a.shared)) is not None
    ]
    return sum(terms[1:], terms[0]) if terms else None


def check_gradients(model: nn.Module) -> None:
    """After the first backward: make sure that a gradient reached every adapter that should train.

    Experts are left out: one that no token was routed to has none; so are adapters that steering leaves out of some forwards.

    Raises:
        GradientError: naming the adapters without.
    """
    missing: list[str] = []
    total = 0
    for name in active(model):
        for path, adapter in attachment_of(model, name).all().items():
            training = [p for p in adapter.parameters() if p.requires_grad]
            total += bool(training)
            idle = adapter.may_idle or "expert" in adapter.host.role
            if training and not idle and all(p.grad is None for p in training):
                missing.append(f"{name}: {path}")
    if missing:
        shown = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
        raise GradientError(
            f"no gradient reached {len(missing)} of {total} adapters: {shown}.\n"
            "  Usual causes: the layer is not run in this forward, its output is detached, or gradient checkpointing with use_reentrant=True\n"
            "  on a frozen embedding (call model.enable_input_require_grads(), or use_reentrant=False)."
        )
