"""Drawn speech: sound and pictures of one length, lips that tell what sounds do not, sentences that are new."""

import numpy as np

from adaptome.data.makers.speech import syllables, talking_mouths
from adaptome.data.speech.clips import read_frames
from adaptome.data.speech.drawn import FPS, RATE, spoken, voice


def test_sound_and_pictures_are_of_one_length_and_the_same_again():
    clips = [spoken("bamu sifo", voice(np.random.default_rng(1)), np.random.default_rng(2)) for _ in (0, 1)]
    (sound, frames), again = clips
    assert len(sound) / RATE == len(frames) / FPS and frames.dtype == np.uint8 and sound.dtype == np.int16
    assert np.array_equal(sound, again[0]) and np.array_equal(frames, again[1])


def test_what_looks_alike_sounds_different_and_the_other_way_round():
    def of(letter: str) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        sound, frames = spoken(letter, voice(rng), rng)
        return np.abs(np.fft.rfft(sound / 32767.0, 16_000))[:4000], frames.astype(float)

    b, m, n = map(of, "bmn")
    looks = [np.abs(m[1] - other[1]).mean() for other in (b, n)]
    sounds = [np.abs(m[0] - other[0]).sum() for other in (b, n)]
    assert looks[0] < 0.2 * looks[1] and sounds[1] < sounds[0]


def test_no_sentence_is_in_two_splits_and_seeds_differ():
    made = talking_mouths(0, 6, 3, 4)
    texts = [text for table in made.values() for text in table.columns["text"]]
    assert len(set(texts)) == 13 and texts != [
        t for s in talking_mouths(1, 6, 3, 4).values() for t in s.columns["text"]
    ]
    table = syllables(0, 3, 1)["train"]
    assert read_frames(table.columns["video"][0], "x").pictures.shape[1:] == (16, 16)
