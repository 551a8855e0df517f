"""The tokenizer `scene-words`: a token for every word that drawn scenes of two objects are told in, made here and read from no file."""

from __future__ import annotations

from typing import Any

from adaptome.data.scenes.pairs import vocabulary

#: the picture's place comes fourth
SPECIAL = ("<pad>", "</s>", "<unk>", "<image>")


def scene_words_tokenizer() -> Any:
    """4 special tokens, then the words: less than 64 in all."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbers = {token: number for number, token in enumerate((*SPECIAL, *vocabulary()))}
    inner = Tokenizer(models.WordLevel(numbers, unk_token=SPECIAL[2]))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=SPECIAL[0], eos_token=SPECIAL[1], unk_token=SPECIAL[2],
        additional_special_tokens=[SPECIAL[3]],
    )  # fmt: skip
