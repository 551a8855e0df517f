"""A small transformer beside a frozen one: its blocks, what it starts from, and how it sees what the frozen blocks give.

Its blocks are pre-norm and without position encodings: the states they are fed from carry the positions. What a block may attend to is
told by the mask that the base's own blocks are called with; where there is none, by whether their attention is causal.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.errors import HostError, TargetError
from adaptome.core.hosts import Host, first_input, host_of
from adaptome.core.targets import Match, resolve
from adaptome.core.threads import alone

MASK = "attention_mask"


class SideBlock(nn.Module):
    """`h + o(attention(norm h))`, then `h + down(gelu(up(norm h)))`, computed in the activations' precision.

    Args:
        width: of its activations.
        hidden: width inside the MLP.
        heads: of the attention; 0 for none, so that a position sees itself alone.
    """

    def __init__(self, width: int, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        if heads:
            self.norm1 = nn.LayerNorm(width)
            self.qkv = nn.Parameter(_uniform(3 * width, width))
            self.o = nn.Parameter(_uniform(width, width))
        self.norm2 = nn.LayerNorm(width)
        self.up, self.down = nn.Parameter(_uniform(hidden, width)), nn.Parameter(_uniform(width, hidden))
        self.b, self.c = nn.Parameter(torch.zeros(hidden)), nn.Parameter(torch.zeros(width))

    def forward(self, h: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """h `[batch, tokens, width]`; mask as `scaled_dot_product_attention` takes it."""
        if self.heads:
            q, k, v = F.linear(normed(h, self.norm1), self.qkv.to(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # fmt: skip
            a = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal and mask is None)
            h = h + F.linear(a.transpose(1, 2).flatten(-2), self.o.to(h))
        z = F.gelu(F.linear(normed(h, self.norm2), self.up.to(h), self.b.to(h)))
        return h + F.linear(z, self.down.to(h), self.c.to(h))


def block_parameters(width: int, hidden: int, attention: bool) -> int:
    """Trained numbers of a `SideBlock`."""
    return 2 * width * hidden + hidden + 3 * width + attention * (4 * width**2 + 2 * width)


def normed(h: Tensor, norm: nn.LayerNorm) -> Tensor:
    """The norm, in the precision of h."""
    return F.layer_norm(h, norm.normalized_shape, norm.weight.to(h), norm.bias.to(h), norm.eps)


def _uniform(rows: int, columns: int) -> Tensor:
    bound = columns**-0.5
    return torch.empty(rows, columns).uniform_(-bound, bound)


# -- what the frozen blocks give -------------------------------------------------------------------------------------


def blocks_of(backbone: nn.Module) -> list[Match]:
    """The blocks of a transformer, in order.

    Raises:
        HostError: it is none that a side network can stand beside.
    """
    kind = type(backbone).__name__
    try:
        whole = any(match.path == "" for match in resolve(backbone, "backbones"))
        blocks = resolve(backbone, "blocks")
    except TargetError:
        whole = False
    if not whole:
        raise HostError(f"a {kind} is no whole transformer, which embeds its input and runs blocks")
    widths = {host_of(block.module).width for block in blocks} | {host_of(backbone).width}
    if len(widths) > 1:
        raise HostError(f"its blocks have the widths {sorted(widths)}; a side network needs one")
    attentions = resolve(backbone, "attention-blocks")
    if len(attentions) > len(blocks):
        raise HostError(
            f"its blocks attend to a second sequence ({len(attentions)} attentions in {len(blocks)} blocks), through which the side "
            "network of an encoder would get no gradient; put it on the encoder alone"
        )
    return blocks


def unmasked(block: nn.Module) -> str | None:
    """Why it cannot be told what a block's attention sees; None when it can."""
    masks = [name for name in inspect.signature(type(block).forward).parameters if "mask" in name]
    return f"its blocks take {masks}, and no {MASK}" if masks and MASK not in masks else None


class Seen:
    """What one forward of the frozen transformer showed: its embedded input, its blocks' outputs, and their mask."""

    def __init__(self) -> None:
        self.entered: Tensor | None = None
        self.left: dict[int, Tensor] = {}
        self.mask: Any = None

    def states(self, blocks: int) -> list[Tensor]:
        """The embedded input and each block's output; a block that was skipped, as layer dropping does, gave what it would have taken.

        Raises:
            HostError: no block was called.
        """
        if self.entered is None:
            raise HostError(
                "no block of the transformer was called: a fused kernel may have run in their place."
            )
        states = [self.entered]
        for number in range(blocks):
            states.append(self.left.get(number, states[-1]))
        return states

    def visible(self, causal: bool) -> Tensor | None:
        """The mask as attention of any number of heads takes it; None for all, or for what `causal` says.

        Raises:
            HostError: the mask is of an attention implementation of its own.
        """
        mask = self.mask
        if mask is None or (isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[1] == 1):
            return None if mask is None else mask.to(self.entered) if mask.is_floating_point() else mask
        if isinstance(mask, Tensor) and mask.dim() == 2:
            assert self.entered is not None  # `states` was asked for first
            tokens = self.entered.shape[1]
            seen = mask[:, None, None, -tokens:].bool()
            whole = torch.ones(tokens, tokens, dtype=torch.bool, device=mask.device)
            return seen & whole.tril() if causal else seen
        told = f"of shape {list(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise HostError(
            f"the blocks' {MASK} is {told}, which a side network cannot read.\n"
            "  Load the model with attn_implementation='sdpa' or 'eager', or let the side network do without attention."
        )


