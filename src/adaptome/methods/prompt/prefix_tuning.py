"""Prefix tuning: trained keys and values that every token attends to, in every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Adapter
from adaptome.core.errors import HostError, MethodError, StateError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms import positions, prefix
from adaptome.forms.soft import FromText, check_length


@register(
    "prefix-tuning", category="prompt", subcategory="soft", merge="none", export="none", identity_at_init=False, budget_setting="p",
    inference_overhead="longer sequence", hosts=("module", "backbone"), default_targets="attention-blocks",
    source="Li and Liang 2021, arXiv:2101.00190; Liu et al. 2021, arXiv:2110.07602",
)  # fmt: skip
class PrefixTuning(FromText):
    r"""Prefix tuning: trained keys and values that every token attends to, in every layer.

        y = attention(q, [K; k], [V; v])
        y = sum_tokens a_j v_j + sum_prefix (a_j / l) V_j,   l = sum_prefix a_j        with `compensate`

    when        generation with a frozen decoder and one small prefix a task
    shapes      K, V [kv heads, p, head width]; q, k, v as the attention has them, after rotation and the cache
    positions   the tokens keep theirs, and the cache holds tokens alone: `generate`, beams, static caches, sliding windows and packed rows
                work as before. K is added as it is, not rotated. With 'after' the tokens are counted from p, as PEFT and LLM-Adapters do:
                the transformer itself is a target too, for its `position_ids`, and with ALiBi the prefix stands before the tokens
    init        N(0, std^2); `ad.prompt_from(model, text, tokenizer)` sets K and V to what the model computes for words, at positions -p to -1
                where positions are rotations (with 'after', 0 to p - 1 whatever they are), so that it starts as the model with these words before the text. None of them is the base
    scales      `train_scale`: a factor of K and one of V, which start at 1; with `compensate` LAE's prefix (Gao et al. 2023, arXiv:2303.10070)
    hidden      > 0: K, V = U_l tanh(W E + b) + u_l with E [p, hidden] and W shared by all layers; `ad.plain_prompt(model)` drops it after training
    parameters  2 p (kv heads) (head width) per attention, and 2 with `train_scale`: 7,864,320 for LLaMA-2-7B, p = 30; 221,184 for AST, p = 12
    merge       none: it is no change of weights
    source      Li and Liang 2021, arXiv:2101.00190; without the MLP Liu et al. 2021, arXiv:2110.07602
    """

    p: int = option(30, at_least=1, help="how many keys, and values, per attention")
    hidden: int = option(
        0, at_least=0, help="width of the MLP that makes the prefix; 0 trains the prefix itself"
    )
    std: float = option(0.02, above=0, help="of the start")
    train_scale: bool = option(False, help="train a factor of K and one of V in every attention")
    compensate: bool = option(
        False, help="the prefix's weights sum to 1 by themselves, and leave the tokens theirs"
    )

    positions: Literal["own", "after"] = option(
        "own", help="'after': count the tokens' positions from p, as PEFT and LLM-Adapters do"
    )

    def targets_by_default(self) -> str | tuple[str, ...]:
        return ("attention-blocks", "backbones") if self.positions == "after" else "attention-blocks"

    def admits(self, host: Host) -> str | None:
        if host.kind == "backbone":
            return (
                "its attentions have the prefix; it is a target with positions='after' alone"
                if self.positions == "own"
                else super().admits(host) or positions.countable(host)
            )
        own_way = self.compensate and prefix.through_cache(host)
        return super().admits(host) or (
            f"{type(host.layer).__name__} computes its scores by a way of its own; set compensate=False"
            if own_way
            else prefix.refusal(host)
        )

    def parameters(self, host: Host) -> int:
        if host.kind == "backbone":
            return 0
        places = self.hidden + 1 if self.hidden else self.p
        return 2 * prefix.prefix_width(host) * places + 2 * self.train_scale

    def shared_parameters(self, hosts: Sequence[Host]) -> int:
        return self.hidden * (self.p + self.hidden + 1)

    def shared(self, hosts: Sequence[Host]) -> nn.Module | None:
        if self.positions == "after" and not any(host.kind == "backbone" for host in hosts):
            raise HostError(
                "prefix-tuning with positions='after' counts the positions of a whole transformer, and no target is one.\n"
                "  Add 'backbones' to the targets, or leave targets out."
            )
        return Trunk(self) if self.hidden else None

    def adapter(self, host: Host, shared: nn.Module | None = None) -> Adapter:
        after = self.positions == "after"
        if host.kind == "backbone":
            return positions.Later(host, self.p)
        kind = prefix.CachedPrefix if prefix.through_cache(host) else prefix.Prefix
        return kind(host, self.p, self.std, self.hidden, shared, self.train_scale, self.compensate, after)

    def plain(self) -> Method:
        """The method that stores what the MLP makes."""
        return self.replace(hidden=0, train_scale=False)

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
        first = -self.p if self.positions == "own" else 0
        places = (
            {"position_ids": torch.arange(first, first + self.p, device=ids.device)[None]} if rotated else {}
        )
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
