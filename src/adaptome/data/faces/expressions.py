"""Expressions of drawn faces: what lips, mouth and brows do, as numbers and in words, standing still or in motion.

Six kinds of clips come in pairs of one movement and its reverse, whose frames are alike but for their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from adaptome.data.faces.drawing import Pose, pose

#: what moves -> where it starts and ends
Motion = Mapping[str, tuple[float, float]]
MOTIONS: dict[str, Motion] = {
    "happiness": {"lips_up": (0, 1)},
    "disappointment": {"lips_up": (1, 0)},
    "surprise": {"brows_up": (0, 1), "mouth_open": (0, 1)},
    "relief": {"brows_up": (1, 0), "mouth_open": (1, 0)},
    "anger": {"brows_drawn": (0, 1)},
    "calm": {"brows_drawn": (1, 0)},
}
#: how far a face moves from frame to frame, and how much the light on it changes
MOVED, LIGHT = 0.02, 0.2
#: what an imperfect observer says of each
WORDS = {
    "happiness": "straight then smiling",
    "disappointment": "smiling then straight",
    "surprise": "closed level then open raised",
    "relief": "open raised then closed level",
    "anger": "smooth then drawn",
    "calm": "drawn then smooth",
}


def still(rng: np.random.Generator) -> tuple[Pose, str]:
    """A pose with an expression drawn at random, and its caption of four words (lips, mouth, brows up, brows drawn): one of 24."""
    lips, mouth, brows, drawn = (int(rng.integers(n)) for n in (3, 2, 2, 2))
    size = rng.uniform(0.7, 1.1)
    how = replace(
        moved(pose(rng), rng), lips_up=(lips - 1) * size, mouth_open=mouth * size, brows_up=brows * size, brows_drawn=drawn * size,
        eyes_open=rng.uniform(0.4, 1.0),
    )  # fmt: skip
    told = (
        ("frowning", "straight", "smiling")[lips], ("closed", "open")[mouth], ("level", "raised")[brows], ("smooth", "drawn")[drawn],
    )  # fmt: skip
    return how, " ".join(told)


def moving(kind: str, frames: int, rng: np.random.Generator) -> list[Pose]:
    """The poses of a clip: the kind's movement, at its own time and size, on a head that never rests, with a blink now and then."""
    first = pose(rng)
    size, middle, slope = rng.uniform(0.7, 1.1), rng.uniform(0.35, 0.65), rng.uniform(5, 12)
    habit, blink, opened = rng.normal(0, 0.12, 3), int(rng.integers(2 * frames)), rng.uniform(0.55, 1.0)
    made = []
    for number in range(frames):
        done = 1 / (1 + np.exp(-slope * (number / max(frames - 1, 1) - middle)))
        state = {"lips_up": habit[0], "brows_up": habit[1], "brows_drawn": abs(habit[2]), "mouth_open": 0.0}
        for part, (start, end) in MOTIONS[kind].items():
            state[part] = state[part] + size * (start + (end - start) * done)
        seen = 0.1 if number == blink else opened
        made.append(replace(moved(first, rng), eyes_open=seen, **state))
    return made


def moved(how: Pose, rng: np.random.Generator) -> Pose:
    """The same face as the next frame has it: crops are aligned but for little, and the light changes."""
    x, y, near = rng.normal(0, MOVED, 3)
    light = rng.normal(0, LIGHT, 2)
    return replace(how, x=how.x / 4 + x, y=how.y / 4 + y, scale=1 + near, light=light)


def observed(kind: str, rng: np.random.Generator, right: float) -> str:
    """What an observer says of a clip, who is right with this probability and else says it of any kind."""
    kinds = list(WORDS)
    return WORDS[kind if rng.random() < right else kinds[int(rng.integers(len(kinds)))]]
