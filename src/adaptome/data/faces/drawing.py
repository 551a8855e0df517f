"""Faces drawn from parametric shapes and textures: a person, the camera that films them, and frames of a video.

A person keeps shape, colours and skin; a frame draws pose, expression and light anew; a camera adds what it adds to everything
in the picture alike: blur, noise, a cast, and the pattern of its sensor. All of it is drawn from the generator that is passed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

#: pixels on a side
SIDE = 32
#: centres of the pixels, from -1 to 1
Y, X = np.meshgrid(*[(np.arange(SIDE) + 0.5) / SIDE * 2 - 1] * 2, indexing="ij")
Picture = np.ndarray
#: how far a full expression moves the mouth's corners and the brows, and how steep it draws these, in half pictures
LIPS, BROWS, DRAWN = 0.22, 0.16, 1.0


@dataclass(frozen=True)
class Person:
    """What stays over a video: lengths are shares of half the picture, colours [3] from 0 to 1."""

    width: float
    height: float
    skin: np.ndarray
    hair: np.ndarray
    hairline: float
    eyes: np.ndarray
    eye_gap: float
    eye_size: float
    brow: float
    nose: float
    mouth: np.ndarray
    mouth_width: float
    texture: np.ndarray  # [waves, 4]: two frequencies, phase and strength of the skin's texture
    wall: np.ndarray  # [2, 3]: colours of the background, from top to bottom
    wall_texture: np.ndarray


@dataclass(frozen=True)
class Pose:
    """What a frame draws anew."""

    x: float
    y: float
    scale: float
    mouth_open: float
    eyes_open: float
    light: np.ndarray  # [2]: direction and strength
    brows_up: float = 0.0
    brows_drawn: float = 0.0  # their inner ends down
    lips_up: float = 0.0  # the mouth's corners; below 0 down


@dataclass(frozen=True)
class Camera:
    """What a camera does to all of a picture: `pattern` [SIDE, SIDE, 3] is that of its sensor, the same in every frame."""

    blur: float
    noise: float
    gain: np.ndarray
    pattern: np.ndarray


def person(rng: np.random.Generator) -> Person:
    """Somebody."""
    tone = rng.uniform(0.35, 0.85)
    return Person(
        width=rng.uniform(0.5, 0.64),
        height=rng.uniform(0.68, 0.84),
        skin=np.clip(tone * np.array([1.0, 0.8, 0.68]) + rng.normal(0, 0.03, 3), 0, 1),
        hair=rng.uniform(0.05, 0.55) * np.array([1.0, 0.8, 0.6]),
        hairline=rng.uniform(-0.62, -0.38),
        eyes=rng.uniform(0.05, 0.4, 3),
        eye_gap=rng.uniform(0.2, 0.3),
        eye_size=rng.uniform(0.08, 0.12),
        brow=rng.uniform(0.15, 0.22),
        nose=rng.uniform(0.05, 0.09),
        mouth=np.clip(tone * np.array([0.95, 0.45, 0.42]) + rng.normal(0, 0.04, 3), 0, 1),
        mouth_width=rng.uniform(0.16, 0.28),
        texture=_waves(rng, 0.03),
        wall=rng.uniform(0.1, 0.9, (2, 3)),
        wall_texture=_waves(rng, 0.05),
    )


def pose(rng: np.random.Generator) -> Pose:
    """How somebody is seen in one frame."""
    x, y = rng.normal(0, 0.05, 2)
    return Pose(x, y, rng.uniform(0.92, 1.08), rng.uniform(0, 1), rng.uniform(0.5, 1), rng.normal(0, 0.08, 2))


def camera(rng: np.random.Generator, pattern: float = 0.0) -> Camera:
    """A camera, sharp or not, with much noise or little; `pattern` is the strength of its sensor's own pattern."""
    own = rng.normal(0, 1, (SIDE, SIDE, 3)) * pattern
    noise = float(np.exp(rng.uniform(np.log(0.012), np.log(0.05))))
    return Camera(rng.uniform(0, 0.6), noise, rng.normal(1, 0.06, 3), own)


