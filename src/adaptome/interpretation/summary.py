"""Heads, directions and texts of one adapter in one result that prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from adaptome.core.errors import StateError
from adaptome.core.state import attachment_of
from adaptome.interpretation.directions import DirectionChange, direction_changes
from adaptome.interpretation.heads import HeadChange, Labels, Score, head_changes
from adaptome.interpretation.texts import WRITERS, TextSpace, describe
from adaptome.report import Bars, Report

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True)
class Interpretation:
    """What an adapter changed most. Prints as tables.

    Attributes:
        adapter: its name, and `method` the method's.
        heads: the most changed attention heads; `total` of them were ranked.
        directions: the most changed directions.
        chance: backbone of directions with texts -> the cosine of a random direction with its nearest text.
        note: why something is missing.
    """

    adapter: str
    method: str
    heads: tuple[HeadChange, ...]
    total: int
    directions: tuple[DirectionChange, ...]
    chance: dict[str, float]
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        plain = {key: getattr(self, key) for key in ("adapter", "method", "total", "chance", "note")}
        lists = {key: [row.to_dict() for row in getattr(self, key)] for key in ("heads", "directions")}
        return {**plain, **lists}

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=120)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table

        for title, rows, _ in self._tables():
            table = Table(*rows[0], title=title, title_justify="left")
            for row in rows:
                table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else cell for cell in row.values()))
            table.columns[0].overflow = "fold"
            for column, cell in zip(table.columns, rows[0].values(), strict=True):
                column.justify = "right" if isinstance(cell, float) else "left"
            yield table
        yield from self._remarks()

    def page(self) -> Report:
        """The same as an HTML page, with charts."""
        lead = f"Heads and directions that the adapter, trained with {self.method}, changed most."
        report = Report(f"What {self.adapter} changed", lead)
        for title, rows, size in self._tables():
            report.section(title).bars(Bars(title, size, one_colour=True)).table(rows, caption=title)
        for remark in self._remarks():
            report.text(remark)
        return report

    def _remarks(self) -> list[str]:
        chance = [
            f"In {path} a random direction's nearest text has cosine {cosine:.2f} on average: a description must exceed that."
            for path, cosine in self.chance.items()
        ]
        return [*chance, *([self.note] if self.note else [])]

    def _tables(self) -> list[tuple[str, list[dict[str, Any]], dict[str, float | None]]]:
        """Title, rows and what a chart shows, of what there is."""
        parts = dict.fromkeys(part for h in self.heads for part in h.parts)
        shares = any(d.score != abs(d.change) for d in self.directions)
        heads = [
            {"head": f"{h.attention} {h.head}", "change": h.score}
            | {part: h.parts.get(part, 0.0) for part in parts}
            | ({"label": h.label or ""} if any(h.label for h in self.heads) else {})
            for h in self.heads
        ]
        directions = [
            {"direction": f"{d.layer} {d.index}", "before": d.before, "change": d.change}
            | ({"share": d.score} if shares else {})
            | ({"towards": _texts(d.towards), "against": _texts(d.against)} if self.chance else {})
            for d in self.directions
        ]
        tables: list[tuple[str, list[dict[str, Any]], dict[str, float | None]]] = []
        if heads:
            sizes = {str(row["head"]): h.score for row, h in zip(heads, self.heads, strict=True)}
            tables.append((f"The most changed of {self.total} heads", heads, {**sizes}))
        if directions:
            sizes = {
                str(row["direction"]): d.score for row, d in zip(directions, self.directions, strict=True)
            }
            tables.append(("The most changed directions", directions, {**sizes}))
        return tables


def interpret(
    model: nn.Module,
    name: str = "default",
    *,
    top: int = 10,
    score: Score = "norm",
    relative: bool = False,
    parts: Sequence[str] = ("v", "o"),
    labels: Labels | None = None,
    space: TextSpace | None = None,
) -> Interpretation:
    """The heads and directions that an adapter changed most, and what is known of them.

    Args:
        model: with the adapter.
        name: of the adapter.
        top: how many of each.
        score, parts, labels: of heads, see `head_changes`.
        relative: see `head_changes` and `direction_changes`.
        space: texts to describe directions by, see `text_space`; directions that have none are then left out.

    Raises:
        StateError: the adapter is on no weight matrix, or labels or another score are asked of heads that cannot be ranked.
        MergeError: it changes activations, not weights.
        TargetError: labels do not fit the model.
    """
    written = [a.host.role for a in attachment_of(model, name).adapters.values() if a.host.role in WRITERS]
    roles = WRITERS if space is not None and written else None
    directions = direction_changes(model, name, top=top, relative=relative, roles=roles)
    heads: tuple[HeadChange, ...] = ()
    note = ""
    try:
        heads = head_changes(model, name, score=score, relative=relative, parts=parts, labels=labels)
    except StateError as error:
        if labels or score != "norm":
            raise
        note = f"No heads: {error}"
    chance = {}
    if space is not None:
        directions = describe(directions, space)
        told = [space.reader(d.layer) for d in directions if d.towards]
        chance = {path: space.chance(r) for path, r in space.readers.items() if any(r is t for t in told)}
        if not any(d.towards for d in directions):
            note = f"{note}\nNo texts: none of these directions is written into a residual stream by an attention output or an MLP's down map.".strip()
    method = attachment_of(model, name).method.name
    return Interpretation(name, method, heads[:top], len(heads), directions, chance, note)


def _texts(found: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{text} ({cosine:.2f})" for text, cosine in found)
