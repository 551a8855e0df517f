r"""Arithmetic of adapters: from several on one model, of any methods that change weights, one LoRA that is their sum, or what is left of it.

    sum         dW = sum_i w_i dW_i                              exact, by setting the factors side by side
    magnitude   the same of the entries of each dW_i that are largest, a share `density` of them
    dare        the same of entries drawn at random, divided by `density`          Yu et al. 2023, arXiv:2311.03099
    ties        of the largest entries w_i dW_i, the mean of those whose sign is that of their sum
                (PEFT takes the sign of sum_i dW_i)                                Yadav et al. 2023, arXiv:2306.01708
    dare-ties   ties of what dare keeps

A weight of -1 takes a task away (task vectors: Ilharco et al. 2022, arXiv:2212.04089). Sums are of factors; the others need every entry, layer
by layer, and so does a method that is not low-rank: the result is then cut to a rank, its error told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from adaptome.core.attaching import attach
from adaptome.core.errors import MergeError, StateError, did_you_mean
from adaptome.core.model import activate, active, set_trainable
from adaptome.core.state import Attachment, attachment_of, find_root
from adaptome.forms.singular import singular, truncated
from adaptome.interop.lora_factors import update_pair

How = Literal["sum", "magnitude", "dare", "ties", "dare-ties"]


@dataclass(frozen=True)
class Combination:
    """What was made.

    Attributes:
        name: of the new adapter, a LoRA.
        weights: of the adapters it was made of.
        how: by which rule.
        ranks: layer -> rank.
        errors: layer -> relative Frobenius error of the update that is kept; 0 where exact.
    """

    name: str
    weights: dict[str, float]
    how: str
    ranks: dict[str, int]
    errors: dict[str, float]

    @property
    def worst(self) -> float:
        """The largest error."""
        return max(self.errors.values(), default=0.0)

    def __str__(self) -> str:
        told = " + ".join(f"{w:g} {n}" for n, w in self.weights.items())
        kept = "exact" if not self.worst else f"largest relative error of an update {self.worst:.2e}"
        return f"{self.name} = {self.how}({told}): LoRA of rank {min(self.ranks.values())} to {max(self.ranks.values())} on {len(self.ranks)} layers, {kept}"


@torch.no_grad()
def combine(
    model: nn.Module,
    weights: Mapping[str, float],
    name: str,
    how: How = "sum",
    *,
    rank: int | None = None,
    density: float = 0.2,
    seed: int = 0,
    heads: str | None = None,
) -> Combination:
    """Make an adapter of others on the model. It is attached as LoRA, and not activated.

    Args:
        model: with the adapters; they stay.
        weights: adapter -> its weight. A layer that one of them does not have counts as without change.
        name: of the new one.
        how: see the module's text.
        rank: of every layer at most; None for what the factors give side by side, at most a layer's smaller side.
        density: share of entries that 'magnitude', 'dare' and 'ties' keep.
        seed: of what 'dare' draws.
        heads: the adapter whose modules trained whole are taken; needed when one of them has any.

    Raises:
        MergeError: an adapter is no update of weights alone, or has heads and none is named.
        StateError: unknown names or rule, a density outside of (0, 1], or the new name is taken.
    """
    if how not in get_args(How):
        raise StateError(
            f"how={how!r} is no rule.{did_you_mean(how, get_args(How))} There are {', '.join(get_args(How))}."
        )
    if not 0 < density <= 1:
        raise StateError(f"density = {density} must be a share, above 0 and at most 1.")
    if not weights:
        raise StateError(
            "combine was given no adapters; name them with their weights: {'a': 1.0, 'b': -0.5}."
        )
    root = find_root(model)
    parts = {n: attachment_of(root, n) for n in weights}
    train = _heads(parts, heads)
    paths = list(dict.fromkeys(path for a in parts.values() for path in a.adapters))
    rule = _RULES[how]
    made: dict[str, tuple[Tensor, Tensor, float]] = {}
    for path in paths:
        pairs = [
            (float(weights[n]), *update_pair(a.adapters[path], a))
            for n, a in parts.items()
            if path in a.adapters
        ]
        if rule is None:
            A = torch.cat([A for _, A, _, _ in pairs], -2)
            B = torch.cat([w * B.to(A.dtype) for w, _, B, _ in pairs], -1)
        else:
            drawn = hashlib.sha256(f"{seed}:{path}".encode()).digest()[:7]
            generator = torch.Generator().manual_seed(int.from_bytes(drawn, "big"))
            dW = rule([B @ A for _, A, B, _ in pairs], [w for w, _, _, _ in pairs], density, generator)
            A, B = (
                torch.eye(dW.shape[-1], dtype=dW.dtype, device=dW.device).expand(*dW.shape[:-2], -1, -1),
                dW,
            )
        made[path] = _cut(A, B, rank)
    ranks = {path: A.shape[-2] for path, (A, _, _) in made.items()}
    per_layer = {f"={path}": {"r": r, "alpha": float(r)} for path, r in ranks.items()}
    running = active(root)
    shares = {n: next(iter(attachment_of(root, n).all().values())).strength for n in running}
    attach(root, "lora", name, targets=list(per_layer), per_layer=per_layer, train=train)
    activate(root, running, shares)
    new = attachment_of(root, name)
    for path, adapter in new.adapters.items():
        adapter.get_parameter("A").copy_(made[path][0])
        adapter.get_parameter("B").copy_(made[path][1])
    for path, head in new.heads.items():
        for key, value in parts[heads or ""].heads[path].named_parameters():
            head.get_parameter(key).copy_(value)
    set_trainable(root, name, False)
    errors = {path: error for path, (_, _, error) in made.items()}
    return Combination(name, {n: float(w) for n, w in weights.items()}, how, ranks, errors)


@torch.no_grad()
def average(model: nn.Module, into: str, of: str, decay: float) -> None:
    """Let an adapter follow another of the same method: every number `m` becomes `decay m + (1 - decay) x`, an exponential moving average.

    Call it after an optimiser's step, with `into` attached like `of` and not active. The average is of the numbers, as of a model's weights.

    Raises:
        StateError: unknown names, other shapes or methods, or a decay outside of [0, 1].
    """
    if not 0 <= decay <= 1:
        raise StateError(f"decay = {decay} must be between 0 and 1.")
    a, b = attachment_of(model, into), attachment_of(model, of)
    pairs = list(zip(a.modules(), b.modules(), strict=False))
    same = a.method.name == b.method.name and list(a.all()) == list(b.all())
    for mine, theirs in pairs if same else []:
        own, other = dict(mine.named_parameters()), dict(theirs.named_parameters())
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in other.items()}:
            same = False
    if not same:
        raise StateError(
            f"{into!r} ({a.method.name}) and {of!r} ({b.method.name}) differ in method, layers or shapes: only like adapters average.\n"
            "  ad.combine makes one of different ones."
        )
    for mine, theirs in pairs:
        other = dict(theirs.named_parameters())
        for key, value in mine.named_parameters():
            value.lerp_(other[key].to(value), 1 - decay)


# -- the parts -----------------------------------------------------------------------------------------------------


def _heads(parts: Mapping[str, Attachment], chosen: str | None) -> tuple[str, ...]:
    """What the new adapter trains whole, as patterns."""
    having = [n for n, a in parts.items() if a.heads]
    if chosen is None and having:
        raise MergeError(
            f"{', '.join(having)} trained modules whole, which have no sum.\n  Say whose the new adapter takes: heads={having[0]!r}."
        )
    if chosen is not None and chosen not in parts:
        raise StateError(f"heads={chosen!r} is none of {', '.join(parts)}.")
    return parts[chosen].train if chosen is not None else ()


def _cut(A: Tensor, B: Tensor, rank: int | None) -> tuple[Tensor, Tensor, float]:
    """Factors of a rank no larger than asked for, or than the smaller side."""
    most = min(A.shape[-1], B.shape[-2])
    wanted = most if rank is None else min(rank, most)
    if A.shape[-2] <= wanted:
        return A, B, 0.0
    if rank is None or rank >= most:
        eye = torch.eye(most, dtype=A.dtype, device=A.device).expand(*A.shape[:-2], -1, -1)
        return (B @ A, eye, 0.0) if B.shape[-2] <= A.shape[-1] else (eye, B @ A, 0.0)
    kept = truncated(*singular(A, B), wanted)
    return kept if kept[2] > 1e-6 else (*kept[:2], 0.0)


def _largest(dW: Tensor, density: float) -> Tensor:
    """The entries of the largest size, the others zero; of stacked weights each by itself."""
    flat = dW.flatten(-2)
    count = max(1, int(density * flat.shape[-1]))
    kept = torch.zeros_like(flat)
    places = flat.abs().topk(count, -1).indices
    return kept.scatter(-1, places, flat.gather(-1, places)).view_as(dW)


def _drawn(dW: Tensor, density: float, generator: torch.Generator) -> Tensor:
    mask = torch.rand(dW.shape, generator=generator) < density
    return dW * mask.to(dW.device) / density


def _elected(parts: list[Tensor]) -> Tensor:
    """The mean of the entries whose sign is that of the sum."""
    stacked = torch.stack(parts)
    agree = stacked.sign() == stacked.sum(0).sign()
    agree &= stacked != 0
    return (stacked * agree).sum(0) / agree.sum(0).clamp_min(1)


def _weighed(parts: list[Tensor], weights: list[float]) -> Tensor:
    return torch.stack([w * part for w, part in zip(weights, parts, strict=True)]).sum(0)


def _magnitude(
    parts: list[Tensor], weights: list[float], density: float, generator: torch.Generator
) -> Tensor:
    return _weighed([_largest(part, density) for part in parts], weights)


def _dare(parts: list[Tensor], weights: list[float], density: float, generator: torch.Generator) -> Tensor:
    return _weighed([_drawn(part, density, generator) for part in parts], weights)


def _ties(parts: list[Tensor], weights: list[float], density: float, generator: torch.Generator) -> Tensor:
    return _elected([w * _largest(part, density) for w, part in zip(weights, parts, strict=True)])


def _dare_ties(
    parts: list[Tensor], weights: list[float], density: float, generator: torch.Generator
) -> Tensor:
    return _elected([w * _drawn(part, density, generator) for w, part in zip(weights, parts, strict=True)])


Rule = Callable[[list[Tensor], list[float], float, torch.Generator], Tensor]
_RULES: dict[str, Rule | None] = {
    "sum": None, "magnitude": _magnitude, "dare": _dare, "ties": _ties, "dare-ties": _dare_ties,
}  # fmt: skip
