"""Made data of drawn stories, `made:pixel-stories`: a figure on a ground, whose look only the first frame shows, whose ground only the first
caption names, and whose place each frame's own caption tells.

A frame is 6 x 6 cells of plain colour, 24 pixels a side. What it shows is read back from its cells by rule (`read_frame`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adaptome.data.makers import maker
from adaptome.data.splits import Table

GRID, CELL = 6, 4
#: name -> RGB, of values that cells of three levels hold exactly
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0),
    "white": (255, 255, 255), "black": (0, 0, 0), "pink": (255, 128, 255), "orange": (255, 128, 0),
}  # fmt: skip
GROUNDS = ("green", "blue", "white", "black")
#: 3 x 3 cells: 1 of the figure's colour, 2 of its second colour, 0 the ground
FIGURES: dict[str, tuple[str, str, str]] = {
    "cross": ("010", "121", "010"), "box": ("111", "121", "111"), "hat": ("010", "111", "202"), "snake": ("110", "012", "022"),
}  # fmt: skip
PLACES: dict[str, tuple[int, int]] = {"upper left": (0, 0), "upper right": (0, 3), "lower left": (3, 0), "lower right": (3, 3)}  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """What a frame shows."""

    figure: str
    colour: str
    second: str
    ground: str
    place: str

    def cells(self) -> np.ndarray:
        """RGB [6, 6, 3]."""
        made = np.empty((GRID, GRID, 3), np.uint8)
        made[:] = COLOURS[self.ground]
        top, left = PLACES[self.place]
        for y, line in enumerate(FIGURES[self.figure]):
            for x, kind in enumerate(line):
                if kind != "0":
                    made[top + y, left + x] = COLOURS[self.colour if kind == "1" else self.second]
        return made

    def draw(self) -> np.ndarray:
        """RGB bytes [24, 24, 3]."""
        return self.cells().repeat(CELL, 0).repeat(CELL, 1)


def read_frame(picture: np.ndarray) -> Frame | None:
    """What a picture shows, every cell as the colour nearest to its mean; None where that is no frame that could be drawn."""
    names, table = list(COLOURS), np.array(list(COLOURS.values()), float)
    high, wide = (side // GRID for side in picture.shape[:2])
    means = picture[: high * GRID, : wide * GRID].reshape(GRID, high, GRID, wide, 3).mean((1, 3))
    seen = ((means[:, :, None] - table) ** 2).sum(-1).argmin(-1)
    for place, (top, left) in PLACES.items():
        part = seen[top : top + 3, left : left + 3]
        rest = seen.copy()
        rest[top : top + 3, left : left + 3] = -1
        ground = set(rest[rest >= 0].tolist())
        if len(ground) != 1:
            continue
        (under,) = ground
        for figure, lines in FIGURES.items():
            kinds = np.array([[int(c) for c in line] for line in lines])
            by_kind = [set(part[kinds == kind].tolist()) for kind in (0, 1, 2)]
            if by_kind[0] - {under} or len(by_kind[1]) != 1 or len(by_kind[2]) != 1:
                continue
            colour, second = (names[one.copy().pop()] for one in by_kind[1:])
            if len({names[under], colour, second}) == 3 and names[under] in GROUNDS:
                return Frame(figure, colour, second, names[under], place)
    return None


@maker("pixel-stories")
def pixel_stories(
    seed: int, train: int = 1500, validation: int = 32, test: int = 32, frames: int = 3
) -> dict[str, Table]:
    """Stories: the columns frames [(1 + L) 24, 24, 3], below each other, the source first, and captions (L); and the parts of the frames asked for."""
    rng = np.random.default_rng((seed, 7))
    made = {}
    for split, count in (("train", train), ("validation", validation), ("test", test)):
        columns: dict[str, list[object]] = {"frames": [], "captions": [], "parts": []}
        for _ in range(count):
            figure, places = str(rng.choice(list(FIGURES))), rng.choice(list(PLACES), 1 + frames)
            old, new = rng.permutation(GROUNDS)[:2].tolist()
            colour, second = rng.permutation([c for c in COLOURS if c not in (old, new)])[:2].tolist()
            story = [
                Frame(figure, colour, second, old if i == 0 else new, str(p)) for i, p in enumerate(places)
            ]
            captions = [f"it stands at the {frame.place}" for frame in story[1:]]
            captions[0] = f"the ground turns {new} and {captions[0]}"
            columns["frames"].append(np.concatenate([frame.draw() for frame in story]))
            columns["captions"].append(captions)
            columns["parts"].append(
                [f"{f.figure} {f.colour} {f.second} {f.ground}/{f.place}" for f in story[1:]]
            )
        columns["frames"] = np.stack(columns["frames"])  # type: ignore[arg-type, assignment]
        made[split] = Table("made:pixel-stories", columns, range(1, count + 1), unit=f"{split} story")
    return made
