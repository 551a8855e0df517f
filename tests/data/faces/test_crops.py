"""Faces by a detector or a file of boxes, and their crops."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from adaptome.core.errors import DataError
from adaptome.data.faces.crops import POINTS, Boxes, Detector, Face, crop, face_of, largest, similarity

FACE = Face(np.array([10.0, 20.0, 50.0, 60.0]))


def picture(width: int = 90, height: int = 80) -> Image.Image:
    """Red tells x, green y."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8))


def test_the_largest_face_is_taken():
    small = Face(np.array([0.0, 0, 5, 5]))
    assert largest([small, FACE]) is FACE and largest([]) is None


def test_a_crop_is_the_boxs_square_enlarged():
    made = np.asarray(crop(picture(), FACE, 1.3))
    assert made.shape == (52, 52, 3)  # 1.3 of 40
    np.testing.assert_allclose(made[26, 26, :2], [30, 40], atol=1)  # the middle stays the middle
    np.testing.assert_allclose(made[0, 0, :2], [4, 14], atol=1)


def test_what_is_outside_the_picture_is_black():
    made = np.asarray(crop(picture(), Face(np.array([-20.0, -20, 20, 20])), 1.0))
    assert made[:19, :19].max() == 0 and made[-1, -1, 0] > 10


def test_points_are_brought_to_their_places():
    angle, size, at = np.radians(25), 40.0, np.array([45.0, 38.0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (POINTS - 0.5) * size @ turn.T + at
    for scale in (1.0, 1.3):
        made = np.asarray(crop(picture(), Face(FACE.box, points), scale)).astype(float)
        assert abs(len(made) - size * scale) <= 1
        for wanted, there in zip((POINTS - 0.5) / scale + 0.5, points, strict=True):
            x, y = np.round(wanted * len(made) - 0.5).astype(int)
            np.testing.assert_allclose(made[y, x, :2], there - 0.5, atol=1.5)


def test_a_similarity_is_found_exactly_and_never_mirrors():
    rng = np.random.default_rng(0)
    turn = 1.7 * np.array([[0.6, -0.8], [0.8, 0.6]])
    source = rng.normal(size=(5, 2))
    found = similarity(source, source @ turn.T + [3, -2])
    np.testing.assert_allclose(found, np.hstack([turn, [[3], [-2]]]), atol=1e-12)
    mirrored = similarity(source, source * [-1, 1])
    assert np.linalg.det(mirrored[:, :2]) > 0


def program(tmp_path, body: str) -> Detector:
    script = tmp_path / "detect.py"
    script.write_text(f"import json, sys\n{body}\n")
    return Detector(f"{sys.executable} {script}", seconds=30)


def test_a_detector_is_asked_once_for_all_pictures(tmp_path):
    finder = program(
        tmp_path,
        "from PIL import Image\nfor p in sys.argv[1:]:\n    w, h = Image.open(p).size\n"
        "    print(json.dumps([{'box': [0, 0, w, h]}] if w > 50 else []))",
    )
    found = finder([picture(), picture(30)])
    assert [len(faces) for faces in found] == [1, 0] and found[0][0].box.tolist() == [0, 0, 90, 80]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.exit('no weights')", "failed with 1: no weights"),
        ("print('[]')", "printed 1 lines for 2 pictures"),
        ("print('face')\nprint('[]')", "line 1 is not JSON"),
        ("print('{}')\nprint('[]')", "expected a JSON list"),
        ("print('[{\"box\": [5, 5, 1, 9]}]')\nprint('[]')", "expected .left, top, right, bottom."),
    ],
)
def test_a_detectors_faults_are_told(tmp_path, body, message):
    with pytest.raises(DataError, match=message):
        program(tmp_path, body)([picture(), picture()])


def test_a_detector_that_is_not_there():
    with pytest.raises(DataError, match="cannot be run"):
        Detector("no-such-program-here")([picture()])


def test_boxes_of_a_file(tmp_path):
    picture().save(tmp_path / "a.png")
    rows = [
        {"file": "a.png", "box": [0, 0, 4, 4]},
        {"file": "a.png", "box": [1, 1, 9, 9], "points": POINTS.tolist()},
        {"file": "clip.mp4", "frame": 7, "box": [0, 0, 4, 4]},
    ]
    (tmp_path / "boxes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    boxes = Boxes(tmp_path / "boxes.jsonl")
    assert len(boxes.of(tmp_path / "a.png")) == 2 and largest(boxes.of(tmp_path / "a.png")).points is not None
    assert boxes.of(tmp_path / "b.png") == []
    (tmp_path / "bad.jsonl").write_text('{"box": [0, 0, 1, 1]}\n')
    with pytest.raises(DataError, match="line 1: no 'file'"):
        Boxes(tmp_path / "bad.jsonl")


def test_points_must_be_five_pairs():
    with pytest.raises(DataError, match="five pairs"):
        face_of({"box": [0, 0, 1, 1], "points": [[1, 2]]}, "here")
