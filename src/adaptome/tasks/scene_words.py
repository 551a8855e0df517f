"""The tokenizer `scene-words`: a token for every word that drawn scenes of two objects are told in, made here and read from no file."""

from __future__ import annotations

from typing import Any

from adaptome.data.scenes.pairs import vocabulary
from adaptome.tasks.words import word_tokenizer

#: a picture's place, which comes fourth
PICTURE = "<image>"


def scene_words_tokenizer() -> Any:
    """4 special tokens, then the words: less than 64 in all."""
    return word_tokenizer(vocabulary(), (PICTURE,))
