"""HTML tables: values under headings, and confusion matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

MISSING = "–"


def show(value: object, spec: str = "") -> str:
    """A value as text: a given format, thousands separated, four digits of a float, a dash for None."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return format(value, spec or ",")
    if isinstance(value, float):
        return format(value, spec or ".4g")
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(show(item) for item in value) or MISSING
    return str(value)


def flatten(nested: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, object] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def table(
    rows: Sequence[Mapping[str, object]],
    *,
    caption: str,
    formats: Mapping[str, str],
    best: Mapping[str, str],
    kind: str = "values",
) -> str:
    """See `Report.table`."""
    columns = list(rows[0]) if rows else []
    winners = {column: _best(rows, column, direction) for column, direction in best.items()}
    numeric = {c for c in columns if all(isinstance(row.get(c), (int, float, type(None))) for row in rows)}
    head = "".join(f'<th scope="col"{_class(c in numeric, "number")}>{escape(c)}</th>' for c in columns)
    body = []
    for row in rows:
        cells = []
        for i, column in enumerate(columns):
            value, is_number = row.get(column), column in numeric
            text = escape(show(value, formats.get(column, "")))
            if value is not None and value == winners.get(column):
                text = f'<strong>{text}</strong><span class="unseen"> (best)</span>'
            tag, scope = ("th", ' scope="row"') if i == 0 else ("td", "")
            kind_of_cell = "number" if is_number else "long" if len(text) > 40 else "short"
            cells.append(f'<{tag}{scope} class="{kind_of_cell}">{text}</{tag}>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    return _scroll(
        f'<table class="{kind}"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>",
        caption,
    )


def confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str], *, caption: str) -> str:
    """See `Report.confusion`. Each row is shaded by its shares; the last column is the recall."""
    if len(matrix) != len(labels) or any(len(row) != len(labels) for row in matrix):
        raise ValueError(
            f"a confusion matrix of {len(labels)} labels is {len(labels)} x {len(labels)}; "
            f"found rows of {[len(row) for row in matrix]} entries."
        )
    head = "".join(f'<th scope="col"><span>{escape(label)}</span></th>' for label in labels)
    body = []
    for i, (label, row) in enumerate(zip(labels, matrix, strict=True)):
        total = sum(row)
        cells = "".join(_cell(i, j, count, total, labels) for j, count in enumerate(row))
        recall = f"{row[i] / total:.0%}" if total else MISSING
        body.append(f'<tr><th scope="row">{escape(label)}</th>{cells}<td class="recall">{recall}</td></tr>')
    return _scroll(
        f'<table class="confusion"><caption>{escape(caption)}</caption><thead>'
        f'<tr><td></td><th scope="colgroup" colspan="{len(labels)}">predicted</th><td></td></tr>'
        f'<tr><th scope="col">true</th>{head}<th scope="col"><span>recall</span></th></tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>",
        caption,
    )


def _cell(i: int, j: int, count: int, total: int, labels: Sequence[str]) -> str:
    if not count:
        return '<td><span class="unseen">0</span></td>'
    share = count / total
    kind = ("right" if i == j else "wrong") + (" strong" if share > 0.55 else "")
    told = escape(f"{labels[i]} taken for {labels[j]}: {count} of {total} ({share:.0%})", quote=True)
    # A floor under the shade: one example in fifty is still seen.
    return f'<td class="{kind}" style="--share:{max(share, 0.06):.2f}" title="{told}">{count}</td>'


def _best(rows: Sequence[Mapping[str, object]], column: str, direction: str) -> object:
    values = [value for row in rows if isinstance(value := row.get(column), (int, float))]
    return {"max": max, "min": min}[direction](values) if len(values) > 1 else None


def _class(wanted: bool, name: str) -> str:
    return f' class="{name}"' if wanted else ""


def _scroll(html: str, label: str) -> str:
    """A wide table scrolls inside its own region, reachable by keyboard, and leaves the page where it is."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label, quote=True)}">{html}</div>'
