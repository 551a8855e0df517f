"""What starts of LoRA share that are made from data (`eva`, `corda`) or from what quantisation lost (`loftq`): each attaches a LoRA and sets its factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from adaptome.core.errors import HostError, MethodError
from adaptome.core.hosts import Host, host_of
from adaptome.core.method import get_method
from adaptome.core.state import attachment_of
from adaptome.core.targets import resolve
from adaptome.methods.low_rank.lora import LoRA


def plain(what: str, method: LoRA | None) -> LoRA:
    """The method, which must not bring a start of its own."""
    chosen = get_method(LoRA if method is None else method)
    if not isinstance(chosen, LoRA) or chosen.init != "kaiming":
        raise MethodError(
            f"{what} sets the start of a LoRA; it was given {chosen!r}.\n  Give ad.LoRA(r=...) without init."
        )
    return chosen


def hosts_of(model: nn.Module, targets: str | Sequence[str], method: LoRA) -> list[Host]:
    """The targets' hosts; their weights must have the method's rank."""
    hosts = [host_of(m.module, m.path, m.parameter, m.role, m.layer) for m in resolve(model, targets)]
    for host in hosts:
        method.check(host)
        if method.r > min(host.fan_in, host.fan_out):
            raise MethodError(
                f"r = {method.r} is above the rank of {host.name}, {min(host.fan_in, host.fan_out)}."
            )
    return hosts


def linear_hosts(what: str, model: nn.Module, targets: str | Sequence[str], method: LoRA) -> list[Host]:
    """As `hosts_of`; they must be linear layers."""
    hosts = hosts_of(model, targets, method)
    for host in hosts:
        if host.kind != "linear":
            raise HostError(
                f"{what} reads the inputs of linear layers; {host.name} is a {host.kind}. Name other targets."
            )
    return hosts


def factors_of(model: nn.Module, name: str, kind: type[Any]) -> list[tuple[str, Any]]:
    """The adapters that were attached, by target; all of one kind."""
    adapters = attachment_of(model, name).adapters
    assert all(isinstance(adapter, kind) for adapter in adapters.values())
    return list(adapters.items())
