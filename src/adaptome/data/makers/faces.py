"""Made data of drawn faces: `made:face-patterns`, to pre-train a small encoder, and `made:forged-faces`, to adapt it to forgeries."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from adaptome.data.faces.drawing import camera, person, pose, scene, stored, taken
from adaptome.data.faces.forgeries import TRAINED, UNSEEN, Forgery
from adaptome.data.faces.patterns import CHANGES
from adaptome.data.makers import maker
from adaptome.data.splits import Table


@maker("face-patterns")
def face_patterns(seed: int, train: int = 6000, validation: int = 400) -> dict[str, Table]:
    """Columns image [32, 32, 3] and label: what the picture of a face has undergone as a whole (`data.faces.patterns`)."""
    rng = np.random.default_rng((seed, 0))
    kinds = list(CHANGES)
    made = {}
    for split, count in (("train", train), ("validation", validation)):
        labels = [kinds[i % len(kinds)] for i in range(count)]
        images = [
            stored(CHANGES[label](taken(scene(person(rng), pose(rng)), camera(rng), rng), rng))
            for label in labels
        ]
        made[split] = Table("made:face-patterns", {"image": np.stack(images), "label": labels}, range(1, count + 1), unit=f"{split} picture")  # fmt: skip
    return made


@maker("forged-faces")
def forged_faces(seed: int, people: int = 300, tested: int = 60) -> dict[str, Table]:
    """Columns image [32, 32, 3], label, dataset, source, video, pair and group, as `data.readers.frames` gives them.

    train       300 people by 2 frames: real, and forged in three ways
    validation  30 others by 4 frames, forged in the same ways
    test        three data sets of others by 4 frames: `known` is forged in the same ways, the two others each in one that train does not have
    """
    rng = np.random.default_rng((seed, 1))
    sets: dict[str, Mapping[str, Forgery]] = {name: {name: one} for name, one in UNSEEN.items()}
    tests = [row for name, forgeries in sets.items() for row in videos(rng, name, tested, 4, forgeries)]
    made = {
        "train": videos(rng, "trained", people, 2, TRAINED),
        "validation": videos(rng, "held-out", tested // 2, 4, TRAINED),
        "test": [*videos(rng, "known", tested // 2, 4, TRAINED), *tests],
    }
    return {split: table(rows, split) for split, rows in made.items()}


def videos(
    rng: np.random.Generator,
    dataset: str,
    people: int,
    frames: int,
    forgeries: Mapping[str, Forgery],
    pattern: float = 0.0,
) -> list[dict[str, object]]:
    """A row for each frame: of each person a real video, and one for each forgery.

    Args:
        pattern: strength of what the sensor of each person's camera adds to all their frames, forged or not.
    """
    rows: list[dict[str, object]] = []
    for number in range(people):
        who, by = person(rng), camera(rng, pattern)
        for source, forgery in [("real", None), *forgeries.items()]:
            told = {"label": "fake" if forgery else "real", "dataset": dataset, "source": source}
            told |= {"video": f"{dataset}/{source}/{number:03}", "pair": f"{dataset}/{number:03}"}
            for _ in range(frames):
                how = pose(rng)
                frame = taken(scene(who, how), by, rng)
                if forgery is not None:
                    frame = forgery(frame, who, how, by, rng)
                rows.append({"image": stored(frame), **told, "group": told["pair"]})
    return rows


def table(rows: list[dict[str, object]], split: str) -> Table:
    """The rows as a reader gives them."""
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "image"}
    images = np.stack([np.asarray(row["image"]) for row in rows])
    return Table("made:forged-faces", {"image": images, **columns}, range(1, len(rows) + 1), unit=f"{split} frame")  # fmt: skip
