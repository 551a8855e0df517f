"""Made data for few-shot work with pictures and texts: `made:captioned-scenes`, to train a small dual encoder on, and `made:worn-scenes`, classes to adapt it to.

The classes are an object's colour and shape. In `worn-scenes` they are printed otherwise than the captioned scenes are: channels bleed into
each other, contrast is low, and the print is grainy. How it was printed is drawn from the seed, and the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adaptome.data.makers import maker
from adaptome.data.scenes.drawing import COLOURS, SHAPES, Scene, draw, drawn_at_random
from adaptome.data.splits import Table

Columns = dict[str, Sequence[Any] | np.ndarray]


@maker("captioned-scenes")
def captioned_scenes(seed: int, train: int = 4000, validation: int = 240) -> dict[str, Table]:
    """Columns image [16, 16, 3] and text: "a red circle with a white spot on a blue background", or of a third of them "a red circle"."""
    rng = np.random.default_rng((seed, 4))
    made = {}
    for split, count in (("train", train), ("validation", validation)):
        scenes = [anywhere(drawn_at_random(rng), rng) for _ in range(count)]
        columns: Columns = {
            "image": np.stack([draw(scene) for scene in scenes]),
            "text": [caption(s, bool(rng.random() < 2 / 3)) for s in scenes],
        }
        made[split] = Table("made:captioned-scenes", columns, range(1, count + 1), unit=f"{split} picture")
    return made


def anywhere(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with its object smaller and further from the middle than those that a text-to-image model is trained on."""
    x, y = rng.uniform(0.4, 0.6, 2)
    return replace(scene, x=float(x), y=float(y), size=float(rng.uniform(0.3, 0.4)))


def caption(scene: Scene, whole: bool = True) -> str:
    """A scene in words, or its object alone."""
    if not whole:
        return f"a {scene.colour} {scene.shape}"
    return f"a {scene.colour} {scene.shape} with a {scene.spot} spot on a {scene.background} background"


@dataclass(frozen=True)
class Print:
    """How pictures are printed: `mix` [3, 3] of the channels, `contrast` about grey, and the spread of the `grain`, in shares of white."""

    mix: np.ndarray
    contrast: float
    grain: float

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The picture, printed, in bytes."""
        x = picture / 255.0 @ self.mix.T
        x = 0.5 + self.contrast * (x - 0.5) + self.grain * rng.standard_normal(x.shape)
        return (x.clip(0, 1) * 255).round().astype(np.uint8)


def a_print(rng: np.random.Generator) -> Print:
    """One that is drawn: each channel takes between a third and a half of itself from the next."""
    share = rng.uniform(0.33, 0.5)
    mix = (1 - share) * np.eye(3) + share * np.roll(np.eye(3), int(rng.integers(1, 3)), axis=1)
    return Print(mix, float(rng.uniform(0.5, 0.6)), 0.03)


@maker("worn-scenes")
def worn_scenes(seed: int, train: int = 20, validation: int = 6, test: int = 16) -> dict[str, Table]:
    """Columns image, label ("red circle") and number; so many pictures of each of the 24 classes a split."""
    rng = np.random.default_rng((seed, 5))
    printed = a_print(rng)
    # neither half of them has a colour or a shape that the other lacks
    classes = [(colour, shape) for shape in SHAPES for colour in COLOURS]
    order = rng.permutation(len(classes))
    made = {}
    for split, count in (("train", train), ("validation", validation), ("test", test)):
        rows = [(n, *classes[which]) for n, which in enumerate(order) for _ in range(count)]
        scenes = [
            anywhere(drawn_at_random(rng, colour=colour, shape=shape), rng) for _, colour, shape in rows
        ]
        columns: Columns = {
            "image": np.stack([printed(draw(scene), rng) for scene in scenes]),
            "label": [f"{colour} {shape}" for _, colour, shape in rows],
            "number": [n for n, _, _ in rows],
        }
        made[split] = Table("made:worn-scenes", columns, range(1, len(rows) + 1), unit=f"{split} picture")
    return made
