"""Scenes of two objects in a relation, told in two lengths: the short text drops the relation and the sizes, the long one tells all.

a red circle and a blue square
a red circle is left of a blue square on a white ground
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from adaptome.data.scenes.drawing import COLOURS, FINE, SHAPES, inside

#: the pictures' side in pixels
SIDE = 24
GROUND = "white"
#: name -> which way the second object lies
RELATIONS: dict[str, tuple[int, int]] = {
    "left of": (1, 0),
    "right of": (-1, 0),
    "above": (0, 1),
    "below": (0, -1),
}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
#: half an object's width, of the picture's side
SIZES = {"small": 0.19, "large": 0.25}
#: an object's colours
PAINTS = ("red", "green", "blue", "yellow")


class Thing(NamedTuple):
    """One object."""

    colour: str
    shape: str
    size: str

    @property
    def named(self) -> str:
        return f"a {self.colour} {self.shape}"


@dataclass(frozen=True)
class PairScene:
    """Two objects of different shapes and colours, the first in `relation` to the second."""

    first: Thing
    second: Thing
    relation: str
    shift: tuple[float, float] = (0.0, 0.0)

    def short(self) -> str:
        return f"{self.first.named} and {self.second.named}"

    def turned(self) -> PairScene:
        """The same scene, told from the other object."""
        return PairScene(self.second, self.first, OPPOSITE[self.relation], self.shift)

    def long(self) -> str:
        a, b = (f"a {t.size} {t.colour} {t.shape}" for t in (self.first, self.second))
        return f"{a} is {self.relation} {b}"

    def swapped(self) -> str:
        """A short text that is wrong: the two colours have changed places."""
        a, b = self.first, self.second
        return f"{a._replace(colour=b.colour).named} and {b._replace(colour=a.colour).named}"


def pair_at_random(rng: np.random.Generator) -> PairScene:
    """A scene that is drawn at random, told from the left or upper object."""
    colours, shapes = rng.permutation(PAINTS)[:2], rng.permutation(SHAPES)[:2]
    things = [
        Thing(str(c), str(s), str(rng.choice(list(SIZES)))) for c, s in zip(colours, shapes, strict=True)
    ]
    shift = rng.uniform(-0.04, 0.04, 2)
    relation = str(rng.choice(["left of", "above"]))
    return PairScene(things[0], things[1], relation, (float(shift[0]), float(shift[1])))


def draw_pair(scene: PairScene, side: int = SIDE) -> np.ndarray:
    """The scene as RGB bytes [side, side, 3]."""
    at = (np.arange(side * FINE) + 0.5) / (side * FINE)
    picture = np.empty((side * FINE, side * FINE, 3))
    picture[:] = COLOURS[GROUND]
    way = np.array(RELATIONS[scene.relation]) * 0.25
    for thing, sign in ((scene.first, -1), (scene.second, 1)):
        x, y = np.array(scene.shift) + 0.5 + sign * way
        u, v = np.broadcast_arrays((at[None] - x) / SIZES[thing.size], (at[:, None] - y) / SIZES[thing.size])
        picture[inside(thing.shape, u, v)] = COLOURS[thing.colour]
    fine = picture.reshape(side, FINE, side, FINE, 3).mean((1, 3))
    return fine.round().astype(np.uint8)


def vocabulary() -> list[str]:
    """Every word and mark of these texts and of questions about the scenes, in a fixed order."""
    said = "a and is on the ground . ? : what colour shape size where describe picture text image in one word above sentence summarize"
    relations = [word for name in RELATIONS for word in name.split()]
    return list(dict.fromkeys([*said.split(), *COLOURS, *SHAPES, *relations, *SIZES]))
