"""Drawn scenes with two instruments, of which one moves, one is nearer and one is heard: video, depth and sound of the same moment.

A scene is 4 x 4 squares of 4 x 4 pixels. How large an instrument is drawn tells nothing of how far it is, and how it moves nothing of whether it is heard.
Features are what a plain encoder would give: the pixels of each square with its place, and the loudness of 16 bands of the sound over time.
"""

from __future__ import annotations

from dataclasses import dataclass

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
#: pixels of a square, with its row and column
VIDEO_WIDTH, DEPTH_WIDTH = SIDE * SIDE * 3 + 2 * SQUARES, SIDE * SIDE + 2 * SQUARES


@dataclass(frozen=True)
class Scene:
    """Two instruments by name, and their colours; the rows and columns of their squares in each frame [frames, 2]; which moves, is nearer, is heard."""

    things: tuple[str, str]
    colours: tuple[str, str]
    places: tuple[np.ndarray, np.ndarray]
    moving: int
    nearer: int
    heard: int


def scene(rng: np.random.Generator) -> Scene:
    """Drawn at random."""
    things = [THINGS[i] for i in rng.choice(len(THINGS), 2, replace=False)]
    colours = [list(COLOURS)[i] for i in rng.choice(len(COLOURS), 2, replace=False)]
    rows, moving = rng.choice(SQUARES, 2, replace=False), int(rng.integers(2))
    places = []
    for number in range(2):
        columns = np.full(FRAMES, rng.integers(SQUARES))
        if number == moving:
            columns = np.arange(FRAMES) if rng.random() < 0.5 else np.arange(FRAMES)[::-1]
        places.append(np.stack([np.full(FRAMES, rows[number]), columns], 1))
    nearer, heard = (int(rng.integers(2)) for _ in range(2))
    return Scene((things[0], things[1]), (colours[0], colours[1]), (places[0], places[1]), moving, nearer, heard)  # fmt: skip


def shape(thing: str) -> np.ndarray:
    """Where its pixels are, [side, side] of bools."""
    return np.array([[mark == "#" for mark in line] for line in SHAPES[thing]])


def video(one: Scene, rng: np.random.Generator) -> np.ndarray:
    """Colours from 0 to 1, [frames, height, width, 3]."""
    side = SQUARES * SIDE
    made = np.broadcast_to(rng.uniform(0.3, 0.6), (FRAMES, side, side, 3)).copy()
    for thing, colour, places in zip(one.things, one.colours, one.places, strict=True):
        tint = np.clip(np.array(COLOURS[colour]) * rng.uniform(0.85, 1.1), 0, 1)
        for frame, (row, column) in enumerate(places):
            made[frame, row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE][shape(thing)] = tint  # fmt: skip
    return np.clip(made + rng.normal(0, 0.05, made.shape), 0, 1)


def depth(one: Scene, rng: np.random.Generator) -> np.ndarray:
    """Nearness from 0 to 1, [frames, height, width]."""
    side = SQUARES * SIDE
    made = np.broadcast_to(rng.uniform(0.0, 0.2), (FRAMES, side, side)).copy()
    for number, (thing, places) in enumerate(zip(one.things, one.places, strict=True)):
        near = rng.uniform(0.75, 1.0) if number == one.nearer else rng.uniform(0.3, 0.55)
        for frame, (row, column) in enumerate(places):
            made[frame, row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE][shape(thing)] = near  # fmt: skip
    return np.clip(made + rng.normal(0, 0.03, made.shape), 0, 1)


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
    """Features [frames, 16, width] of pixels [frames, height, width(, 3)]: those of each square, with its row and column."""
    frames = len(pixels)
    cut = pixels.reshape(frames, SQUARES, SIDE, SQUARES, SIDE, -1).transpose(0, 1, 3, 2, 4, 5)
    flat = cut.reshape(frames, SQUARES * SQUARES, -1) * 2 - 1
    row, column = (one.reshape(-1) for one in np.indices((SQUARES, SQUARES)))
    place = np.concatenate([np.eye(SQUARES)[row], np.eye(SQUARES)[column]], 1)
    return np.concatenate([flat, np.broadcast_to(place, (frames, *place.shape))], -1).astype(np.float32)


def bands(samples: np.ndarray) -> np.ndarray:
    """Features [segments, steps, bands] of a sound: how loud each band is, in powers of ten about 0."""
    pieces = samples.reshape(SEGMENTS * STEPS, -1) * np.hanning(SAMPLES // STEPS)
    power = np.abs(np.fft.rfft(pieces)) ** 2
    edges = np.geomspace(1, power.shape[1] - 1, BANDS + 1).round().astype(int)
    edges = np.maximum.accumulate(np.maximum(edges, np.arange(BANDS + 1)))
    made = np.stack([power[:, a : max(b, a + 1)].mean(1) for a, b in zip(edges[:-1], edges[1:], strict=True)], 1)  # fmt: skip
    return np.log10(made + 1e-3).reshape(SEGMENTS, STEPS, BANDS).astype(np.float32)
