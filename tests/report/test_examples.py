"""Examples on a page: marked text, pictures within the file, rankings."""

import numpy as np
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
