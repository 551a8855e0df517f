"""Made data of drawn land: `made:aerial-places`, to pre-train a small encoder, and `made:changed-houses`, pairs to find changes in."""

from __future__ import annotations

import numpy as np

from adaptome.data.makers import maker
from adaptome.data.scenes.aerial import GROUND, built, day, drawn, land, roofs
from adaptome.data.splits import Table


@maker("aerial-places")
def aerial_places(seed: int, train: int = 3000, validation: int = 200) -> dict[str, Table]:
    """Columns image [32, 32, 3] and label: the kind of the ground, and whether houses stand on it."""
    rng = np.random.default_rng((seed, 0))
    kinds = [(kind, houses) for kind in GROUND for houses in (False, True)]
    made = {}
    for split, count in (("train", train), ("validation", validation)):
        images, labels = [], []
        for number in range(count):
            kind, houses = kinds[number % len(kinds)]
            place = land(rng, int(rng.integers(1, 4)) if houses else 0, (kind,))
            images.append(drawn(place, day(rng), rng))
            labels.append(f"{kind}, houses" if houses else kind)
        made[split] = Table("made:aerial-places", {"image": np.stack(images), "label": labels}, range(1, count + 1), unit=f"{split} picture")  # fmt: skip
    return made


@maker("changed-houses")
def changed_houses(seed: int, train: int = 400, validation: int = 60, test: int = 150) -> dict[str, Table]:
    """Columns before, after [32, 32, 3] and mask [32, 32]: 255 where a house was built or pulled down.

    Between the two days season, light, haze, shadows, what is sown and where the camera stands change as well, and are no change. In
    a quarter of the pairs nothing else has.
    """
    rng = np.random.default_rng((seed, 1))
    return {name: pairs(rng, name, count) for name, count in (("train", train), ("validation", validation), ("test", test))}  # fmt: skip


def pairs(rng: np.random.Generator, split: str, count: int) -> Table:
    """So many pairs, as a reader gives them."""
    before, after, masks = [], [], []
    for _ in range(count):
        old = land(rng, int(rng.integers(1, 4)))
        new = old
        if rng.random() >= 0.25:
            kept = tuple(house for house in old.houses if rng.random() < 0.6)
            new = built(type(old)(old.seeds, old.kinds, old.road, kept, old.texture), rng, int(rng.integers(1, 3)))  # fmt: skip
        before.append(drawn(old, day(rng, 0.0), rng))
        after.append(drawn(new, day(rng), rng))
        masks.append(roofs(set(old.houses) ^ set(new.houses)).astype(np.uint8) * 255)
    columns = {"before": np.stack(before), "after": np.stack(after), "mask": np.stack(masks)}
    return Table("made:changed-houses", columns, range(1, count + 1), unit=f"{split} pair")
