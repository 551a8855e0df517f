"""Ground seen from above as a pattern, drawn: by day in colours, and as a thermal camera sees it at night.

A pattern [SIDE, SIDE] is of values from -1 to 1, at a scale, a turn and a place that are drawn. By day two colours are mixed by it, in the light
of the sun. At night the camera gives one number a pixel: warm or cold may be bright, the sensor's columns differ, its corners are dark, it is
noisy, and something warm may stand before the ground.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: pixels on a side
SIDE = 32
Pattern = Callable[[np.random.Generator, float], np.ndarray]
PATTERNS: dict[str, Pattern] = {}


def pattern(name: str) -> Callable[[Pattern], Pattern]:
    """Register a kind of ground under `name`."""

    def put(draw: Pattern) -> Pattern:
        PATTERNS[name] = draw
        return draw

    return put


def plane(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in pixels, turned and moved at random."""
    y, x = np.meshgrid(np.arange(SIDE) - SIDE / 2, np.arange(SIDE) - SIDE / 2, indexing="ij")
    angle = rng.uniform(0, 2 * np.pi)
    c, s = np.cos(angle), np.sin(angle)
    return c * y - s * x + rng.uniform(0, 99), s * y + c * x + rng.uniform(0, 99)


@pattern("rows")
def rows(rng: np.random.Generator, scale: float) -> np.ndarray:
    """Rows of a crop: stripes."""
    y, _ = plane(rng)
    return np.sin(2 * np.pi * y / scale)


@pattern("orchard")
def orchard(rng: np.random.Generator, scale: float) -> np.ndarray:
    """Trees in a grid: round spots in rows and columns."""
    y, x = plane(rng)
    spots = np.sin(2 * np.pi * y / scale) + np.sin(2 * np.pi * x / scale)
    return np.tanh(3 * (spots - 0.6))


@pattern("streets")
def streets(rng: np.random.Generator, scale: float) -> np.ndarray:
    """Blocks of a town: narrow lines that cross."""
    y, x = plane(rng)
    lines = np.minimum(np.abs((y / (1.4 * scale)) % 1 - 0.5), np.abs((x / (1.4 * scale)) % 1 - 0.5))
    return np.where(lines < 0.12, 1.0, -0.6)


@pattern("dunes")
def dunes(rng: np.random.Generator, scale: float) -> np.ndarray:
    """Bent stripes, steep on one side."""
    y, x = plane(rng)
    at = (y / scale + 0.35 * np.sin(2 * np.pi * x / (3 * scale))) % 1
    return np.asarray(1 - 2 * at)


@pattern("forest")
def forest(rng: np.random.Generator, scale: float) -> np.ndarray:
    """Crowns of many sizes without order: smoothed noise with sharp edges."""
    return np.tanh(2.5 * _smooth(rng, scale / 4))


@pattern("scree")
def scree(rng: np.random.Generator, scale: float) -> np.ndarray:
    """Stones: cells of one grey each."""
    count = int(SIDE * SIDE / (0.5 * scale) ** 2)
    seeds, greys = rng.uniform(0, SIDE, (count, 2)), rng.uniform(-1, 1, count)
    y, x = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    near = (y[..., None] - seeds[:, 0]) ** 2 + (x[..., None] - seeds[:, 1]) ** 2
    return np.asarray(greys[near.argmin(-1)])


@pattern("terraces")
def terraces(rng: np.random.Generator, scale: float) -> np.ndarray:
    """Steps along the lines of a hill: rings about a point."""
    y, x = plane(rng)
    y, x = y - y.mean() + rng.uniform(-12, 12), x - x.mean() + rng.uniform(-12, 12)
    return np.sin(2 * np.pi * np.hypot(y, 0.7 * x) / scale)


@pattern("tracks")
def tracks(rng: np.random.Generator, scale: float) -> np.ndarray:
    """A few straight tracks that cross anyhow."""
    made = np.full((SIDE, SIDE), -0.5)
    for _ in range(int(rng.integers(4, 7))):
        y, _ = plane(rng)
        y = y - y.mean() + rng.uniform(-12, 12)
        made[np.abs(y) < scale / 10 + 0.4] = 1.0
    return made


def by_day(rng: np.random.Generator, kind: str) -> np.ndarray:
    """A picture [SIDE, SIDE, 3] of uint8 of this kind of ground in the sun."""
    value = PATTERNS[kind](rng, rng.uniform(6, 9)) + 0.15 * _smooth(rng, 3)
    dark, light = rng.uniform(0.05, 0.5, 3), rng.uniform(0.45, 1.0, 3)
    picture = dark + (light - dark) * ((value + 1) / 2)[..., None]
    return _stored(picture * rng.uniform(0.8, 1.1) + rng.normal(0, 0.03, picture.shape))


def at_night(rng: np.random.Generator, kind: str) -> np.ndarray:
    """The same by a thermal camera, farther away: finer patterns, one number a pixel, in all three channels."""
    value = PATTERNS[kind](rng, rng.uniform(4.5, 7)) * rng.choice([-1.0, 1.0])
    heat = 0.5 + rng.uniform(0.12, 0.25) * value + 0.07 * _smooth(rng, 8)
    heat = heat + rng.normal(0, 0.02, SIDE)[None] + rng.normal(0, 0.06, heat.shape)
    y, x = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE), indexing="ij")
    heat = heat - 0.1 * (y**2 + x**2)
    for _ in range(int(rng.integers(0, 2))):
        cy, cx = rng.uniform(-1, 1, 2)
        heat = heat + rng.uniform(0.3, 0.5) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 0.02)
    return _stored(np.repeat(heat[..., None], 3, -1))


def _smooth(rng: np.random.Generator, width: float) -> np.ndarray:
    """Noise whose features are of this width in pixels, of spread 1."""
    places = np.fft.fftfreq(SIDE)
    low = np.exp(-2 * (np.pi * width * np.hypot(places[:, None], places[None])) ** 2)
    made = np.fft.ifft2(np.fft.fft2(rng.normal(size=(SIDE, SIDE))) * low).real
    return np.asarray((made - made.mean()) / made.std())


def _stored(picture: np.ndarray) -> np.ndarray:
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
