"""One input with its prediction, in the form that people see it: what `adaptome predict` prints and writes, and reports show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Span(NamedTuple):
    """A stretch of `Shown.text`, characters start to end (one past the last), and what it was found to be."""

    start: int
    end: int
    label: str


class Ranked(NamedTuple):
    """One of several answers in the order of their scores, and what is to be said of it."""

    answer: str
    score: float
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """An input with its prediction. What is there is shown; what is empty is not.

    Args:
        answer: the prediction in one line; empty where it is a ranking or a picture alone.
        text: what `spans` mark, or the input where it is a text.
        spans: stretches of the text, in order.
        picture: the input where it is a picture: a PIL image.
        made: name -> PIL image: the prediction as pictures (an overlay, a change map, a generated image).
        ranked: the likeliest labels, or the items retrieved, best first.
        bounded: the ranked scores are probabilities, which can be drawn as bars.
        files: name with its ending -> content, of what the prediction is as a file other than a picture (a mask with its place on the earth).
    """

    answer: str
    text: str = ""
    spans: tuple[Span, ...] = ()
    picture: Any = None
    made: Mapping[str, Any] = field(default_factory=dict)
    ranked: tuple[Ranked, ...] = ()
    bounded: bool = True
    files: Mapping[str, bytes] = field(default_factory=dict)


#: colours of classes and boxes on pictures, told apart in both of the usual kinds of colour blindness (Okabe and Ito 2008)
COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


def overlaid(picture: Any, mask: Any, opacity: float = 0.55) -> Any:
    """The picture with a mask in colours on it; class 0 is left clear.

    Args:
        picture: a PIL image [height, width].
        mask: whole numbers [h, w], brought to the picture's size without mixing classes.
    """
    import numpy as np
    from PIL import Image

    classes = np.asarray(mask).astype(np.int64)
    table = np.zeros((int(classes.max(initial=0)) + 1, 4), dtype=np.uint8)
    for number in range(1, len(table)):
        table[number] = (*COLOURS[(number - 1) % len(COLOURS)], round(255 * opacity))
    layer = Image.fromarray(table[classes], "RGBA").resize(picture.size, Image.Resampling.NEAREST)
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


def side_by_side(pictures: Sequence[Any], height: int = 128) -> Any:
    """PIL pictures next to each other as one, none higher than `height`."""
    from PIL import Image

    high = min(height, max(picture.height for picture in pictures))
    small = [p.resize((max(1, round(p.width * high / p.height)), high)) for p in pictures]
    strip, at = Image.new("RGB", (sum(p.width for p in small), high)), 0
    for picture in small:
        strip.paste(picture, (at, 0))
        at += picture.width
    return strip


def boxed(picture: Any, boxes: Sequence[Mapping[str, Any]]) -> Any:
    """The picture with boxes drawn on it, each with its label.

    Args:
        picture: a PIL image.
        boxes: mappings with `box`, pixels (left, top, right, bottom), and perhaps `label` and `score`.
    """
    from PIL import ImageDraw

    drawn = picture.convert("RGB")
    draw = ImageDraw.Draw(drawn)
    kinds = list(dict.fromkeys(str(one.get("label", "")) for one in boxes))
    for one in boxes:
        label = str(one.get("label", ""))
        colour = COLOURS[kinds.index(label) % len(COLOURS)]
        left, top, right, bottom = one["box"]
        draw.rectangle((left, top, right, bottom), outline=colour, width=max(1, min(drawn.size) // 150))
        told = f"{label} {one['score']:.2f}".strip() if "score" in one else label
        if told:
            place = draw.textbbox((left + 2, top + 1), told)
            draw.rectangle(place, fill=colour)
            draw.text((left + 2, top + 1), told, fill=(0, 0, 0))
    return drawn
