"""An optimizer's state by parameter name, gathered from shards and put back on them.

torch stores it by position, so that a model whose adapters were attached in another order would silently get
the moments of another layer. Here every entry carries its parameter's name, and names that differ are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.errors import KeyMismatchError


def full(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor (every process must call it), or the tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like(tensor: Tensor, target: Tensor) -> Tensor:
    """`tensor` on `target`'s device, and sharded as `target` is."""
    if not hasattr(target, "placements"):
        return tensor.to(target.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(target, DTensor)
    return distribute_tensor(tensor.to(target.device), target.device_mesh, target.placements)


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """Groups and per-parameter state under the parameters' names; every process must call it."""
    names = _names(optimizer, model)
    stored = optimizer.state_dict()
    by_id = {
        i: n
        for group, own in zip(stored["param_groups"], names, strict=True)
        for i, n in zip(group["params"], own, strict=True)
    }
    settings = [
        {k: v for k, v in g.items() if k not in ("params", "param_names")} for g in stored["param_groups"]
    ]
    return {
        "groups": [{"names": own, "settings": given} for own, given in zip(names, settings, strict=True)],
        "state": {
            by_id[i]: {k: full(v) if isinstance(v, Tensor) else v for k, v in entry.items()}
            for i, entry in stored["state"].items()
        },
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, stored: dict[str, Any]) -> None:
    """Put the state of `optimizer_state` into an optimizer made from the same groups.

    Raises:
        KeyMismatchError: its groups hold other parameters.
    """
    names = _names(optimizer, model)
    expected = [group["names"] for group in stored["groups"]]
    if names != expected:
        odd = sorted({n for g in names for n in g} ^ {n for g in expected for n in g})
        raise KeyMismatchError(
            f"the checkpoint's optimizer is of other parameters: {', '.join(odd[:4]) or 'grouped otherwise'}.\n"
            f"  Resume with the recipe the run began with, or start anew in another output folder."
        )
    now = optimizer.state_dict()
    parameters = {
        n: p
        for own, g in zip(names, optimizer.param_groups, strict=True)
        for n, p in zip(own, g["params"], strict=True)
    }
    state = {}
    for group, own in zip(now["param_groups"], names, strict=True):
        for index, name in zip(group["params"], own, strict=True):
            if name in stored["state"]:
                state[index] = {k: _placed(v, parameters[name]) for k, v in stored["state"][name].items()}
    groups = [{**g, **s["settings"]} for g, s in zip(now["param_groups"], stored["groups"], strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def keep_settings(optimizer: Any, scheduler: Any, given: list[dict[str, Any]]) -> list[str]:
    """Let settings given now hold in place of those that a checkpoint brought back; tells which differ.

    Args:
        optimizer, scheduler: restored.
        given: the optimizer's groups as they were made, before they were restored.
    """
    scheduler, told = getattr(scheduler, "scheduler", scheduler), []
    for group, own in zip(optimizer.param_groups, given, strict=True):
        key = "initial_lr" if "initial_lr" in own else "lr"
        before, now = group.get(key, group["lr"]), own[key]
        if before != now:
            told.append(f"learning rate {now:g} in place of {before:g}")
            group["lr"] *= now / before
            group[key] = now
        for key in own.keys() - {"params", "param_names", "lr", "initial_lr"}:
            if group.get(key) != own[key]:
                told.append(f"{key} {own[key]} in place of {group.get(key)}")
                group[key] = own[key]
    if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        rates = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        scheduler._last_lr = [base * course(scheduler.last_epoch) for base, course in rates]
        for group, rate in zip(optimizer.param_groups, scheduler._last_lr, strict=True):
            group["lr"] = rate
    return list(dict.fromkeys(told))


def _placed(value: Any, parameter: Tensor) -> Any:
    moment = isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim > 0
    return like(value, parameter) if moment else value


def _names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[list[str]]:
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[known[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
