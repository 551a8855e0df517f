"""Generators without a model: texts that a file holds, and parts of the examples put together anew."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from pydantic import Field

from adaptome.blackbox.generators.base import GENERATORS, Generator, GeneratorSettings
from adaptome.core.errors import DataError


class FileSettings(GeneratorSettings):
    path: str = Field(description="JSON lines of {text, label}")


@GENERATORS.register("file")
class FromFile(Generator):
    """The texts that a file has for the label, the first `count` of them."""

    Settings = FileSettings

    @cached_property
    def _held(self) -> dict[str, list[str]]:
        path, held = Path(self.settings.path), dict[str, list[str]]()
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"augmentation.generator.path={str(path)!r} cannot be read: {error}.") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                text, label = row["text"], row["label"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}, line {number}: expected an object with text and label ({error})."
                ) from error
            if not isinstance(text, str):
                raise DataError(f"{path}, line {number}: the text is {text!r}.")
            held.setdefault(str(label), []).append(text)
        return held

    def texts(
        self, label: str, description: str, demonstrations: Sequence[str], count: int, seed: int
    ) -> list[str]:
        return self._held.get(label, [])[:count]


class SplicedSettings(GeneratorSettings):
    words: int = Field(default=4, ge=1, description="least words of a part that is taken from an example")


@GENERATORS.register("spliced")
class Spliced(Generator):
    """The beginning of one example and the end of another of the class, cut where a clause ends; no model is needed."""

    Settings = SplicedSettings

    def texts(
        self, label: str, description: str, demonstrations: Sequence[str], count: int, seed: int
    ) -> list[str]:
        if len(demonstrations) < 2:
            return []
        draw, made = random.Random(f"{seed} {label}"), list[str]()
        for _ in range(count):
            first, second = draw.sample(list(demonstrations), 2)
            made.append(f"{self._part(first, draw, 0)} {self._part(second, draw, -1)}".strip())
        return made

    def _part(self, text: str, draw: random.Random, side: int) -> str:
        """The beginning (side 0) or end (-1) of a text, whole where it has no place to cut."""
        clauses = [c for c in re.split(r"(?<=[.;:,!?])\s+", text) if c]
        cuts = [
            (before, after)
            for i in range(1, len(clauses))
            if min(
                map(
                    len, ((before := " ".join(clauses[:i])).split(), (after := " ".join(clauses[i:])).split())
                )
            )
            >= self.settings.words
        ]
        if not cuts:
            words = text.split()
            half = max(len(words) // 2, 1)
            cuts = [(" ".join(words[:half]), " ".join(words[half:]))]
        return draw.choice(cuts)[side]
