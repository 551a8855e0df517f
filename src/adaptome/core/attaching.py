"""Planning and attaching: from targets to hosts, from a method to adapters, and the base frozen."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from adaptome.core import adapter as swap
from adaptome.core import packed
from adaptome.core.adapter import Adapter
from adaptome.core.budget import Fit, fit, parse
from adaptome.core.defaults import default_hosts, without_parametrised
from adaptome.core.errors import StateError, TargetError
from adaptome.core.hosts import Host, host_of
from adaptome.core.method import Method, get_method
from adaptome.core.plan import Entry, Plan, count
from adaptome.core.reach import unused
from adaptome.core.state import (
    SHARED,
    STATE,
    Attachment,
    State,
    distributed_wrapper,
    is_ours,
    rearrange,
    root_of,
)
from adaptome.core.targets import Match, Targets, resolve
from adaptome.core.trained import Trained, head_targets, trained


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
    heads = head_targets(model, train)
    hosts, told = _hosts(model, chosen, targets, exclude, layers, heads)
    chosen, fitted = _fit(model, chosen, hosts, budget)
    methods, own = _methods_by_layer(model, chosen, hosts, per_layer or {})
    made = _plan(model, chosen, hosts, methods, trained(model, heads, None) if heads else {}, None, own)
    return replace(made, budget=fitted, notes=told)


def _fit(
    model: nn.Module, method: Method, hosts: Sequence[Host], budget: str | int | None
) -> tuple[Method, Fit | None]:
    """The method at the size that a budget asks for."""
    if budget is None:
        return method, None

    for host in hosts:
        method.fitted(host).check(host)

    def count_of(text: str) -> int:
        name, _, settings = text.partition(":")
        pairs = [pair.partition("=") for pair in settings.split(",") if pair]
        other = get_method(name.strip(), **{k.strip(): _value(v.strip()) for k, _, v in pairs})
        return sum(other.fitted(host).parameters(host) for host in hosts) + other.shared_parameters(hosts)

    return fit(method, hosts, parse(budget, _base_count(model), count_of))


def _value(text: str) -> Any:
    """What a setting's value says: a number, a list, ... as Python writes it, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _hosts(
    model: nn.Module,
    method: Method,
    targets: Targets | None,
    exclude: Targets | None,
    layers: Any,
    heads: Mapping[str, Any],
) -> tuple[list[Host], tuple[str, ...]]:
    """The hosts, and what is to be told of how they were chosen."""
    wanted = targets if targets is not None else method.targets_by_default()
    if not (targets or method.targets_by_default()):  # a method of no layer
        if not heads:
            raise TargetError(
                f"{method.name} trains what `train` names and nothing else, and nothing is named.\n  Name the head: train='classifier'."
            )
        return [], ()
    matches: list[Match] = resolve(model, wanted, exclude=exclude, layers=layers)
    whole = [path for path, rows in heads.items() if rows is None]
    kept = [m for m in matches if not any(m.path == h or m.path.startswith(f"{h}.") for h in whole)]
    hosts = [_host(m) for m in kept]
    if targets is None:
        hosts = _reached(model, method, hosts) or hosts
    if not hosts:
        raise TargetError(
            f"targets={wanted!r} matches only modules that are trained whole ({', '.join(whole)}).\n  Name other targets, or leave them out of train."
        )
    hosts, told = without_parametrised(method, wanted, hosts)
    if targets is None:
        hosts, more = default_hosts(model, method, hosts)
        told = (*told, *more)
    for host in hosts:
        if host.path in heads and host.kind not in ("experts", "parameter", "vector"):
            raise TargetError(
                f"{host.path} is among the targets and some of its rows among what trains whole; one adapter has one part on a layer.\n"
                f"  Leave it out of the targets (exclude='{host.path}'), or out of train."
            )
    return hosts, told


def _reached(model: nn.Module, method: Method, hosts: list[Host]) -> list[Host]:
    """Of the default targets those where an adapter of the method runs and is reached by a gradient."""
    if method.merge == "none":  # what wraps calls has no place where there are none
        hosts = [host for host in hosts if not host.read]
    # of what stands outside the blocks, or is in them but in neither attention nor MLP (an indexer of keys), the model may need nothing
    doubtful = any(
        host.role == "linear" or (host.index is None and host.kind in ("conv", "norm")) for host in hosts
    )
    idle = unused(model) if doubtful else frozenset()
    own = ("linear", "conv", "norm")
    return [host for host in hosts if not (host.path in idle and host.kind in own and host.role != "expert")]


def _host(match: Match) -> Host:
    host = host_of(match.module, match.path, match.parameter, match.role, match.layer)
    host.read = match.read
    return host


def _methods_by_layer(
    model: nn.Module, method: Method, hosts: Sequence[Host], per_layer: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Method], dict[str, dict[str, Any]]]:
    """The method of every host by name, later patterns winning; and by host the settings that were changed to fit it."""
    chosen = {host.name: method for host in hosts}
    for pattern, settings in per_layer.items():
        if pattern.startswith("=") and pattern[1:] in chosen:
            names = {pattern[1:]}
        else:
            names = {host_of(m.module, m.path, m.parameter).name for m in resolve(model, pattern)} & set(
                chosen
            )
        if not names:
            raise TargetError(
                f"per_layer pattern {pattern!r} matches none of the {len(hosts)} targets.\n  The targets are {', '.join(list(chosen)[:4])}, ..."
            )
        chosen |= {name: chosen[name].replace(**settings) for name in names}
    fitted: dict[str, dict[str, Any]] = {}
    for host in hosts:
        before, after = chosen[host.name], chosen[host.name].fitted(host)
        if after is not before:
            had = before.settings()
            fitted[host.name] = {key: v for key, v in after.settings().items() if v != had[key]}
            chosen[host.name] = after
        after.check(host)
    return chosen, fitted


