"""Pictures with texts as a denoiser is trained on them: brought to a size, mirrored, their texts at times left out, class pictures beside them.

Everything drawn follows from the seed, the epoch and the example's number, so that a resumed run sees the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: pictures (width, height) of about one area, by steps of so many pixels
Bucket = tuple[int, int]


@dataclass(frozen=True)
class Treatment:
    """What is done to a picture.

    Args:
        side: of the square that pictures are brought to, in pixels; with buckets the root of their area.
        buckets: shapes to choose from; empty for the square.
        crop: 'centre', 'random' or 'none': what is cut off where the shape differs; none squeezes.
        mirror: mirror by half.
        drop: share of the texts that are left out.
        repeats: how often an epoch has each picture.
        seed: of what is drawn.
    """

    side: int
    buckets: tuple[Bucket, ...] = ()
    crop: str = "centre"
    mirror: bool = False
    drop: float = 0.0
    repeats: int = 1
    seed: int = 0


def buckets_of(side: int, step: int, most: float = 2.0) -> tuple[Bucket, ...]:
    """Shapes (width, height) whose area is at most side^2, in multiples of `step` pixels, of proportions up to `most` : 1."""
    made = set()
    for width in range(step, int(side * most**0.5) + 1, step):
        height = side * side // width // step * step
        if height and max(width / height, height / width) <= most:
            made |= {(width, height), (height, width)}
    return tuple(sorted(made))


def nearest_bucket(size: tuple[int, int], buckets: Sequence[Bucket]) -> Bucket:
    """The shape whose proportion is nearest to that of a picture (width, height); of those alike the largest."""
    ratio = np.log(size[0] / size[1])
    return min(buckets, key=lambda b: (round(abs(np.log(b[0] / b[1]) - ratio), 9), -b[0] * b[1]))


def fitted(picture: Any, shape: Bucket, crop: str, rng: np.random.Generator) -> tuple[Any, tuple[int, int]]:
    """A PIL picture of a shape (width, height), and top and left of what was kept of it once it was scaled."""
    from PIL import Image

    if crop == "none" or picture.size == shape:
        return (
            picture if picture.size == shape else picture.resize(shape, Image.Resampling.BICUBIC),
            (0, 0),
        )
    scale = max(shape[0] / picture.size[0], shape[1] / picture.size[1])
    wide, high = (max(round(n * scale), least) for n, least in zip(picture.size, shape, strict=True))
    scaled = picture.resize((wide, high), Image.Resampling.BICUBIC)
    room = (wide - shape[0], high - shape[1])
    left, top = (int(rng.integers(r + 1)) if crop == "random" else r // 2 for r in room)
    return scaled.crop((left, top, left + shape[0], top + shape[1])), (top, left)


class TrainingPictures:
    """Rows with a picture and a text, as items for the collator.

    An item holds picture (RGB bytes [h, w, 3]), text, draw (the number that its time and noise are drawn from), example (the number of what
    the picture looks like, the same whenever it does; None where it never does again), size (see `models.denoisers`) and prior; with class
    pictures `other`, such an item of one of them.

    Args:
        rows: a data set.
        texts: a text for each row.
        read: what makes an RGB PIL picture of the column `image`.
        how: see there.
        others: class pictures; one is drawn for each example.
        prior: whether these are class pictures.
    """

    def __init__(
        self,
        rows: Any,
        texts: Sequence[str],
        read: Callable[[Any], Any],
        how: Treatment,
        others: TrainingPictures | None = None,
        prior: bool = False,
    ):
        self.rows, self.texts, self.read, self.how = rows, list(texts), read, how
        self.others, self.prior, self.epoch, self.batch_size = others, prior, 0, 1
        self.shapes: list[Bucket] = []
        if how.buckets:
            self.shapes = [nearest_bucket(read(value).size, how.buckets) for value in rows["image"]]
        self._order: tuple[int, np.ndarray] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Draw anew."""
        self.epoch, self._order = int(epoch), None

    def set_batch_size(self, size: int) -> None:
        """With buckets: so many examples after one another are of one shape."""
        self.batch_size, self._order = int(size), None

    def __len__(self) -> int:
        if not self.how.buckets:
            return len(self.rows) * self.how.repeats
        return sum(self._padded(count) for _, count in self._counts())

    def _counts(self) -> list[tuple[Bucket, int]]:
        return [(one, self.shapes.count(one) * self.how.repeats) for one in sorted(set(self.shapes))]

    def _padded(self, count: int) -> int:
        return -(-count // self.batch_size) * self.batch_size

    def order(self) -> np.ndarray:
        """With buckets: the row of each place in this epoch; batches are full, by repeating rows of their bucket."""
        if self._order is None or self._order[0] != self.epoch:
            rng = np.random.default_rng((self.how.seed, self.epoch, 1))
            batches = []
            for shape, count in self._counts():
                own = np.tile([i for i, s in enumerate(self.shapes) if s == shape], self.how.repeats)
                rng.shuffle(own)
                filled = np.resize(own, self._padded(count))
                batches += list(filled.reshape(-1, self.batch_size))
            self._order = (self.epoch, np.concatenate([batches[i] for i in rng.permutation(len(batches))]))
        return self._order[1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = int(index)
        if place >= len(self):
            raise IndexError(index)
        row = int(self.order()[place]) if self.how.buckets else place % len(self.rows)
        rng = np.random.default_rng((self.how.seed, self.epoch, place, int(self.prior)))
        made = self._item(row, rng)
        if self.others is not None:
            there = range(len(self.others.rows))
            if self.how.buckets:  # one shape in a batch
                there = [
                    i for i, s in enumerate(self.others.shapes) if s == self.shapes[row]
                ] or self._unmatched(row)  # type: ignore[assignment]
            made["other"] = self.others._item(int(rng.choice(np.asarray(there))), rng)
        return made

    def _unmatched(self, row: int) -> list[int]:
        from adaptome.core.errors import DataError

        raise DataError(
            f"no class picture has the proportions of picture {row} ({self.shapes[row]}); buckets put pictures of one shape together."
        )

    def _item(self, row: int, rng: np.random.Generator) -> dict[str, Any]:
        picture, how = self.read(self.rows[row]["image"]), self.how
        shape = self.shapes[row] if self.shapes else (how.side, how.side)
        size = picture.size
        draw = int(rng.integers(2**62))
        fit, (top, left) = fitted(picture, shape, how.crop, rng)
        array = np.asarray(fit)
        array = array[:, ::-1] if how.mirror and rng.random() < 0.5 else array
        text = "" if how.drop and rng.random() < how.drop else self.texts[row]
        return {
            "picture": array,
            "text": text,
            "draw": draw,
            "example": -1 if how.crop == "random" else _number(array),
            "size": (size[1], size[0], top, left, shape[1], shape[0]),
            "prior": self.prior,
        }


def _number(array: np.ndarray) -> int:
    """A number for what a picture looks like."""
    return int.from_bytes(hashlib.blake2b(array.tobytes(), digest_size=7).digest(), "big")
