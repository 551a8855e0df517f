"""Token merging in the blocks of a vision or audio transformer: matching by keys, size-weighted means, proportional attention.

Three kinds of places work together, so such a method is put on all three: the backbone, whose adapter opens a record for each of its
forwards; the blocks, which merge between attention and MLP; and the key maps, whose output tells which tokens are alike. The record is
handed to the blocks by the model itself, as a keyword argument that its forward passes on. So it belongs to one forward: nothing outlives
an exception, forwards may nest, and gradient checkpointing runs a block again with the record it had. The keys reach their block through
`steer`, within the block's own call.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Adapter, Frozen
from adaptome.core.errors import HostError, StateError
from adaptome.core.hosts import Host
from adaptome.core.steer import steer, steered

#: the keyword argument that carries the record, and the facts under which a block collects its keys and a task what was merged
RECORD, KEYS, READER = "merged_tokens", "merging_keys", "merged_tokens_reader"

#: the two residual paths of a block, x + c(b(a(x))), by the names of its children; a block has these children and no others
PATHS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("layernorm_before", "attention", "dropout"), ("layernorm_after", "mlp", "dropout")),  # ViT, DeiT, AST
    (("layer_norm1", "self_attn"), ("layer_norm2", "mlp")),  # CLIP, SigLIP
    (
        ("norm1", "attention", "layer_scale1", "drop_path"),
        ("norm2", "mlp", "layer_scale2", "drop_path"),
    ),  # DINOv2
)
#: tokens before the patches, by the names of the parameters that hold them
SPECIAL = ("cls_token", "class_embedding", "distillation_token", "register_tokens")
#: attention implementations that take an additive mask
MASKED = ("sdpa", "eager")


class State(NamedTuple):
    """What is known of the tokens at a block's entrance.

    Attributes:
        sizes: how many tokens each stands for, `[batch, tokens, 1]`; None while all stand for themselves.
        place: where each of the first tokens is now, `[batch, first tokens]`; None when it is not kept track of.
    """

    sizes: Tensor | None = None
    place: Tensor | None = None


class MergedTokens(NamedTuple):
    """What one forward of a backbone made of its tokens.

    Attributes:
        sizes: how many of the first tokens each token behind the last block stands for, `[batch, tokens]`.
        place: in which of them each of the first tokens is, `[batch, first tokens]`.
    """

    sizes: Tensor
    place: Tensor

    def spread(self, features: Tensor) -> Tensor:
        """`features [batch, tokens, d]` for every first token, `[batch, first tokens, d]`, as a dense head needs them."""
        return rows(features, self.place)


@contextmanager
def merged_tokens() -> Iterator[dict[str, MergedTokens]]:
    """Read, of the forwards inside the block, which tokens were merged.

    Yields:
        The path of a backbone ('' for the model itself) -> what its last forward made of its tokens.
    """
    found: dict[str, MergedTokens] = {}
    with steer(**{READER: found}):
        yield found


class Record:
    """The tokens' states by block, in one forward of a backbone. Not a dict: wrappers that copy those would cut it off."""

    def __init__(
        self, protected: int, depth: int, path: str = "", reader: dict[str, MergedTokens] | None = None
    ):
        self.protected, self.last = protected, depth - 1
        self.path, self.reader = path, reader
        self.states: dict[int, State] = {0: State()}

    def tell(self, state: State, x: Tensor) -> None:
        """Let a task read how the tokens x left the last block."""
        if self.reader is not None:
            batch, tokens = x.shape[:2]
            sizes = x.new_ones(batch, tokens) if state.sizes is None else state.sizes[..., 0]
            each = torch.arange(tokens, device=x.device).expand(batch, -1)
            self.reader[self.path] = MergedTokens(sizes, each if state.place is None else state.place)


class Pairs(NamedTuple):
    """Which token is merged into which: `source` and `target [batch, r]`, most alike first; `kept [batch, tokens - r]`, in their new order."""

    source: Tensor
    target: Tensor
    kept: Tensor


