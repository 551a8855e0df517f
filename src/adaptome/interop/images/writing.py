"""Writing one file for diffusers, kohya's scripts and LyCORIS.

diffusers   LoRA of one rank, padded with zeros, the scale inside the second factor; or DoRA. Names are the model's own
kohya       the same with kohya's names, alpha = rank; layers that the authors' model holds in one (Flux, SD3) are put together
lycoris     LoHa, LoKr, IA3 and norms as LyCORIS has them too, modules trained whole as `diff`; any other method as LoRA
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.errors import MergeError
from adaptome.core.hosts import Conv1DHost, Host, host_of
from adaptome.interop.formats import Asked, ExportReport, provenance, register_writer
from adaptome.interop.images.algorithms import IA3, Algorithm, DoRA, LoHa, LoRA, Roles
from adaptome.interop.images.file import write_file
from adaptome.interop.images.glora import GLoRA
from adaptome.interop.images.kronecker import KronA, LoKr
from adaptome.interop.images.metadata import described
from adaptome.interop.images.names import write_names
from adaptome.interop.images.schemes import Part
from adaptome.interop.lora_factors import lora_factors
from adaptome.interop.peft_names import has_form

#: what LyCORIS has besides LoRA and DoRA
OWN: dict[str, Algorithm] = {form.method: form for form in (LoHa(), KronA(), LoKr(), IA3(), GLoRA())}
_DIFFUSERS = {"down": "lora_A.weight", "up": "lora_B.weight", "dora_scale": "lora_magnitude_vector"}
_KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight"}


@register_writer("diffusers", "kohya", "lycoris")
def write_images(asked: Asked) -> ExportReport:
    """An adapter as one file; see `export`."""
    attachment, dialect = asked.attachment, "diffusers" if asked.format == "diffusers" else "kohya"
    _check(asked)
    form, roles, errors = _roles(asked)
    _pad(roles)
    wholes = _wholes(asked)
    names = write_names(asked.root, dialect)
    tensors: dict[str, Tensor] = {}
    left = {**roles, **wholes}
    hosts = {path: adapter.host for path, adapter in attachment.all().items()}
    for name, parts in names.items():
        if not any(part.path in left for part in parts):
            continue
        own = [(left.pop(part.path, None), hosts.get(part.path) or _host(asked.root, part.path)) for part in parts]  # fmt: skip
        if parts[0].path in wholes:
            joined = own[0][0] or {}
        else:
            joined = own[0][0] if len(own) == 1 else form.join(own, name)  # type: ignore[assignment]
            joined = _turned(joined or {}, parts, form, name)
        tensors |= _keyed(name, joined, own[0][1], dialect)
    if left:
        raise MergeError(
            f"{next(iter(left))} has no name in {asked.format}.\n  Leave it out of the targets, or merge."
        )
    rank = max((len(r["down"]) for r in roles.values() if "down" in r), default=0) or _rank(roles)
    metadata = provenance(asked.root, attachment, tensors)
    metadata |= described(asked.root, form.method, rank) if dialect == "kohya" else {}
    file = write_file(asked.path, tensors, metadata)
    notes = ("diffusers drops dora_scale from a file in these keys: export as 'diffusers' for it",)
    dropped = isinstance(form, DoRA) and dialect == "kohya"
    return ExportReport(str(file), asked.format, rank, errors, notes if dropped else ())


def _check(asked: Asked) -> None:
    attachment, format = asked.attachment, asked.format
    for path, adapter in attachment.adapters.items():
        host = adapter.host
        plain = host.kind in ("linear", "conv") and not isinstance(host, Conv1DHost)
        if not (plain and has_form(host)) and not (
            format == "lycoris" and attachment.method.name == "norm-tuning"
        ):
            raise MergeError(
                f"{path} is a {host!r}: {format} has LoRA on linear layers and plain convolutions.\n  Leave it out of the targets, or merge."
            )
    if attachment.heads and format != "lycoris":
        raise MergeError(
            f"{next(iter(attachment.heads))} is trained whole, which {format} has no place for.\n  Export as lycoris, or merge."
        )


def _roles(asked: Asked) -> tuple[Algorithm, dict[str, Roles], dict[str, float]]:
    """The form, every target's tensors in it, and their errors."""
    attachment, method = asked.attachment, asked.attachment.method.name
    adapters: dict[str, Any] = attachment.adapters
    exact = dict.fromkeys(adapters, 0.0)
    if method in ("norm-tuning", "linear-probe") and asked.format == "lycoris":
        return LoRA(), {}, dict.fromkeys(attachment.all(), 0.0)
    if asked.rank is None and (method == "dora" or (method in OWN and asked.format == "lycoris")):
        form = DoRA() if method == "dora" else OWN[method]
        if method in ("dora",) and any(a.strength != 1.0 for a in adapters.values()):
            raise MergeError(
                f"{attachment.name!r} runs with another weight than 1, which DoRA has no place for in {asked.format}.\n  ad.activate it with weight 1, or give rank= for LoRA."
            )
        return form, {path: form.write(adapter) for path, adapter in adapters.items()}, exact
    factors = lora_factors(attachment, asked.rank)
    errors = {path: f.error for path, f in factors.items()}
    asked.within(errors)
    made = {p: {"down": f.A, "up": f.B, "alpha": torch.tensor(float(len(f.A)))} for p, f in factors.items()}
    return LoRA(), made, errors


