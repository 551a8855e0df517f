"""A report stands alone, escapes everything, and says in words what its drawings show."""

import os
import re
from html.parser import HTMLParser
from typing import ClassVar

import pytest

from adaptome.report import Bars, Curves, Report
from adaptome.report.charts import ticks
from adaptome.report.tables import flatten, show

NASTY = "<script>alert('x')</script> & \"quoted\" https://example.org"


class Page(HTMLParser):
    """Collects the tags with their attributes, and checks that they nest."""

    VOID: ClassVar = {"meta", "br", "img", "path", "rect", "circle"}  # the shapes are written <path .../>

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.stack, self.words = [], [], []
        self.feed(html)
        assert not self.stack, self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def full_report(text=NASTY):
    return (
        Report(text, text)
        .section(text, text)
        .facts({text: text, "count": 12345})
        .table([{"method": text, "accuracy": 0.5}, {"method": "b", "accuracy": 0.75}], caption=text,
               formats={"accuracy": ".1%"}, best={"accuracy": "max"})
        .section("More")
        .curves(Curves(text, {text: [(1, 2.0), (2, 1.0)], "b": [(1, float("nan")), (2, 3.0)]}, x=text, y=text))
        .bars(Bars(text, {text: 3.0, "b": None}, ranges={text: (2.0, 4.0)}))
        .confusion([[3, 1], [0, 4]], [text, "b"], caption=text)
        .settings({"a": {text: text}}, caption=text)
    )  # fmt: skip


def test_nothing_is_loaded_and_nothing_runs():
    html = full_report().html()
    page = Page(html)
    for tag, attrs in page.tags:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "base", "image", "use"}
        assert not {"src", "srcset", "xlink:href", "action", "data"} & set(attrs)
        assert not any(name.startswith("on") for name in attrs)
        assert attrs.get("href", "#").startswith("#")
    assert "@import" not in html and "url(" not in html
    assert "default-src 'none'" in html


def test_every_text_is_escaped_and_still_there():
    page = Page(full_report().html())
    assert not page.all("script")
    assert page.words.count(NASTY) >= 10
    assert any(NASTY in attrs.get("title", "") for attrs in page.all("td"))


def test_drawings_have_titles_and_descriptions_and_tables_have_headings():
    html = full_report("plain").html()
    page = Page(html)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for drawing in page.all("svg"):
        if "aria-hidden" not in drawing:
            assert drawing["role"] == "img" and set(drawing["aria-labelledby"].split()) <= set(ids)
    for attrs in [*page.all("section"), *page.all("a")]:
        assert (attrs.get("aria-labelledby") or attrs["href"][1:]) in ids
    assert len(page.all("table")) == len(page.all("caption")) == 3
    assert all("scope" in attrs for attrs in page.all("th"))
    assert "plain ends at 1; b ends at 3" in html


def test_the_best_value_of_a_column_is_marked():
    html = full_report("plain").html()
    assert re.search(r"<strong>75.0%</strong>", html) and "<strong>50.0%</strong>" not in html


def test_the_confusion_matrix_shows_counts_shares_and_recall():
    html = Report("t").confusion([[3, 1], [0, 4]], ["a", "b"], caption="c").html()
    assert 'title="a taken for b: 1 of 4 (25%)">1</td>' in html
    assert html.count('class="recall">75%<') == 1 and html.count('class="recall">100%<') == 1
    with pytest.raises(ValueError, match=r"2 x 2; found rows of \[2\]"):
        Report("t").confusion([[1, 2]], ["a", "b"], caption="c")


def test_bars_grow_with_their_values():
    html = Report("t").bars(Bars("seconds", {"a": 1.0, "b": 4.0, "c": None})).html()
    widths = [float(w) for w in re.findall(r'class="bar c\d" x="0" y="\d+" width="([\d.]+)"', html)]
    assert len(widths) == 2 and widths[1] == pytest.approx(4 * widths[0], rel=1e-2)
    assert "not measured" in html


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.31, 0.82, [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        (5, 5, None),
        (-3e-9, 2e-9, None),
        (0.625, 0.625 + 1e-15, None),
    ],
)
def test_ticks_are_round_and_cover_the_range(low, high, expected):
    found = ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 3 <= len(found) <= 9
    assert expected is None or found == pytest.approx(expected)


def test_empty_charts_and_tables_are_drawn():
    Page(
        Report("t").curves(Curves("c", {"a": []}, "x", "y")).bars(Bars("b", {})).table([], caption="t").html()
    )


def test_values_are_written_for_people():
    assert [show(v) for v in (None, True, 1234567, 0.123456, ["a", 1], "x")] == [
        "–", "yes", "1,234,567", "0.1235", "a, 1", "x"]  # fmt: skip
    assert flatten({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}


def test_writing_replaces_the_file_whole_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = Report("first").write(tmp_path / "new" / "report.html")
    Report("second").write(path)
    assert "second" in path.read_text(encoding="utf-8") and os.listdir(path.parent) == ["report.html"]

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Report("third").write(path)
    assert "second" in path.read_text(encoding="utf-8") and os.listdir(path.parent) == ["report.html"]
