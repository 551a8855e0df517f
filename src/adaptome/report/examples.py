"""Examples with their predictions as HTML cards: marked text, pictures, rankings."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

from adaptome.report.charts import COLOURS
from adaptome.report.shown import Ranked, Shown, Span

#: pixels of the longer side of a picture, and characters of a text, that a page shows
SIDE, CHARACTERS = 360, 1500
#: pixels that the longer side of a tiny picture is shown at, at least
TINY = 96


def card(shown: Shown, truth: str | None, right: bool | None, number: int) -> str:
    """One example: its text or pictures, its answer, the truth where there is one, and whether they agree."""
    verdict = {True: "right", False: "wrong", None: ""}[right]
    mark = f'<span class="verdict {verdict}">{verdict}</span>' if verdict else ""
    told = [("answer", shown.answer), ("truth", truth or "")]
    rows = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in told if value)
    pictures = {"input": shown.picture, **shown.made} if shown.picture is not None else shown.made
    drawn = "".join(picture(one, f"example {number}: {name}", name) for name, one in pictures.items())
    body = [
        f"<h3>Example {number}{mark}</h3>",
        f'<div class="pictures">{drawn}</div>' if drawn else "",
        f'<p class="given">{marked(shown.text, shown.spans)}</p>' if shown.text else "",
        f"<dl>{rows}</dl>" if rows else "",
        ranking(shown.ranked, shown.bounded) if shown.ranked else "",
    ]
    return f'<article class="example">{"".join(body)}</article>'


def marked(text: str, spans: Sequence[Span]) -> str:
    """The text with its spans marked, each with its label behind it; a span within another is left out."""
    labels = list(dict.fromkeys(span.label for span in spans))
    parts, at, last = [], 0, min(len(text), CHARACTERS)
    for start, end, label in sorted(spans):
        if start < at or end > last:
            continue
        colour = labels.index(label) % COLOURS
        parts.append(escape(text[at:start]))
        parts.append(f'<mark class="c{colour}">{escape(text[start:end])} <b>{escape(label)}</b></mark>')
        at = end
    return "".join(parts) + escape(text[at:last]) + ("…" if last < len(text) else "")


def ranking(ranked: Sequence[Ranked], bounded: bool) -> str:
    """Answers with their scores; probabilities have a bar each."""
    items = []
    for answer, score, note in ranked:
        bar = f'<i style="--part:{min(max(score, 0.0), 1.0):.3f}"></i>' if bounded else ""
        said = f" <small>{escape(note)}</small>" if note else ""
        number = f"{score:.1%}" if bounded else f"{score:.3g}"
        items.append(f"<li><span>{escape(answer)}{said}</span><b>{number}</b>{bar}</li>")
    return f'<ol class="ranked">{"".join(items)}</ol>'


def picture(image: Any, alternative: str, caption: str) -> str:
    """A PIL image within the page, made small; a tiny one is shown larger, its pixels as squares."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    larger = max(1, -(-TINY // max(small.size)))
    held = io.BytesIO()
    small.save(held, "PNG")
    data = base64.b64encode(held.getvalue()).decode()
    return (
        f'<figure class="picture"><img{" class=tiny" if larger > 1 else ""} alt="{escape(alternative, quote=True)}" width="{larger * small.width}" height="{larger * small.height}" '
        f'src="data:image/png;base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'
    )