def scene(who: Person, how: Pose) -> Picture:
    """The picture [SIDE, SIDE, 3] before a camera takes it."""
    share = ((Y + 1) / 2)[..., None]
    picture = who.wall[0] * (1 - share) + who.wall[1] * share + _texture(who.wall_texture)[..., None]
    x, y = (X - how.x) / how.scale, (Y - how.y) / how.scale
    picture = _paint(picture, who.hair, _ellipse(x, y + 0.1, who.width * 1.18, who.height * 1.08))
    face = _ellipse(x, y, who.width, who.height) * _edge(y - who.hairline)
    shade = 1 + how.light[0] * X + how.light[1] * Y
    skin = who.skin * shade[..., None] + _texture(who.texture)[..., None]
    picture = _paint(picture, skin, face)
    for side in (-1, 1):
        at = x - side * who.eye_gap, y + 0.12
        picture = _paint(picture, np.full(3, 0.92), _ellipse(*at, who.eye_size * 1.5, who.eye_size * how.eyes_open))  # fmt: skip
        picture = _paint(picture, who.eyes, _ellipse(*at, who.eye_size * 0.7, who.eye_size * 0.8 * how.eyes_open))  # fmt: skip
        picture = _paint(picture, who.hair, _ellipse(*_brow(who, how, side, *at), who.eye_size * 1.8, 0.035))
    picture = _paint(picture, who.skin * 0.75, _ellipse(x, y - 0.12, who.nose, 0.1) * 0.6)
    opened = 0.04 + 0.08 * how.mouth_open
    lips = y - 0.42 + how.lips_up * LIPS * (x / who.mouth_width) ** 2
    picture = _paint(picture, who.mouth, _ellipse(x, lips, who.mouth_width, opened))
    return _paint(
        picture, np.full(3, 0.12), _ellipse(x, lips, who.mouth_width * 0.7, opened * 0.5) * how.mouth_open
    )


