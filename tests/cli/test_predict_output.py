"""`adaptome predict --output`: a line for every input, and the answers that are pictures as files."""

import json

import numpy as np
from PIL import Image

from adaptome.cli.predict import _write
from adaptome.report import Shown
from adaptome.tasks.showing import plain, shown


def test_every_input_has_a_line_and_every_picture_a_file_of_its_own(tmp_path):
    names = ["photos/lake view.jpg", "more/lake view.png", "a sentence / with signs?", "../.."]
    picture = Image.new("RGB", (6, 4), (200, 10, 10))
    found = [{"mask": np.array([[0, 1], [1, 1]]), "score": np.float32(0.5)}, {"mask": np.zeros((2, 2), int)}, {"label": "größer"}, {"label": "b"}]  # fmt: skip
    given = [picture, picture, None, None]
    made = [shown(name, one, image) for name, one, image in zip(names, found, given, strict=True)]
    _write(tmp_path / "new" / "out", names, made, [plain(one) for one in found])
    lines = (tmp_path / "new" / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    told = [json.loads(line) for line in lines]
    assert [one["input"] for one in told] == names
    assert [one["prediction"] for one in told] == [{"score": 0.5}, {}, {"label": "größer"}, {"label": "b"}]
    assert [one.get("pictures") for one in told] == [{"mask": "lake-view-mask.png"}, {"mask": "lake-view-2-mask.png"}, None, None]  # fmt: skip
    assert "größer" in lines[2]
    files = sorted(path.name for path in (tmp_path / "new" / "out").iterdir())
    assert files == ["lake-view-2-mask.png", "lake-view-mask.png", "predictions.jsonl"]
    drawn = np.asarray(Image.open(tmp_path / "new" / "out" / "lake-view-mask.png"))
    assert drawn.shape == (4, 6, 3) and (drawn[0, 0] == (200, 10, 10)).all() and drawn[3, 5, 2] != 10


def test_written_again_the_lines_are_replaced_and_other_files_stay(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    for answer in ("old", "new"):
        _write(tmp_path, ["x"], [Shown(answer)], [{"label": answer}])
    assert json.loads((tmp_path / "predictions.jsonl").read_text())["prediction"] == {"label": "new"}
    assert (tmp_path / "mine.txt").read_text() == "kept"
