"""LST: a small network beside the frozen transformer, so that no gradient enters it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Adapter, Frozen
from adaptome.core.errors import HostError, StateError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.side import (
    SideBlock,
    block_parameters,
    blocks_of,
    heads_of,
    is_causal,
    normed,
    prune,
    unmasked,
    watching,
)

TEMPERATURE = 0.1


@register(
    "lst", category="additive", subcategory="side network", merge="none", export="none", inference_overhead="extra modules",
    hosts=("backbone", "module"), default_targets="backbones", source="Sung et al. 2022, arXiv:2206.06522",
)  # fmt: skip
class LST(Method):
    r"""LST: a small network beside the frozen transformer, so that no gradient enters it.

        s_0 = D_0 h_0;    s_i = block_i(mu_i s_(i-1) + (1 - mu_i) D_i h_i),    mu_i = sigmoid(a_i / 0.1);    y = h + U norm(s)

    when        the memory of training is the limit: no gradient enters the base
    shapes      h_0 [batch, tokens, d] the embedded input, h_i the output of the base's block i, h its last hidden state, s the last s_i;
                D_i [w, d], U [d, w], w = d / reduction; block_i a pre-norm transformer block of width w (MLP 4 w); a_i a number
    init        U = 0: starts as the base; a_i = 0; 'pruned': D_i selects coordinates, block_i is the base's cut to its largest rows
                and columns; 'random': Kaiming-uniform(a = sqrt 5)
    difference  the paper's last hidden state is U s alone, which does not start as the base, and its blocks are of the base's kind
    use         the base runs without gradient, so adapters inside it do not train beside this one. A pooler is run again on y.
                attention=True sees what the base's blocks may see, and keeps no cache: generate with use_cache=False. Without
                attention, a block sees its own position alone, and cached generation is exact
    parameters  (L + 1) w d + d w + 2 w + L (12 w^2 + 9 w + 1), L = the side blocks (without attention 8 w^2 + 7 w + 1): 2,369,868 for BERT-base
    merge       none: it is not linear
    source      Sung et al. 2022, arXiv:2206.06522, section 3
    """

    reduction: int = option(8, at_least=1, help="d / w")
    every: int = option(
        1, at_least=1, help="a side block beside each n-th block, the last among them; the paper drops some"
    )
    attention: bool = option(True, help="let side blocks attend; without, cached generation works")
    heads: int = option(4, at_least=1, help="of the side blocks' attention; as many as divide w")
    init: Literal["random", "pruned"] = option(
        "random", help="'pruned' needs q, k and v apart, and of one size"
    )

    def admits(self, host: Host) -> str | None:
        reason = super().admits(host)
        if reason is None:
            try:
                blocks = blocks_of(host.layer)
            except HostError as error:
                return str(error)
            reason = unmasked(blocks[0].module) if self.attention else None
        return reason

    def width(self, host: Host) -> int:
        """w."""
        return max(1, host.width // self.reduction)

    def beside(self, host: Host) -> list[int]:
        """The numbers of the blocks that have a side block."""
        return list(range(len(blocks_of(host.layer))))[:: -self.every][::-1]

    def parameters(self, host: Host) -> int:
        d, w, count = host.width, self.width(host), len(self.beside(host))
        return (count + 2) * w * d + 2 * w + count * (block_parameters(w, 4 * w, self.attention) + 1)

    def adapter(self, host: Host, shared: nn.Module | None = None) -> LSTAdapter:
        return LSTAdapter(self, host)


class LSTAdapter(Adapter):
    """The side network of one transformer."""

    own_strength = True

    def __init__(self, method: LST, host: Host):
        super().__init__(host)
        d, w, self.beside = host.width, method.width(host), method.beside(host)
        blocks = blocks_of(host.layer)
        self.watched = tuple(block.module for block in blocks)  # in a tuple, so that they are no submodules
        self.causal, self.attention = is_causal(blocks[0].module), method.attention
        heads = heads_of(method.heads, w) if method.attention else 0
        self.D = nn.ParameterList([torch.empty(w, d) for _ in range(len(self.beside) + 1)])
        for D in self.D:
            nn.init.kaiming_uniform_(D, a=5**0.5)
        self.a = nn.Parameter(torch.zeros(len(self.beside)))
        self.blocks = nn.ModuleList([SideBlock(w, 4 * w, heads) for _ in self.beside])
        self.norm = nn.LayerNorm(w)
        self.U = nn.Parameter(torch.zeros(d, w))
        if method.init == "pruned" and host.device.type != "meta":
            prune(host, [blocks[i] for i in self.beside], list(self.blocks), list(self.D))  # type: ignore[arg-type]

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get("past_key_values")
        if self.attention and cache is not None and cache.get_seq_length() > 0:
            raise StateError(
                "lst: the side network's attention keeps no cache, and would see the new tokens alone.\n"
                "  Generate with use_cache=False, or attach with attention=False."
            )
        with torch.no_grad(), watching(self.watched) as seen:
            output = frozen(*args, **kwargs)
        entered, *left = seen.states(len(self.watched))
        mask = seen.visible(self.causal) if self.attention else None
        mu = torch.sigmoid(self.a / TEMPERATURE)
        s = F.linear(entered, self.D[0].to(entered))
        for number, (block, h) in enumerate(zip(self.blocks, [left[i] for i in self.beside], strict=True)):
            fused = torch.lerp(F.linear(h, self.D[number + 1].to(h)), s, mu[number].to(h))
            s = block(fused, mask, self.causal)
        return self.with_added(output, self.share(F.linear(normed(s, self.norm), self.U.to(s))))

    def with_added(self, output: Any, added: Tensor) -> Any:
        """The transformer's output with its last hidden state changed, and what its pooler makes of that.

        Raises:
            HostError: it gives no last hidden state, or pools it in a way of its own.
        """
        kind = type(self.host.layer).__name__
        if isinstance(output, Tensor):
            return output + added
        if not isinstance(output, dict) or "last_hidden_state" not in output:
            raise HostError(
                f"lst: {kind} returns a {type(output).__name__} without a last_hidden_state; call it with return_dict=True."
            )
        new = {**output, "last_hidden_state": output["last_hidden_state"] + added}
        states = output.get("hidden_states")
        if states and states[-1] is output["last_hidden_state"]:
            new["hidden_states"] = (*states[:-1], new["last_hidden_state"])
        if output.get("pooler_output") is not None:
            pooler = getattr(self.host.layer, "pooler", None)
            if pooler is None:
                raise HostError(
                    f"lst: {kind} makes its pooled output itself, which a changed last hidden state would not reach."
                )
            new["pooler_output"] = pooler(new["last_hidden_state"])
        return type(output)(**new)
