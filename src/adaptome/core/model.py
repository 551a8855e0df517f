"""The verbs on a model: attach, detach, activate, disabled, merge's bookkeeping, and what trains.

All state is on the model itself: adapters on their layers, shared state in `model.adaptome_shared`, and one `State` under
`model._adaptome`, so that copying or pickling the model takes everything along.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core import adapter as swap
from adaptome.core.adapter import Adapted, Adapter
from adaptome.core.budget import Fit, fit, parse
from adaptome.core.errors import GradientError, StateError, TargetError, did_you_mean
from adaptome.core.hosts import Host, host_of
from adaptome.core.method import Method, get_method
from adaptome.core.plan import Entry, Plan, Report, count
from adaptome.core.targets import Match, resolve
from adaptome.core.trained import Trained, trained
from adaptome.quantization import packed

STATE, SHARED = "_adaptome", "adaptome_shared"
Targets = str | Sequence[str]


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


# -- planning ------------------------------------------------------------------------------------------------------


def plan(
    model: nn.Module,
    method: str | Method | type[Method],
    *,
    targets: Targets | None = None,
    exclude: Targets | None = None,
    layers: Any = None,
    train: Targets = (),
    per_layer: Mapping[str, Mapping[str, Any]] | None = None,
    budget: str | int | None = None,
    **settings: Any,
) -> Plan:
    """What `attach` with the same arguments would do; builds nothing, so it works on the meta device.

    Raises:
        TargetError, MethodError, HostError: as `attach`.
    """
    model = root_of(model)
    chosen = get_method(method, **settings)
    heads = _head_targets(model, train)
    hosts = _hosts(model, chosen, targets, exclude, layers, heads)
    chosen, fitted = _fit(model, chosen, hosts, budget)
    methods = _methods_by_layer(model, chosen, hosts, per_layer or {})
    made = _plan(model, chosen, hosts, methods, trained(model, heads, None) if heads else {}, None)
    return replace(made, budget=fitted)


def _fit(
    model: nn.Module, method: Method, hosts: Sequence[Host], budget: str | int | None
) -> tuple[Method, Fit | None]:
    """The method at the size that a budget asks for."""
    if budget is None:
        return method, None

    def count_of(text: str) -> int:
        name, _, settings = text.partition(":")
        pairs = [pair.partition("=") for pair in settings.split(",") if pair]
        other = get_method(name.strip(), **{k.strip(): ast.literal_eval(v.strip()) for k, _, v in pairs})
        return sum(other.parameters(host) for host in hosts) + other.shared_parameters(hosts)

    return fit(method, hosts, parse(budget, _base_count(model), count_of))


def _hosts(
    model: nn.Module,
    method: Method,
    targets: Targets | None,
    exclude: Targets | None,
    layers: Any,
    heads: Mapping[str, Any],
) -> list[Host]:
    wanted = targets if targets is not None else method.default_targets
    matches: list[Match] = resolve(model, wanted, exclude=exclude, layers=layers)
    whole = [path for path, rows in heads.items() if rows is None]
    kept = [m for m in matches if not any(m.path == h or m.path.startswith(f"{h}.") for h in whole)]
    hosts = [host_of(m.module, m.path, m.parameter, m.role, m.layer) for m in kept]
    if not hosts:
        raise TargetError(
            f"targets={wanted!r} matches only modules that are trained whole ({', '.join(whole)}).\n  Name other targets, or leave them out of train."
        )
    for host in hosts:
        method.check(host)
    return hosts


def _methods_by_layer(
    model: nn.Module, method: Method, hosts: Sequence[Host], per_layer: Mapping[str, Mapping[str, Any]]
) -> dict[str, Method]:
    """The method of every host by name: later patterns win."""
    chosen = {host.name: method for host in hosts}
    for pattern, settings in per_layer.items():
        names = {host_of(m.module, m.path, m.parameter).name for m in resolve(model, pattern)} & set(chosen)
        if not names:
            raise TargetError(
                f"per_layer pattern {pattern!r} matches none of the {len(hosts)} targets.\n  The targets are {', '.join(list(chosen)[:4])}, ..."
            )
        chosen |= {name: chosen[name].replace(**settings) for name in names}
    return chosen


_ROWS = re.compile(r"(?P<path>.*)\[(?P<first>\d+):(?P<end>\d*)\]")


def _head_targets(model: nn.Module, train: Targets) -> dict[str, tuple[int, int] | None]:
    """Module path -> rows to train, of every pattern in `train`; 'embed_tokens[100:]' names rows."""
    found: dict[str, tuple[int, int] | None] = {}
    for pattern in [train] if isinstance(train, str) else train:
        rows = _ROWS.fullmatch(pattern)
        for match in resolve(model, rows["path"] if rows else pattern):
            if next(match.module.parameters(), None) is None:
                raise TargetError(
                    f"train={pattern!r}: {match.path} ({type(match.module).__name__}) has no parameters to train."
                )
            if rows is None:
                found[match.path] = None
                continue
            length = next(iter(match.module.parameters())).shape[0]
            first, end = int(rows["first"]), int(rows["end"] or length)
            if not first < end <= length:
                raise TargetError(
                    f"train={pattern!r}: rows {first} to {end} of {match.path}, which has {length}."
                )
            found[match.path] = (first, end)
    return found


def _plan(
    model: nn.Module,
    method: Method,
    hosts: Sequence[Host],
    methods: Mapping[str, Method],
    heads: Mapping[str, Trained],
    seed: int | None,
) -> Plan:
    entries = tuple(Entry(h.name, h.kind, h.shape, h.role, methods[h.name].parameters(h)) for h in hosts)
    seen: set[int] = set()
    sizes: dict[str, int] = {}
    for path, head in heads.items():
        own = [p for p in head.parameters() if id(p) not in seen]
        seen |= {id(p) for p in own}
        sizes[path] = sum(p.numel() for p in own)
    return Plan(
        method.name,
        method.settings(),
        entries,
        method.shared_parameters(hosts),
        sizes,
        _base_count(model),
        seed,
    )


def _base_count(model: nn.Module) -> int:
    ours = {id(p): p.numel() for name, p in model.named_parameters() if is_ours(name)}
    return count(model) - sum(ours.values())


def is_ours(name: str) -> bool:
    """Whether a parameter's or module's qualified name lies inside an adapter."""
    parts = name.split(".")
    return swap.ATTRIBUTE in parts or SHARED in parts


# -- attaching -----------------------------------------------------------------------------------------------------


def attach(
    model: nn.Module,
    method: str | Method | type[Method],
    name: str = "default",
    *,
    targets: Targets | None = None,
    exclude: Targets | None = None,
    layers: Any = None,
    train: Targets = (),
    per_layer: Mapping[str, Mapping[str, Any]] | None = None,
    budget: str | int | None = None,
    dtype: torch.dtype | None = None,
    seed: int | None = None,
    **settings: Any,
) -> Plan:
    """Put a method's adapters on a model, freeze the base, and activate them after those already there.

    Args:
        model: any module; its layers stay the same objects.
        method: a name ('lora'), a method (LoRA(r=8)) or its class.
        name: of this adapter; a model holds any number.
        targets: roles ('attention', 'q', 'all-linear', ...), globs or 're:' regexes on module names, or a list of them; every
            entry must match. None: the method's own default.
        exclude: the same language; what it matches is left out.
        layers: only blocks with these numbers: 3, [0, 5], '4:8', '-4:'.
        train: modules trained whole and saved beside the adapters ('classifier'); 'embed_tokens[32000:]' trains rows.
        per_layer: settings by pattern, {'*.q_proj': {'r': 16}}; later patterns win.
        budget: trainable numbers instead of a size: 20000, '1.5M', '0.1%' of the base, or 'lora:r=8' for as many as that
            method has here; the method solves its own size for it, and the plan tells how close it came.
        dtype: of the adapters; None for float32, or float64 on a float64 base.
        seed: of their initialisation; None draws one from torch's generator, so torch.manual_seed before this call makes it repeatable.
        settings: of the method.

    Returns:
        The plan: every host with its shape and trainable numbers. Print it.

    Raises:
        TargetError: an entry matches nothing.
        MethodError: an unknown method or setting.
        HostError: the method does not admit a target.
        StateError: the name is taken.
    """
    chosen = get_method(method, **settings)
    root = _root_to_attach(model)
    state: State | None = root.__dict__.get(STATE)
    if state is not None and name in state.attachments:
        raise StateError(
            f"an adapter called {name!r} is attached already.\n  Choose another name, or ad.detach(model, {name!r}) first."
        )
    if not name or not re.fullmatch(r"[\w-]+", name):
        raise StateError(f"adapter name {name!r}: use letters, digits, '-' and '_'.")
    if hasattr(nn.ModuleDict, name):
        raise StateError(
            f"adapter name {name!r} is an attribute of every module.\n  Choose another, such as '{name}-1'."
        )
    head_targets = _head_targets(root, train)
    hosts = _hosts(root, chosen, targets, exclude, layers, head_targets)
    chosen, fitted = _fit(root, chosen, hosts, budget)
    methods = _methods_by_layer(root, chosen, hosts, per_layer or {})
    seed = int(torch.randint(2**31, ()).item()) if seed is None else seed
    heads = trained(root, head_targets, dtype) if head_targets else {}
    made = replace(_plan(root, chosen, hosts, methods, heads, seed), budget=fitted)
    built, shared = _build(chosen, hosts, methods, seed, dtype)
    # Nothing on the model has changed up to here: an error above leaves it as it was.
    attachment = Attachment(
        name, chosen, targets, exclude, layers, (train,) if isinstance(train, str) else tuple(train),
        {k: dict(v) for k, v in (per_layer or {}).items()}, seed, dtype, made, built, heads, shared,
    )  # fmt: skip
    state = _freeze(root) if state is None else state
    for adapter in [*built.values(), *heads.values()]:
        swap.put(adapter.host, name, adapter.train(root.training))
    if shared is not None:
        home = _shared_home(root, hosts)
        if not hasattr(home, SHARED):
            home.add_module(SHARED, nn.ModuleDict())
        getattr(home, SHARED)[name] = shared.train(root.training)
    state.attachments[name] = attachment
    state.active.append(name)
    _rearrange(root)
    return made


def _shared_home(root: nn.Module, hosts: Sequence[Host]) -> nn.Module:
    """Where shared state is registered: on the root, unless the root runs or lists all its children."""
    listing = isinstance(root, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
    return hosts[0].layer if listing else root


def _root_to_attach(model: nn.Module) -> nn.Module:
    """`root_of`, when adapters can still be put on the model.

    Raises:
        StateError: the model is wrapped for distributed training already, so that new parameters would never be synchronised.
    """
    wrapper = distributed_wrapper(model)
    if wrapper is not None:
        raise StateError(
            f"this model is wrapped by {wrapper} already: adapters put on it now would not be synchronised between processes.\n"
            "  Attach (or load) first, then wrap."
        )
    return root_of(model)


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


def _build(
    method: Method, hosts: Sequence[Host], methods: Mapping[str, Method], seed: int, dtype: torch.dtype | None
) -> tuple[dict[str, Adapter], nn.Module | None]:
    """The adapters by host name and the shared state, initialised from seed and host name alone."""
    with torch.random.fork_rng(devices=[]):
        _seed(seed, "")
        with _device(hosts[0]):
            shared = method.shared(hosts)
        if shared is not None:
            shared.to(hosts[0].device)
        built: dict[str, Adapter] = {}
        for host in hosts:
            _seed(seed, host.name)
            with _device(host):
                adapter = methods[host.name].adapter(host, shared)
            adapter.to(host.device)
            _cast(adapter, dtype or torch.promote_types(host.dtype, torch.float32))
            built[host.name] = adapter
    return built, shared


def _device(host: Host) -> Any:
    """Tensors are drawn on the CPU, so that a seed gives the same adapter on every device; on meta nothing is drawn."""
    return torch.device("meta" if host.device.type == "meta" else "cpu")


def _cast(adapter: Adapter, dtype: torch.dtype) -> None:
    for module in adapter.modules():
        for key, value in module._parameters.items():
            if value is not None and value.is_floating_point() and value.dtype != dtype:
                module._parameters[key] = nn.Parameter(value.detach().to(dtype), value.requires_grad)


def _seed(seed: int, name: str) -> None:
    # the CPU's generator alone: torch.manual_seed would also reset those of accelerators, which fork_rng does not keep
    torch.default_generator.manual_seed(
        int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:7], "big")
    )


def _freeze(root: nn.Module) -> State:
    state = State(trained_before=tuple(n for n, p in root.named_parameters() if p.requires_grad))
    for parameter in root.parameters():
        parameter.requires_grad_(False)
    for path, module in list(root.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            swap.prepare(module, host_of(module, path))
    packed.settle(root)
    root.__dict__[STATE] = state
    return state


def _rearrange(root: nn.Module) -> None:
    """Make every adapted layer run what the state says."""
    state: State = root.__dict__[STATE]
    running = [] if state.disabled else [n for n in state.active if not state.attachments[n].merged]
    for module in root.modules():
        if isinstance(module, Adapted):
            swap.arrange(module, running)
    for module in root.modules():
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerEncoder)):
            swap.keep_off_fast_path(module)
    _ignore_on_save(root)


def _ignore_on_save(root: nn.Module) -> None:
    """Let transformers' save_pretrained write the base as always: tell it which keys are ours."""
    for module in root.modules():
        ignored = getattr(module, "_keys_to_ignore_on_save", None)
        if isinstance(ignored, set):
            ignored -= {key for key in ignored if is_ours(key)}
            # not by state_dict(), whose hooks reshard under FSDP2
            tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
            ignored |= {key for key, _ in tensors if is_ours(key)}


