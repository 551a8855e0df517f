"""The computed documentation: up to date, complete, strict, and without a request to anywhere."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

import adaptome as ad

from .pages import ROOT, generate

import figure  # isort: skip  (docs/figure.py, on the path by .pages)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly: a warning fails the build."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_method_has_a_page_with_its_options_and_counts(site):
    for name, cls in ad.list_methods().items():
        page = (site / "methods" / f"{name}.html").read_text(encoding="utf-8")
        assert all(f"<code>{option['name']}</code>" in page for option in cls.about()["options"])
        for model in generate.MODELS:
            count = generate.planned(cls, model)
            assert (f"<td>{count:,}</td>" if count is not None else "none of its targets") in page


def test_the_size_of_lora_is_drawn(site):
    page = (site / "methods" / "lora.html").read_text(encoding="utf-8")
    assert "On Llama-3.2-1B, by <code>r</code>" in page
    assert "<svg" in page


def test_every_public_name_is_in_the_reference(site):
    page = (site / "reference" / "python.html").read_text(encoding="utf-8")
    missing = [n for n in ad.__all__ if n != "errors" and f'id="adaptome.{n}"' not in page]
    assert missing == []


def test_pages_load_nothing_from_elsewhere(site):
    """Fonts, scripts, styles and pictures are the site's own."""
    loading = re.compile(
        r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?:https?:)?//|<link\b[^>]*\bhref=\"?(?:https?:)?//[^>]*stylesheet"
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    assert [str(p) for p in pages if loading.search(p.read_text(encoding="utf-8"))] == []
    assert not any(
        re.search(r"@import|url\((?:https?:)?//", p.read_text(encoding="utf-8")) for p in site.rglob("*.css")
    )


def test_the_readme_is_up_to_date(capsys):
    assert generate.main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_readme_is_told(tmp_path, monkeypatch, capsys):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "README.md").write_text(text.replace("| [`lora`]", "| [`lara`]"), encoding="utf-8")
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    assert generate.main(["--check"]) == 1
    assert "+| [`lora`]" in capsys.readouterr().err
    assert generate.main([]) == 0
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == text


def test_missing_markers_are_an_error():
    with pytest.raises(ValueError, match="generated: methods"):
        generate.fill("no markers here", "methods", "| a |")


def test_a_docstring_becomes_prose_equation_and_table():
    class Example:
        """Example: what it does.

            y = W x

        shapes      W [out, in]
        init        'zero': zero,
                    then more
                    'one': 1

        Use it when | there is a reason.
        """

    assert generate.body(Example).split("\n\n") == [
        "```text\ny = W x\n```",
        "| | |\n| --- | --- |\n| shapes | W [out, in] |\n| init | 'zero': zero, then more<br>'one': 1 |",
        "Use it when | there is a reason.",
    ]


def test_the_chart_places_points_on_logarithmic_axes():
    xs, ys = [1, 2, 4, 8], [1000, 2000, 4000, 8000]
    svg = ElementTree.fromstring(figure.line_chart(xs, ys, "r", "parameters"))
    circles = [c for c in svg.iter() if c.tag.endswith("circle")]
    assert [c[0].text for c in circles] == ["1,000", "2,000", "4,000", "8,000"]
    steps = [float(b.get("cx")) - float(a.get("cx")) for a, b in itertools.pairwise(circles)]
    assert max(steps) - min(steps) < 0.2
    assert float(circles[0].get("cy")) > float(circles[-1].get("cy"))


@pytest.mark.parametrize(
    ("count", "shown"), [(950, "950"), (12_000, "12k"), (3_400_000, "3.4M"), (1_100_000_000, "1.1G")]
)
def test_counts_are_shortened(count, shown):
    assert figure.short(count) == shown
