"""Made data of drawn scenes: `made:scenes`, to train a small text-to-image model on, `made:scene-subject`, to teach it a subject, and
`made:scene-conditions`, to control it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from adaptome.data.makers import maker
from adaptome.data.scenes.drawing import COLOURS, Scene, draw, drawn_at_random
from adaptome.data.splits import Table

#: the word that stands for the subject
TOKEN = "sks"
PARTS = ("shape", "colour", "spot", "background")


def words(scene: Mapping[str, str]) -> str:
    """A scene in words: "a red circle on a blue background", without the parts that are empty; the spot is never told."""
    named = " ".join(part for part in ("a", scene.get("colour", ""), scene["shape"]) if part)
    return f"{named} on a {scene['background']} background" if scene.get("background") else named


@maker("scenes")
def scenes(seed: int, train: int = 3000, validation: int = 128, test: int = 64) -> dict[str, Table]:
    """Scenes with their words, half of which tell the object's colour; of test the words alone, and what they ask for."""
    rng = np.random.default_rng((seed, 2))
    made = {}
    for split, count in (("train", train), ("validation", validation)):
        drawn = [drawn_at_random(rng) for _ in range(count)]
        texts = [words(_told(scene, colour=bool(rng.random() < 0.5))) for scene in drawn]
        made[split] = _table("scenes", split, {"image": _images(drawn), "text": texts})
    asked = [_told(drawn_at_random(rng), colour=True) for _ in range(test)]
    made["test"] = _table("scenes", "test", _asked(asked, [words(one) for one in asked], ["subject"] * test))
    return made


@maker("scene-subject")
def scene_subject(
    seed: int, pictures: int = 5, classes: int = 60, each: int = 16, general: int = 16
) -> dict[str, Table]:
    """A subject to learn from few pictures: an object whose two colours and shape belong together.

    train       pictures of it ("a sks circle on a red background") on two backgrounds, and the class's (`prior`), other objects of its shape
    test        texts that put it on the two other backgrounds, `each` of them; and `general` texts about the class
    """
    rng = np.random.default_rng((seed, 3))
    one = drawn_at_random(rng)
    backgrounds = [
        name for name in rng.permutation(list(COLOURS)).tolist() if name not in (one.colour, one.spot)
    ]
    seen, unseen = backgrounds[:2], backgrounds[2:]
    own = [Scene(one.shape, one.colour, one.spot, seen[i % 2]).moved(rng) for i in range(pictures)]
    others = [drawn_at_random(rng, shape=one.shape) for _ in range(classes)]
    train = {
        "image": _images([*own, *others]),
        "text": [
            *(words({**_told(s, colour=False), "shape": f"{TOKEN} {one.shape}"}) for s in own),
            *(words(_told(s, colour=False)) for s in others),
        ],
        "prior": [False] * pictures + [True] * classes,
    }
    look = {"shape": one.shape, "colour": one.colour, "spot": one.spot}
    rows = [{**look, "background": name} for name in unseen for _ in range(each)]
    rows += [{**look, "background": backgrounds[i % len(backgrounds)]} for i in range(general)]
    about = ["subject"] * (len(unseen) * each) + ["class"] * general
    texts = [
        f"a {f'{TOKEN} ' * (kind == 'subject')}{row['shape']} on a {row['background']} background"
        for row, kind in zip(rows, about, strict=True)
    ]
    return {
        "train": _table("scene-subject", "train", train),
        "test": _table("scene-subject", "test", _asked(rows, texts, about)),
    }


@maker("scene-conditions")
def scene_conditions(seed: int, train: int = 2000, validation: int = 64, test: int = 48) -> dict[str, Table]:
    """Scenes whose words tell the shape alone, so that colours and places are a condition's to tell; and what each shows."""
    rng = np.random.default_rng((seed, 4))
    made = {}
    for split, count in (("train", train), ("validation", validation), ("test", test)):
        drawn = [drawn_at_random(rng) for _ in range(count)]
        parts = {part: [str(getattr(scene, part)) for scene in drawn] for part in PARTS}
        texts = [f"a {shape}" for shape in parts["shape"]]
        made[split] = _table("scene-conditions", split, {"image": _images(drawn), "text": texts, **parts})
    return made


def _told(scene: Scene, colour: bool) -> dict[str, str]:
    """The parts of a scene that its words tell."""
    return {"shape": scene.shape, "colour": scene.colour if colour else "", "background": scene.background}


def _asked(rows: Sequence[Mapping[str, str]], texts: list[str], about: list[str]) -> dict[str, list[str]]:
    return {"text": texts, "about": about, **{part: [row.get(part, "") for row in rows] for part in PARTS}}


def _images(drawn: Sequence[Scene]) -> np.ndarray:
    return np.stack([draw(scene) for scene in drawn])


def _table(name: str, split: str, columns: Mapping[str, object]) -> Table:
    count = len(columns["text"])  # type: ignore[arg-type]
    return Table(f"made:{name}", columns, range(1, count + 1), unit=f"{split} row")  # type: ignore[arg-type]
