"""A prefix of an attention: trained keys and values before those of the tokens."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Adapter, Frozen
from adaptome.core.errors import HostError
from adaptome.core.hosts import Host
from adaptome.forms import attended
from adaptome.forms.attended import Attending, Attention, heads, inner_attention
from adaptome.forms.sharded import write

#: attentions with a way of their own, whose cache can be stood in for: their scores follow the keys that it returns
THROUGH_CACHE = ("GPTJAttention", "BloomAttention")


def refusal(host: Host) -> str | None:
    """Why the host cannot have a prefix; None when it can."""
    return None if through_cache(host) else attended.refusal(host) or attended.unknown_heads(host)


def through_cache(host: Host) -> bool:
    """Whether the prefix enters by what stands in for the attention's cache."""
    return getattr(type(host.layer), "_base", type(host.layer)).__name__ in THROUGH_CACHE


def prefix_width(host: Host) -> int:
    """Numbers of one key of the prefix, over the heads of keys."""
    _, count, width = heads(_inner(host))
    return count * width


class KeyValuePair(Adapter):
    """K and V of one attention `[kv heads, p, head width]`, trained or made by an MLP.

    Args:
        host: an attention.
        p: how many keys, and values.
        std: of their start.
        hidden: width of what `shared()` gives for the p places, from which they are made.
        shared: an MLP's trunk, or None.
        train_scale: train a factor of K and one of V.
        compensate: let the prefix's share of the attention be 1, beside the tokens'.
        before: let a bias by distance (ALiBi) see the prefix before the tokens, and not at the first one.
    """

    def __init__(
        self,
        host: Host,
        p: int,
        std: float,
        hidden: int = 0,
        shared: nn.Module | None = None,
        train_scale: bool = False,
        compensate: bool = False,
        before: bool = False,
    ):
        super().__init__(host, shared)
        self.compensate, self.before = compensate, before
        _, count, width = heads(_inner(host))
        self.p, self.shape, self.recording = p, (p, 2, count, width), False
        if shared is None:
            self.K = nn.Parameter(torch.randn(count, p, width) * std)
            self.V = nn.Parameter(torch.randn(count, p, width) * std)
        else:
            self.U = nn.Parameter(torch.randn(2 * count * width, hidden) * std)
            self.u = nn.Parameter(torch.zeros(2 * count * width))
        self.s = nn.Parameter(torch.ones(2)) if train_scale else None

    def values(self) -> tuple[Tensor, Tensor]:
        """K and V; they may have a dimension for the batch in front."""
        if self._shared[0] is None:
            K, V = self.K, self.V
        else:
            K, V = F.linear(self.shared(), self.U, self.u).view(self.shape).permute(1, 2, 0, 3)
        return (K, V) if self.s is None else (self.s[0] * K, self.s[1] * V)

    def made(self) -> dict[str, Tensor]:
        """K and V."""
        return dict(zip("KV", self.values(), strict=True))

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[batch, kv heads, length, width]` with the prefix before them."""
        if self.recording:
            write(self.K, key[0])
            write(self.V, value[0])
            if self.s is not None:
                write(self.s, torch.ones_like(self.s))
            return key, value
        K, V = self.values()
        if self.compensate:  # the prefix's own share is added behind the attention
            V = torch.zeros_like(V)
        if key.shape[1::2] != K.shape[-3::2] or value.shape[1::2] != key.shape[1::2]:
            raise HostError(
                f"{self.host.name} attends to keys {list(key.shape)} and values {list(value.shape)} [batch, heads, length, width]; "
                f"its prefix has {K.shape[-3]} heads of width {K.shape[-1]}.\n  prefix-tuning does not know this attention's shapes: use prompt-tuning."
            )
        batch = key.shape[0]
        return (
            torch.cat([K.to(key.dtype).expand(batch, -1, -1, -1), key], 2),
            torch.cat([V.to(value.dtype).expand(batch, -1, -1, -1), value], 2),
        )


class Prefix(KeyValuePair, Attending):
    """The prefix of one attention that computes its scores by transformers' interface."""

    def attend(
        self, attention: Attention, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **more: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        p = 0 if self.recording else self.p
        key, value = self.extend(key, value)
        causal = more.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        # without a mask the kernel draws the diagonal from the first query and key: p queries before the others move it behind the prefix
        rows = p if causal and mask is None and query.shape[2] > 1 else 0
        bias = more.get("position_bias")
        if bias is not None:
            more["position_bias"] = F.pad(bias, (p, 0, rows, 0))
        output, weights = attention(
            module, F.pad(query, (0, 0, rows, 0)) if rows else query, key, value, visible(mask, p), **more
        )
        output = output[:, rows:]
        if self.compensate and not self.recording:
            output = output + self.beside(module, query, **more)
        return output, None if weights is None else weights[..., rows:, :]

    def beside(self, module: nn.Module, query: Tensor, **more: Any) -> Tensor:
        """The attention to the prefix alone, `[batch, queries, heads, width]`.

        Raises:
            HostError: the attention caps its scores.
        """
        if more.get("softcap") is not None:
            raise HostError(
                f"{self.host.name} caps its scores, which a compensated prefix does not know.\n  Attach it with compensate=False."
            )
        scale = more.get("scaling")
        K, V = (
            value.to(query.dtype)
            .expand(len(query), -1, -1, -1)
            .repeat_interleave(query.shape[1] // value.shape[-3], 1)
            for value in self.values()
        )
        made = F.scaled_dot_product_attention(
            query, K, V, scale=getattr(module, "scaling", None) if scale is None else scale
        )
        return made.transpose(1, 2)


class CachedPrefix(KeyValuePair):
    """The prefix of one attention that has a way of its own: what its cache returns begins with the prefix."""

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
        mask, p = kwargs.get("attention_mask"), 0 if self.recording else self.p
        if mask is None:
            raise HostError(f"{self.host.name} was called without its causal mask, which a prefix extends.")
        kwargs["attention_mask"] = visible(mask, p)
        if kwargs.get("alibi") is not None:
            kwargs["alibi"] = self.distances(kwargs["alibi"], p)
        kwargs["layer_past"] = Past(kwargs.get("layer_past"), self)
        return frozen(*args, **kwargs)

    def distances(self, alibi: Tensor, p: int) -> Tensor:
        """The bias `[batch heads, 1, keys]` with that of p keys before it: 0, or as at the places -p to -1."""
        if not self.before:
            return F.pad(alibi, (p, 0))
        module: Any = _inner(self.host)
        build = sys.modules[getattr(type(module), "_base", type(module)).__module__].build_alibi_tensor
        own = build(alibi.new_ones(1, p + 1), module.num_heads, alibi.dtype)  # 0 to p times each head's slope
        own = (own - own[..., p:])[..., :p]
        return torch.cat([own.repeat(len(alibi) // module.num_heads, 1, 1), alibi], -1)

    def row_refusal(self) -> str | None:
        return "its attention has a way of its own, which one prefix enters through what stands for the cache of the whole batch"


class Past:
    """Stands for an attention's cache, or for none."""

    def __init__(self, cache: Any, prefix: KeyValuePair):
        self.cache, self.prefix = cache, prefix

    def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Let the cache take the tokens' keys and values, and put the prefix before what it returns."""
        if self.cache is not None:
            key, value = self.cache.update(key, value, *args, **kwargs)
        return self.prefix.extend(key, value)


def visible(mask: Tensor | None, p: int) -> Tensor | None:
    """A mask `[.., .., queries, keys]`, of booleans or added to the scores, with p columns before it that every query sees.

    Raises:
        HostError: any other mask.
    """
    if mask is None or not p:
        return mask
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        raise HostError(
            f"prefix-tuning cannot extend an attention mask of {type(mask).__name__}; it needs [batch, heads, queries, keys]."
        )
    return F.pad(mask, (p, 0), value=True if mask.dtype == torch.bool else 0.0)


def _inner(host: Host) -> nn.Module:
    return inner_attention(host.layer) or host.layer