def _pad(roles: dict[str, Roles]) -> None:
    """One rank and one alpha for all, smaller ones padded with zeros: diffusers loses the alphas of a file where they differ."""
    pairs = [own for own in roles.values() if "down" in own]
    r = max((len(own["down"]) for own in pairs), default=0)
    for own in pairs:
        more = r - len(own["down"])
        own["down"], own["up"] = F.pad(own["down"], (0, 0, 0, more)), F.pad(own["up"], (0, more))
        own["alpha"] = torch.tensor(float(r))


def _wholes(asked: Asked) -> dict[str, Roles]:
    """What is added to the parameters of norms and of modules trained whole."""
    attachment, made = asked.attachment, {}
    tuned: dict[str, Any] = dict(attachment.heads)
    if attachment.method.name == "norm-tuning":
        tuned |= attachment.adapters
    for path, adapter in tuned.items():
        if getattr(adapter, "rows", None) is not None:
            raise MergeError(f"{path}: {asked.format} has no form for trained rows of a layer.\n  Merge into the model instead.")  # fmt: skip
        norm = adapter.host.kind == "norm"
        roles = {}
        for parameter, role in zip(("weight", "bias"), ("w_norm", "b_norm") if norm else ("diff", "diff_b"), strict=True):  # fmt: skip
            if parameter in adapter.changes:
                base = adapter.host.stored(parameter).detach().float()
                roles[role] = (adapter.apply_to(parameter, base) - base).detach().float().cpu()
        made[path] = roles
    return made


def _host(root: nn.Module, path: str) -> Host:
    return host_of(root.get_submodule(path), path)


def _turned(roles: Roles, parts: tuple[Part, ...], form: Algorithm, name: str) -> Roles:
    """The rows of a layer whose halves are the other way round in the authors' model."""
    if not parts[0].swapped:
        return roles
    rows = {"lora": ("up",), "dora": ("up", "dora_scale"), "loha": ("hada_w1_a", "hada_w2_a")}.get(
        form.method
    )
    if rows is None:
        raise MergeError(f"{name} has its halves the other way round than {parts[0].path}: {form.method} has no such form.\n  Export as 'diffusers', or with rank= as LoRA.")  # fmt: skip
    return roles | {role: torch.cat(roles[role].chunk(2)[::-1]) for role in rows}


def _keyed(name: str, roles: Roles, host: Host, dialect: str) -> dict[str, Tensor]:
    """The tensors of a layer by the file's keys and in its shapes."""
    taps = tuple(host.stored("weight").shape[1:]) if host.kind == "conv" else ()
    keys: Mapping[str, str] = _DIFFUSERS if dialect == "diffusers" else _KOHYA
    made = {}
    for role, value in roles.items():
        if dialect == "diffusers" and role == "alpha":
            continue
        if role == "down" and taps:
            value = value.view(len(value), *taps)
        elif role == "up" and taps:
            value = value.view(*value.shape, *[1] * (len(taps) - 1))
        elif role == "dora_scale":
            shape = (-1,) if dialect == "diffusers" else (-1, 1)
            value = value.view(*((1, -1) if taps and dialect == "diffusers" else shape), *[1] * max(0, len(taps) - 1))  # fmt: skip
        key = f"{role}.weight" if role in GLoRA.marks else keys.get(role, role)
        made[f"{name}.{key}"] = value.contiguous()
    return made


def _rank(roles: dict[str, Roles]) -> int:
    """The largest rank of LoHa's or LoKr's factors; 0 of what has none."""
    ranks = [own[key].shape[side] for own in roles.values() for key, side in (("hada_w1_b", 0), ("lokr_w2_b", 0), ("lokr_w1_b", 0), ("a2", 0)) if key in own]  # fmt: skip
    return max(ranks, default=0)
