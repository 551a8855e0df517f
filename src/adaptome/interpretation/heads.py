"""Attention heads ranked by how much an adapter changed them.

A head owns rows of the query, key and value maps and columns of the output map, so its change is a norm of those parts of dW:

    norm     |dW_v[rows of h]|_F + |dW_o[:, columns of h]|_F
    slices   |dS_v[slice h]|_2 + |dS_o[slice h]|_2, the spectra cut into as many pieces as there are heads: the score of the CLIP-SVD
             paper's code (arXiv:2509.03740), for comparison. A singular vector of the whole matrix mixes all heads, so slice h is not head h
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Adapter
from adaptome.core.anatomy import Anatomy
from adaptome.core.errors import DataError, StateError, TargetError, did_you_mean
from adaptome.core.hosts import Conv1DHost, Host, host_of
from adaptome.core.state import Attachment, attachment_of, find_root
from adaptome.forms.rescaled import Rescaled
from adaptome.interpretation.update import update_of

Score = Literal["norm", "slices"]
#: one list of labels, one a head, for each attention: its path, or a pattern of paths
Labels = Mapping[str, Sequence[str | None]]

#: how attention modules, or their configurations, call the number of heads
_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
#: fused maps that hold the rows of q, then those of k, then those of v
_IN_TURN = ("c_attn", "qkv", "qkv_proj", "in_proj_weight")


@dataclass(frozen=True)
class HeadChange:
    """How much one attention head changed.

    Attributes:
        attention: the path of its attention, and `layer` the number of the block.
        head: from 0.
        score: the sum of `parts`, what each of its maps contributes.
        label: what the head is known for.
    """

    attention: str
    layer: int | None
    head: int
    score: float
    parts: dict[str, float]
    label: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dict(vars(self))


def head_changes(
    model: nn.Module,
    name: str = "default",
    *,
    score: Score = "norm",
    relative: bool = False,
    parts: Sequence[str] = ("v", "o"),
    labels: Labels | None = None,
) -> tuple[HeadChange, ...]:
    """The heads of every attention that an adapter is on, the most changed first.

    Args:
        model: with the adapter.
        name: of the adapter.
        score: 'norm', or 'slices' as the CLIP-SVD paper's code has it.
        relative: divide what a map contributes by the same norm of the base's weight.
        parts: the maps that count, of 'q', 'k', 'v' and 'o'; those without an adapter contribute nothing.
        labels: what heads are known for: path of an attention, or pattern of paths -> one label a head, None for no label.

    Raises:
        StateError: the adapter is on none of these maps, the heads of an attention are not known, or the method has no such score.
        TargetError: labels name no attention, or another number of heads.
    """
    attachment = attachment_of(model, name)
    if not parts or set(parts) - set("qkvo"):
        raise StateError(f"parts={list(parts)}: name some of q, k, v and o.")
    known = attentions(find_root(model))
    labelled = _labelled(known, labels or {})
    found = []
    for path, adapters in _by_attention(attachment, known, parts).items():
        attention = known[path]
        values = {
            part: _slices(adapter, attention, attachment.method.name, relative)
            if score == "slices"
            else _norms(adapter, attention, part, relative)
            for part, adapter in adapters.items()
        }
        for head in range(attention.heads):
            own = {part: float(value[head]) for part, value in values.items()}
            label = labelled[path][head] if path in labelled else None
            found.append(HeadChange(path, attention.layer, head, sum(own.values()), own, label))
    return tuple(sorted(found, key=lambda change: -change.score))


def _by_attention(
    attachment: Attachment, known: Mapping[str, Attention], parts: Sequence[str]
) -> dict[str, dict[str, Adapter]]:
    """Path of an attention -> the adapters on its maps."""
    found: dict[str, dict[str, Adapter]] = {}
    for path, adapter in attachment.adapters.items():
        own = [part for part in parts if adapter.host.role in (part, *(("qkv", "kv") if part != "o" else ()))]
        if not own:
            continue
        home = next((home for home in known if path.startswith(f"{home}.")), None)
        if home is None or adapter.host.role == "kv":
            raise StateError(
                f"the heads of {path} ({adapter.host!r}) are not known: neither its attention nor its configuration tells their number, "
                "or its rows are fused in another order than q, k, v.\n  Rank its directions instead: direction_changes."
            )
        found.setdefault(home, {}).update(dict.fromkeys(own, adapter))
    if not found:
        roles = sorted({adapter.host.role for adapter in attachment.adapters.values()})
        raise StateError(
            f"{attachment.name!r} is on {', '.join(roles)}: on none of the maps {', '.join(parts)} of an attention.\n"
            "  Name other parts, or rank its directions: direction_changes."
        )
    return found


@torch.no_grad()
def _norms(adapter: Adapter, attention: Attention, part: str, relative: bool) -> Tensor:
    host = adapter.host
    norms = attention.norms(part, host, update_of(adapter))
    return norms / attention.norms(part, host, host.weight().float()).clamp_min(1e-30) if relative else norms


@torch.no_grad()
def _slices(adapter: Adapter, attention: Attention, method: str, relative: bool) -> Tensor:
    """The paper's score: norms of consecutive slices of what the spectrum changed by, in the order of the base's spectrum."""
    if method != "clip-svd" or not isinstance(adapter, Rescaled):
        raise StateError(
            f"score='slices' cuts the spectra that clip-svd trains; this is {method}.\n  Use score='norm'."
        )
    rank = min(adapter.host.fan_in, adapter.host.fan_out)
    if relative or rank % attention.heads:
        why = (
            "is of raw singular values"
            if relative
            else f"cannot cut {rank} of them among {attention.heads} heads"
        )
        raise StateError(f"score='slices' {why}.\n  Use score='norm' for {adapter.host.name}.")
    change = adapter.strength * adapter.change()
    whole = torch.cat([change, change.new_zeros(rank - len(change))])
    return torch.linalg.vector_norm(whole.view(attention.heads, -1), dim=1)


# -- where the heads are -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attention:
    """One attention of a model: its path, the number of its block, and its heads, `shared` of which have keys and values in common."""

    path: str
    layer: int | None
    heads: int
    shared: int
    width: int

    def norms(self, part: str, host: Host, matrix: Tensor) -> Tensor:
        """The Frobenius norm of what each head owns of the map's `[out, in]`: `[heads]`."""
        if part == "o":
            return torch.linalg.vector_norm(matrix.unflatten(1, (self.heads, -1)), dim=(0, 2))
        count = self.heads if part == "q" else self.heads // self.shared
        if host.role == "qkv":
            sizes = [self.heads * self.width, *[self.heads // self.shared * self.width] * 2]
            matrix = matrix.split(sizes)["qkv".index(part)]
        owned = torch.linalg.vector_norm(matrix.unflatten(0, (count, -1)), dim=(1, 2))
        return owned.repeat_interleave(self.heads // count)


def attentions(model: nn.Module) -> dict[str, Attention]:
    """The attentions of a model whose heads can be told, by path."""
    anatomy = Anatomy(model)
    found = {}
    for node in anatomy.attentions:
        inside = anatomy.subtree(node)
        hosts = {
            part.role: host_of(part.node.module, part.node.path, part.parameter, part.role)
            for part in anatomy.parts
            if part.node in inside and part.groups & {"q", "k", "v", "o"}
        }
        heads = _count([n.module for n in inside])
        out, values = hosts.get("o"), hosts.get("v", hosts.get("qkv"))
        if not heads or out is None or values is None or out.fan_in % heads or not _in_turn(values):
            continue
        width = out.fan_in // heads
        rows = values.fan_out if values.role == "v" else (values.fan_out - out.fan_in) // 2
        if rows and rows % width == 0 and heads % (rows // width) == 0:
            found[node.path] = Attention(node.path, node.layer, heads, heads // (rows // width), width)
    return found


def _count(modules: Sequence[nn.Module]) -> int | None:
    """The number of heads, as an attention module or its configuration tells it."""
    holders = [*modules, *(m.config for m in modules if hasattr(m, "config"))]
    told = (getattr(holder, name, None) for holder in holders for name in _COUNTS)
    return next((count for count in told if isinstance(count, int) and count > 0), None)


def _in_turn(values: Host) -> bool:
    """Whether the rows of the values are known: their own map, or a fused one that holds q, k and v one after the other."""
    name = values.name.rpartition(".")[2]
    # GPT-2's c_attn is in turn; others of that name mix the three head by head
    return values.role == "v" or (name in _IN_TURN and (name != "c_attn" or isinstance(values, Conv1DHost)))


# -- labels --------------------------------------------------------------------------------------------------------


def read_labels(path: str | Path) -> Labels:
    """Labels of heads from a JSON file: an object of attention path (or pattern of paths) -> list of one label, or null, a head.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}.") from error
    lists = isinstance(found, dict) and all(isinstance(labels, list) for labels in found.values())
    if not lists or any(not isinstance(v, str | None) for labels in found.values() for v in labels):
        raise DataError(
            f'{path} holds no labels of heads.\n  Write {{"vision_model.encoder.layers.11.self_attn": ["colours", null, "shapes"]}}: '
            "one list for each attention, a label or null for each head."
        )
    return dict(found)


def _labelled(known: Mapping[str, Attention], labels: Labels) -> dict[str, Sequence[str | None]]:
    """The labels of each attention's heads."""
    found: dict[str, Sequence[str | None]] = {}
    for pattern, names in labels.items():
        paths = [path for path in known if fnmatchcase(path, pattern)]
        if not paths:
            raise TargetError(
                f"the labels name {pattern!r}, which is no attention with known heads.{did_you_mean(pattern, known)}\n"
                f"  There are {', '.join(list(known)[:4]) or 'none'}{' ...' if len(known) > 4 else ''}."
            )
        for path in paths:
            if len(names) != known[path].heads:
                raise TargetError(f"{len(names)} labels for {path}, which has {known[path].heads} heads.")
            found[path] = names
    return found
