"""Codes of n bits in 32-bit words, as GPTQ's and AWQ's files hold them: a stream of bits along the first dimension, low bits first.

n = 4    eight codes a word
n = 3    32 codes in three words; two of them lie across a border
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

WORD = 32


def period(bits: int) -> int:
    """Codes after which the stream is at the border of a word again."""
    return WORD // math.gcd(WORD, bits)


def to_words(codes: Tensor, bits: int) -> Tensor:
    """Codes `[n, m]`, integers below `2**bits`, as int32 `[n bits / 32, m]`; n a multiple of `period(bits)`."""
    per = period(bits)
    blocks = codes.to(torch.int64).unflatten(0, (-1, per))
    words = blocks.new_zeros(len(blocks), per * bits // WORD, *codes.shape[1:])
    for i in range(per):
        first, shift = divmod(i * bits, WORD)
        words[:, first] |= blocks[:, i] << shift
        if shift + bits > WORD:
            words[:, first + 1] |= blocks[:, i] >> (WORD - shift)
    words = (words & (2**WORD - 1)).flatten(0, 1)
    return torch.where(words < 2 ** (WORD - 1), words, words - 2**WORD).to(torch.int32)


def from_words(words: Tensor, bits: int) -> Tensor:
    """The codes `[n, m]`, uint8, of int32 words `[n bits / 32, m]`."""
    per = period(bits)
    blocks = (words.to(torch.int64) & (2**WORD - 1)).unflatten(0, (-1, per * bits // WORD))
    codes = []
    for i in range(per):
        first, shift = divmod(i * bits, WORD)
        code = blocks[:, first] >> shift
        if shift + bits > WORD:
            code = code | (blocks[:, first + 1] << (WORD - shift))
        codes.append((code & (2**bits - 1)).to(torch.uint8))
    return torch.stack(codes, 1).flatten(0, 1)
