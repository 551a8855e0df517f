"""Made data of drawn rooms: `made:room-shapes`, to pre-train a small encoder, and `made:rooms`, with maps for several dense tasks;
`made:sensed-rooms`, as three sensors see them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaptome.data.makers import maker
from adaptome.data.scenes.rooms import room, sensed
from adaptome.data.splits import Table

MAPS = ("semseg", "human_parts", "sal", "edge", "normals", "depth")


@maker("room-shapes")
def room_shapes(seed: int, train: int = 1200, validation: int = 80) -> dict[str, Table]:
    """Columns image [32, 32, 3], and edge and depth [32, 32] of it."""
    rng = np.random.default_rng((seed, 0))
    return {name: views(rng, name, count, ("edge", "depth")) for name, count in (("train", train), ("validation", validation))}  # fmt: skip


@maker("rooms")
def rooms(seed: int, train: int = 300, validation: int = 60, test: int = 150) -> dict[str, Table]:
    """Columns image [32, 32, 3], and of the same size semseg, human_parts (halves of balls and tubes), sal, edge, normals, depth."""
    rng = np.random.default_rng((seed, 1))
    return {name: views(rng, name, count) for name, count in (("train", train), ("validation", validation), ("test", test))}  # fmt: skip


@maker("sensed-rooms")
def sensed_rooms(seed: int, train: int = 480, validation: int = 24, test: int = 100) -> dict[str, Table]:
    """Columns rgb [32, 32, 3], depth, thermal and mask [32, 32]: class numbers of floor, wall, ball, box and tube."""
    rng = np.random.default_rng((seed, 2))
    return {name: sensors(rng, name, count) for name, count in (("train", train), ("validation", validation), ("test", test))}  # fmt: skip


def sensors(rng: np.random.Generator, split: str, count: int) -> Table:
    """So many rooms as their sensors see them, as a reader gives them."""
    found = [room(rng) for _ in range(count)]
    seen = [sensed(one, rng) for one in found]
    columns = {name: np.stack([getattr(one, name) for one in seen]) for name in ("rgb", "depth", "thermal")}
    columns["mask"] = np.stack([one.semseg for one in found])
    return Table("made:sensed-rooms", columns, range(1, count + 1), unit=f"{split} room")


def views(rng: np.random.Generator, split: str, count: int, maps: Sequence[str] = MAPS) -> Table:
    """So many rooms with these maps, as a reader gives them."""
    found = [room(rng) for _ in range(count)]
    columns = {"image": np.stack([one.picture for one in found])}
    columns |= {name: np.stack([getattr(one, name) for one in found]) for name in maps}
    return Table("made:rooms", columns, range(1, count + 1), unit=f"{split} room")
