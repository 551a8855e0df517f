"""Context words: texts that stand for classes, as vectors of CLIP's text encoder, with trained context before their words.

    [start] c_1 .. c_M  the class's words [end]  ->  text encoder  ->  projection  ->  t [d]

shapes    c [classes, M, width] in place of M token embeddings; ids [classes, length]; t [classes, d], not normalised
source    CoOp, arXiv:2109.01134, class-specific context in front, as DFER-CLIP (arXiv:2308.13382) has it
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.errors import ModelError


def prompt_ids(tokenizer: Any, texts: Sequence[str], context: int = 0, longest: int = 77) -> Tensor:
    """Ids [texts, length] of '[start] context words [end]', filled up to the longest of them.

    Args:
        tokenizer: of the text encoder; what stands at the context's places is not read.
        context: M, places that are kept free before the words.
        longest: positions that the text encoder has; words beyond are cut off.

    Raises:
        ModelError: the tokenizer has no token that ends a text, or the context leaves no room for words.
    """
    end = _first(tokenizer.eos_token_id, tokenizer.sep_token_id)
    start = _first(tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.pad_token_id, end)
    if end is None:
        raise ModelError("the tokenizer has no token that ends a text, where CLIP's text encoder is read.")
    room = longest - context - 2
    if room < 1:
        raise ModelError(
            f"{context} context tokens leave no room for words: the text encoder has {longest} positions."
        )
    words = [tokenizer(text, add_special_tokens=False)["input_ids"][:room] for text in texts]
    length = context + 2 + max(map(len, words))
    # the text's end comes first among the ends, so it may fill up as well
    rows = [[start, *[start] * context, *own, *[end] * (length - context - 1 - len(own))] for own in words]
    return torch.tensor(rows)


def is_cut(tokenizer: Any, text: str, longest: int = 77) -> bool:
    """Whether a text has more tokens than the encoder reads."""
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) > longest - 2


def text_vectors(clip: Any, ids: Tensor, context: Tensor | None = None) -> Tensor:
    """t [texts, d] of ids [texts, length], with context [texts, M, width] at places 1 to M."""
    with _in_place(clip.text_model, context):
        pooled = clip.text_model(input_ids=ids).pooler_output
    made: Tensor = clip.text_projection(pooled)
    return made


@contextmanager
def _in_place(text_model: Any, context: Tensor | None) -> Iterator[None]:
    """The table's vectors at places 1 to M replaced, for the time of the block."""
    if context is None:
        yield
        return

    def put(module: nn.Module, args: Any, embedded: Tensor) -> Tensor:
        count = context.shape[1]
        return torch.cat([embedded[:, :1], context.to(embedded.dtype), embedded[:, 1 + count :]], 1)

    handle = text_model.embeddings.token_embedding.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
