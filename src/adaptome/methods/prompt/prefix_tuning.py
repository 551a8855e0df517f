"""Prefix tuning: trained keys and values that every token attends to, in every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Adapter, Frozen
from adaptome.core.errors import HostError, MethodError, StateError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms import attended
from adaptome.forms.attended import Attending, Attention, check_share, heads, inner_attention
from adaptome.forms.sharded import write
from adaptome.forms.soft import FromText, check_length

#: attentions with a way of their own, whose cache can be stood in for: their scores follow the keys that it returns
THROUGH_CACHE = ("GPTJAttention", "BloomAttention")


@register(
    "prefix-tuning", category="prompt", subcategory="soft", merge="none", export="none", identity_at_init=False, budget_setting="p",
    inference_overhead="longer sequence", hosts=("module",), default_targets="attention-blocks",
    source="Li and Liang 2021, arXiv:2101.00190; Liu et al. 2021, arXiv:2110.07602",
)  # fmt: skip
class PrefixTuning(FromText):
    r"""Prefix tuning: trained keys and values that every token attends to, in every layer.

        y = attention(q, [K; k], [V; v])

    shapes      K, V [kv heads, p, head width]; q, k, v as the attention has them, after rotation and the cache
    positions   the tokens keep theirs, and the cache holds tokens alone: `generate`, beams, static caches, sliding windows and packed rows
                work as before. K is added as it is, not rotated
    init        N(0, std^2); `ad.prompt_from(model, text, tokenizer)` sets K and V to what the model computes for words, at positions -p to -1
                where positions are rotations, so that it starts as the model with these words before the text. None of them is the base
    hidden      > 0: K, V = U_l tanh(W E + b) + u_l with E [p, hidden] and W shared by all layers; `ad.plain_prompt(model)` drops it after training
    parameters  2 p (kv heads) (head width) per attention: 7,864,320 for LLaMA-2-7B, p = 30; 221,184 for AST, p = 12
    merge       none: it is no change of weights
    source      Li and Liang 2021, arXiv:2101.00190; without the MLP Liu et al. 2021, arXiv:2110.07602
    """

    p: int = option(30, at_least=1, help="how many keys, and values, per attention")
    hidden: int = option(
        0, at_least=0, help="width of the MLP that makes the prefix; 0 trains the prefix itself"
    )
    std: float = option(0.02, above=0, help="of the start")

    def admits(self, host: Host) -> str | None:
        reason = super().admits(host)
        if reason or _base_name(host) in THROUGH_CACHE:
            return reason
        return attended.refusal(host) or attended.unknown_heads(host)

    def parameters(self, host: Host) -> int:
        _, count, width = heads(_inner(host))
        return 2 * count * width * (self.hidden + 1 if self.hidden else self.p)

    def shared_parameters(self, hosts: Sequence[Host]) -> int:
        return self.hidden * (self.p + self.hidden + 1)

    def shared(self, hosts: Sequence[Host]) -> nn.Module | None:
        return Trunk(self) if self.hidden else None

    def adapter(self, host: Host, shared: nn.Module | None = None) -> Prefix | CachedPrefix:
        return (CachedPrefix if _base_name(host) in THROUGH_CACHE else Prefix)(self, host, shared)

    def plain(self) -> Method:
        """The method that stores what the MLP makes."""
        return self.replace(hidden=0)

    def start(self, model: Any, adapters: Mapping[str, Adapter], ids: Tensor) -> None:
        if self.hidden:
            raise MethodError(
                "prefix-tuning with hidden > 0 makes its prefix by an MLP, which cannot be set to words.\n  Attach it with hidden=0."
            )
        check_length(self.name, self.p, ids.numel())
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            raise StateError(
                f"{type(model).__name__} reads two texts; a prefix starts from words in models that read one."
            )
        rotated = any("rotary" in name.rpartition(".")[2] for name, _ in model.named_modules())
        ids = ids.to(next(model.parameters()).device)[None]
        places = {"position_ids": torch.arange(-self.p, 0, device=ids.device)[None]} if rotated else {}
        for adapter in adapters.values():
            adapter.recording = True  # type: ignore[assignment]
        try:
            with torch.no_grad():
                model(input_ids=ids, use_cache=False, **places)
        finally:
            for adapter in adapters.values():
                adapter.recording = False  # type: ignore[assignment]


class Trunk(nn.Module):
    """What the MLPs of all layers share: `tanh(W E + b)` `[p, hidden]`."""

    def __init__(self, method: PrefixTuning):
        super().__init__()
        self.E = nn.Parameter(torch.randn(method.p, method.hidden))
        self.W = nn.Parameter(torch.randn(method.hidden, method.hidden) * method.hidden**-0.5)
        self.b = nn.Parameter(torch.zeros(method.hidden))

    def forward(self) -> Tensor:
        return torch.tanh(F.linear(self.E, self.W, self.b))


class Pair(Adapter):
    """K and V of one attention, trained or made by the MLP."""

    def __init__(self, method: PrefixTuning, host: Host, shared: nn.Module | None):
        super().__init__(host, shared)
        _, count, width = heads(_inner(host))
        self.p, self.shape, self.recording = method.p, (method.p, 2, count, width), False
        if shared is None:
            self.K = nn.Parameter(torch.randn(count, method.p, width) * method.std)
            self.V = nn.Parameter(torch.randn(count, method.p, width) * method.std)
        else:
            self.U = nn.Parameter(torch.randn(2 * count * width, method.hidden) * method.std)
            self.u = nn.Parameter(torch.zeros(2 * count * width))

    def values(self) -> tuple[Tensor, Tensor]:
        """K and V."""
        if self._shared[0] is None:
            return self.K, self.V
        made = F.linear(self.shared(), self.U, self.u).view(self.shape).permute(1, 2, 0, 3)
        return made[0], made[1]

    def made(self) -> dict[str, Tensor]:
        """K and V."""
        return dict(zip("KV", self.values(), strict=True))

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[batch, kv heads, length, width]` with the prefix before them."""
        if self.recording:
            write(self.K, key[0])
            write(self.V, value[0])
            return key, value
        K, V = self.values()
        if (key.shape[1], key.shape[3]) != (K.shape[0], K.shape[2]) or value.shape[1::2] != key.shape[1::2]:
            raise HostError(
                f"{self.host.name} attends to keys {list(key.shape)} and values {list(value.shape)} [batch, heads, length, width]; "
                f"its prefix has {K.shape[0]} heads of width {K.shape[2]}.\n  prefix-tuning does not know this attention's shapes: use prompt-tuning."
            )
        batch = key.shape[0]
        return (
            torch.cat([K.to(key.dtype).expand(batch, -1, -1, -1), key], 2),
            torch.cat([V.to(value.dtype).expand(batch, -1, -1, -1), value], 2),
        )


class Prefix(Pair, Attending):
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
        return output[:, rows:], None if weights is None else weights[..., rows:, :]  # fmt: skip


class CachedPrefix(Pair):
    """The prefix of one attention that has a way of its own: what its cache returns begins with the prefix."""

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
        check_share(self, kwargs)
        mask, p = kwargs.get("attention_mask"), 0 if self.recording else self.p
        if mask is None:
            raise HostError(f"{self.host.name} was called without its causal mask, which a prefix extends.")
        kwargs["attention_mask"] = visible(mask, p)
        if kwargs.get("alibi") is not None:
            kwargs["alibi"] = F.pad(kwargs["alibi"], (p, 0))
        kwargs["layer_past"] = Past(kwargs.get("layer_past"), self)
        return frozen(*args, **kwargs)


class Past:
    """Stands for an attention's cache, or for none."""

    def __init__(self, cache: Any, prefix: Pair):
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


def _base_name(host: Host) -> str:
    return getattr(type(host.layer), "_base", type(host.layer)).__name__


def _inner(host: Host) -> nn.Module:
    return inner_attention(host.layer) or host.layer
