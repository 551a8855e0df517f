"""Made data of drawn rooms: `made:room-things`, to pre-train a small encoder, and `made:rooms`, with maps for several dense tasks."""

from __future__ import annotations

import numpy as np

from adaptome.data.makers import maker
from adaptome.data.scenes.rooms import room
from adaptome.data.splits import Table

MAPS = ("semseg", "human_parts", "sal", "edge", "normals", "depth")


@maker("room-things")
def room_things(seed: int, train: int = 3000, validation: int = 200) -> dict[str, Table]:
    """Columns image [32, 32, 3] and label: what the nearest thing is."""
    rng = np.random.default_rng((seed, 0))
    made = {}
    for split, count in (("train", train), ("validation", validation)):
        views = [room(rng) for _ in range(count)]
        columns = {"image": np.stack([v.picture for v in views]), "label": [v.nearest for v in views]}
        made[split] = Table("made:room-things", columns, range(1, count + 1), unit=f"{split} picture")
    return made


@maker("rooms")
def rooms(seed: int, train: int = 300, validation: int = 60, test: int = 150) -> dict[str, Table]:
    """Columns image [32, 32, 3], and of the same size semseg, human_parts (halves of balls and tubes), sal, edge, normals, depth."""
    rng = np.random.default_rng((seed, 1))
    return {name: views(rng, name, count) for name, count in (("train", train), ("validation", validation), ("test", test))}  # fmt: skip


def views(rng: np.random.Generator, split: str, count: int) -> Table:
    """So many rooms, as a reader gives them."""
    found = [room(rng) for _ in range(count)]
    columns = {"image": np.stack([one.picture for one in found])}
    columns |= {name: np.stack([getattr(one, name) for one in found]) for name in MAPS}
    return Table("made:rooms", columns, range(1, count + 1), unit=f"{split} room")