# -- detaching and switching ---------------------------------------------------------------------------------------


def detach(model: nn.Module, name: str | None = None) -> None:
    """Take an adapter off (None: all). Merged ones are unmerged first, so the base's bits are always those of before.

    When the last one goes, every layer has its own class again and trains as it did before the first attach.

    Raises:
        StateError: no adapter has that name.
    """
    from adaptome.core.merging import unmerge

    root, state = find_root(model), state_of(model)
    refuse_sharded(root, "detaching")
    names = list(state.attachments) if name is None else [attachment_of(model, name).name]
    if any(state.attachments[n].merged for n in names):
        unmerge(root)
    forget(root, names)


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
        _rearrange(root)
        return
    for module in list(root.modules()):
        if isinstance(module, Adapted):
            swap.restore(module)
    packed.release(root)
    for module in root.modules():
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerEncoder)):
            swap.keep_off_fast_path(module)
    _ignore_on_save(root)
    del root.__dict__[STATE]
    parameters = dict(root.named_parameters())
    for parameter in state.trained_before:
        if parameter in parameters and parameters[parameter].is_floating_point():
            parameters[parameter].requires_grad_(True)


def activate(
    model: nn.Module, names: str | Sequence[str], weights: Mapping[str, float] | None = None
) -> None:
    """Run exactly these adapters, in this order (the later around the earlier).

    Args:
        model: with adapters.
        names: of the adapters; an empty list runs the base.
        weights: share of each adapter's effect, 1 unless given: the delta of a weight adapter, the change of the
            output of an activation adapter.

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
    _rearrange(root)


def active(model: nn.Module) -> list[str]:
    """The names of the adapters that run, in order."""
    return list(state_of(model).active)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Run the base alone for the time of the block (merged adapters stay merged). Nests."""
    root, state = find_root(model), state_of(model)
    before, state.disabled = state.disabled, True
    _rearrange(root)
    try:
        yield
    finally:
        state.disabled = before
        if STATE in root.__dict__:
            _rearrange(root)


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


def tensors_of(attachment: Attachment) -> dict[str, Tensor]:
    """Everything of an attachment that a file must hold: parameters and buffers, each tensor once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    modules: dict[str, nn.Module] = dict(attachment.all())
    if attachment.shared is not None:
        modules["shared"] = attachment.shared
    for path, module in modules.items():
        rebuilt = getattr(module, "rebuilt", ())
        for key, value in module.state_dict(keep_vars=True).items():
            if key not in rebuilt and id(value) not in seen:
                seen.add(id(value))
                found[f"{path}.{key}" if path else key] = value
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
