"""Five ways to forge the inner face of a drawn frame: three to train a detector on, two that it has not met.

Each exchanges or resynthesises what is inside the face and leaves the rest of the frame, so that its noise, sharpness or
grain no longer goes with what surrounds it. How it differs is each forgery's own; and as cameras differ as much, no frame is forged because
it is clean, or noisy, as a whole.

    swap       another person's face as another camera takes it, blended in over a soft edge
    reenact    the mouth moved, resampled on the way
    texture    drawn again at half the resolution, as by a small network
    denoise    cleaned, and given the grain of another camera      (unseen)
    generate   drawn afresh, with the lattice of an upsampler      (unseen)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from adaptome.data.faces.drawing import (
    SIDE,
    Camera,
    Person,
    Picture,
    Pose,
    X,
    Y,
    blurred,
    camera,
    inside,
    like,
    person,
    scene,
    taken,
)

#: (the true frame, who, how, the camera, generator) -> the forged frame
Forgery = Callable[[Picture, Person, Pose, Camera, np.random.Generator], Picture]


def swap(frame: Picture, who: Person, how: Pose, by: Camera, rng: np.random.Generator) -> Picture:
    """Another person's features from another film, sharper or softer, noisier or cleaner; its colours are matched, and not quite."""
    other = replace(camera(rng), gain=by.gain * rng.normal(1, 0.03, 3))
    face = taken(scene(like(who, person(rng)), how), other, rng)
    return _put(frame, face, inside(who, how, softness=2.0))


def reenact(frame: Picture, who: Person, how: Pose, by: Camera, rng: np.random.Generator) -> Picture:
    """The lower face drawn after another's mouth: pixels move by fractions, and resampling smooths them."""
    x, y, reach = X - how.x, Y - how.y - 0.35, 0.45
    share = np.exp(-(x**2 + y**2) / reach**2)
    up, along = rng.choice([-1, 1]) * rng.uniform(1.0, 2.0) * share, rng.uniform(-1, 1) * share
    return _put(frame, _sampled(frame, up + 0.5, along + 0.5), inside(who, how))


def texture(frame: Picture, who: Person, how: Pose, by: Camera, rng: np.random.Generator) -> Picture:
    """Half the resolution and back."""
    return _put(frame, _halved(frame), inside(who, how))


def denoise(frame: Picture, who: Person, how: Pose, by: Camera, rng: np.random.Generator) -> Picture:
    """Cleaned, then coarse grain of one colour."""
    grain = blurred(rng.normal(0, 1, (SIDE, SIDE)), 0.8)[..., None] * by.noise * 1.5
    return _put(frame, blurred(frame, 0.9) + grain, inside(who, how))


def generate(frame: Picture, who: Person, how: Pose, by: Camera, rng: np.random.Generator) -> Picture:
    """Drawn afresh with another expression at half the resolution, without noise, enlarged smoothly under a faint lattice."""
    fresh = _halved(scene(who, replace(how, mouth_open=1 - how.mouth_open)) * by.gain)
    lattice = (np.indices((SIDE, SIDE)).sum(0) % 2 - 0.5)[..., None] * 0.012
    return _put(frame, blurred(fresh, 0.6) + lattice, inside(who, how))


TRAINED: dict[str, Forgery] = {"swap": swap, "reenact": reenact, "texture": texture}
UNSEEN: dict[str, Forgery] = {"denoise": denoise, "generate": generate}


def _halved(picture: Picture) -> Picture:
    small = picture.reshape(SIDE // 2, 2, SIDE // 2, 2, 3).mean((1, 3))
    return np.repeat(np.repeat(small, 2, 0), 2, 1)


def _put(frame: Picture, face: Picture, share: np.ndarray) -> Picture:
    return np.clip(frame * (1 - share[..., None]) + face * share[..., None], 0, 1)


def _sampled(frame: Picture, up: np.ndarray, along: np.ndarray) -> Picture:
    """The frame at places moved by so many pixels, between pixels by bilinear interpolation."""
    rows, columns = np.indices((SIDE, SIDE))
    y, x = np.clip(rows + up, 0, SIDE - 1.001), np.clip(columns + along, 0, SIDE - 1.001)
    top, left = y.astype(int), x.astype(int)
    dy, dx = (y - top)[..., None], (x - left)[..., None]
    above = frame[top, left] * (1 - dx) + frame[top, left + 1] * dx
    below = frame[top + 1, left] * (1 - dx) + frame[top + 1, left + 1] * dx
    return above * (1 - dy) + below * dy
