"""Land seen from above, drawn: patches of ground, a road, houses with shadows; and how a picture of it comes out on one day.

What stays of a place is its `Land`; a `Day` is season, light, haze, what was sown, and how the camera stood. All of it is drawn from the
generator that is passed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

#: pixels on a side
SIDE = 32
Y, X = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")

#: ground -> colours [2, 3] at the season's two ends, strength of its texture
GROUND: dict[str, tuple[np.ndarray, float]] = {
    "field": (np.array([[0.42, 0.58, 0.26], [0.66, 0.56, 0.34]]), 0.05),
    "forest": (np.array([[0.15, 0.32, 0.14], [0.36, 0.28, 0.14]]), 0.14),
    "bare": (np.array([[0.60, 0.50, 0.40], [0.52, 0.44, 0.36]]), 0.06),
    "water": (np.array([[0.14, 0.24, 0.36], [0.20, 0.28, 0.30]]), 0.02),
}
ROOFS = np.array([[0.62, 0.30, 0.24], [0.55, 0.55, 0.56], [0.84, 0.82, 0.78], [0.46, 0.36, 0.30]])
ROAD = np.array([0.48, 0.47, 0.46])
#: what may be at a pixel
COVER = (*GROUND, "road", "house")


@dataclass(frozen=True, eq=False)
class House:
    """A rectangle: middle, half sides and turn (radians), the colour of its roof, and its height in pixels of shadow."""

    y: float
    x: float
    high: float
    wide: float
    turn: float
    roof: np.ndarray
    tall: float

    def covers(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Which points lie under its roof."""
        dy, dx = y - self.y, x - self.x
        c, s = np.cos(self.turn), np.sin(self.turn)
        return (np.abs(c * dx + s * dy) <= self.wide) & (np.abs(c * dy - s * dx) <= self.high)


@dataclass(frozen=True)
class Land:
    """`seeds` [n, 2]: each pixel is of the ground of the nearest one; `road`: a point and a direction, or None."""

    seeds: np.ndarray
    kinds: tuple[str, ...]
    road: tuple[float, float, float] | None
    houses: tuple[House, ...]
    texture: int


@dataclass(frozen=True)
class Day:
    """`season` 0 to 1; `sown` [n, 3]: shifts of the colours of fields; light [3] and haze of all; `sun`: direction of shadows; `shift` in pixels."""

    season: float
    sown: np.ndarray
    light: np.ndarray
    haze: float
    sun: tuple[float, float]
    shift: tuple[float, float]
    noise: float
    blur: float


def land(rng: np.random.Generator, houses: int, kinds: tuple[str, ...] = tuple(GROUND)) -> Land:
    """A place with so many houses, of these kinds of ground."""
    count = int(rng.integers(3, 7))
    road = (rng.uniform(0, SIDE), rng.uniform(0, SIDE), rng.uniform(0, np.pi)) if rng.random() < 0.6 else None
    made = Land(
        rng.uniform(0, SIDE, (count, 2)), tuple(rng.choice(kinds, count)), road, (), int(rng.integers(2**31))
    )
    return built(made, rng, houses)


def built(place: Land, rng: np.random.Generator, count: int) -> Land:
    """The place with so many more houses, none over another, as far as there is room."""
    houses = list(place.houses)
    for _ in range(20 * count):
        if len(houses) == len(place.houses) + count:
            break
        y, x = rng.uniform(4, SIDE - 4, 2)
        high, wide = rng.uniform(2.2, 5.5, 2)
        roof = np.clip(ROOFS[rng.integers(len(ROOFS))] + rng.normal(0, 0.04, 3), 0, 1)
        new = House(y, x, high, wide, rng.uniform(0, np.pi), roof, rng.uniform(1, 3))
        if all(np.hypot(h.y - y, h.x - x) > max(h.high, h.wide) + max(high, wide) + 1 for h in houses):
            houses.append(new)
    return replace(place, houses=tuple(houses))


