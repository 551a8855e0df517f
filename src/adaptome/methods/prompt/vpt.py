"""VPT: trained tokens among an image's patches, in every block or before the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Adapter, Frozen
from adaptome.core.errors import HostError, MethodError, StateError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.attended import inner_attention
from adaptome.forms.insertion import hidden, with_hidden
from adaptome.forms.prompt import arguments


@register(
    "vpt", category="prompt", subcategory="soft", merge="none", export="none", identity_at_init=False, budget_setting="p",
    inference_overhead="longer sequence", hosts=("module",), default_targets="blocks", source="Jia et al. 2022, arXiv:2203.12119",
)  # fmt: skip
class VPT(Method):
    r"""VPT: trained tokens among an image's patches, in every block or before the first.

        deep     [c, _, x] <- block_l([c, P_l, x])    in every block, where c is the first token and _ is dropped
        shallow  [c, z, x] <- block_l([c, z, x]),  z = P before the first block; dropped after the last

    when        vision transformers with little data, the base left alone
    shapes      P [p, d]; what comes out of the last block has the length it had without. Between the blocks, 'shallow' leaves the tokens in,
                so that `hidden_states` of the blocks before the last hold them at places 1 to p
    init        uniform in +- sqrt(6 / (3 patch^2 + d)); not the base
    place       after the first token; for a block without windows it makes no difference. `drop` hides the token at a place from the blocks, as
                AST's distillation token (1) is; it comes out as it went in
    refused     causal or masked attention, and windows (Swin), which take a grid of tokens: use prefix-tuning there
    parameters  deep p d per block, shallow p d: ViT-B, p = 10: 92,160; AST, p = 25: 230,400
    merge       none: it is no change of weights
    source      Jia et al. 2022, arXiv:2203.12119, section 3; on AST Cappellazzo et al. 2023, arXiv:2312.03694
    """

    p: int = option(10, at_least=1, help="how many tokens")
    deep: bool = option(True, help="own tokens in every block; else before the first alone")
    drop: int = option(0, at_least=0, help="place of a token that the blocks do not see; 0 for none")

    def admits(self, host: Host) -> str | None:
        reason = super().admits(host)
        if reason:
            return reason
        layer = host.layer
        if host.role != "block":
            return f"it works on the blocks of a vision or audio transformer (targets='blocks'); this is a {type(layer).__name__}"
        names = arguments(layer)
        if "input_dimensions" in names or "height" in names:
            return f"a {type(layer).__name__} arranges its tokens in a grid, in which prompts have no place; use prefix-tuning"
        found: Any = [m for m in layer.modules() if hasattr(m, "is_causal")]
        if any(m.is_causal for m in found) or not found:
            return f"the attention of a {type(layer).__name__} is causal or unknown, and its mask has no place for prompts; use prefix-tuning"
        return None

    def parameters(self, host: Host) -> int:
        return self.p * host.width if self.deep or host.index == 0 else 0

    def shared(self, hosts: Sequence[Host]) -> nn.Module | None:
        return None if self.deep else Ends(hosts)

    def adapter(self, host: Host, shared: nn.Module | None = None) -> Tokens:
        return Tokens(self, host, shared)


class Ends(nn.Module):
    """Which hosts are the last of their stack."""

    def __init__(self, hosts: Sequence[Host]):
        super().__init__()
        stacks: dict[str, list[Host]] = {}
        for host in hosts:
            stacks.setdefault(host.path.rpartition(".")[0], []).append(host)
        for stack, members in stacks.items():
            numbers = [host.index for host in members]
            if numbers != list(range(len(members))):
                raise MethodError(
                    f"vpt with deep=False puts its tokens before block 0 and carries them through the blocks after it; of {stack!r} the targets are {numbers}.\n"
                    "  Name all blocks from the first on, such as layers='0:6', or set deep=True."
                )
        self.last = [members[-1].name for members in stacks.values()]


class Tokens(Adapter):
    """The tokens of one block; with 'shallow', of the first."""

    def __init__(self, method: VPT, host: Host, shared: nn.Module | None):
        super().__init__(host, shared)
        self.p, self.deep, self.drop = method.p, method.deep, method.drop
        self.takes = arguments(host.layer)[0]
        self.enters = method.deep or host.index == 0
        self.leaves = method.deep or shared is None or host.name in shared.last  # type: ignore[operator]
        bound = (6 / (3 * _patch(host) ** 2 + host.width)) ** 0.5
        self.P = (
            nn.Parameter(torch.empty(method.p, host.width).uniform_(-bound, bound)) if self.enters else None
        )

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
        x, *more = args or (kwargs.pop(self.takes),)
        self._check(x, more, kwargs)
        hid = 0 if not self.drop else self.drop + (0 if self.enters else self.p)
        held = x[:, hid : hid + 1]
        if hid:
            x = torch.cat([x[:, :hid], x[:, hid + 1 :]], 1)
        if self.P is not None:
            x = torch.cat([x[:, :1], self.P.to(x.dtype).expand(x.shape[0], -1, -1), x[:, 1:]], 1)
        output = frozen(x, *more, **kwargs)
        y = hidden(output)
        if self.leaves:
            y = torch.cat([y[:, :1], y[:, 1 + self.p :]], 1)
        if hid:
            place = self.drop + (0 if self.leaves else self.p)
            y = torch.cat([y[:, :place], held, y[:, place:]], 1)
        return with_hidden(output, y)

    def _check(self, x: Tensor, more: Sequence[Any], kwargs: dict[str, Any]) -> None:
        if not self.deep and self.strength != 1.0:
            raise StateError(
                f"{self.host.name} runs with weight {self.strength}: vpt with deep=False makes the sequence longer and has no mixture with the base."
            )
        masked = kwargs.get("is_causal") or kwargs.get("attention_mask") is not None
        if x.dim() != 3 or masked or any(isinstance(value, Tensor) for value in more):
            raise HostError(
                f"{self.host.name} was called with {list(x.shape)} and a mask or packed images, in which prompts have no place; use prefix-tuning."
            )


def _patch(host: Host) -> int:
    """The side of a patch, by the config that the block's attention holds; 16 where none tells."""
    inner: Any = inner_attention(host.layer)
    size = getattr(getattr(inner, "config", None), "patch_size", 16)
    return int(size if isinstance(size, int) else size[0])
