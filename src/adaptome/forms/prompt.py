"""Prompts: trained vectors that stand among the embedded tokens of a transformer."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Adapter, Frozen
from adaptome.core.errors import HostError, StateError
from adaptome.core.hosts import Host

Place = Literal["auto", "front", "after-first"]
#: arguments of a backbone with one entry a token that we know how to extend; what concerns an encoder is not about its own tokens
KNOWN = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids")
OTHERS = ("encoder_", "cross_", "past_", "decoder_")


class InputPrompts(Adapter):
    """Base of adapters that put `prompts()` among the embedded tokens of a backbone, and take them out of what it returns.

    Losses, heads and labels see the sequence they know. With a cache the prompts enter when it is empty; later steps extend the mask
    and the positions alone.

    Args:
        host: a backbone that takes `inputs_embeds`.
        p: how many vectors.
        place: before the tokens, or after the first; 'auto' is after the first where a pooler reads that one.
    """

    def __init__(self, host: Host, p: int, place: Place = "auto"):
        super().__init__(host)
        self.p = p
        pooled = getattr(host.layer, "pooler", None) is not None
        self.first = int(place == "after-first" or (place == "auto" and pooled))
        self.names = tuple(arguments(host.layer))
        #: sequences of one length, one after another, in what ProphetNet's decoder returns for the tokens after the next
        self.streams = {1, getattr(host.layer, "ngram", 1)}
        #: where positions start in models that number them from their padding index (RoBERTa), else None
        self.padding = padding_index(host.layer)

    @abstractmethod
    def prompts(self) -> Tensor:
        """The vectors `[p, width]`."""

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
        kwargs |= dict(zip(self.names, args, strict=False))
        ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        given = ids if ids is not None else embeds
        if given is None:
            return frozen(**kwargs)  # which says what it lacks
        length, past = given.shape[1], kwargs.get("past_key_values")
        seen = 0 if past is None else past.get_seq_length()
        inside = sum(a.p for a in frozen.below if isinstance(a, InputPrompts))
        self._check(kwargs, length, seen - self.p - inside if seen else 0)
        mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
        if mask is not None:
            kwargs["attention_mask"] = self._among(mask, mask.new_ones(mask.shape[0], self.p))
        if seen:
            if positions is not None:
                kwargs["position_ids"] = positions + self.p
            return frozen(**kwargs)
        if embeds is None:
            embeds = self.host.layer.get_input_embeddings()(ids)
            if positions is None and self.padding is not None:
                positions = self.host.layer.embeddings.create_position_ids_from_input_ids(ids, self.padding)
        prompts = self.prompts().to(embeds.dtype)
        kwargs["input_ids"] = None
        kwargs["inputs_embeds"] = self._among(embeds, prompts.expand(embeds.shape[0], -1, -1))
        if positions is not None:
            kwargs["position_ids"] = self._positions(positions)
        types = kwargs.get("token_type_ids")
        if types is not None:
            kwargs["token_type_ids"] = self._among(types, types[:, :1].expand(-1, self.p))
        return self._without(frozen(**kwargs), length + self.p)

    def _among(self, tokens: Tensor, prompts: Tensor) -> Tensor:
        """Something of the tokens `[batch, length, ...]`, with the prompts' own at their place."""
        return torch.cat([tokens[:, : self.first], prompts, tokens[:, self.first :]], 1)

    def _positions(self, positions: Tensor) -> Tensor:
        """Positions `[..., length]` of the tokens, counted on from the prompts'."""
        before, after = positions[..., : self.first], positions[..., self.first :] + self.p
        start = (
            before + 1
            if self.first
            else positions.new_full((1,), 0 if self.padding is None else self.padding + 1)
        )
        own = start + torch.arange(self.p, device=positions.device, dtype=positions.dtype)
        return torch.cat([before, own.expand(*positions.shape[:-1], -1), after], -1)

    def _without(self, output: Any, length: int) -> Any:
        """The output with the prompts' places cut from whatever has `[batch, length, width]`."""
        if isinstance(output, Tensor):
            if output.dim() != 3 or output.shape[1] not in {n * length for n in self.streams}:
                return output
            streams = output.unflatten(1, (-1, length))
            return torch.cat([streams[:, :, : self.first], streams[:, :, self.first + self.p :]], 2).flatten(
                1, 2
            )
        if isinstance(output, dict):
            return type(output)(**{key: self._without(value, length) for key, value in output.items()})
        if type(output) is tuple:
            return tuple(self._without(value, length) for value in output)
        return output

    def _check(self, kwargs: Mapping[str, Any], length: int, tokens: int) -> None:
        """Refuse what cannot be extended; `tokens` are in the cache."""
        name, mask = self.host.name or "the root", kwargs.get("attention_mask")
        positions, past = kwargs.get("position_ids"), kwargs.get("past_key_values")
        ready = mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2)
        if ready or getattr(past, "is_compileable", False):
            raise HostError(
                f"{name} was called with an attention mask that is ready for use, or a cache of fixed length; prompts need the mask over tokens, [batch, length].\n"
                "  Pass that one, and generate with the default cache, not a static one."
            )
        if (mask is not None and mask.shape[1] != tokens + length) or (
            mask is None and tokens and _first_is_other(positions, tokens)
        ):
            raise StateError(
                f"{name}: the cache holds {tokens} tokens besides prompts, and the {length} that came do not follow them.\n"
                "  A cache must be filled and read with the same prompts on, and goes on with new tokens alone, not with the whole text again."
            )
        packed = any(key.startswith("cu_seq_lens") and value is not None for key, value in kwargs.items())
        if packed or (mask is None and not tokens and _restarts(positions)):
            raise HostError(
                f"{name} was called with several sequences packed into one row: only the first would get the prompt.\n"
                "  Pad instead of packing, or use prefix-tuning, which every packed sequence sees."
            )
        for key, value in kwargs.items():
            own = isinstance(value, Tensor) and value.dim() >= 2 and value.shape[1] == length and length > 1
            if own and key not in KNOWN and not key.startswith(OTHERS):
                raise HostError(
                    f"{name} was called with {key} {list(value.shape)}, which has an entry for every token and none for the prompts."
                )


