"""Which base an adapter was trained on: a fingerprint of the model, and its comparison."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.errors import BaseMismatchError
from adaptome.core.state import is_ours

#: relative tolerance of the base's sampled weights, so that bf16 and fp32 copies of one base agree
SAMPLE_TOLERANCE = 2e-2


_RELATIVE = (
    "what it holds is relative to a factorisation of the very weights.\n"
    "  Load the base as it was in training, or pass check_base=False to put it on this one all the same."
)


def fingerprint(model: nn.Module, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """What tells one base model from another, whatever its precision.

    `structure` is a hash of parameter names and shapes; `sample` holds four numbers of up to 16 floating-point tensors; `packed` lists the
    types in which weights are stored quantised. Our own tensors and those under the module paths `without` (heads, which are new in every
    model) are left out, and so is what the model says may be added to it later (`grows`, module paths).
    """
    without = (*without, *getattr(type(model), "grows", ()))
    own = [(n, p) for n, p in _parameters(model) if not any(n == w or n.startswith(f"{w}.") for w in without)]
    packed = sorted({type(p).__name__ for _, p in own if _is_packed(p)})
    # Packed weights have other shapes: names alone then tell the structure.
    names = "\n".join(sorted(n for n, _ in own))
    shapes = "\n".join(sorted(f"{n} {list(p.shape)}" for n, p in own))
    plain = [
        (n, p)
        for n, p in own
        if p.is_floating_point() and p.device.type != "meta" and p.numel() >= 4
        if not _is_packed(p)
    ]
    chosen = plain[:: max(1, len(plain) // 16)][:16]
    sample = {n: [float(v) for v in _pick(p)] for n, p in chosen}
    reshaped = any(not p.is_floating_point() for _, p in own)
    return {
        "names": _hash(names),
        "structure": None if reshaped else _hash(shapes),
        "sample": sample,
        "packed": packed,
    }


def _is_packed(parameter: Tensor) -> bool:
    """Whether it holds codes: integers, or a tensor subclass (torchao's) that shows itself with the type and shape of a dense weight."""
    plain = type(parameter) in (nn.Parameter, Tensor) or hasattr(parameter, "full_tensor")
    return not (plain and parameter.is_floating_point())


def _parameters(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The base's parameters, tied ones once; those of merged layers as they were before (none where merging made one)."""
    own = {
        id(m._parameters[n]): p for m in model.modules() for n, p in m.__dict__.get("_unmerged", {}).items()
    }
    found = {
        n: own.get(id(p), p)
        for n, p in model.named_parameters(remove_duplicate=False)
        if own.get(id(p), p) is not None and not is_ours(n)
    }
    first = {id(p): n for n, p in reversed(found.items())}
    return [(n, p) for n, p in found.items() if first[id(p)] == n]


def _pick(parameter: Tensor) -> list[float]:
    value = parameter.detach()
    value = value.full_tensor() if hasattr(value, "full_tensor") else value
    flat = value.reshape(-1)
    places = [(flat.numel() * k) // 5 + (k > 0) for k in range(1, 5)]
    return [float(flat[min(i, flat.numel() - 1)]) for i in places]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def check_base(
    model: nn.Module,
    stored: dict[str, Any],
    base_id: str | None,
    without: tuple[str, ...],
    exact: bool = False,
) -> str:
    """How the base was recognised; BaseMismatchError when it is another, or with `exact` a rounded copy."""
    here = fingerprint(model, without)
    saved_from = f"the adapter was saved from {base_id or 'an unnamed base'}"
    if here["names"] != stored["names"]:
        raise BaseMismatchError(
            f"{saved_from}, whose parameters have other names than this {type(model).__name__}'s.\n  Load that model, or pass check_base=False if this one is a compatible variant."
        )
    if None not in (here["structure"], stored.get("structure")) and here["structure"] != stored["structure"]:
        raise BaseMismatchError(
            f"{saved_from}, whose parameters have other shapes than this {type(model).__name__}'s.\n  Load the model of that size."
        )
    packed = [side.get("packed", side.get("structure") is None) for side in (here, stored)]
    if exact and (packed[0] != packed[1] if "packed" in stored else bool(packed[0]) != packed[1]):
        raise BaseMismatchError(
            f"{saved_from}, {_told(packed[1])}, and is {_told(packed[0])} here: {_RELATIVE}"
        )
    common = sorted(set(here["sample"]) & set(stored["sample"]))
    for name in common:
        _check_values(name, stored["sample"][name], here["sample"][name], saved_from, model, exact)
    return "structure and weights" if common else "structure"


def check_shared_weights(model: nn.Module, stored: dict[str, Any]) -> None:
    """Compare the sampled weights that a model of another class has as well, such as the encoder under another head.

    Raises:
        BaseMismatchError: other values, or none of the weights are there.
    """
    here = {name: p for name, p in _parameters(model) if not _is_packed(p)}
    saved_from = f"the adapter was saved from {stored.get('id') or 'an unnamed base'}"
    common = [
        n for n in stored["sample"] if n in here and here[n].device.type != "meta" and here[n].numel() >= 4
    ]
    if not common:
        raise BaseMismatchError(
            f"{saved_from}, which has no weights in common with this {type(model).__name__}."
        )
    for name in common:
        _check_values(name, stored["sample"][name], _pick(here[name]), saved_from, model, False)


def _check_values(
    name: str, there: list[float], here: list[float], saved_from: str, model: nn.Module, exact: bool
) -> None:
    a, b = torch.tensor(there, dtype=torch.float64), torch.tensor(here, dtype=torch.float64)
    if not torch.allclose(a, b, rtol=SAMPLE_TOLERANCE, atol=SAMPLE_TOLERANCE * float(a.abs().max())):
        raise BaseMismatchError(
            f"{saved_from}; this {type(model).__name__} has the same structure but other weights (first seen in {name}: {a.tolist()} there, {b.tolist()} here).\n"
            "  Load the base it was trained on, or pass check_base=False to put it on this one all the same."
        )
    if exact and not torch.equal(a, b):
        raise BaseMismatchError(
            f"{saved_from} in another precision (first seen in {name}: {a.tolist()} there, {b.tolist()} here): {_RELATIVE}"
        )


def _told(packed: list[str] | bool) -> str:
    names = f" ({', '.join(packed)})" if isinstance(packed, list) and packed else ""
    return f"quantised{names}" if packed else "not quantised"
