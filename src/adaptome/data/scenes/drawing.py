"""Drawing scenes: an object of one shape with a spot of another colour in its middle, on a plain background."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

#: the scenes' side in pixels, and how many times finer they are drawn before they are brought to it
SIDE, FINE = 16, 4
#: name -> RGB
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 75, 220),
    "yellow": (240, 205, 40),
    "white": (240, 240, 240),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")


@dataclass(frozen=True)
class Scene:
    """What a scene shows.

    Attributes:
        shape: one of SHAPES. colour, spot, background: of COLOURS, three different ones.
        x, y: the object's middle, of the picture's side. size: half the object's width, likewise.
    """

    shape: str
    colour: str
    spot: str
    background: str
    x: float = 0.5
    y: float = 0.5
    size: float = 0.36

    def moved(self, rng: np.random.Generator) -> Scene:
        """The same object at another place and of another size."""
        x, y = rng.uniform(0.44, 0.56, 2)
        return replace(self, x=float(x), y=float(y), size=float(rng.uniform(0.32, 0.4)))


def drawn_at_random(rng: np.random.Generator, **fixed: str) -> Scene:
    """A scene of which what is not given is drawn; no two of its colours are the same."""
    taken = [fixed[name] for name in ("colour", "spot", "background") if name in fixed]
    left = [name for name in COLOURS if name not in taken]
    drawn = iter(rng.permutation(left).tolist())
    colour, spot, background = (
        fixed.get(name) or str(next(drawn)) for name in ("colour", "spot", "background")
    )
    shape = fixed.get("shape") or str(rng.choice(SHAPES))
    return Scene(shape, colour, spot, background).moved(rng)


def inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where points (u, v), measured from an object's middle in half widths, lie within a shape; v points down."""
    if shape == "circle":
        return u**2 + v**2 <= 1
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) <= 0.9
    if shape == "triangle":
        return (v <= 0.85) & (1.8 * np.abs(u) <= v + 1.05)
    return (np.minimum(np.abs(u), np.abs(v)) <= 0.36) & (np.maximum(np.abs(u), np.abs(v)) <= 1)


def draw(scene: Scene, side: int = SIDE) -> np.ndarray:
    """The scene as RGB bytes [side, side, 3]."""
    at = (np.arange(side * FINE) + 0.5) / (side * FINE)
    u, v = (at[None] - scene.x) / scene.size, (at[:, None] - scene.y) / scene.size
    u, v = np.broadcast_arrays(u, v)
    picture = np.empty((side * FINE, side * FINE, 3))
    picture[:] = COLOURS[scene.background]
    picture[inside(scene.shape, u, v)] = COLOURS[scene.colour]
    picture[u**2 + (v - 0.25 * (scene.shape == "triangle")) ** 2 <= 0.48**2] = COLOURS[scene.spot]
    fine = picture.reshape(side, FINE, side, FINE, 3).mean((1, 3))
    return fine.round().astype(np.uint8)
