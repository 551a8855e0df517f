"""Scores of drawn scenes by rule: what a picture shows is read from its pixels (see `data.scenes`), and no model takes part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from adaptome.data.scenes.reading import read
from adaptome.tasks.picture_scores.base import Asked, PictureScore, register_score

PARTS = ("shape", "colour", "spot", "background")
SUBJECT = ("shape", "colour", "spot")


@register_score("scenes")
class Scenes(PictureScore):
    """Columns shape, colour, spot and background, empty where the text says nothing of it; `about` is subject or class.

    right        share of the pictures that show all that the text says; of a subject its shape, colours and background
    subject      share that show the subject, whatever the background
    background   share that have the background asked for, whatever is on it
    class_right  of texts about the class: share with the shape and background asked for
    leak         of these, share that show the subject although its token is not in the text (language drift)
    """

    headline = "right"

    def score(self, pictures: Sequence[Any], asked: Asked) -> dict[str, float]:
        agree = self._agree(pictures, asked)
        about = np.array(
            [str(a or "subject") for a in asked.columns.get("about", ["subject"] * len(pictures))]
        )
        own, general = about != "class", about == "class"
        right = np.array([bool(one) for one in self.right(pictures, asked)])
        found = {"right": float(right[own].mean())} if own.any() else {}
        for name in PARTS if own.any() else ():
            values = agree[name][own]
            told = values[~np.isnan(values)]
            found |= {name: float(told.mean())} if len(told) else {}
        if own.any():
            whole = np.stack([agree[name][own] for name in SUBJECT])
            if not np.isnan(whole).any():
                found["subject"] = float(whole.min(0).mean())
        if general.any():
            wanted = np.stack([agree[name][general] for name in ("shape", "background")])
            found["class_right"] = float(wanted.min(0).mean())
            found["leak"] = float(np.stack([agree[name][general] for name in SUBJECT]).min(0).mean())
        return found

    def right(self, pictures: Sequence[Any], asked: Asked) -> list[bool | None]:
        """Of a text about the class its shape and background alone are asked for."""
        agree = self._agree(pictures, asked)
        about = asked.columns.get("about", ["subject"] * len(pictures))
        answers: list[bool | None] = []
        for row, kind in enumerate(about):
            names = ("shape", "background") if kind == "class" else PARTS
            answers.append(all(bool(agree[name][row]) for name in names if not np.isnan(agree[name][row])))
        return answers

    def _agree(self, pictures: Sequence[Any], asked: Asked) -> dict[str, np.ndarray]:
        """For each part whether it is as asked, 0 or 1; NaN where nothing is asked."""
        seen = [read(np.asarray(picture.convert("RGB"))) for picture in pictures]
        made = {}
        for name in PARTS:
            wanted = asked.columns.get(name) or [None] * len(pictures)
            pairs = zip(seen, wanted, strict=True)
            made[name] = np.array([float(getattr(s, name) == w) if w else np.nan for s, w in pairs])
        return made
