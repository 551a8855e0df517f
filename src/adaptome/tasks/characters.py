"""A tokenizer without files, for small models that learn offline: one token for each character.

It knows printable ASCII, the line's end, punctuation of Chinese and the 3,755 characters of GB 2312's first level; all others are one unknown.
"""

from __future__ import annotations

from typing import Any

SPECIAL = ("<pad>", "</s>", "<unk>")
_MARKS = "，。、；：？！“”‘’（）《》—…·"


def alphabet() -> list[str]:
    """The characters in a fixed order."""
    ascii_ = [chr(code) for code in range(32, 127)]
    rows = range(0xB0, 0xD8)  # the last row ends with the 89th column
    han = [
        bytes((row, column)).decode("gb2312")
        for row in rows
        for column in range(0xA1, 0xFF)
        if row < 0xD7 or column < 0xFA
    ]
    return ["\n", *ascii_, *_MARKS, *han]


def character_tokenizer() -> Any:
    """A fast tokenizer of transformers: 3 special tokens, then those of `alphabet`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbers = {token: number for number, token in enumerate((*SPECIAL, *alphabet()))}
    inner = Tokenizer(models.WordLevel(numbers, unk_token=SPECIAL[2]))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=SPECIAL[0], eos_token=SPECIAL[1], unk_token=SPECIAL[2]
    )
