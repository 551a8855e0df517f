"""What a method's default targets become on a model with mixtures of experts.

A role selects experts too, and experts are many layers in the place of one. Where the user names targets, these are taken as
they are. By default

    a network in a sub-layer (bottlenecks)    stands once around the whole mixture, in place of its experts' and shared experts' maps
    any other method                          goes on the experts that it admits, and leaves out those that it does not
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from adaptome.core.hosts import Host, host_of
from adaptome.core.method import Method
from adaptome.core.targets import ROLES, roles


def default_hosts(
    model: nn.Module, method: Method, hosts: Sequence[Host]
) -> tuple[list[Host], tuple[str, ...]]:
    """The hosts of a method's default targets, in order, and what is to be told of them.

    Args:
        model: the model.
        method: a method whose default targets match `hosts`.
        hosts: what they match.
    """
    experts = [host for host in hosts if host.role == "expert"]
    if not experts:
        return list(hosts), ()
    if method.around_experts:
        hosts, told = _around(model, hosts, experts)
        experts = [host for host in hosts if host.role == "expert"]
    else:
        told = ()
    refused = {host.name: reason for host in experts if (reason := method.fitted(host).admits(host))}
    kept = [host for host in hosts if host.name not in refused]
    if not refused or not kept:  # of nothing but refused ones, the refusal is what to say
        return list(hosts), told
    reason = next(iter(refused.values()))
    return kept, (*told, f"left out {len(refused)} parameters of experts, as {next(iter(refused))}: {reason}")


def without_parametrised(
    method: Method, wanted: str | Sequence[str], hosts: Sequence[Host]
) -> tuple[list[Host], tuple[str, ...]]:
    """The hosts that roles select, without those whose weights a parametrisation makes and the method would change; and which these are.

    What is named by its path stays, so that the refusal says why; so it does where nothing else is selected.
    """
    entries = [wanted] if isinstance(wanted, str) else list(wanted)
    skipped = {host.name for host in hosts if method.parametrised(host)}
    kept = [host for host in hosts if host.name not in skipped]
    if not skipped or not kept or not all(entry in ROLES for entry in entries):
        return list(hosts), ()
    first = next(host for host in hosts if host.name in skipped)
    return kept, (f"left out {', '.join(sorted(skipped))}: {method.parametrised(first)}",)


def _around(
    model: nn.Module, hosts: Sequence[Host], experts: Sequence[Host]
) -> tuple[list[Host], tuple[str, ...]]:
    """The hosts with each mixture's maps replaced by the mixture's module."""
    mixtures = {
        match.path: host_of(match.module, match.path, None, match.role, match.layer)
        for match in roles(model).get("mlp-blocks", [])
        if any(expert.path.startswith(f"{match.path}.") for expert in experts)
    }
    kept: dict[str, Host] = {}
    for host in hosts:
        names = host.path.split(".")
        above = (".".join(names[:end]) for end in range(1, len(names)))
        host = next((mixtures[path] for path in above if path in mixtures), host)
        kept.setdefault(host.name, host)
    told = f"around {len(mixtures)} whole mixtures of experts, as {next(iter(mixtures))}" if mixtures else ""
    return list(kept.values()), (told,) if told else ()
