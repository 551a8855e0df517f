"""Lists of satellite pictures with category, place and time."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from adaptome.core.errors import DataError
from adaptome.data import load_splits


def listed(folder, rows, header="category,image_path,timestamp", name="train.csv", missing=False):
    for row in rows:
        file = folder / row.split(",")[1]
        file.parent.mkdir(parents=True, exist_ok=True)
        if not missing:
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(file)
    (folder / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(folder / name)


def picture(category, place, image, time):
    return f"{category},train/{category}/{category}_{place}/{category}_{place}_{image}_rgb.jpg,{time}"


def test_a_list_gives_files_categories_places_and_times(tmp_path):
    rows = [picture("airport", 0, 1, "2016-02-04T08:03:23Z"), picture("port", 7, 0, "2015-01-01T00:00:00Z")]
    found = load_splits(train=listed(tmp_path, rows), format="fmow", validation_fraction=0)["train"].rows
    assert found["label"] == ["airport", "port"] and found["place"] == ["airport_0", "port_7"]
    assert found["image"][0] == str(tmp_path / "train/airport/airport_0/airport_0_1_rgb.jpg")
    assert found["time"][1] == "2015-01-01T00:00:00Z"


def test_sentinels_files_follow_from_category_location_and_image(tmp_path):
    folder = tmp_path / "val" / "airport" / "airport_3"
    folder.mkdir(parents=True)
    np.save(folder / "x.npy", 0)
    (folder / "airport_3_12.tif").write_bytes(b"")
    (tmp_path / "val.csv").write_text(
        "category,location_id,image_id,timestamp,polygon\nairport,3,12,2016-01-01T00:00:00Z,x\n"
    )
    found = load_splits(train=str(tmp_path / "val.csv"), format="fmow", validation_fraction=0)["train"].rows
    assert found["image"] == [str(folder / "airport_3_12.tif")] and found["place"] == ["airport_3"]


def test_triples_are_three_times_of_one_place_in_order(tmp_path):
    times = ["2016-05-01", "2014-01-01", "2017-01-01", "2015-01-01"]
    rows = [picture("port", 1, i, t) for i, t in enumerate(times)] + [picture("port", 2, 0, "2015-01-01")]
    found = load_splits(train=listed(tmp_path, rows), format="fmow-triples", validation_fraction=0)
    triples = [[name.rsplit("_", 2)[1] for name in row] for row in found["train"].rows["image"]]
    assert triples == [["1", "3", "2"], ["1", "3", "2"], ["1", "3", "0"], ["1", "3", "2"]]
    assert "1 pictures left out" in found.notes[0] and set(found["train"].rows["label"]) == {"port"}


def test_what_is_wrong_is_told_with_its_line(tmp_path):
    rows = [
        picture("port", 1, 0, "2015-01-01"),
        picture("port", 1, 1, "soon"),
        picture("port", 1, 2, "2016-01-01"),
    ]
    path = listed(tmp_path, rows)
    with pytest.raises(DataError, match=r"line 3: timestamp 'soon' is no time"):
        load_splits(train=path, format="fmow-triples")
    with pytest.raises(DataError, match=r"line 2: no file .*gone_0.*and 1 more"):
        gone = [picture("gone", 0, i, "2015-01-01") for i in range(2)]
        load_splits(train=listed(tmp_path, gone, name="gone.csv", missing=True), format="fmow")
    for header, said in (
        ("categori,image_path,timestamp", "Did you mean 'category'|categori"),
        ("category,picture,timestamp", "neither a column of files"),
    ):
        with pytest.raises(DataError, match=said):
            load_splits(train=listed(tmp_path, rows, header), format="fmow")
    with pytest.raises(DataError, match="no place has three"):
        load_splits(train=listed(tmp_path, rows[:1]), format="fmow-triples")
