"""From what a user gives to inputs, and from predictions to what a user sees: the defaults of `Task.given` and `Task.shown`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from adaptome.core.errors import DataError
from adaptome.report.shown import Ranked, Shown, Span, boxed, overlaid

#: likeliest labels that are shown of one prediction
LIKELIEST = 4
#: the files of a folder that a task of texts takes, each as one text
TEXTS = frozenset({".txt", ".md"})


class Given(NamedTuple):
    """One input: what it is called, and what `Task.predict` takes."""

    name: str
    value: Any


def gathered(words: Sequence[str], endings: frozenset[str]) -> list[Given]:
    """The inputs that a command line names: each word is one, a folder is all files of it with these endings, sorted.

    Args:
        words: texts, or paths of files and folders.
        endings: of the files that the task takes by their paths; empty where it takes texts, which a folder holds as .txt and .md.

    Raises:
        DataError: a folder without such a file, a file that is not there, or one that is not UTF-8.
    """
    found: list[Given] = []
    for word in words:
        folder = path_of(word)
        if folder is not None and folder.is_dir():
            wanted = endings or TEXTS
            files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in wanted and f.is_file())
            if not files:
                raise DataError(f"the folder {word} holds no file that ends in {', '.join(sorted(wanted))}.")
            found += [Given(str(f), str(f) if endings else _text(f)) for f in files]
        elif endings and (folder is None or not folder.is_file()):
            raise DataError(
                f"no such file or folder: {word}. This run takes files that end in {', '.join(sorted(endings))}."
            )
        else:
            found.append(Given(word, word))
    return found


def path_of(word: str) -> Path | None:
    """The word as a path, where it can be one: a long text, to which file systems answer with an error, or one of several lines cannot."""
    fits = len(word) < 1024 and "\n" not in word and "\0" not in word
    return Path(word) if fits and all(len(os.fsencode(part)) < 256 for part in Path(word).parts) else None


def _text(file: Path) -> str:
    from adaptome.data.textfile import read_text

    try:
        return read_text(file)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text: {error}.") from error


def shown(one: Any, prediction: Any, picture: Any = None) -> Shown:
    """An input with its prediction, by the keys that predictions have here.

    `label` with `score`, `labels`, `entities` (character offsets of a text, or word numbers of `tokens`), `completion` with
    perhaps an `answer` in it, `scores` by label; and of pictures `mask` [h, w] of class numbers (named by `classes`), `boxes`
    ({box, label, score}) and `image`, a PIL image that is the answer.

    Args:
        one: what `predict` took.
        prediction: what it gave.
        picture: the input as a PIL image, where it is one.
    """
    if not isinstance(prediction, Mapping):
        return Shown(str(prediction), given_text(one), picture=picture)
    text, spans = given_text(one), tuple[Span, ...]()
    if "entities" in prediction:
        text, spans = entity_spans(one, prediction)
    elif "completion" in prediction:
        text = given_text(prediction.get("prompt", one))
    scores: Mapping[str, float] = prediction.get("scores", {})
    best = sorted(scores.items(), key=lambda item: -item[1])[:LIKELIEST]
    made = made_pictures(picture, prediction)
    return Shown(answer(prediction), text, spans, picture, made, tuple(Ranked(*each) for each in best))


def answer(prediction: Mapping[str, Any]) -> str:
    """What a prediction says in a line: the label with its probability, the labels, the entities, or the completion."""
    if "label" in prediction:
        score = prediction.get("score")
        return str(prediction["label"]) if score is None else f"{prediction['label']} ({score:.1%})"
    for key in ("labels", "entities", "completion", "boxes"):
        if key in prediction:
            value = prediction[key]
            return (value if isinstance(value, str) else ", ".join(map(_part, value))) or "-"
    if "mask" in prediction:
        return covered(prediction["mask"], prediction.get("classes"))
    plain_ones = {key: value for key, value in prediction.items() if _is_plain(value)}
    return ", ".join(f"{key} {value}" for key, value in plain_ones.items())


def _part(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    kind = value.get("type", value.get("label", ""))
    return f"{kind}: {value['text']}" if "text" in value else str(kind)


def covered(mask: Any, classes: Sequence[str] | None = None) -> str:
    """The share of a picture that each class but 0 covers, largest first.

    >>> covered([[0, 1], [2, 1]], ["ground", "house", "road"])
    'house 50.0 %, road 25.0 %'
    """
    import numpy as np

    numbers, counts = np.unique(np.asarray(mask), return_counts=True)
    shares = sorted(
        ((n / counts.sum(), int(k)) for k, n in zip(numbers, counts, strict=True) if k), reverse=True
    )
    return ", ".join(f"{classes[k] if classes else f'class {k}'} {share:.1%}".replace("%", " %") for share, k in shares) or "nothing"  # fmt: skip


def given_text(one: Any) -> str:
    """The words of an input; empty where it has none."""
    if isinstance(one, str):
        return one
    if isinstance(one, Mapping):
        if "instruction" in one:
            return "\n\n".join(str(one[key]) for key in ("instruction", "input") if one.get(key))
        if "content" in one:
            return f"{one.get('role', '')}: {one['content']}"
        return str(one.get("path", ""))
    if isinstance(one, Sequence) and all(isinstance(part, str) for part in one):
        return " | ".join(one) if isinstance(one, tuple) else " ".join(one)
    if isinstance(one, Sequence):
        return "\n".join(filter(None, map(given_text, one)))
    return ""


def entity_spans(one: Any, prediction: Mapping[str, Any]) -> tuple[str, tuple[Span, ...]]:
    """The text and the entities as its stretches: by character offsets where these fit the text, else by words."""
    found = prediction["entities"]
    if isinstance(one, str) and all(one[e["start"] : e["end"]] == e["text"] for e in found):
        return one, tuple(Span(e["start"], e["end"], e["type"]) for e in found)
    words = prediction.get("tokens", one)
    starts, at = [], 0
    for word in words:
        starts.append(at)
        at += len(word) + 1
    spans = [
        Span(starts[e["start"]], starts[e["end"] - 1] + len(words[e["end"] - 1]), e["type"]) for e in found
    ]
    return " ".join(words), tuple(spans)


def made_pictures(picture: Any, prediction: Mapping[str, Any]) -> dict[str, Any]:
    """A prediction's pictures: the one it gives, its mask and its boxes on the input."""
    made = {"image": prediction["image"]} if hasattr(prediction.get("image"), "save") else {}
    if picture is not None and "mask" in prediction:
        made["mask"] = overlaid(picture, prediction["mask"])
    if picture is not None and prediction.get("boxes"):
        made["boxes"] = boxed(picture, prediction["boxes"])
    return made


def png_bytes(picture: Any) -> bytes:
    """A PIL picture as the content of a PNG file."""
    held = BytesIO()
    picture.save(held, "PNG")
    return held.getvalue()


def plain(prediction: Any) -> Any:
    """A prediction as JSON values; pictures and arrays in it are left out: they are shown or written as files."""
    if isinstance(prediction, Mapping):
        return {key: plain(value) for key, value in prediction.items() if _is_plain(value)}
    if isinstance(prediction, (list, tuple)):
        return [plain(value) for value in prediction]
    return prediction.item() if hasattr(prediction, "item") else prediction


def _is_plain(value: Any) -> bool:
    """Whether a value is JSON, or a number of numpy or torch."""
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, Iterable) and not hasattr(value, "shape"):
        return isinstance(value, (str, list, tuple)) and (
            isinstance(value, str) or all(map(_is_plain, value))
        )
    return (value is None or isinstance(value, (bool, int, float))) or getattr(value, "shape", None) == ()