@torch.no_grad()
def match(keys: Tensor, r: int, protected: int) -> Pairs:
    """The r most alike pairs of an even and an odd token, by the cosine of `keys [batch, tokens, d]`; an even token is in one pair at most.

    The first `protected` tokens are in none, and keep their places at the front.
    """
    k = F.normalize(keys, dim=-1)
    scores = k[:, ::2] @ k[:, 1::2].transpose(1, 2)
    evens, odds = (protected + 1) // 2, protected // 2
    scores[:, :evens] = -torch.inf
    scores[:, :, :odds] = -torch.inf
    best, partner = scores.max(-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    source = order[:, :r]
    stay = 2 * order[:, r:].sort(-1).values
    batch, tokens = keys.shape[:2]
    front = torch.arange(protected, device=keys.device).expand(batch, -1)
    odd = torch.arange(2 * odds + 1, tokens, 2, device=keys.device).expand(batch, -1)
    return Pairs(2 * source, 2 * partner.gather(1, source) + 1, torch.cat([front, stay[:, evens:], odd], 1))


def rows(x: Tensor, index: Tensor) -> Tensor:
    """The tokens `index [batch, n]` of x `[batch, tokens, d]`."""
    return x.gather(1, _wide(index, x))


def add_rows(x: Tensor, index: Tensor, added: Tensor) -> Tensor:
    """x with `added [batch, n, d]` added to its tokens `index`."""
    return x.scatter_add(1, _wide(index, x), added)


def _wide(index: Tensor, x: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, x.shape[-1])


def moved(pairs: Pairs, place: Tensor | None) -> Tensor:
    """Where each of the first tokens is after the merge."""
    batch, kept = pairs.kept.shape
    now = pairs.kept.new_zeros(batch, kept + pairs.source.shape[1])
    now = now.scatter(1, pairs.kept, torch.arange(kept, device=now.device).expand(batch, -1))
    now = now.scatter(1, pairs.source, now.gather(1, pairs.target))
    return now if place is None else now.gather(1, place)


class Opening(Adapter):
    """On a backbone: opens the record of each of its forwards."""

    own_strength = True

    def __init__(self, host: Host, protected: int | None):
        super().__init__(host)
        self.protected = special_tokens(host.layer) if protected is None else protected
        self.depth = sum(residual_paths(m) is not None for m in host.layer.modules())

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
        record = Record(self.protected, self.depth, self.host.path, steered(READER))
        return frozen(*args, **kwargs, **{RECORD: record})


class Keys(Adapter):
    """On a key map: shows its output to the block it is in."""

    own_strength = True

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Tensor:
        keys: Tensor = frozen(*args, **kwargs)
        collected = steered(KEYS)
        if collected is not None:
            collected.append(keys)
        return keys


class Merging(Adapter):
    """On a block: merges tokens after its attention; subclasses may change the sources by `modulated`.

    Args:
        host: a block of one of the forms in PATHS.
        r: tokens to merge; fewer where there are not as many pairs. A strength below 1 takes its share of them.
        proportional: whether the logits of the attention get the logarithms of the sizes.
        unmerge: whether the last block gives every first token the features of the one it was merged into.
    """

    own_strength = True

    def __init__(self, host: Host, r: int, proportional: bool, unmerge: bool):
        super().__init__(host)
        self.r, self.proportional, self.unmerge = r, proportional, unmerge
        self.paths = residual_paths(host.layer)

    def modulated(self, source: Tensor, target: Tensor) -> Tensor:
        """The sources `[batch, r, d]` as they are added to their targets; both times their sizes, in descending order of likeness."""
        return source

    def forward(
        self, frozen: Frozen, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        record: Record | None = kwargs.pop(RECORD, None)
        self._check(frozen, record, attention_mask, kwargs)
        assert record is not None and self.paths is not None and self.host.index is not None
        state = record.states[self.host.index]
        collected: list[Tensor] = []
        with steer(**{KEYS: collected}):
            mask = self._mask(state, hidden_states)
            x = hidden_states + self._path(self.paths[0], hidden_states, attention_mask=mask, **kwargs)
        r = min(int(self.strength * self.r), (x.shape[1] - record.protected) // 2)
        if r > 0:
            pairs = match(self._metric(collected[-1]), r, record.protected)
            x, state = self._merge(x, state, pairs, self.unmerge or record.reader is not None)
        record.states[self.host.index + 1] = state
        y = x + self._path(self.paths[1], x)
        if self.host.index != record.last:
            return y
        record.tell(state, y)
        return rows(y, state.place) if self.unmerge and state.place is not None else y

    def _merge(self, x: Tensor, state: State, pairs: Pairs, track: bool = False) -> tuple[Tensor, State]:
        """The tokens after the merge: means weighted by size, in at least float32; with where the first tokens are, to keep track of them."""
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        m = exact.new_ones(*x.shape[:2], 1) if state.sizes is None else state.sizes
        weighted = exact if state.sizes is None else exact * m
        S = self.modulated(rows(weighted, pairs.source), rows(weighted, pairs.target))
        total = rows(add_rows(weighted, pairs.target, S), pairs.kept)
        sizes = rows(add_rows(m, pairs.target, rows(m, pairs.source)), pairs.kept)
        place = moved(pairs, state.place) if track else None
        return (total / sizes).to(x.dtype), State(sizes, place)

    def _path(self, names: tuple[str, ...], x: Tensor, **attention: Any) -> Tensor:
        norm, main, *rest = (getattr(self.host.layer, name) for name in names)
        y = main(norm(x), **attention)
        y = y[0] if isinstance(y, tuple) else y
        for module in rest:
            y = module(y)
        return y

    def _metric(self, keys: Tensor) -> Tensor:
        """The keys, averaged over the heads."""
        return keys.unflatten(-1, (-1, self._attention.head_dim)).mean(-2)

    @property
    def _attention(self) -> Any:
        assert self.paths is not None
        return getattr(self.host.layer, self.paths[0][1])

    def _mask(self, state: State, x: Tensor) -> Tensor | None:
        """`log m` of every key's token, `[batch, 1, 1, tokens]`; None while no token stands for more than itself."""
        if state.sizes is None or not self.proportional:
            return None
        how = getattr(getattr(self._attention, "config", None), "_attn_implementation", MASKED[0])
        if how not in MASKED:
            raise StateError(
                f"{self.host.path}: proportional attention adds the sizes of merged tokens to the logits, which {how!r} does not take.\n"
                "  Call model.set_attn_implementation('sdpa'), or attach with proportional=False."
            )
        return state.sizes.log().to(x.dtype).transpose(1, 2)[:, None]

    def _check(
        self, frozen: Frozen, record: Record | None, mask: Tensor | None, kwargs: dict[str, Any]
    ) -> None:
        where = self.host.path or "the root"
        if len(frozen.below) > 0:
            raise StateError(
                f"{where} has another adapter below this one, which token merging would pass over.\n"
                "  Attach the method that merges first; adapters on the maps and modules in the block may come in any order."
            )
        if record is None or self.host.index not in record.states:
            raise StateError(
                f"{where} was called without the record of merged tokens, which the backbone's forward opens.\n"
                "  Call the model that the method was attached to, or run this block under ad.disabled(model)."
            )
        if mask is not None or kwargs.get("is_causal"):
            raise StateError(
                f"{where}: tokens cannot be merged under an attention mask; those it hides would be mixed with the others.\n"
                "  Call the model without attention_mask; a causal (text) tower is left out by exclude='text_model' or the like."
            )


# -- where it can sit ----------------------------------------------------------------------------------------------


def residual_paths(block: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The two residual paths of a block, when it is known to be computed by them."""
    children = {name for name in block._modules if name != "adaptome"}
    own = any(p is not None for p in block._parameters.values())
    found = next((paths for paths in PATHS if children == {*paths[0], *paths[1]} and not own), None)
    return found if found and hasattr(getattr(block, found[0][1]), "head_dim") else None


def refusal(host: Host) -> str | None:
    """Why a place is none of the three."""
    if host.kind == "linear":
        return (
            None
            if host.role == "k"
            else f"of the linear maps it takes the key maps alone; this is {host.role!r}"
        )
    if host.role == "block":
        known = residual_paths(host.layer)
        return (
            None
            if known
            else f"it knows blocks x + attention(norm(x)), x + mlp(norm(x)) as in ViT, CLIP and DINOv2; a {_name(host)} has {list(host.layer._modules)}"
        )
    if host.kind != "backbone" or not any(residual_paths(m) for m in host.layer.modules()):
        return (
            f"it goes on backbones, their blocks and key maps; in a {_name(host)} is no block that it knows"
        )
    taken = inspect.signature(type(host.layer).forward).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in taken):
        return f"the forward of a {_name(host)} passes no keyword arguments on to its blocks"
    return None


def _name(host: Host) -> str:
    return getattr(type(host.layer), "_base", type(host.layer)).__name__


def check_places(method: str, hosts: Sequence[Host]) -> list[int]:
    """The number of blocks of every backbone, when each has all its blocks, and each block its key map, among the hosts.

    Raises:
        HostError: saying what is missing.
    """
    blocks = [h for h in hosts if h.role == "block"]
    backbones = [h for h in hosts if h.kind == "backbone"]
    how = "  Leave targets out (backbones, blocks and k), and narrow by exclude what is a tower of its own."
    for block in blocks:
        above = [b for b in backbones if _below(block, b)]
        keys = [h for h in hosts if h.kind == "linear" and _below(h, block)]
        if len(above) != 1 or len(keys) != 1:
            missing = "its backbone" if len(above) != 1 else "its one key map"
            raise HostError(f"{method}: {block.name} is among the targets without {missing}.\n{how}")
    depths = []
    for backbone in backbones:
        own = [b for b in blocks if _below(b, backbone)]
        depth = sum(residual_paths(m) is not None for m in backbone.layer.modules())
        if [b.index for b in own] != list(range(depth)):
            raise HostError(
                f"{method}: {len(own)} of the {depth} blocks of {backbone.name or 'the model'} are among the targets; it takes all.\n"
                "  A block in which nothing is merged has r = 0."
            )
        depths.append(depth)
    return depths


def _below(host: Host, above: Host) -> bool:
    return not above.path or host.path.startswith(f"{above.path}.")


def special_tokens(backbone: nn.Module) -> int:
    """How many tokens precede the patches: class, distillation and register tokens among the backbone's parameters."""
    found = [p for name, p in backbone.named_parameters() if name.rpartition(".")[2] in SPECIAL]
    return sum(1 if p.dim() < 2 else p.shape[-2] for p in found)
