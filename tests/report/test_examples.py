"""Examples on a page: marked text, pictures within the file, rankings."""

import numpy as np
import pytest
from PIL import Image

from adaptome.report import Ranked, Report, Shown, Span, boxed, overlaid
from adaptome.report.examples import marked
from tests.report.test_report import Page


def test_spans_are_marked_and_everything_is_escaped():
    html = marked("a <b> cat & dog", [Span(6, 9, "ani<mal"), Span(12, 15, "x")])
    assert html.startswith("a &lt;b&gt; <mark") and "ani&lt;mal" in html and html.count("<mark") == 2
    assert marked("abcd", [Span(0, 3, "outer"), Span(1, 2, "inner")]).count("<mark") == 1


def test_a_page_holds_its_pictures_and_loads_nothing():
    picture = Image.fromarray(np.zeros((40, 900, 3), np.uint8))
    shown = Shown(
        "a lake", picture=picture, made={"mask": picture}, ranked=(Ranked("lake", 0.9), Ranked("sea", 0.1))
    )
    html = Report("t").section("s").example(shown, truth="lake", right=True).example(Shown("b")).html()
    page = Page(html)
    images = page.all("img")
    assert len(images) == 2 and all(
        i["src"].startswith("data:image/png;base64,") and i["alt"] for i in images
    )
    assert (
        images[0]["width"] == "360"
        and "img-src data:" in html
        and "http://" not in html
        and "https://" not in html
    )
    assert html.count('class="examples"') == 1 and html.count("<article") == 2 and ">right<" in html


def test_a_mask_colours_its_classes_and_leaves_the_ground_clear():
    picture = Image.new("RGB", (8, 4), (100, 100, 100))
    drawn = np.asarray(overlaid(picture, [[0, 1], [2, 1]]))
    assert drawn.shape == (4, 8, 3)
    assert (drawn[0, 0] == 100).all() and (drawn[0, 7] == drawn[3, 7]).all()
    assert len({tuple(drawn[y, x]) for y, x in [(0, 0), (0, 7), (3, 0)]}) == 3


def test_boxes_are_drawn_where_they_are():
    drawn = np.asarray(boxed(Image.new("RGB", (60, 60)), [{"box": (10, 20, 50, 50)}]))
    assert drawn[20, 30].any() and drawn[50, 30].any() and not drawn[30, 30].any() and not drawn[5, 5].any()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.slow
def test_a_browser_shows_it_without_a_complaint_or_a_request(scheme, tmp_path):
    import shutil
    import subprocess

    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium here")
    picture = Image.new("RGB", (50, 50), (200, 30, 30))
    report = (
        Report("A run")
        .section("Examples")
        .example(Shown("red", picture=picture, text="a cat", spans=(Span(2, 5, "animal"),)))
    )
    path, log = report.write(tmp_path / "report.html"), tmp_path / "net.json"
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    shot = tmp_path / "shot.png"
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--window-size=500,900",
         f"--log-net-log={log}", *dark, f"--screenshot={shot}", f"file://{path}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3)
    assert (pixels == (200, 30, 30)).all(1).sum() > 1000, "the picture is shown"
    assert (pixels[0].mean() < 100) is (scheme == "dark")