@contextmanager
def watching(blocks: Sequence[nn.Module]) -> Iterator[Seen]:
    """Note what the blocks take and give, for the time of the block.

    A forward on the object itself is what torch.compile can follow; it cannot follow registering a hook. Threads take turns.
    """
    with alone(blocks[0]):
        seen = Seen()
        before = [block.__dict__.get("forward") for block in blocks]
        for number, block in enumerate(blocks):
            block.__dict__["forward"] = _Watched(block, block.forward, seen, number)
        try:
            yield seen
        finally:
            for block, forward in zip(blocks, before, strict=True):
                if forward is None:
                    block.__dict__.pop("forward")
                else:
                    block.__dict__["forward"] = forward


class _Watched:
    def __init__(self, block: nn.Module, run: Callable[..., Any], seen: Seen, number: int):
        self.block, self.run, self.seen, self.number = block, run, seen, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.seen.entered is None:
            self.seen.entered = first_input(self.block, args, kwargs)
            names = list(inspect.signature(type(self.block).forward).parameters)[1:]
            place = names.index(MASK) if MASK in names else len(args)
            self.seen.mask = args[place] if place < len(args) else kwargs.get(MASK)
        output = self.run(*args, **kwargs)
        self.seen.left[self.number] = output[0] if isinstance(output, tuple) else output
        return output


def is_causal(block: nn.Module) -> bool:
    """Whether the block's attention is causal where it is given no mask, as transformers decides it."""
    return any(getattr(module, "is_causal", False) is True for module in block.modules())


# -- starting from the frozen weights --------------------------------------------------------------------------------


def prune(
    host: Host, blocks: Sequence[Match], side: Sequence[SideBlock], downs: Sequence[nn.Parameter]
) -> None:
    """Start side blocks as the frozen ones cut to the rows and columns of the largest magnitude, and their inputs as the kept coordinates.

    Args:
        host: of the transformer.
        blocks: those that the side blocks stand beside.
        side: with attention or without.
        downs: maps `[width, d]` into the side network.

    Raises:
        HostError: a block's maps are fused, of unequal sizes, or too small.
    """
    maps = [_maps(host.layer, block, bool(side[0].heads)) for block in blocks]
    width, hidden = side[0].down.shape
    cost = torch.stack([_sums(m["up"], 0) + _sums(m["down"], 1) for m in maps]).sum(0)
    kept = cost.topk(width).indices.sort().values
    with torch.no_grad():
        for down in downs:
            down.zero_()
            down[torch.arange(width), kept] = 1
        for block, m in zip(side, maps, strict=True):
            rows = _largest(_sums(m["up"], 1) + _sums(m["down"], 0), hidden, "hidden units")
            block.up.copy_(m["up"][rows][:, kept])
            block.down.copy_(m["down"][kept][:, rows])
            if block.heads:
                pair = _largest(_sums(m["q"], 1) + _sums(m["k"], 1), width, "rows of q and k")
                values = _largest(_sums(m["v"], 1) + _sums(m["o"], 0), width, "rows of v")
                taken = (m["q"][pair], m["k"][pair], m["v"][values])
                block.qkv.copy_(torch.cat([part[:, kept] for part in taken]))
                block.o.copy_(m["o"][kept][:, values])


def _maps(backbone: nn.Module, block: Match, attention: bool) -> dict[str, Tensor]:
    """The weights of a block by role, on the CPU in float32."""
    roles = ("q", "k", "v", "o", "up", "down") if attention else ("up", "down")
    inside = [m for m in resolve(backbone, "all-linear") if m.path.startswith(f"{block.path}.")]
    found = {m.role: host_of(m.module, m.path, m.parameter, m.role) for m in inside}
    missing = [role for role in roles if role not in found]
    sizes = {found[role].fan_out for role in "qkv" if role in found}
    if missing or (attention and len(sizes) > 1):
        why = (
            f"has no map {missing[0]!r} of its own"
            if missing
            else f"has q, k and v of the sizes {sorted(sizes)}"
        )
        raise HostError(f"init='pruned' cannot start from {block.path}, which {why}.\n  Write init='random'.")
    return {role: found[role].weight().float().cpu() for role in roles}


def _sums(W: Tensor, dim: int) -> Tensor:
    return W.abs().sum(dim)


def _largest(scores: Tensor, count: int, what: str) -> Tensor:
    if count > len(scores):
        raise HostError(
            f"init='pruned' needs {count} {what}, and there are {len(scores)}.\n  Write init='random'."
        )
    return scores.topk(count).indices.sort().values


def heads_of(wanted: int, width: int) -> int:
    """As many heads as were wanted and divide the width."""
    return math.gcd(wanted, width)
