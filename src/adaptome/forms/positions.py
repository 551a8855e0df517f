"""Positions of a transformer's tokens, counted from a number other than 0, as behind a prefix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adaptome.core.adapter import Adapter, Frozen
from adaptome.core.hosts import Host
from adaptome.forms.prefix import THROUGH_CACHE, KeyValuePair
from adaptome.forms.prompt import arguments, padding_index


class Later(Adapter):
    """Lets a transformer count its tokens' positions from p, whatever the adapter's strength.

    Args:
        host: a transformer that takes `position_ids`, or biases its attention by distances alone.
        p: the first token's position.
    """

    own_strength = True

    def __init__(self, host: Host, p: int):
        super().__init__(host)
        self.p, self.recording = p, False
        self.names = tuple(arguments(host.layer))
        self.padding = padding_index(host.layer)
        #: whether it numbers the tokens that its mask lets be seen, as OPT does
        self.by_mask = any(
            "attention_mask" in arguments(m)
            for n, m in host.layer.named_modules()
            if n.rpartition(".")[2] == "embed_positions"
        )

    def made(self) -> dict[str, Tensor]:
        """Nothing: it stores no tensor."""
        return {}

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
        kwargs |= dict(zip(self.names, args, strict=False))
        ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        given = ids if ids is not None else embeds
        if self.recording or given is None or "position_ids" not in self.names:
            return frozen(**kwargs)
        positions = kwargs.get("position_ids")
        kwargs["position_ids"] = (self.own(kwargs, given) if positions is None else positions) + self.p
        return frozen(**kwargs)

    def own(self, kwargs: dict[str, Any], given: Tensor) -> Tensor:
        """The positions `[1 or batch, length]` that the model would count itself."""
        length, past = given.shape[1], kwargs.get("past_key_values")
        seen = 0 if past is None else past.get_seq_length()
        if self.padding is not None and not given.is_floating_point():
            count = self.host.layer.embeddings.create_position_ids_from_input_ids
            made: Tensor = count(given, self.padding, *([seen] if seen else []))
            return made
        mask = kwargs.get("attention_mask")
        if self.by_mask and isinstance(mask, Tensor) and mask.dim() == 2:
            return (mask.long().cumsum(1) * mask.long() - 1)[:, -length:]
        first = 0 if self.padding is None else self.padding + 1
        return torch.arange(first + seen, first + seen + length, device=given.device)[None]


def countable(host: Host) -> str | None:
    """Why a transformer's positions cannot be counted from elsewhere; None when they can."""
    if "position_ids" in arguments(host.layer):
        return None
    kinds = {getattr(type(m), "_base", type(m)).__name__ for m in host.layer.modules()}
    if kinds & set(THROUGH_CACHE):
        return None
    return f"{type(host.layer).__name__} takes no position_ids; set positions='own'"


def pairs(adapters: Any) -> list[Any]:
    """Of a prefix's adapters those that hold keys and values."""
    return [a for a in adapters.values() if isinstance(a, KeyValuePair)]
