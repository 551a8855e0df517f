"""Texts of classes: what a class shows, and the same denied."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from adaptome.core.errors import DataError, did_you_mean
from adaptome.tasks.class_prompts import written

#: what faces do, by expression: facial actions as atlases of them tell (Ekman and Friesen 1978)
EXPRESSIONS: dict[str, tuple[str, ...]] = {
    "anger": ("lowered brows drawn together", "glaring eyes", "tightened lips", "a tense jaw"),
    "disgust": ("a wrinkled nose", "a raised upper lip", "narrowed eyes", "raised cheeks"),
    "fear": ("brows raised and drawn together", "wide open eyes", "raised upper eyelids", "lips stretched sideways"),
    "happiness": ("lifted cheeks", "mouth corners pulled up", "wrinkles around the eyes", "a smiling mouth"),
    "neutral": ("relaxed brows", "calm eyes", "a closed relaxed mouth", "no muscle in tension"),
    "sadness": ("raised inner brows", "drooping upper eyelids", "mouth corners pulled down", "a lowered gaze"),
    "surprise": ("raised curved brows", "wide open eyes", "a dropped jaw", "an open mouth"),
    "contempt": ("one mouth corner raised and tightened", "a chin held high", "half-closed eyes"),
    "anxiety": ("brows drawn together", "darting eyes", "pressed lips", "a tense forehead"),
    "helplessness": ("drooping brows", "an empty gaze", "a slightly open mouth", "lowered cheeks"),
    "disappointment": ("a lowered gaze", "mouth corners turned down", "pressed lips", "a slow shake of the head"),
}  # fmt: skip
#: what lists call them too
ALIASES = {
    "angry": "anger", "disgusted": "disgust", "fearful": "fear", "happy": "happiness", "sad": "sadness", "surprised": "surprise",
    "anxious": "anxiety", "helpless": "helplessness", "disappointed": "disappointment",
}  # fmt: skip

POSITIVE = "an expression of {label}: {shown}"
NEGATIVE = "not an expression of {label}: {denied}"


def spoken(labels: Sequence[str]) -> list[str]:
    """The labels, and what else known expressions among them are called: words that tell the answer."""
    names = [written(label).lower() for label in labels]
    known = {ALIASES.get(name, name) for name in names}
    others = [name for name in EXPRESSIONS if name in known]
    return list(
        dict.fromkeys(
            [*labels, *map(written, labels), *others, *(a for a, name in ALIASES.items() if name in known)]
        )
    )


def class_texts(
    labels: Sequence[str],
    texts: Mapping[str, Sequence[str]] | None = None,
    positive: str = POSITIVE,
    negative: str = NEGATIVE,
) -> tuple[list[str], list[str]]:
    """What each class shows and does not show.

    Args:
        texts: label -> what is seen, in parts; the others have those of `EXPRESSIONS` where they are among them.
        positive, negative: of the text, with {label}, {shown} (the parts) and {denied} (see `denied`).

    Raises:
        DataError: texts of a label that there is not, or a pattern with another name in it.
    """
    given = dict(texts or {})
    for label in given:
        if label not in labels:
            raise DataError(f"task.texts: {label!r} is no label.{did_you_mean(label, labels)} Labels: {', '.join(labels)}.")  # fmt: skip
    made: tuple[list[str], list[str]] = ([], [])
    for label in labels:
        name = written(label).lower()
        parts = given.get(label, EXPRESSIONS.get(ALIASES.get(name, name), ()))
        words = {"label": written(label), "shown": ", ".join(parts), "denied": ", ".join(map(denied, parts))}  # fmt: skip
        for kind, pattern in zip(made, (positive, negative), strict=True):
            kind.append(_filled(pattern, words))
    return made


def denied(part: str) -> str:
    """What is seen, denied: 'no open mouth' of 'an open mouth', 'muscle in tension' of 'no muscle in tension'."""
    if part.startswith("no "):
        return part.removeprefix("no ")
    return f"no {re.sub('^(a|an|the) ', '', part)}"


def _filled(pattern: str, words: Mapping[str, str]) -> str:
    try:
        # a class of which nothing is told is its name alone
        return pattern.format_map(words).strip().rstrip(":").strip()
    except (KeyError, ValueError, IndexError) as error:
        raise DataError(f"the pattern {pattern!r} of a class's text: {error}. It may have {{label}}, {{shown}} and {{denied}}.") from None  # fmt: skip
