"""A tokenizer without files, for small models that learn offline: one token for each of the words that a recipe names.

model.tokenizer: words what which colour is the bell ?        # after <pad>, </s> and <unk>; all else is one unknown
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: what a tokenizer's name begins with to be one of words
PREFIX = "words "
SPECIAL = ("<pad>", "</s>", "<unk>")


def word_tokenizer(words: Sequence[str], special: Sequence[str] = ()) -> Any:
    """A fast tokenizer of transformers: 3 special tokens and those that are asked for, then the words; letters are made small, marks stand alone."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbers = {token: number for number, token in enumerate(dict.fromkeys((*SPECIAL, *special, *words)))}
    inner = Tokenizer(models.WordLevel(numbers, unk_token=SPECIAL[2]))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=SPECIAL[0], eos_token=SPECIAL[1], unk_token=SPECIAL[2],
        additional_special_tokens=list(special),
    )  # fmt: skip
