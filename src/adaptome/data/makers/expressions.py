"""Made data of drawn faces with expressions: `made:expression-stills`, to pre-train a small CLIP, and `made:moving-expressions`, to adapt it to clips."""

from __future__ import annotations

from typing import Any

import numpy as np

from adaptome.data.faces.drawing import SIDE, camera, parts, person, points, scene, stored, taken
from adaptome.data.faces.expressions import MOTIONS, moving, observed, still
from adaptome.data.faces.streams import dotted, painted
from adaptome.data.makers import maker
from adaptome.data.splits import Table

FRAMES = 4
#: how far from its place a landmark is found, of the picture's side
DETECTED = 0.02


@maker("expression-stills")
def expression_stills(seed: int, train: int = 4000, validation: int = 300) -> dict[str, Table]:
    """Columns video [1, 32, 32, 3] and label: one of 24 captions of what lips, mouth and brows are like.

    A third of the pictures show the parts of the face in colours, a third its landmarks.
    """
    rng = np.random.default_rng((seed, 2))
    made = {}
    for split, count in (("train", train), ("validation", validation)):
        rows = []
        for _ in range(count):
            how, told = still(rng)
            who, kind = person(rng), int(rng.integers(3))
            if kind == 0:
                picture = stored(taken(scene(who, how), camera(rng), rng))
            else:
                picture = (
                    painted(parts(who, how))
                    if kind == 1
                    else dotted(points(who, how) + rng.normal(0, DETECTED, (27, 2)), SIDE)
                )
            rows.append({"video": picture[None], "label": told})
        made[split] = _table("expression-stills", rows, split)
    return made


@maker("moving-expressions")
def moving_expressions(
    seed: int, train: int = 360, validation: int = 90, test: int = 240
) -> dict[str, Table]:
    """Columns video [4, 32, 32, 3], parsing [4, 32, 32], landmarks [4, 27, 2], description, missing and label; each of another person.

    A fifth of the clips lack parsing, a fifth landmarks, a third the description, whose observer is right in every other.
    """
    rng = np.random.default_rng((seed, 3))
    kinds, made = list(MOTIONS), {}
    for split, count in (("train", train), ("validation", validation), ("test", test)):
        rows = [clip(kinds[i % len(kinds)], rng) for i in range(count)]
        made[split] = _table("moving-expressions", rows, split)
    return made


def clip(kind: str, rng: np.random.Generator, frames: int = FRAMES) -> dict[str, Any]:
    """One clip of this kind as a row."""
    who, by = person(rng), camera(rng)
    poses = moving(kind, frames, rng)
    seen = np.stack([points(who, how) for how in poses])
    lacks = {"parsing": 0.2, "landmarks": 0.2, "description": 0.33}
    return {
        "video": np.stack([stored(taken(scene(who, how), by, rng)) for how in poses]),
        "parsing": np.stack([parts(who, how) for how in poses]),
        "landmarks": (seen + rng.normal(0, DETECTED, seen.shape)).astype(np.float32),
        "description": observed(kind, rng, 0.5),
        "missing": "+".join(name for name, share in lacks.items() if rng.random() < share),
        "label": kind,
    }


def _table(name: str, rows: list[dict[str, Any]], split: str) -> Table:
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    arrays = {key: np.stack(v) if isinstance(v[0], np.ndarray) else v for key, v in columns.items()}
    return Table(f"made:{name}", arrays, range(1, len(rows) + 1), unit=f"{split} clip")
