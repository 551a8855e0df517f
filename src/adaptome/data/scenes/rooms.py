"""Rooms with a floor, a wall, balls, boxes and tubes, drawn: for every pixel it is known what is there, how it is turned and how far away it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: pixels on a side
SIDE = 32
Y, X = np.meshgrid(
    (np.arange(SIDE) + 0.5) / SIDE * 2 - 1, (np.arange(SIDE) + 0.5) / SIDE * 2 - 1, indexing="ij"
)
CLASSES = ("floor", "wall", "ball", "box", "tube")
#: of balls and tubes
PARTS = ("none", "upper half", "lower half")


@dataclass(frozen=True)
class View:
    """A room as arrays [SIDE, SIDE]: picture [.., 3] of uint8; class and part numbers; salient, edges 0 and 1; normals [.., 3]; depth.

    Normals point to the right, down and towards the viewer. The salient thing is the nearest one.
    """

    picture: np.ndarray
    semseg: np.ndarray
    human_parts: np.ndarray
    sal: np.ndarray
    edge: np.ndarray
    normals: np.ndarray
    depth: np.ndarray


def room(rng: np.random.Generator) -> View:
    """A room drawn at random."""
    horizon, slope = rng.uniform(-0.2, 0.3), rng.uniform(0.8, 1.4)
    kinds = np.where(horizon < Y, 0, 1)
    depth = np.where(horizon < Y, 4 / (1 + slope * np.clip(Y - horizon, 0, None)), 4.0)
    normals = np.where((horizon < Y)[..., None], unit(0, -1, 0.35), unit(0, 0, 1))
    things, parts = np.full((SIDE, SIDE), -1), np.zeros((SIDE, SIDE), int)
    shades = np.where((horizon < Y)[..., None], rng.uniform(0.3, 0.8, 3), rng.uniform(0.3, 0.8, 3))
    shades = (
        shades
        * (1 + rng.uniform(0, 0.12) * np.sin(X * rng.uniform(8, 25) + Y * rng.uniform(8, 25)))[..., None]
    )
    placed = sorted(rng.uniform(1.2, 3.4, int(rng.integers(2, 5))), reverse=True)
    for number, far in enumerate(placed):
        name = CLASSES[2 + int(rng.integers(3))]
        size = rng.uniform(0.45, 0.8) / far**0.5
        y, x = horizon + rng.uniform(-0.1, 0.5), rng.uniform(-0.8, 0.8)
        inside, turned, raised = _thing(name, y, x, size, rng)
        kinds, things = np.where(inside, CLASSES.index(name), kinds), np.where(inside, number, things)
        halves = np.zeros_like(parts) if name == "box" else np.where(y > Y, 1, 2)
        parts = np.where(inside, halves, parts)
        normals = np.where(inside[..., None], turned, normals)
        depth = np.where(inside, far - raised, depth)
        shades = np.where(inside[..., None], rng.uniform(0.25, 0.95, 3), shades)
    light = unit(rng.uniform(-1, 1), rng.uniform(-1, -0.3), rng.uniform(0.4, 1))
    lit = 0.35 + 0.75 * np.clip((normals * light).sum(-1), 0, None)
    picture = shades * lit[..., None] * rng.uniform(0.8, 1.1, 3) + rng.normal(0, 0.02, (SIDE, SIDE, 3))
    return View(
        picture=np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8),
        semseg=kinds.astype(np.uint8),
        human_parts=parts.astype(np.uint8),
        sal=(things == len(placed) - 1).astype(np.uint8),
        edge=_borders(things * len(CLASSES) + kinds),
        normals=normals.astype(np.float32),
        depth=depth.astype(np.float32),
    )


def unit(x: float, y: float, z: float) -> np.ndarray:
    """A direction of length 1."""
    made = np.array([x, y, z], dtype=np.float64)
    return made / np.linalg.norm(made)


def _thing(name: str, y: float, x: float, size: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Which pixels a thing covers, its normals there, and by how much it stands out towards the viewer."""
    dx, dy = (X - x) / size, (Y - y) / size
    if name == "ball":
        z = np.sqrt(np.clip(1 - dx**2 - dy**2, 0, None))
        return dx**2 + dy**2 < 1, np.stack([dx, dy, z], -1), size * z
    if name == "tube":
        z = np.sqrt(np.clip(1 - (dx / 0.6) ** 2, 0, None))
        normals = np.stack([dx / 0.6, np.zeros_like(dx), z], -1)
        return (np.abs(dx) < 0.6) & (np.abs(dy) < 1), normals, 0.6 * size * z
    # a box on its edge: two faces that meet in a vertical line
    bend, turn = rng.uniform(-0.5, 0.5), rng.uniform(0.5, 1.0)
    left, right = unit(-np.sin(turn), 0, np.cos(turn)), unit(np.cos(turn), 0, np.sin(turn))
    normals = np.where((dx < bend)[..., None], left, right)
    return (np.abs(dx) < 0.85) & (np.abs(dy) < 0.85), normals, size * (0.85 - np.abs(dx - bend)) * 0.5


def _borders(things: np.ndarray) -> np.ndarray:
    """Pixels beside one of another thing, above or to the left."""
    made = np.zeros(things.shape, np.uint8)
    made[1:] |= things[1:] != things[:-1]
    made[:, 1:] |= things[:, 1:] != things[:, :-1]
    return made


#: how warm classes are in the mean, 0 to 1, and how each colours its light
WARMTH = {"floor": 0.3, "wall": 0.4, "ball": 0.85, "box": 0.55, "tube": 0.7}
TINTS = {"floor": (0.9, 0.8, 0.7), "wall": (0.9, 0.9, 0.9), "ball": (1.0, 0.6, 0.6), "box": (0.65, 0.9, 0.6), "tube": (0.6, 0.7, 1.0)}  # fmt: skip


@dataclass(frozen=True)
class Sensed:
    """A room as three sensors see it, arrays [SIDE, SIDE] of uint8: rgb [.., 3] (dim in some rooms), depth (grainy, with holes), thermal (of
    half the resolution, blurred).
    """

    rgb: np.ndarray
    depth: np.ndarray
    thermal: np.ndarray


def sensed(view: View, rng: np.random.Generator) -> Sensed:
    """What the sensors make of a room, with the faults that each has."""
    light = rng.uniform(0.15, 0.4) if rng.random() < 0.25 else rng.uniform(0.7, 1.0)
    tints = np.array([TINTS[name] for name in CLASSES]) + rng.normal(0, 0.08, (len(CLASSES), 3))
    rgb = view.picture / 255 * tints[view.semseg] * light + rng.normal(0, 0.02, view.picture.shape)
    depth = (4.2 - view.depth) / 3.6 + rng.normal(0, 0.1, view.depth.shape)
    depth = np.where(rng.random(depth.shape) < 0.1, 0, np.clip(depth, 0, 1))
    warmth = np.array([WARMTH[name] for name in CLASSES]) + rng.normal(0, 0.15, len(CLASSES))
    thermal = warmth[view.semseg]
    for axis in (0, 1):
        thermal = (np.roll(thermal, 1, axis) + 2 * thermal + np.roll(thermal, -1, axis)) / 4
    thermal = (thermal + rng.normal(0, 0.06, thermal.shape))[::2, ::2].repeat(2, 0).repeat(2, 1)
    return Sensed(*(np.round(np.clip(one, 0, 1) * 255).astype(np.uint8) for one in (rgb, depth, thermal)))