def _recorded(
    per_layer: Mapping[str, Mapping[str, Any]], fitted: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Settings by pattern as an adapter is saved with them: the user's, and those that fit single layers."""
    made = {pattern: dict(settings) for pattern, settings in per_layer.items()}
    for name, settings in fitted.items():
        made[f"={name}"] = {**made.get(f"={name}", {}), **settings}
    return made


def _plan(
    model: nn.Module,
    method: Method,
    hosts: Sequence[Host],
    methods: Mapping[str, Method],
    heads: Mapping[str, Trained],
    seed: int | None,
    fitted: Mapping[str, Mapping[str, Any]],
) -> Plan:
    def note(host: Host) -> str:
        return ", ".join(f"{key}={value}" for key, value in fitted.get(host.name, {}).items())

    entries = tuple(
        Entry(h.name, h.kind, h.shape, h.role, methods[h.name].parameters(h), note(h)) for h in hosts
    )
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
        train: modules trained whole and saved beside the adapters ('classifier'), or single parameters ('*.position_embeddings');
            'embed_tokens[32000:]' trains rows.
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
    _check_name(name, state)
    heads_asked = head_targets(root, train)
    hosts, told = _hosts(root, chosen, targets, exclude, layers, heads_asked)
    chosen, fitted = _fit(root, chosen, hosts, budget)
    methods, own = _methods_by_layer(root, chosen, hosts, per_layer or {})
    seed = int(torch.randint(2**31, ()).item()) if seed is None else seed
    heads = trained(root, heads_asked, dtype) if heads_asked else {}
    made = replace(_plan(root, chosen, hosts, methods, heads, seed, own), budget=fitted, notes=told)
    built, shared = _build(chosen, hosts, methods, seed, dtype)
    # Nothing on the model has changed up to here: an error above leaves it as it was.
    attachment = Attachment(
        name, chosen, targets, exclude, layers, (train,) if isinstance(train, str) else tuple(train),
        _recorded(per_layer or {}, own), seed, dtype, made, built, heads, shared,
    )  # fmt: skip
    _install(root, _freeze(root) if state is None else state, attachment, hosts)
    return made


def _check_name(name: str, state: State | None) -> None:
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


def _install(root: nn.Module, state: State, attachment: Attachment, hosts: Sequence[Host]) -> None:
    """Put what was built on the model, and let it run after what is there."""
    name, shared = attachment.name, attachment.shared
    for adapter in [*attachment.adapters.values(), *attachment.heads.values()]:
        swap.put(adapter.host, name, adapter.train(root.training))
    if shared is not None:
        home = _shared_home(root, hosts)
        if not hasattr(home, SHARED):
            home.add_module(SHARED, nn.ModuleDict())
        getattr(home, SHARED)[name] = shared.train(root.training)
    state.attachments[name] = attachment
    state.active.append(name)
    state.unsettled = True
    rearrange(root)


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


def _build(
    method: Method, hosts: Sequence[Host], methods: Mapping[str, Method], seed: int, dtype: torch.dtype | None
) -> tuple[dict[str, Adapter], nn.Module | None]:
    """The adapters by host name and the shared state, initialised from seed and host name alone."""
    if not hosts:
        return {}, None
    with torch.random.fork_rng(devices=[]):
        _seed(seed, "")
        with _device(hosts[0]):
            shared = method.shared(hosts)
        if shared is not None:
            _cast(shared, dtype or torch.promote_types(hosts[0].dtype, torch.float32))
            shared.to(hosts[0].device)
        built: dict[str, Adapter] = {}
        for host in hosts:
            _seed(seed, host.name)
            with _device(host):
                adapter = methods[host.name].adapter(host, shared)
            # before it goes to its device, for starts may be in float64 and not every device has that
            wanted = dtype or torch.promote_types(host.dtype, torch.float32)
            _cast(adapter, torch.promote_types(wanted, torch.float32) if adapter.exact else wanted)
            adapter.to(host.device)
            built[host.name] = adapter
    return built, shared


def _device(host: Host) -> Any:
    """Tensors are drawn on the CPU, so that a seed gives the same adapter on every device; on meta nothing is drawn."""
    return torch.device("meta" if host.device.type == "meta" else "cpu")


def _cast(adapter: nn.Module, dtype: torch.dtype) -> None:
    """Parameters to the type; buffers to no less."""
    for module in adapter.modules():
        for key, value in module._parameters.items():
            if value is not None and value.is_floating_point() and value.dtype != dtype:
                module._parameters[key] = nn.Parameter(value.detach().to(dtype), value.requires_grad)
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[key] = buffer.to(torch.promote_types(buffer.dtype, dtype))


def _seed(seed: int, name: str) -> None:
    # the CPU's generator alone: torch.manual_seed would also reset those of accelerators, which fork_rng does not keep
    drawn = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    torch.default_generator.manual_seed(int.from_bytes(drawn[:7], "big"))


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
