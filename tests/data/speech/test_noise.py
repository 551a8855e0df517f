"""Noise: the ratio that is asked for, babble of others, and stretches that are hidden."""

import numpy as np
import pytest

from adaptome.data.speech.noise import babble, masked_times, mixed, white

RNG = np.random.default_rng(0)
SPEECH = np.sin(np.arange(16_000) / 9).astype(np.float32)


@pytest.mark.parametrize("snr", [-5.0, 0.0, 12.5])
@pytest.mark.parametrize("kind", ["white", "babble"])
def test_the_ratio_is_what_was_asked(snr, kind):
    noise = white(RNG, 16_000) if kind == "white" else babble(RNG, 16_000, [white(RNG, 5_000), 9 * SPEECH])
    added = mixed(SPEECH, noise, snr) - SPEECH
    assert 10 * np.log10((SPEECH**2).mean() / (added**2).mean()) == pytest.approx(snr, abs=1e-3)


def test_speakers_of_a_babble_are_equally_loud_and_silence_stays():
    loud, soft = 100 * np.ones(50, np.float32), np.ones(70, np.float32)
    assert np.allclose(babble(RNG, 200, [loud, soft]), 2.0)
    assert np.array_equal(mixed(np.zeros(10, np.float32), white(RNG, 10), 0.0), np.zeros(10))


def test_less_than_a_share_of_every_second_is_hidden():
    x = np.ones((75, 4))
    made = masked_times(x, 25, 0.4, np.random.default_rng(3))
    hidden = (made == 0).all(1).reshape(3, 25).sum(1)
    assert (hidden <= 10).all() and hidden.sum() > 0 and (x == 1).all()