def token_refusal(host: Host) -> str | None:
    """Why prompts cannot be put among the embedded tokens of a host; None when they can."""
    layer = host.layer
    if "per_layer_inputs" in arguments(layer):
        return f"{type(layer).__name__} looks its tokens up again in every layer, where prompts have no rows; use prefix-tuning"
    router = next(filter(_needs_tokens, {getattr(type(m), "_base", type(m)) for m in layer.modules()}), None)
    if router is not None:
        return f"{router.__name__} in it chooses experts by the tokens themselves, where prompts have none; use prefix-tuning"
    if "inputs_embeds" not in arguments(layer) or not hasattr(layer, "get_input_embeddings"):
        return (
            f"{type(layer).__name__} takes no embedded tokens (inputs_embeds); for vision and audio backbones use vpt or prefix-tuning, "
            "for CLIP's text model coop"
        )
    return None


def embedding_width(host: Host) -> int:
    """The width of the token embeddings of a backbone."""
    try:
        table: Any = host.layer.get_input_embeddings()
    except NotImplementedError as error:
        raise HostError(
            f"{host.path or 'the root'} ({type(host.layer).__name__}) has no one table of token embeddings, whose width prompts have.\n"
            "  Take a method that changes weights, such as lora."
        ) from error
    return int(table.embedding_dim)


# -- what backbones are like ---------------------------------------------------------------------------------------


def arguments(layer: nn.Module) -> list[str]:
    """The names of what a module's forward takes, whatever decorates it."""
    return list(inspect.signature(inspect.unwrap(type(layer).forward)).parameters)[1:]


def _needs_tokens(kind: type[nn.Module]) -> bool:
    """Whether modules of a class cannot run on hidden states without the tokens: the routers of DeepSeek-V4's first layers."""
    takes = inspect.signature(inspect.unwrap(kind.forward)).parameters
    return {"hidden_states", "input_ids"} <= takes.keys() and takes[
        "input_ids"
    ].default is inspect.Parameter.empty


def padding_index(layer: nn.Module) -> int | None:
    """The padding index from which a model numbers its positions (RoBERTa); None where they start at 0."""
    embeddings = getattr(layer, "embeddings", None)
    numbered = hasattr(embeddings, "create_position_ids_from_input_ids")
    return int(embeddings.padding_idx) if numbered else None  # type: ignore[union-attr]


def _told(positions: Tensor | None) -> bool:
    """Whether positions were given, of one kind, and can be looked at."""
    return (
        positions is not None
        and positions.dim() == 2
        and not (positions.is_meta or torch.compiler.is_compiling())
    )


def _restarts(positions: Tensor | None) -> bool:
    """Whether positions do not go up by one: several sequences in a row."""
    return _told(positions) and bool((positions.diff(dim=-1) != 1).any())  # type: ignore[union-attr]


def _first_is_other(positions: Tensor | None, tokens: int) -> bool:
    """Whether what comes does not go on after the tokens in the cache; told where there is no mask."""
    return _told(positions) and bool(positions[0, 0] != tokens)  # type: ignore[index]