def day(rng: np.random.Generator, shifted: float = 1.0, fair: bool = False) -> Day:
    """A day, and a camera that stands by up to so many pixels elsewhere; a fair one is in summer, with clear light."""
    angle, seen = rng.uniform(0, 2 * np.pi), 0.2 if fair else 1.0
    return Day(
        season=rng.uniform(0, seen),
        sown=rng.normal(0, 0.07 * seen, (8, 3)),
        light=1 + seen * (rng.uniform(0.7, 1.2) * rng.uniform(0.93, 1.07, 3) - 1),
        haze=rng.uniform(0, 0.25 * seen),
        sun=(np.sin(angle), np.cos(angle)),
        shift=(rng.uniform(-shifted, shifted), rng.uniform(-shifted, shifted)),
        noise=rng.uniform(0.005, 0.03),
        blur=rng.uniform(0.3, 0.8),
    )


def drawn(place: Land, at: Day, rng: np.random.Generator) -> np.ndarray:
    """The picture [SIDE, SIDE, 3] of uint8 of a place on a day."""
    y, x = Y + at.shift[0], X + at.shift[1]
    picture = _ground(place, at, y, x)
    if place.road is not None:
        picture[_on_road(place.road, y, x)] = ROAD
    for house in place.houses:
        for step in np.linspace(0.5, 1, 3) * house.tall:
            picture[house.covers(y - step * at.sun[0], x - step * at.sun[1])] *= 0.72
    for house in place.houses:
        picture[house.covers(y, x)] = house.roof
    picture = _blurred(picture * at.light, at.blur) * (1 - at.haze) + 0.75 * at.haze
    picture += rng.normal(0, at.noise, picture.shape)
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def roofs(houses: Iterable[House]) -> np.ndarray:
    """Which pixels [SIDE, SIDE] lie under a roof of these."""
    covered = np.zeros((SIDE, SIDE), bool)
    for house in houses:
        covered |= house.covers(Y, X)
    return covered


def cover(place: Land) -> np.ndarray:
    """What is at each pixel [SIDE, SIDE]: numbers of `COVER`, of uint8."""
    kinds = np.array([COVER.index(kind) for kind in place.kinds])
    made = kinds[_nearest(place, Y, X)]
    if place.road is not None:
        made[_on_road(place.road, Y, X)] = COVER.index("road")
    made[roofs(place.houses)] = COVER.index("house")
    return made.astype(np.uint8)


def _nearest(place: Land, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    away = (y[..., None] - place.seeds[:, 0]) ** 2 + (x[..., None] - place.seeds[:, 1]) ** 2
    return np.asarray(away.argmin(-1))


def _on_road(road: tuple[float, float, float], y: np.ndarray, x: np.ndarray) -> np.ndarray:
    ry, rx, turn = road
    return np.abs((y - ry) * np.cos(turn) - (x - rx) * np.sin(turn)) <= 1.5


def _ground(place: Land, at: Day, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    texture, nearest = np.random.default_rng(place.texture), _nearest(place, y, x)
    picture = np.zeros((SIDE, SIDE, 3))
    for number, kind in enumerate(place.kinds):
        colours, strength = GROUND[kind]
        colour = colours[0] * (1 - at.season) + colours[1] * at.season
        colour = colour + (at.sown[number % len(at.sown)] if kind == "field" else 0)
        waves = texture.uniform(0.5, 2.2, (6, 2)) * texture.choice([-1, 1], (6, 2))
        phases = texture.uniform(0, 2 * np.pi, 6)
        grain = sum(np.sin(a * y + b * x + p) for (a, b), p in zip(waves, phases, strict=True)) / 6**0.5
        here = nearest == number
        picture[here] = (colour + (strength * grain)[..., None])[here]
    return picture


def _blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    """By a Gaussian of this width, over five pixels, along both sides."""
    weights = np.exp(-0.5 * (np.arange(-2, 3) / sigma) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        pad = [(2, 2) if a == axis else (0, 0) for a in range(3)]
        wide = np.pad(picture, pad, mode="edge")
        picture = sum(w * np.take(wide, range(i, i + SIDE), axis) for i, w in enumerate(weights))
    return picture
