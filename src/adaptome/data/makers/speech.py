"""Made speech with faces: `made:syllables`, to pre-train a small recogniser, and `made:talking-mouths`, to adapt it to a language and to noise."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from typing import Any

import numpy as np

from adaptome.data.makers import maker
from adaptome.data.speech.drawn import RATE, lexicon, sentences, spoken, voice, word
from adaptome.data.splits import Table


@maker("syllables")
def syllables(seed: int, train: int = 900, validation: int = 40) -> dict[str, Table]:
    """Columns audio, video and text: three words in any order, every clip in a voice of its own."""
    rng = np.random.default_rng((seed, 10))
    made = {}
    for split, count in (("train", train), ("validation", validation)):
        texts = [" ".join(word(rng) for _ in range(3)) for _ in range(count)]
        made[split] = table("syllables", split, texts, rng)
    return made


@maker("talking-mouths")
def talking_mouths(seed: int, train: int = 360, validation: int = 40, test: int = 80) -> dict[str, Table]:
    """Columns audio, video and text: sentences of three words, of 24 words in all; no sentence is in two splits."""
    rng = np.random.default_rng((seed, 11))
    texts = sentences(rng, lexicon(rng), train + validation + test)
    made, at = {}, 0
    for split, count in (("train", train), ("validation", validation), ("test", test)):
        made[split] = table("talking-mouths", split, texts[at : at + count], rng)
        at += count
    return made


def table(name: str, split: str, texts: Iterable[str], rng: np.random.Generator) -> Table:
    """The texts spoken, as a reader gives them: sounds as samples with their rate, pictures as an .npz file's content."""
    texts = list(texts)
    clips = [spoken(text, voice(rng), rng) for text in texts]
    columns: dict[str, list[Any]] = {
        "audio": [{"array": sound, "sampling_rate": RATE} for sound, _ in clips],
        "video": [{"bytes": packed(frames), "path": None} for _, frames in clips],
        "text": texts,
    }
    return Table(f"made:{name}", columns, range(1, len(texts) + 1), unit=f"{split} clip")


def packed(frames: np.ndarray) -> bytes:
    """Pictures as the content of an .npz file."""
    held = BytesIO()
    np.savez(held, frames=frames)
    return held.getvalue()
