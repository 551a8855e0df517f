"""One HTML file that shows the outcome of a run: open it anywhere, send it by mail, read it on a phone.

The file loads nothing (a content security policy in it says so): style sheet and drawings stand inline, and there
is no script; pictures are part of the file. It follows the reader's light or dark setting.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from adaptome.core.files import write_atomic
from adaptome.report import charts, examples, tables
from adaptome.report.scatter import Dots, Scatter, dots, scatter
from adaptome.report.shown import Shown
from adaptome.report.style import STYLE

_EXAMPLES = '<div class="examples">'


class Report:
    """A page that is built from top to bottom; every method adds a piece and returns the report.

    >>> report = Report("A run", "What it is about.").section("Results")
    >>> _ = report.table([{"method": "lora", "accuracy": 0.81}], caption="Accuracy", formats={"accuracy": ".1%"})
    >>> _ = report.write("report.html")                                                    # doctest: +SKIP

    All text is escaped: names, labels and examples may hold any characters.
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self.title = title
        self._parts: list[str] = []
        self._contents: list[tuple[str, str]] = []
        self._open = False
        self._figures = 0
        self._examples = 0
        self._lead = lead

    def section(self, heading: str, text: str = "") -> Report:
        """Begins a section; what is added next belongs to it."""
        self._close_section()
        anchor = f"section-{len(self._contents) + 1}"
        self._contents.append((anchor, heading))
        self._parts.append(f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{escape(heading)}</h2>')
        self._open = True
        return self.text(text) if text else self

    def text(self, paragraph: str) -> Report:
        """Adds a paragraph."""
        return self._add(f"<p>{escape(paragraph)}</p>")

    def facts(self, facts: Mapping[str, object]) -> Report:
        """Adds a row of tiles, one figure each: {"best accuracy": "80.7 %"}."""
        tiles = "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(tables.show(value))}</dd></div>"
            for name, value in facts.items()
        )
        return self._add(f'<dl class="facts">{tiles}</dl>')

    def table(
        self,
        rows: Sequence[Mapping[str, object]],
        *,
        caption: str,
        formats: Mapping[str, str] | None = None,
        best: Mapping[str, str] | None = None,
    ) -> Report:
        """Adds a table with the keys of the first row as headings and the first column as row headings.

        Args:
            rows: one mapping per row, column name to value; a missing value shows as a dash.
            caption: what the table holds.
            formats: column name to a format specification, such as ".1%" or ",".
            best: column name to "max" or "min": the best value of that column is marked.
        """
        return self._add(tables.table(rows, caption=caption, formats=formats or {}, best=best or {}))

    def settings(self, settings: Mapping[str, object], *, caption: str) -> Report:
        """Adds a table of names and values, nested mappings by dotted names."""
        rows = [{"setting": name, "value": value} for name, value in tables.flatten(settings).items()]
        return self._add(tables.table(rows, caption=caption, formats={}, best={}, kind="settings"))

    def curves(self, *panels: charts.Curves) -> Report:
        """Adds line charts, side by side where the page is wide enough."""
        return self._charts([charts.curves(panel, self._id()) for panel in panels])

    def bars(self, *panels: charts.Bars) -> Report:
        """Adds bar charts, side by side where the page is wide enough."""
        return self._charts([charts.bars(panel, self._id()) for panel in panels])

    def points(self, *panels: Scatter | Dots) -> Report:
        """Adds charts of points, side by side where the page is wide enough."""
        drawn = [scatter(p, self._id()) if isinstance(p, Scatter) else dots(p, self._id()) for p in panels]
        return self._charts(drawn)

    def heat_maps(self, *panels: charts.HeatMap) -> Report:
        """Adds heat maps, side by side where the page is wide enough."""
        return self._charts([charts.heat_map(panel, self._id()) for panel in panels])

    def confusion(self, matrix: Sequence[Sequence[int]], labels: Sequence[str], *, caption: str) -> Report:
        """Adds a confusion matrix: `matrix[i][j]` examples of label i were given label j.

        Raises:
            ValueError: the matrix is not square or does not fit the labels.
        """
        return self._add(tables.confusion(matrix, labels, caption=caption))

    def example(self, shown: Shown, *, truth: str | None = None, right: bool | None = None) -> Report:
        """Adds an input with its prediction; examples that follow each other stand side by side where there is room.

        Args:
            shown: the input and the prediction.
            truth: what would have been right, where it is known.
            right: whether the prediction is.
        """
        self._examples += 1
        html = examples.card(shown, truth, right, self._examples)
        if self._parts and self._parts[-1].startswith(_EXAMPLES):
            self._parts[-1] = f"{self._parts[-1].removesuffix('</div>')}{html}</div>"
            return self
        return self._add(f"{_EXAMPLES}{html}</div>")

    def listing(self, text: str, *, caption: str) -> Report:
        """Adds a text as it is, such as a file, folded away until it is asked for."""
        return self._add(f"<details><summary>{escape(caption)}</summary><pre>{escape(text)}</pre></details>")

    def html(self) -> str:
        """The whole document."""
        links = "".join(f'<li><a href="#{anchor}">{escape(name)}</a></li>' for anchor, name in self._contents)
        contents = f'<nav aria-label="Contents"><ol>{links}</ol></nav>' if len(self._contents) > 1 else ""
        lead = f'<p class="lead">{escape(self._lead)}</p>' if self._lead else ""
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f"<header><h1>{escape(self.title)}</h1>{lead}{contents}</header>\n<main>\n"
            + "\n".join(self._parts)
            + ("</section>" if self._open else "")
            + "\n</main>\n</body>\n</html>\n"
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Writes the document; the file appears whole or not at all. Missing folders are made."""
        Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
        return write_atomic(path, self.html())

    def _add(self, html: str) -> Report:
        self._parts.append(html)
        return self

    def _charts(self, figures: list[str]) -> Report:
        return self._add(f'<div class="charts">{"".join(figures)}</div>')

    def _id(self) -> str:
        self._figures += 1
        return f"figure-{self._figures}"

    def _close_section(self) -> None:
        if self._open:
            self._parts.append("</section>")
