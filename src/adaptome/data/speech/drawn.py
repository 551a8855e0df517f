r"""Drawn speech: letters as formants and as shapes of a mouth, spoken by voices that differ, words of a syllable.

    sound  x(t) = a(t) p(t) [sin 2 pi int F1 + sin 2 pi int F2 / 2] + n(t) noise     p: pulses of the voice's pitch; F1, F2, a, n glide
    mouth  lips around an opening o(t) x w(t), teeth and tongue in it, 25 pictures a second

Some letters sound alike and look different (m and n), others look alike and sound different (b and m), so that each sense knows what the other does not.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RATE, FPS, SIDE = 16_000, 25, 16
#: letter -> F1, F2 in Hz, loudness, noise; opening, width, teeth, tongue; seconds
LETTERS = {
    "b": (200, 700, 0.30, 0.00, 0.00, 0.55, 0.0, 0.0, 0.08),
    "m": (260, 1000, 0.60, 0.00, 0.00, 0.55, 0.0, 0.0, 0.08),
    "d": (200, 1800, 0.30, 0.00, 0.25, 0.60, 0.3, 0.9, 0.08),
    "n": (260, 1250, 0.60, 0.00, 0.25, 0.60, 0.3, 0.9, 0.08),
    "f": (300, 1400, 0.00, 0.12, 0.10, 0.60, 1.0, 0.0, 0.08),
    "s": (300, 1800, 0.00, 0.35, 0.15, 0.90, 1.0, 0.0, 0.08),
    "a": (800, 1250, 1.00, 0.00, 1.00, 0.70, 0.3, 0.2, 0.12),
    "e": (480, 1900, 1.00, 0.00, 0.50, 0.95, 0.6, 0.4, 0.12),
    "i": (300, 2400, 1.00, 0.00, 0.25, 1.00, 0.8, 0.4, 0.12),
    "o": (500, 900, 1.00, 0.00, 0.70, 0.40, 0.0, 0.2, 0.12),
    "u": (320, 750, 1.00, 0.00, 0.30, 0.25, 0.0, 0.0, 0.12),
}
#: between words and at both ends
PAUSE = (300, 1400, 0.0, 0.0, 0.05, 0.55, 0.0, 0.0, 0.06)
CONSONANTS, VOWELS = "bmdnfs", "aeiou"


@dataclass(frozen=True)
class Voice:
    """Who speaks: pitch in Hz, factor on the formants, pace, and the mouth's size, place, shades and sway."""

    pitch: float
    tract: float
    pace: float
    size: float
    place: tuple[float, float]
    skin: float
    lips: float
    sway: tuple[float, float]


def voice(rng: np.random.Generator) -> Voice:
    """A voice that is drawn."""
    return Voice(
        rng.uniform(90, 220), rng.uniform(0.9, 1.12), rng.uniform(0.94, 1.06), rng.uniform(0.85, 1.1),
        (rng.uniform(-1, 1), rng.uniform(-1, 1)), rng.uniform(0.55, 0.85), rng.uniform(0.3, 0.5),
        (rng.uniform(0, 0.5), rng.uniform(0, 6)),
    )  # fmt: skip


def word(rng: np.random.Generator) -> str:
    """A consonant and a vowel."""
    return "".join(rng.choice(list(part)) for part in (CONSONANTS, VOWELS))


def lexicon(rng: np.random.Generator, places: int = 3, each: int = 8) -> list[list[str]]:
    """Words by their place in a sentence, all different."""
    every = [consonant + vowel for consonant in CONSONANTS for vowel in VOWELS]
    found = [every[k] for k in rng.permutation(len(every))[: places * each]]
    return [found[k * each : (k + 1) * each] for k in range(places)]


