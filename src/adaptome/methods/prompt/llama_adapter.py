"""LLaMA-Adapter: prompts in the attentions, let in by gates that start at zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.errors import HostError
from adaptome.core.hosts import Host, host_of
from adaptome.core.method import Method, option, register
from adaptome.forms import attended
from adaptome.forms.attended import Attending, Attention, heads, inner_attention, part


@register(
    "llama-adapter", category="prompt", subcategory="soft", merge="none", export="none", budget_setting="p",
    inference_overhead="longer sequence", hosts=("module",), default_targets="attention-blocks", source="Zhang et al. 2023, arXiv:2303.16199",
)  # fmt: skip
class LLaMAAdapter(Method):
    r"""LLaMA-Adapter: prompts in the attentions, let in by gates that start at zero.

        o = softmax(q k^T) v + tanh(g) softmax(q K^T) V,    K = W_k P, V = W_v P

    when        decoders that are to follow instructions, from a start that disturbs nothing
    shapes      P [p, d], through the layer's own frozen W_k and W_v, not rotated; g one number per head; o before the output map
    init        P ~ N(0, 1), g = 0: starts as the base, bit for bit
    layers      the paper puts it on the top 30 of 32: `layers="-30:"`
    parameters  p d + heads per attention: 1,229,760 for LLaMA-7B, p = 10, the top 30 layers
    merge       none: it is no change of weights
    source      Zhang et al. 2023, arXiv:2303.16199, section 3; the tanh and one gate per head as in the authors' code
    """

    p: int = option(10, at_least=1, help="how many prompts per attention")

    def admits(self, host: Host) -> str | None:
        reason = super().admits(host) or attended.refusal(host) or attended.unknown_heads(host)
        if reason:
            return reason
        inner: Any = inner_attention(host.layer)
        if part(inner, "k") is None or part(inner, "v") is None:
            return f"{type(inner).__name__} makes keys and values by one fused map; use prefix-tuning"
        norm = getattr(inner, "k_norm", None)
        if norm is not None and host_of(norm).fan_out != heads(inner)[2]:
            return f"{type(inner).__name__} normalises its keys over all heads at once; use prefix-tuning"
        return None

    def parameters(self, host: Host) -> int:
        inner: Any = inner_attention(host.layer)
        return self.p * _width(inner) + heads(inner)[0]

    def adapter(self, host: Host, shared: nn.Module | None = None) -> GatedPrompt:
        return GatedPrompt(self, host)


class GatedPrompt(Attending):
    """P and the gates of one attention."""

    def __init__(self, method: LLaMAAdapter, host: Host):
        super().__init__(host)
        inner: Any = inner_attention(host.layer)
        self.heads, self.groups, self.width = heads(inner)
        names = {id(child): name for name, child in inner.named_children()}
        self.maps = tuple(names[id(part(inner, kind))] for kind in ("k", "v"))
        self.P = nn.Parameter(torch.randn(method.p, _width(inner)))
        self.g = nn.Parameter(torch.zeros(self.heads))

    def attend(
        self, attention: Attention, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **more: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        output, weights = attention(module, query, key, value, mask, **more)
        if query.shape[1] != self.heads or query.shape[3] != self.width:
            raise HostError(
                f"{self.host.name} attends with queries {list(query.shape)} [batch, heads, length, width]; {self.heads} heads of width {self.width} "
                "were expected.\n  llama-adapter does not know this attention's shapes: use prompt-tuning."
            )
        K, V = self.pairs(module, query.dtype)
        shape = (query.shape[0], -1, -1, -1)
        added = F.scaled_dot_product_attention(
            query, K.to(query.dtype).expand(shape), V.to(query.dtype).expand(shape), scale=more.get("scaling")
        )
        return torch.addcmul(
            output, added.transpose(1, 2), torch.tanh(self.g)[:, None].to(output.dtype)
        ), weights

    def pairs(self, module: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """K and V `[heads, p, width]`."""
        k, v = (module.get_submodule(name) for name in self.maps)
        P = self.P.to(dtype)[None]
        K, V = (m(P)[0].unflatten(-1, (self.groups, self.width)) for m in (k, v))
        norm = getattr(module, "k_norm", None)
        K = K if norm is None else norm(K)
        return self._by_head(K), self._by_head(V)

    def _by_head(self, value: Tensor) -> Tensor:
        return value.transpose(0, 1).repeat_interleave(self.heads // self.groups, 0)


def _width(inner: nn.Module) -> int:
    keys = part(inner, "k")
    assert keys is not None
    return host_of(keys).fan_in
