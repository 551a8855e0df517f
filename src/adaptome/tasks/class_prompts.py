"""Prompts of classes: a data set's template with the class's name in it, and places for trained context words.

    template   'a photo of a {}, a type of pet.', with one {} for the name
    context    `words` ids below 0 in place of the template's words, at the end, in the middle or in front of the name (CoOp,
               arXiv:2109.01134, section 3); -100000 is the first, as the method coop has it

The natural sets' templates and COVID's are those that CLIP-SVD names (arXiv:2509.03740); the other biomedical ones are in the words of
those sets. Each can be given otherwise: task.template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from adaptome.core.errors import DataError, did_you_mean
from adaptome.data.textfile import read_text
from adaptome.models.prompted_classifier import Classes
from adaptome.tasks.showing import Given, gathered

DEFAULT = "a photo of a {}."
#: the first id that stands for a trained vector
FIRST = -100000
#: data set, by its folder's name in small letters without marks -> template
TEMPLATES = {
    "imagenet": DEFAULT,
    "caltech101": DEFAULT,
    "oxfordpets": "a photo of a {}, a type of pet.",
    "stanfordcars": DEFAULT,
    "oxfordflowers": "a photo of a {}, a type of flower.",
    "food101": "a photo of a {}, a type of food.",
    "fgvcaircraft": "a photo of a {}, a type of aircraft.",
    "sun397": DEFAULT,
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "ucf101": "a photo of a person doing {}.",
    "btmri": "a brain MRI of {}.",
    "busi": "a breast ultrasound of {}.",
    "chmnist": "a histopathology slide of {}.",
    "covid": "a chest xray of {}.",
    "ctkidney": "a kidney CT of {}.",
    "kneexray": "a knee xray of {}.",
    "kvasir": "an endoscopy image of {}.",
    "lc25000": "a histopathology slide of {}.",
    "octmnist": "a retinal OCT of {}.",
    "retina": "a fundus photo of {}.",
}
#: other names of the same sets
ALIASES = {
    "caltech": "caltech101", "describabletextures": "dtd", "flowers102": "oxfordflowers", "oxfordflowers102": "oxfordflowers", "pets": "oxfordpets",
    "oxfordiiitpet": "oxfordpets", "cars": "stanfordcars", "food": "food101", "ucf101midframes": "ucf101", "sun": "sun397", "covidquex": "covid",
    "covid19": "covid", "imagenetv2": "imagenet", "imagenetsketch": "imagenet", "imageneta": "imagenet", "imagenetr": "imagenet",
}  # fmt: skip


class ContextOptions(BaseModel):
    """Places for trained vectors in the prompts, which a method on the token table fills (coop)."""

    model_config = ConfigDict(extra="forbid")

    words: int = Field(default=16, ge=1, description="vectors of a context, coop's p")
    position: Literal["end", "middle", "front"] = Field(default="end", description="of the class's name")
    own: bool = Field(default=False, description="a context for each class, coop's classes; else one for all")
    first: int = Field(
        default=FIRST, lt=0, description="the first id that stands for a vector, coop's placeholders"
    )


def template_of(dataset: str) -> str | None:
    """The template of a data set of this name; None where none is known."""
    key = re.sub(r"[^a-z0-9]", "", dataset.lower())
    return TEMPLATES.get(ALIASES.get(key, key))


def checked_template(template: str) -> str:
    """The template; a data set's name stands for its own.

    Raises:
        DataError: it has no place for the name, and no data set is called so.
    """
    if template.count("{}") == 1:
        return template
    known = template_of(template)
    if known is None:
        raise DataError(
            f"task.template={template!r}: one {{}} is to stand where the class's name goes, or it is the name of a data set."
            f"{did_you_mean(template, TEMPLATES)} Data sets: {', '.join(TEMPLATES)}."
        )
    return known


def written(name: str) -> str:
    """A class's name as prompts have it: underscores are spaces."""
    return " ".join(name.replace("_", " ").split())


def prompt(template: str, name: str) -> str:
    """The template with the name."""
    return template.replace("{}", written(name))


def pictures_and_texts(words: Sequence[str], endings: frozenset[str]) -> tuple[list[Given], list[str]]:
    """The pictures among the words of a command line, and the words that are none: texts, or names of classes.

    Raises:
        DataError: there is no picture.
    """
    texts = [word for word in words if not _is_file(word) and Path(word).suffix.lower() not in endings]
    pictures = gathered([word for word in words if word not in texts], endings)
    if not pictures:
        raise DataError(
            f"none of {', '.join(map(repr, words))} is a picture or a folder of them, and all were taken for class names."
        )
    return pictures, texts


def _is_file(word: str) -> bool:
    return len(word) < 256 and "\0" not in word and Path(word).exists()


def read_names(file: str) -> dict[str, str]:
    """What labels are called: a JSON object of label -> name, or lines of a label and its name (CoOp's classnames.txt of ImageNet).

    Raises:
        DataError: it cannot be read so.
    """
    path = Path(file)
    try:
        text = read_text(path)
        if path.suffix.lower() != ".json":
            pairs = [line.strip().partition(" ") for line in text.splitlines() if line.strip()]
            return {label: name.strip() or label for label, _, name in pairs}
        content = json.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(f"task.names={file}: it cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise DataError(f"task.names={file}: expected an object of label -> name, found a {type(content).__name__}.")  # fmt: skip
    return {str(label): str(name) for label, name in content.items()}


def prompts_of(
    tokenizer: Any, texts: Sequence[tuple[str, str]], context: ContextOptions | None = None
) -> Classes:
    """The prompts of classes as a dual encoder takes them.

    Args:
        tokenizer: a `DualProcessor`.
        texts: template and name of each class.
        context: places for trained vectors; the templates are then the plain texts.
    """
    plain = tokenizer([prompt(template, name) for template, name in texts])
    if context is None:
        return Classes(plain["ids"], plain.get("mask"))
    placed = _placed(tokenizer, [written(name) for _, name in texts], context, plain)
    return Classes(placed["ids"], placed.get("mask"), None, plain["ids"], plain.get("mask"))


def _placed(
    tokenizer: Any, names: Sequence[str], context: ContextOptions, plain: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """[start] context name . [end], with the context's ids in their place."""
    start, end = tokenizer.around()
    cut = {"front": 0, "middle": context.words // 2, "end": context.words}[context.position]
    rows = []
    for number, name in enumerate(names):
        first = context.first + (number * context.words if context.own else 0)
        ids = list(range(first, first + context.words))
        rows.append([*start, *ids[:cut], *tokenizer.words(f"{name}."), *ids[cut:], *end])
    length = max(map(len, rows))
    if tokenizer.fixed is not None:
        length = max(length, tokenizer.fixed)
    made = {"ids": torch.tensor([row + [tokenizer.pad] * (length - len(row)) for row in rows])}
    if "mask" in plain:
        made["mask"] = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return made
