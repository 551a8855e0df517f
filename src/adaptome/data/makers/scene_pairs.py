"""Made data of scenes of two objects: `made:scene-questions`, to teach a small vision-language model to write of them, and `made:scene-captions`, to compare them with texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from adaptome.data.makers import maker
from adaptome.data.scenes.pairs import PairScene, draw_pair, pair_at_random
from adaptome.data.splits import Table

#: asked for the whole scene
DESCRIBE = "describe the picture :"


@maker("scene-questions")
def scene_questions(seed: int, train: int = 4000, validation: int = 128) -> dict[str, Table]:
    """Scenes with a question and its answer: half of them ask for all of it, the others for a colour, a size or where an object is."""
    rng = np.random.default_rng((seed, 5))
    made = {}
    for split, count in (("train", train), ("validation", validation)):
        drawn = [pair_at_random(rng) for _ in range(count)]
        said = [_question(scene, rng) for scene in drawn]
        columns = {
            "image": _images(drawn),
            "question": [question for question, _ in said],
            "answer": [answer for _, answer in said],
        }
        made[split] = _table("scene-questions", split, columns)
    return made


@maker("scene-captions")
def scene_captions(seed: int, train: int = 2000, validation: int = 48, test: int = 64) -> dict[str, Table]:
    """Scenes with a short text, in training from either object, and a long one.

    The scenes of validation and of test have different short texts, so that each text has one picture. Of test also a text that is wrong by its
    colours alone (`negative`), and a question on a colour with its answer.
    """
    rng = np.random.default_rng((seed, 6))
    made = {}
    for split, count in (("train", train), ("validation", validation), ("test", test)):
        drawn = [pair_at_random(rng) for _ in range(count)] if split == "train" else _different(rng, count)
        columns: dict[str, object] = {
            "image": _images(drawn),
            "text": [
                [scene.short(), scene.turned().short()] if split == "train" else [scene.short()]
                for scene in drawn
            ],
            "long": [scene.long() for scene in drawn],
        }
        if split == "test":
            columns |= {
                "negative": [scene.swapped() for scene in drawn],
                "question": [f"what colour is the {scene.first.shape} ?" for scene in drawn],
                "answer": [scene.first.colour for scene in drawn],
            }
        made[split] = _table("scene-captions", split, columns)
    return made


def _question(scene: PairScene, rng: np.random.Generator) -> tuple[str, str]:
    kind = rng.choice(["all", "all", "all", "colour", "size", "where"])
    if kind == "all":
        return DESCRIBE, scene.long()
    scene = scene if rng.random() < 0.5 else scene.turned()
    one = scene.first
    if kind == "colour":
        return f"what colour is the {one.shape} ?", one.colour
    if kind == "size":
        return f"what size is the {one.shape} ?", one.size
    return f"where is the {one.shape} ?", f"{scene.relation} the {scene.second.shape}"


def _different(rng: np.random.Generator, count: int) -> list[PairScene]:
    """Scenes no two of which have the same two objects."""
    found: dict[frozenset[str], PairScene] = {}
    while len(found) < count:
        scene = pair_at_random(rng)
        found.setdefault(frozenset({scene.first.named, scene.second.named}), scene)
    return list(found.values())


def _images(drawn: Sequence[PairScene]) -> np.ndarray:
    return np.stack([draw_pair(scene) for scene in drawn])


def _table(name: str, split: str, columns: Mapping[str, object]) -> Table:
    count = len(columns["image"])  # type: ignore[arg-type]
    return Table(f"made:{name}", columns, range(1, count + 1), unit=f"{split} row")  # type: ignore[arg-type]
