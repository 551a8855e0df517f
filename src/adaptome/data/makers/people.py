"""Made data of drawn people: `made:sharp-people`, to train a recogniser on, and `made:small-people`, other people whose pictures are large or small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from adaptome.data.faces.drawing import (
    SIDE,
    Person,
    Picture,
    camera,
    person,
    pose,
    scene,
    stored,
    taken,
)
from adaptome.data.makers import maker
from adaptome.data.readers.faces import COLUMNS
from adaptome.data.splits import Table

#: how many times smaller pictures are taken
TIMES = (1, 2, 4)


@maker("sharp-people")
def sharp_people(seed: int, people: int = 300, each: int = 10, held: int = 60) -> dict[str, Table]:
    """Columns of `data.readers.faces`; pictures [32, 32, 3], none of them small. Validation is of 60 others, by everybody against everybody."""
    rng = np.random.default_rng((seed, 10))
    train = _faces(rng, "s", people, [(1, "")] * each)
    return _tables("sharp-people", {"train": train, "validation": _faces(rng, "v", held, [(1, "")] * 6)})


@maker("small-people")
def small_people(
    seed: int, people: int = 200, each: int = 9, tested: int = 200, held: int = 80, strangers: int = 60
) -> dict[str, Table]:
    """The same columns, and other people.

    train       200 people by 9 pictures, which are large, half as large, or a quarter as large
    validation  80 others: one large picture each in the gallery, four small ones as probes
    test        200 others likewise, with 200 distractors, and probes of 60 strangers
    """
    rng = np.random.default_rng((seed, 11))
    probes = [(times, "probe") for times in (2, 4, 4, 4)]
    known = [(1, "gallery"), *probes]
    made = {
        "train": _faces(rng, "t", people, [(TIMES[i % 3], "") for i in range(each)]),
        "validation": _faces(rng, "v", held, known),
        "test": [
            *_faces(rng, "p", tested, known),
            *_faces(rng, "d", tested, [(1, "distractor")]),
            *_faces(rng, "x", strangers, probes[:2]),
        ],
    }
    return _tables("small-people", made)


def _faces(
    rng: np.random.Generator, prefix: str, people: int, kinds: Sequence[tuple[int, str]]
) -> list[dict[str, object]]:
    """A row for each person and kind: how many times smaller the picture is, and its role."""
    rows: list[dict[str, object]] = []
    for number in range(people):
        who = person(rng)
        for times, role in kinds:
            told = {"image": stored(seen(who, rng, times)), "label": f"{prefix}{number:03}", "role": role}
            rows.append(told)
    return rows


def seen(who: Person, rng: np.random.Generator, times: int = 1) -> Picture:
    """A picture of somebody in a place of their own, by a camera of its own, taken `times` smaller and enlarged again."""
    before = replace(who, wall=rng.uniform(0.1, 0.9, (2, 3)), wall_texture=person(rng).wall_texture)
    how = pose(rng)
    how = replace(how, light=how.light * 2)
    by = camera(rng)
    by = replace(by, gain=1 + (by.gain - 1) * 2)
    return reduced(taken(scene(before, how), by, rng), times, rng)


def reduced(picture: Picture, times: int, rng: np.random.Generator) -> Picture:
    """A picture [SIDE, SIDE, 3] with the detail and the noise of one `times` smaller, at its own size."""
    if times == 1:
        return picture
    from PIL import Image

    side = SIDE // times
    small = picture.reshape(side, times, side, times, 3).mean((1, 3))
    small = stored(np.clip(small + rng.normal(0, 0.02, small.shape), 0, 1))
    large = Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(large, float) / 255.0


def _tables(name: str, rows: dict[str, list[dict[str, object]]]) -> dict[str, Table]:
    made = {}
    for split, found in rows.items():
        columns = {c: [str(row.get(c, "")) for row in found] for c in COLUMNS if c != "image"}
        images = np.stack([np.asarray(row["image"]) for row in found])
        made[split] = Table(f"made:{name}", {"image": images, **columns}, range(1, len(found) + 1), unit=f"{split} picture")  # fmt: skip
    return made
