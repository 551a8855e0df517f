r"""Noise on speech at a ratio that is asked for: white, or the babble of other speakers.

    y = x + n sqrt(P_x / (P_n 10^(snr / 10))),    P the mean square

source    babble as the sum of several other clips, as in AV-HuBERT's noisy tests: Shi et al. 2022, arXiv:2201.01763
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Noise = Literal["babble", "white"]
#: speakers of a babble
SPEAKERS = 5


def mixed(speech: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """Speech [n] with noise [n] at a ratio of `snr` dB; silence on either side stays as it is."""
    powers = [float(np.mean(np.square(one, dtype=np.float64))) for one in (speech, noise)]
    if not all(powers):
        return speech
    made: np.ndarray = (speech + noise * np.sqrt(powers[0] / powers[1] * 10 ** (-snr / 10))).astype(np.float32)  # fmt: skip
    return made


def white(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Noise of all frequencies alike."""
    return rng.standard_normal(samples).astype(np.float32)


def babble(rng: np.random.Generator, samples: int, others: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of other clips at equal power, each repeated as needed and begun anywhere."""
    total = np.zeros(samples, np.float32)
    for other in others:
        power = float(np.sqrt(np.mean(np.square(other, dtype=np.float64)))) if len(other) else 0.0
        if power:
            start = int(rng.integers(len(other)))
            total += np.take(other, np.arange(start, start + samples), mode="wrap") / power
    return total


def masked_times(x: np.ndarray, rate: float, most: float, rng: np.random.Generator) -> np.ndarray:
    """x [n, ...] with a stretch of at most `most` seconds set to 0 in every second of it."""
    made = x.copy()
    for second in range(int(np.ceil(len(x) / rate))):
        size = int(rng.integers(int(most * rate) + 1))
        start = int(second * rate) + int(rng.integers(max(int(rate) - size, 0) + 1))
        made[start : start + size] = 0
    return made
