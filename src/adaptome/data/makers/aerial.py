"""Made data of drawn land: `made:aerial-places`, to pre-train a small encoder, and `made:changed-houses`, pairs to find changes in."""

from __future__ import annotations

import numpy as np

from adaptome.data.makers import maker
from adaptome.data.scenes.aerial import built, cover, day, drawn, land, roofs
from adaptome.data.splits import Table


@maker("aerial-places")
def aerial_places(seed: int, train: int = 1200, validation: int = 80) -> dict[str, Table]:
    """Columns image [32, 32, 3] and cover [32, 32]: numbers of what is there (`COVER`), all in summer and in clear light."""
    rng = np.random.default_rng((seed, 0))
    made = {}
    for split, count in (("train", train), ("validation", validation)):
        places = [land(rng, int(rng.integers(5))) for _ in range(count)]
        columns = {"image": np.stack([drawn(place, day(rng, 0.0, fair=True), rng) for place in places])}
        columns["cover"] = np.stack([cover(place) for place in places])
        made[split] = Table("made:aerial-places", columns, range(1, count + 1), unit=f"{split} picture")
    return made


@maker("changed-houses")
def changed_houses(seed: int, train: int = 800, validation: int = 80, test: int = 150) -> dict[str, Table]:
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
