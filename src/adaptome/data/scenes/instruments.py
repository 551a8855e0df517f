"""Drawn scenes with two kinds of instruments, one of them there twice, one of them heard, both near or far: video, depth and sound of one moment.

A scene is 4 x 4 squares of 4 x 4 pixels, on a floor of one colour. How an instrument is drawn and moves tells nothing of how far it is or whether it is heard.
Features are what a plain encoder would give: what stands out in each square, with its place, and the loudness of 16 bands of the sound over time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

FRAMES, SQUARES, SIDE = 4, 4, 4
RATE, SAMPLES, SEGMENTS, STEPS, BANDS = 8000, 2048, 2, 8, 16
COLOURS = {"red": (0.9, 0.2, 0.2), "green": (0.2, 0.8, 0.3), "blue": (0.25, 0.35, 0.95), "yellow": (0.95, 0.85, 0.2)}  # fmt: skip
SHAPES = {
    "bell": (".##.", ".##.", "####", ".##."),
    "drum": ("####", "#..#", "#..#", "####"),
    "horn": ("#..#", "####", "####", "#..#"),
    "whistle": ("####", "####", "..##", "...."),
}
THINGS = tuple(SHAPES)
#: how near each is in depth, the floor a little behind
DISTANCES = {"near": 0.9, "middle": 0.6, "far": 0.3}
#: how white haze makes what is so far
HAZE = (0.0, 0.3, 0.6)
#: of a square's features: its colour, its map, its row and column
VIDEO_WIDTH, DEPTH_WIDTH = 3 + SIDE * SIDE + 2 * SQUARES, SIDE * SIDE + 2 * SQUARES


@dataclass(frozen=True)
class Scene:
    """The colour of the floor; two instruments by name; which of them stands in each of three squares; the squares' rows and columns [3, frames, 2]; and
    which is there twice, which is heard; how far they are, a number of DISTANCES; and whether there is
    haze, by which one sees that.
    """

    floor: str
    things: tuple[str, str]
    which: tuple[int, int, int]
    places: np.ndarray
    twice: int
    heard: int
    distance: int
    hazy: bool


def scene(rng: np.random.Generator) -> Scene:
    """Drawn at random."""
    first, second = (THINGS[i] for i in rng.choice(len(THINGS), 2, replace=False))
    twice, heard, distance = int(rng.integers(2)), int(rng.integers(2)), int(rng.integers(len(DISTANCES)))
    rows, places = rng.choice(SQUARES, 3, replace=False), []
    for row in rows:  # each goes its own way along its row, or stands
        column, step = int(rng.integers(SQUARES)), int(rng.integers(-1, 2))
        columns = np.clip(column + step * np.arange(FRAMES), 0, SQUARES - 1)
        places.append(np.stack([np.full(FRAMES, row), columns], 1))
    floor = list(COLOURS)[rng.integers(len(COLOURS))]
    hazy, which = bool(rng.random() < 0.5), (twice, twice, 1 - twice)
    return Scene(floor, (first, second), which, np.stack(places), twice, heard, distance, hazy)


def shape(thing: str) -> np.ndarray:
    """Where its pixels are, [side, side] of bools."""
    return np.array([[mark == "#" for mark in line] for line in SHAPES[thing]])


def video(one: Scene, rng: np.random.Generator) -> np.ndarray:
    """Colours from 0 to 1, [frames, height, width, 3]."""
    floor = np.array(COLOURS[one.floor]) * rng.uniform(0.6, 0.9)
    made = _drawn(np.broadcast_to(floor, (SQUARES * SIDE, SQUARES * SIDE, 3)), one, [rng.uniform(0.75, 1.0, 3), rng.uniform(0, 0.25, 3)])  # fmt: skip
    made = made + (1 - made) * HAZE[one.distance] * one.hazy
    return np.clip(made + rng.normal(0, 0.05, made.shape), 0, 1)


def depth(one: Scene, rng: np.random.Generator) -> np.ndarray:
    """Nearness from 0 to 1, [frames, height, width]."""
    about = list(DISTANCES.values())[one.distance]
    near = [about + rng.uniform(-0.1, 0.1) for _ in one.things]
    made = _drawn(np.full((SQUARES * SIDE, SQUARES * SIDE), about - rng.uniform(0.1, 0.25)), one, near)
    return np.clip(made + rng.normal(0, 0.03, made.shape), 0, 1)


def _drawn(ground: np.ndarray, one: Scene, values: Sequence[Any]) -> np.ndarray:
    """The ground in every frame with both instruments in these values."""
    made = np.broadcast_to(ground, (FRAMES, *ground.shape)).copy()
    for number, places in zip(one.which, one.places, strict=True):
        marks = shape(one.things[number])
        for frame, (row, column) in enumerate(places):
            made[frame, row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE][marks] = values[number]  # fmt: skip
    return made


def sound(thing: str, rng: np.random.Generator) -> np.ndarray:
    """Samples [segments * samples] of an instrument, of a pitch and loudness of its own, over noise."""
    time = np.arange(SEGMENTS * SAMPLES) / RATE
    pitch = rng.uniform(0.85, 1.15)
    wave = lambda hertz: np.sin(2 * np.pi * (hertz * pitch * time + rng.random()))  # noqa: E731
    if thing == "bell":
        made = sum(wave(f) * np.exp(-time * d) for f, d in ((520, 3), (1290, 5), (2110, 7)))
    elif thing == "drum":
        beat = np.exp(-(time % 0.13) * 30)
        made = (wave(90) + 0.6 * rng.normal(size=len(time))) * beat
    elif thing == "horn":
        made = sum(wave(220 * k) / k for k in range(1, 7))
    else:
        made = np.sin(2 * np.pi * 2600 * pitch * time + 6 * np.sin(2 * np.pi * 9 * time))
    return rng.uniform(0.5, 1.0) * np.asarray(made) + rng.normal(0, 0.1, len(time))


def squares(pixels: np.ndarray) -> np.ndarray:
    """Features [frames, 16, width] of pixels [frames, height, width(, 3)], one of each square.

    Of colours the floor's, and the map of how far each pixel stands out; of depth the pixels themselves. Then row and column.
    """
    frames = len(pixels)
    cut = pixels.reshape(frames, SQUARES, SIDE, SQUARES, SIDE, -1).transpose(0, 1, 3, 2, 4, 5)
    flat = cut.reshape(frames, SQUARES * SQUARES, SIDE * SIDE, -1)
    if flat.shape[-1] == 3:
        floor = np.median(pixels, (0, 1, 2))
        found = [np.broadcast_to(2 * floor - 1, (*flat.shape[:2], 3)), 2 * np.linalg.norm(flat - floor, axis=-1)]  # fmt: skip
    else:
        found = [2 * flat[..., 0]]
    row, column = (one.reshape(-1) for one in np.indices((SQUARES, SQUARES)))
    place = np.concatenate([np.eye(SQUARES)[row], np.eye(SQUARES)[column]], 1)
    found.append(np.broadcast_to(place, (frames, *place.shape)))
    return np.concatenate(found, -1).astype(np.float32)


def bands(samples: np.ndarray) -> np.ndarray:
    """Features [segments, steps, bands] of a sound: how loud each band is, in powers of ten about 0."""
    pieces = samples.reshape(SEGMENTS * STEPS, -1) * np.hanning(SAMPLES // STEPS)
    power = np.abs(np.fft.rfft(pieces)) ** 2
    edges = np.geomspace(1, power.shape[1] - 1, BANDS + 1).round().astype(int)
    edges = np.maximum.accumulate(np.maximum(edges, np.arange(BANDS + 1)))
    made = np.stack([power[:, a : max(b, a + 1)].mean(1) for a, b in pairwise(edges)], 1)  # fmt: skip
    return np.log10(made + 1e-3).reshape(SEGMENTS, STEPS, BANDS).astype(np.float32)
