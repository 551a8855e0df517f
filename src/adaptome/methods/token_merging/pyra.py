"""PYRA: merge alike tokens in every block, and train how those that disappear are weighed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Adapter
from adaptome.core.errors import MethodError, did_you_mean
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.token_merging import Keys, Merging, Opening, check_places, refusal

#: the paper's schedules for 197 tokens (198 for DeiT with its distillation token): pairs merged in each layer
SCHEDULES: dict[str, tuple[int, ...]] = {
    "vit-b-low": (*[16] * 11, 10),
    "vit-b-high": (40, 34, 30, 24, 18, 14, 10, 8, 4, 4, 3, 3),
    "vit-l-low": (*[8] * 23, 6),
    "vit-l-high": (20, 19, 18, 17, 15, 13, 13, 12, 10, 9, 8, 6, 6, 4, 4, 4, 3, 3, 2, 2, 1, 1, 1, 1),
    "deit-b-low": (*[16] * 6, *[10] * 6),
}


@register(
    "pyra",
    category="additive",
    subcategory="token merging",
    merge="none",
    export="none",
    identity_at_init=False,
    models=("VFM", "VLM"),
    inference_overhead="shorter sequence",
    hosts=("linear", "module", "backbone"),
    default_targets=("backbones", "blocks", "k"),
    source="Xiong et al. 2024, arXiv:2403.09192, section 3; ToMe: Bolya et al. 2022, arXiv:2210.09461",
)
class PYRA(Method):
    r"""PYRA: merge alike tokens in every block, and train how those that disappear are weighed.

        x = x + attention(norm(x));  the r most alike pairs of an even and an odd token by the cosine of their keys: S into T
        S' = S + (S * d_D) * d_r,   d_D = 2 sigmoid(W_r^T M),  d_r = 2 sigmoid(M W_D^T) - 1,   M = LN(S + T)
        x = sum(m x) / sum(m) over each group, with S' for S;  x = x + mlp(norm(x));  later logits get + log m

    when        a vision transformer is to be adapted and to run faster at once
    shapes      S, T [batch, r, D], times their sizes m, most alike pairs first; W_r [r, 1], W_D [1, D], LN of D; every block has its own
    init        W_D = 0, W_r ~ U(-1, 1) (Kaiming, a = sqrt 5), LN = (1, 0): starts as ToMe, bit for bit. In the first step W_D alone
                has a gradient. ToMe itself changes the base's outputs; only with r = 0 everywhere is it the base
    parameters  r + D + 2 D per block (r + D with affine=False, the paper's count): 27,840 (9,408) for ViT-B, 'vit-b-high'
    read        `with ad.merged_tokens() as merged: model(x)`; merged[path of the backbone] has the tokens' `sizes`, the `place` of every first
                token, and `spread` for dense heads
    use         LoRA beside it, on 'qkv', as a second adapter, attached before or after; `parameter_groups(rates=...)` trains each at its
                own rate. The model returns fewer tokens. Where there are fewer pairs than r, all are merged and W_r is cut to its first
                rows. Attention must be sdpa or eager. A head that reads the class token alone sees nothing of the last block's merge,
                whose tensors then have zero gradient
    merge       none: it changes the sequence
    source      Xiong et al. 2024, arXiv:2403.09192, section 3; ToMe: Bolya et al. 2022, arXiv:2210.09461
    """

    r: int | str | tuple[int, ...] = option(
        8, help="pairs merged in every block, or a list of them, or a schedule's name such as 'vit-b-high'"
    )
    ratio: float = option(
        0.0, at_least=0, at_most=0.5, help="instead of r: the share of its tokens a block merges"
    )
    tokens: int = option(197, at_least=1, help="tokens before the first block, from which ratio makes r")
    modulate: bool = option(True, help="False: plain ToMe, without anything to train")
    affine: bool = option(True, help="train weight and bias of LN, as the authors' code")
    proportional: bool = option(True, help="add log m to the logits of the attention")
    protected: int | None = option(
        None, help="first tokens that are never merged; None: class, distillation and registers"
    )
    unmerge: bool = option(False, help="the last block returns all tokens, as dense tasks need them")

    def validate(self) -> None:
        if isinstance(self.r, str) and self.r not in SCHEDULES:
            raise MethodError(
                f"pyra: no schedule is called {self.r!r}.{did_you_mean(self.r, SCHEDULES)} There are {', '.join(SCHEDULES)}."
            )
        counts = (self.r,) if isinstance(self.r, int) else () if isinstance(self.r, str) else self.r
        if any(r < 0 for r in counts):
            raise MethodError(f"pyra: r = {self.r!r} must not be negative.")

    @classmethod
    def size_setting(cls) -> None:
        """None: r sets how much is merged, and hardly what is trained."""

    def pairs_in(self, layer: int) -> int:
        """r of a block."""
        if self.ratio:
            left = self.tokens
            for _ in range(layer):
                left -= int(self.ratio * left)
            return int(self.ratio * left)
        r = SCHEDULES[self.r] if isinstance(self.r, str) else self.r
        if isinstance(r, int):
            return r
        if layer >= len(r):
            raise MethodError(f"pyra: r lists {len(r)} blocks, and the model has more.")
        return r[layer]

    def admits(self, host: Host) -> str | None:
        return super().admits(host) or refusal(host)

    def parameters(self, host: Host) -> int:
        r = self.pairs_in(host.index or 0) if host.role == "block" and self.modulate else 0
        return r + host.width * (3 if self.affine else 1) if r else 0

    def shared(self, hosts: Sequence[Host]) -> None:
        """Nothing; it makes sure that the places fit together."""
        for depth in check_places(self.name, hosts):
            listed = SCHEDULES[self.r] if isinstance(self.r, str) else self.r
            if not self.ratio and not isinstance(listed, int) and len(listed) != depth:
                raise MethodError(f"pyra: r = {self.r!r} lists {len(listed)} blocks; the model has {depth}.")

    def adapter(self, host: Host, shared: nn.Module | None = None) -> Adapter:
        if host.kind == "backbone":
            return Opening(host, self.protected)
        return Keys(host) if host.kind == "linear" else PYRABlock(self, host)


class PYRABlock(Merging):
    """W_r, W_D and LN of one block; none of them where nothing is merged, or for plain ToMe."""

    def __init__(self, method: PYRA, host: Host):
        r, D = method.pairs_in(host.index or 0), host.width
        super().__init__(host, r, method.proportional, method.unmerge)
        self.trained = method.modulate and r > 0
        if self.trained:
            self.W_r, self.W_D = (
                nn.Parameter(torch.empty(r, 1).uniform_(-1, 1)),
                nn.Parameter(torch.zeros(1, D)),
            )
            self.LN = nn.LayerNorm(D, elementwise_affine=method.affine)

    def modulated(self, source: Tensor, target: Tensor) -> Tensor:
        if not self.trained:
            return source
        weight, bias = (None if p is None else p.to(source.dtype) for p in (self.LN.weight, self.LN.bias))
        M = F.layer_norm(source + target, self.LN.normalized_shape, weight, bias, self.LN.eps)
        W_r, W_D = self.W_r[: source.shape[1]].to(M.dtype), self.W_D.to(M.dtype)
        channel = 2 * torch.sigmoid(W_r.t() @ M)  # [batch, 1, D]
        pair = 2 * torch.sigmoid(F.linear(M, W_D)) - 1  # [batch, r, 1]
        return source + source * channel * pair
