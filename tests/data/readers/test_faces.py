"""Faces in the layouts of LFW, TinyFace and IJB."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptome.core.errors import DataError
from adaptome.data import load_splits
from adaptome.data.readers import ReadOptions
from adaptome.data.readers.faces import COLUMNS, read_faces

PREFER = {"text": "faces", "folder": "faces", "csv": "faces"}


def picture(path: Path, shade: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(path)
    return path


def read(path: Path):
    table = read_faces(path, ReadOptions())
    assert set(table.columns) == set(COLUMNS)
    return table


def test_folders_of_people_and_what_is_no_picture(tmp_path):
    for person in ("anna", "bo"):
        for n in range(2):
            picture(tmp_path / person / f"{n}.png")
    for n in range(5):
        (tmp_path / "bo" / f"x{n}.jpg").write_bytes(b"no picture")
    table = read(tmp_path)
    assert table.columns["label"] == ["anna", "anna", "bo", "bo"] and set(table.columns["role"]) == {""}
    (note,) = table.notes
    assert (
        "5 files cannot be read as pictures and are left out" in note
        and "x0.jpg" in note
        and "and 2 more" in note
    )
    splits = load_splits(train=str(tmp_path), prefer=PREFER, validation_fraction=0)
    assert splits["train"].where(1).endswith("anna/1.png") and note in splits.notes
    with pytest.raises(DataError, match="no folders of people"):
        read(tmp_path / "anna")


def test_gallery_probes_and_distractors(tmp_path):
    picture(tmp_path / "Gallery_Match" / "2_18.jpg")
    picture(tmp_path / "Gallery_Match" / "3_1.jpg")
    picture(tmp_path / "Gallery_Distractor" / "2.jpg")
    picture(tmp_path / "Probe" / "2" / "day_1" / "a.jpg")
    table = read(tmp_path)
    rows = list(zip(table.columns["label"], table.columns["role"], strict=True))
    assert rows == [("distractor 2.jpg", "distractor"), ("2", "gallery"), ("3", "gallery"), ("2", "probe")]
    with pytest.raises(DataError, match="no probe pictures; found Gallery"):
        picture(tmp_path / "half" / "Gallery" / "a" / "1.png")
        read(tmp_path / "half")


def lfw(root: Path, lines: str) -> Path:
    for name, count in (("Ann_Lee", 3), ("Bo", 2)):
        for n in range(1, count + 1):
            picture(root / "lfw" / name / f"{name}_{n:04}.jpg")
    (root / "pairs.txt").write_text(lines)
    return root / "pairs.txt"


def test_lfws_pairs(tmp_path):
    table = read(lfw(tmp_path, "2\t1\nAnn_Lee\t1\t2\nAnn_Lee\t1\tBo\t1\nBo\t1\t2\nAnn_Lee\t3\tBo\t2\n"))
    found = {
        Path(i).name: pairs for i, pairs in zip(table.columns["image"], table.columns["pairs"], strict=True)
    }
    assert found == {
        "Ann_Lee_0001.jpg": "0:0 0:1",
        "Ann_Lee_0002.jpg": "0:0",
        "Bo_0001.jpg": "0:1 1:2",
        "Bo_0002.jpg": "1:2 1:3",
        "Ann_Lee_0003.jpg": "1:3",
    }
    assert len(read(lfw(tmp_path, "1\nAnn_Lee 1 2\nAnn_Lee 1 Bo 1\n")).lines) == 3


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("Ann_Lee 1 2\n", "line 1: Ann_Lee 1 2; expected LFW's pairs"),
        (
            "1\nAnn_Lee 1 9\nAnn_Lee 1 Bo 1\n",
            "no folder of people beside it|line 2: no picture 9 of 'Ann_Lee'",
        ),
        ("1\nAnn_Lee 1 2\n", r"1 pairs, and its first line tells of 1 x 2 x 1 = 2"),
        ("1\nAnn_Lee 1 2\nAnn_Lee 1 Bo\n", "line 3: no picture Bo of 'Ann_Lee'"),
        ("1\nAnn_Lee 1 2\nAnn_Lee 1\n", "line 3: 'Ann_Lee 1'; expected 'name 1 4'"),
        ("1\nAnn_Lee\nAnn_Lee 1 Bo 1\n", "no folder of people beside it has Ann_Lee's picture"),
        ("1\nNobody 1 2\nAnn_Lee 1 Bo 1\n", "no folder of people beside it has Nobody's picture"),
    ],
)
def test_pairs_that_are_none_are_refused_by_line(tmp_path, lines, told):
    with pytest.raises(DataError, match=told):
        read(lfw(tmp_path, lines))


def test_a_broken_picture_takes_its_pair_with_it(tmp_path):
    file = lfw(tmp_path, "1\nAnn_Lee 1 2\nAnn_Lee 3 Bo 1\n")
    (tmp_path / "lfw/Bo/Bo_0001.jpg").write_bytes(b"gone")
    table = read(file)
    assert [Path(i).name for i in table.columns["image"]] == ["Ann_Lee_0001.jpg", "Ann_Lee_0002.jpg"]
    assert "1 files cannot be read" in table.notes[0] and "Bo_0001.jpg" in table.notes[0]


def test_templates_of_ijb_with_boxes(tmp_path):
    for n in range(3):
        picture(tmp_path / "img" / f"{n}.png")
    (tmp_path / "gallery.csv").write_text(
        "TEMPLATE_ID,SUBJECT_ID,FILENAME,FACE_X,FACE_Y,FACE_WIDTH,FACE_HEIGHT\n5,12,img/0.png,1,2,4,5\n5,12,img/1.png,0,0,8,8\n"
    )
    (tmp_path / "probe.csv").write_text("TEMPLATE_ID,SUBJECT_ID,FILENAME\n6,12,img/2.png\n")
    splits = load_splits(
        train=str(tmp_path / "gallery.csv"), test=[str(tmp_path / f) for f in ("gallery.csv", "probe.csv")],
        prefer=PREFER, validation_fraction=0,
    )  # fmt: skip
    rows = splits["test"].rows
    assert rows["template"] == ["5", "5", "6"] and rows["role"] == ["gallery", "gallery", "probe"]
    assert rows["box"] == ["1 2 5 7", "0 0 8 8", ""]
    (tmp_path / "probe.csv").write_text("TEMPLATE_ID,SUBJECT_ID,FILENAME\n6,12,img/9.png\n")
    with pytest.raises(DataError, match=r"probe.csv, line 2: no file 'img/9.png'"):
        read(tmp_path / "probe.csv")
    (tmp_path / "probe.csv").write_text("TEMPLATE_ID,SUBJECT_ID,FILENAME\n6,12\n")
    with pytest.raises(DataError, match=r"probe.csv, line 2: 2 values for 3 columns"):
        read(tmp_path / "probe.csv")
    (tmp_path / "probe.csv").write_text("TEMPLATE_ID,FILENAME\n6,img/2.png\n")
    with pytest.raises(DataError, match="no column SUBJECT_ID"):
        read(tmp_path / "probe.csv")
    (tmp_path / "plain.csv").write_text("image,label\na.png,x\n")
    assert set(read_faces(tmp_path / "plain.csv", ReadOptions()).columns) == {"image", "label"}
