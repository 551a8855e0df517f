"""Soft prompts as values: drawn from a vocabulary, started from words, and freed of the network that made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Adapter
from adaptome.core.attaching import attach
from adaptome.core.errors import MethodError, StateError
from adaptome.core.method import Method
from adaptome.core.model import activate, active, detach
from adaptome.core.state import attachment_of, find_root
from adaptome.forms.sharded import write


def rows_of(table: nn.Module, ids: Tensor) -> Tensor:
    """The embeddings `[n, width]` that a table gives to tokens, on the CPU."""
    device = next(table.parameters()).device
    with torch.no_grad():
        rows: Tensor = table(ids.to(device))
    return rows.detach().to("cpu")


def drawn_rows(table: Any, p: int) -> Tensor:
    """p different embeddings among the first 5,000 (vocabularies begin with what is common); all shapes alone on the meta device."""
    if next(table.parameters()).is_meta:
        return torch.empty(p, table.embedding_dim)
    count = min(int(table.num_embeddings), 5000)
    ids = torch.randperm(count)[:p] if p <= count else torch.randint(count, (p,))
    return rows_of(table, ids)


class FromText(Method):
    """A method whose prompts can be set from tokens."""

    def start(self, model: nn.Module, adapters: Mapping[str, Adapter], ids: Tensor) -> None:
        """Set the prompts from the tokens `[n]`."""
        for adapter in adapters.values():
            adapter.start(ids)  # type: ignore[operator]


def prompt_from(
    model: nn.Module, text: str | Sequence[int] | Tensor, tokenizer: Any = None, name: str = "default"
) -> Tensor:
    """Start a prompt from words: prompts from their embeddings, prefixes from the keys and values that the model computes for them.

    Args:
        model: with the adapter.
        text: as many tokens as the adapter has vectors: their ids, or a string.
        tokenizer: for a string; called with add_special_tokens=False.
        name: of the adapter.

    Returns:
        The ids.

    Raises:
        StateError: the adapter's prompts have no text form, or a string came without a tokenizer.
        MethodError: another number of tokens than the adapter has vectors.
    """
    if isinstance(text, str):
        if tokenizer is None:
            raise StateError(
                "prompt_from was given a string and no tokenizer.\n  Pass tokenizer=..., or token ids."
            )
        text = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = torch.as_tensor(text, dtype=torch.long).flatten()
    attachment = attachment_of(model, name)
    if not isinstance(attachment.method, FromText):
        raise StateError(
            f"{name!r} is {attachment.method.name}, which has no start from text; prompt-tuning, prefix-tuning and coop have."
        )
    attachment.method.start(find_root(model), attachment.adapters, ids)
    return ids


def set_rows(prompt: nn.Parameter, rows: Tensor, method: str) -> None:
    """Write the embeddings of a text into a prompt of the same length.

    Raises:
        MethodError: another length.
    """
    check_length(method, prompt.shape[0], rows.shape[0])
    write(prompt, rows)


def check_length(method: str, p: int, tokens: int) -> None:
    """Raise MethodError unless the text has as many tokens as the prompt has vectors."""
    if tokens != p:
        raise MethodError(
            f"the text has {tokens} tokens, and this {method} has p = {p} vectors.\n  Attach it with p={tokens}."
        )


# -- without the network -------------------------------------------------------------------------------------------


def plain_prompt(model: nn.Module, name: str = "default") -> None:
    """Turn a prompt that a network makes (p-tuning; prefix-tuning with hidden > 0) into one that is stored, with the same outputs.

    Raises:
        StateError: the adapter has no such network, or settings by layer.
    """
    attachment = attachment_of(model, name)
    method: Any = attachment.method
    if not hasattr(method, "plain") or method.plain() == method:
        raise StateError(
            f"{name!r} is {method.name}, whose prompts no network makes; p-tuning's are, and prefix-tuning's with hidden > 0."
        )
    if attachment.per_layer:
        raise StateError(f"{name!r} has settings by layer, which its plain form would lose.")
    root, running = find_root(model), active(model)
    shares = {n: next(iter(attachment_of(root, n).all().values())).strength for n in running}
    encoded: Any = attachment.adapters
    values = {path: {k: v.detach().clone() for k, v in a.made().items()} for path, a in encoded.items()}
    heads = {path: dict(head.named_parameters()) for path, head in attachment.heads.items()}
    detach(root, name)
    attach(
        root,
        method.plain(),
        name,
        targets=[f"={path}" for path in values],
        train=attachment.train,
        dtype=attachment.dtype,
        seed=attachment.seed,
    )
    fresh = attachment_of(root, name)
    for path, made in [*values.items(), *heads.items()]:
        for key, value in made.items():
            write(fresh.all()[path].get_parameter(key), value)
    activate(root, running, shares)