def _brow(who: Person, how: Pose, side: int, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places about the middle of a brow, from those about the eye below it."""
    return x, y + who.brow + BROWS * how.brows_up + DRAWN * how.brows_drawn * (side * x)


def parts(who: Person, how: Pose) -> np.ndarray:
    """Numbers of the face's parts [SIDE, SIDE] by BiSeNet's face parsing: 1 skin, 2 and 3 brows, 4 and 5 eyes, 10 nose, 11 mouth, 12 lips, 17 hair."""
    x, y = (X - how.x) / how.scale, (Y - how.y) / how.scale
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[_ellipse(x, y + 0.1, who.width * 1.18, who.height * 1.08) > 0.5] = 17
    mask[_ellipse(x, y, who.width, who.height) * _edge(y - who.hairline) > 0.5] = 1
    for number, side in enumerate((1, -1)):  # the left part is on the right of the picture
        at = x - side * who.eye_gap, y + 0.12
        mask[_ellipse(*at, who.eye_size * 1.5, who.eye_size * how.eyes_open) > 0.5] = 4 + number
        mask[_ellipse(*_brow(who, how, side, *at), who.eye_size * 1.8, 0.04) > 0.5] = 2 + number
    mask[_ellipse(x, y - 0.12, who.nose, 0.1) > 0.5] = 10
    opened = 0.04 + 0.08 * how.mouth_open
    lips = y - 0.42 + how.lips_up * LIPS * (x / who.mouth_width) ** 2
    mask[_ellipse(x, lips, who.mouth_width, opened) > 0.4] = 12
    mask[(_ellipse(x, lips, who.mouth_width * 0.7, opened * 0.5) > 0.5) & (how.mouth_open > 0.3)] = 11
    return mask


def points(who: Person, how: Pose) -> np.ndarray:
    """Landmarks [27, 2] from 0 to 1: three of each brow, four of each eye, the nose, eight of the mouth, and four of the outline."""
    found: list[tuple[float, float]] = []
    for side in (-1, 1):
        for step in (-1.0, 0.0, 1.0):
            x = step * who.eye_size * 1.5
            lift = who.brow + BROWS * how.brows_up + DRAWN * how.brows_drawn * side * x
            found.append((side * who.eye_gap + x, -0.12 - lift))
        wide, high = who.eye_size * 1.4, who.eye_size * how.eyes_open
        found += [(side * who.eye_gap + a * wide, -0.12 + b * high) for a, b in ((-1, 0), (1, 0), (0, -1), (0, 1))]  # fmt: skip
    found.append((0.0, 0.12))
    opened = 0.04 + 0.08 * how.mouth_open
    for share in (-1.0, -0.5, 0.0, 0.5, 1.0):
        middle = 0.42 - how.lips_up * LIPS * share**2
        reach = opened * (1 - share**2) ** 0.5
        found += [(share * who.mouth_width, middle + b * reach) for b in ((-1, 1) if abs(share) < 1 else (0,))]  # fmt: skip
    found += [(a * who.width, b * who.height) for a, b in ((-1, 0), (1, 0), (0, -1), (0, 1))]
    placed = np.array(found) * how.scale + [how.x, how.y]
    return (placed + 1) / 2


def inside(who: Person, how: Pose, width: float = 0.72, softness: float = 1.0) -> np.ndarray:
    """The share [SIDE, SIDE] to which a pixel is of the inner face, which forgeries exchange."""
    x, y = (X - how.x) / how.scale, (Y - how.y) / how.scale
    return _ellipse(x, y - 0.08, who.width * width, who.height * width * 0.85, softness)


def taken(picture: Picture, by: Camera, rng: np.random.Generator) -> Picture:
    """The picture as a camera takes it, from 0 to 1; its noise is of this frame."""
    seen = blurred(picture, by.blur) * by.gain + by.pattern
    return np.clip(seen + rng.normal(0, by.noise, seen.shape), 0, 1)


def stored(picture: Picture) -> np.ndarray:
    """uint8, as files keep it."""
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def blurred(picture: Picture, sigma: float) -> Picture:
    """Gaussian blur over the first two axes; `sigma` in pixels."""
    if sigma <= 0.05:
        return picture
    reach = max(1, round(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        pad = [(reach, reach) if a == axis else (0, 0) for a in range(picture.ndim)]
        wide = np.pad(picture, pad, mode="edge")
        size = picture.shape[axis]
        picture = sum(share * np.take(wide, np.arange(size) + i, axis=axis) for i, share in enumerate(kernel))
    return picture


def like(who: Person, other: Person) -> Person:
    """The face of `other` on the head of `who`: features change, head, hair, skin tone and background stay."""
    kept = {k: getattr(who, k) for k in ("width", "height", "hair", "hairline", "wall", "wall_texture")}
    return replace(other, **kept, skin=0.75 * who.skin + 0.25 * other.skin)


def _waves(rng: np.random.Generator, strength: float) -> np.ndarray:
    count = 4
    return np.stack([*rng.uniform(-14, 14, (2, count)), rng.uniform(0, 2 * np.pi, count), rng.uniform(0, strength, count)], 1)  # fmt: skip


def _texture(waves: np.ndarray) -> np.ndarray:
    made: np.ndarray = sum(s * np.sin(a * X + b * Y + phase) for a, b, phase, s in waves)
    return made


def _edge(distance: np.ndarray, softness: float = 1.0) -> np.ndarray:
    """From 0 to 1 across 0, over about a pixel."""
    return 1 / (1 + np.exp(np.clip(-distance * SIDE / (2 * softness), -40, 40)))


def _ellipse(x: np.ndarray, y: np.ndarray, a: float, b: float, softness: float = 1.0) -> np.ndarray:
    return _edge((1 - np.sqrt((x / a) ** 2 + (y / b) ** 2)) * min(a, b), softness)


def _paint(picture: Picture, colour: np.ndarray, share: np.ndarray) -> Picture:
    return picture * (1 - share[..., None]) + colour * share[..., None]
