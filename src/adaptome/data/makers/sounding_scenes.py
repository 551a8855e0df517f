"""Made questions about drawn scenes: `made:sounding-scenes`, whose video, sound and depth each answer some of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from adaptome.data.makers import maker
from adaptome.data.scenes.instruments import (
    COLOURS,
    DISTANCES,
    THINGS,
    Scene,
    bands,
    depth,
    scene,
    sound,
    squares,
    video,
)
from adaptome.data.splits import Table


@maker("sounding-scenes")
def sounding_scenes(seed: int, train: int = 1600, validation: int = 160, test: int = 480) -> dict[str, Table]:
    """Columns question, options, answer and type (look, listen, distance), and features rgb, audio and depth.

    Which instrument is heard can only be guessed from the video, as one of the two in it, and how far they are
    only where there is haze, in half of them.
    """
    rng = np.random.default_rng((seed, 5))
    return {
        name: questions(rng, name, count)
        for name, count in (("train", train), ("validation", validation), ("test", test))
    }


def questions(rng: np.random.Generator, split: str, count: int) -> Table:
    """So many questions, each about a scene of its own, as a reader gives them."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        one = scene(rng)
        asked = ask(one, number)
        rows.append({**asked, "rgb": squares(video(one, rng)), "audio": bands(sound(one.things[one.heard], rng)), "depth": squares(depth(one, rng))})  # fmt: skip
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in ("question", "options", "answer", "type")}  # fmt: skip
    columns |= {name: np.stack([row[name] for row in rows]) for name in ("rgb", "audio", "depth")}
    return Table("made:sounding-scenes", columns, range(1, count + 1), unit=f"{split} question")


def ask(one: Scene, number: int) -> dict[str, Any]:
    """A question about a scene; the four kinds take turns."""
    kind = number % 4
    if kind == 0:
        return {"question": "what colour is the floor?", "options": list(COLOURS), "answer": one.floor, "type": "look"}  # fmt: skip
    if kind == 3:
        return {"question": "how far are the instruments?", "options": list(DISTANCES), "answer": list(DISTANCES)[one.distance], "type": "distance"}  # fmt: skip
    question, which, type_ = (
        ("which instrument is there twice?", one.twice, "look"),
        ("which instrument is heard?", one.heard, "listen"),
    )[kind - 1]
    return {"question": question, "options": list(THINGS), "answer": one.things[which], "type": type_}