def spoken(text: str, who: Voice, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A text of LETTERS and spaces as sound [n] of int16 and as pictures [frames, SIDE, SIDE] of uint8, of one length."""
    rows = np.array([PAUSE, *(LETTERS.get(letter, PAUSE) for letter in text), PAUSE])
    ends = np.cumsum(rows[:, -1] * who.pace * rng.uniform(0.93, 1.07, len(rows)))
    frames = int(np.ceil(ends[-1] * FPS))
    samples = frames * RATE // FPS
    return _sound(rows, ends, samples, who, rng), _mouths(rows, ends, frames, who, rng)


def _sound(rows: np.ndarray, ends: np.ndarray, samples: int, who: Voice, rng: np.random.Generator) -> np.ndarray:  # fmt: skip
    hop = RATE // 200  # tracks glide in steps of 5 ms
    coarse = _glided(rows[:, :4], ends, np.arange(samples // hop + 1) / 200, 4)
    at = np.arange(samples) / hop
    f1, f2, loud, noise = (np.interp(at, np.arange(len(coarse)), track) for track in coarse.T)
    t = np.arange(samples) / RATE
    pulses = 0.5 + 0.5 * np.cos(2 * np.pi * who.pitch * (1 + 0.03 * np.sin(2 * np.pi * 3 * t)) * t)
    tone = np.sin(2 * np.pi * who.tract * np.cumsum(f1) / RATE) + 0.5 * np.sin(2 * np.pi * who.tract * np.cumsum(f2) / RATE)  # fmt: skip
    hiss = np.diff(rng.standard_normal(samples + 1))
    x = loud * pulses * tone + noise * hiss + 0.003 * rng.standard_normal(samples)
    return (0.25 * x / np.abs(x).max() * 32767).astype(np.int16)


def _mouths(rows: np.ndarray, ends: np.ndarray, frames: int, who: Voice, rng: np.random.Generator) -> np.ndarray:  # fmt: skip
    shapes = _glided(rows[:, 4:8], ends, (np.arange(4 * frames) + 0.5) / (4 * FPS), 4)[2::4]
    opening, width, teeth, tongue = (track[:, None, None] for track in shapes.T)
    grid = np.arange(SIDE) - (SIDE - 1) / 2
    sway = who.sway[0] * np.sin(np.arange(frames) / 9 + who.sway[1])[:, None, None]
    y, x = grid[None, :, None] - who.place[0] - 0.5 * sway, grid[None, None, :] - who.place[1] - sway
    half, tall = who.size * (2.2 + 3.6 * width), who.size * (0.2 + 4.3 * opening)
    inner = (x / half) ** 2 + (y / tall) ** 2
    outer = (x / (half + 1.2)) ** 2 + (y / (tall + 1.5)) ** 2
    inside = 0.08 + 0.8 * teeth * (y < -0.35 * tall) + 0.35 * tongue * (y > 0.3 * tall)
    drawn = np.where(outer < 1, who.lips, who.skin + 0.01 * y)
    drawn = np.where(inner < 1, inside, drawn) + 0.03 * rng.standard_normal((frames, SIDE, SIDE))
    return (255 * drawn.clip(0, 1)).astype(np.uint8)


def _glided(values: np.ndarray, ends: np.ndarray, times: np.ndarray, steps: int) -> np.ndarray:
    """Rows' values at these times, which glide into each other over `steps` of them."""
    track = values[np.searchsorted(ends, times, side="right").clip(max=len(ends) - 1)]
    padded = np.concatenate([track[:1].repeat(steps, 0), track, track[-1:].repeat(steps, 0)])
    summed = np.cumsum(padded, 0)
    smooth: np.ndarray = (summed[2 * steps :] - summed[: -2 * steps]) / (2 * steps)
    return smooth[: len(track)]


def sentences(rng: np.random.Generator, words: Sequence[Sequence[str]], count: int) -> list[str]:
    """Different sentences, a word of each place; at most as many as there are."""
    every = [" ".join(chosen) for chosen in itertools.product(*words)]
    return [every[k] for k in rng.permutation(len(every))[:count]]
