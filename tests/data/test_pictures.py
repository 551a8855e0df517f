"""Training pictures: shapes, cuts, class pictures, and everything that is drawn follows from seed, epoch and place."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
from PIL import Image

from adaptome.core.errors import DataError
from adaptome.data.load import load_splits
from adaptome.data.pictures import TrainingPictures, Treatment, buckets_of, fitted, nearest_bucket


def rows(sizes):
    return datasets.Dataset.from_dict({"image": [list(size) for size in sizes]})


def drawn(size):
    """A PIL picture of a size (width, height) whose red is the column and whose green the row."""
    wide, high = size
    array = np.zeros((high, wide, 3), np.uint8)
    array[..., 0], array[..., 1] = np.arange(wide)[None], np.arange(high)[:, None]
    return Image.fromarray(array)


def pictures(sizes, how, **more):
    return TrainingPictures(rows(sizes), [f"text {i}" for i in range(len(sizes))], drawn, how, **more)


def test_buckets_have_about_one_area_and_the_nearest_proportion_is_taken():
    found = buckets_of(512, 64)
    assert (512, 512) in found and all(w % 64 == h % 64 == 0 and w * h <= 512**2 for w, h in found)
    assert all(max(w / h, h / w) <= 2 for w, h in found) and {(h, w) for w, h in found} == set(found)
    assert nearest_bucket((1000, 1000), found) == (512, 512) and nearest_bucket((1500, 1000), found)[0] > 512


def test_what_is_cut_off_is_told():
    picture, at = fitted(drawn((40, 20)), (20, 20), "centre", np.random.default_rng(0))
    assert picture.size == (20, 20) and at == (0, 10) and np.asarray(picture)[0, 0, 0] == 10
    squeezed, at = fitted(drawn((40, 20)), (20, 20), "none", np.random.default_rng(0))
    assert squeezed.size == (20, 20) and at == (0, 0) and np.asarray(squeezed)[0, -1, 0] > 35
    tops = {fitted(drawn((40, 20)), (20, 20), "random", np.random.default_rng(i))[1] for i in range(20)}
    assert len(tops) > 5
    made = pictures([(40, 20)], Treatment(20))[0]
    assert made["size"] == (20, 40, 0, 10, 20, 20)


def test_batches_of_buckets_are_of_one_shape_and_full():
    sizes = [(32, 16)] * 5 + [(16, 16)] * 3
    made = pictures(sizes, Treatment(16, buckets_of(16, 4)))
    made.set_batch_size(2)
    assert len(made) == 6 + 4
    for epoch in (0, 1):
        made.set_epoch(epoch)
        shapes = [made[i]["picture"].shape for i in range(len(made))]
        assert all(shapes[i] == shapes[i + 1] for i in range(0, len(made), 2))
        assert set(made.order().tolist()) == set(range(8))
    first = made.order().tolist()
    made.set_epoch(0)
    assert made.order().tolist() != first


def test_draws_follow_from_seed_epoch_and_place_alone():
    def numbers(epoch, seed=0):
        made = pictures([(16, 16)] * 3, Treatment(16, mirror=True, drop=0.5, seed=seed))
        made.set_epoch(epoch)
        return [(one["draw"], one["text"], one["example"]) for one in (made[i] for i in range(3))]

    assert numbers(0) == numbers(0) and numbers(0) != numbers(1) and numbers(0) != numbers(0, seed=1)
    assert len({draw for draw, _, _ in numbers(0)}) == 3
    many = pictures([(16, 16)], Treatment(16, mirror=True, drop=0.25, repeats=400))
    items = [many[i] for i in range(400)]
    assert abs(np.mean([one["text"] == "" for one in items]) - 0.25) < 0.07
    assert len({one["example"] for one in items}) == 2  # as it is, and mirrored


def test_class_pictures_stand_beside_and_have_the_shape():
    others = pictures([(16, 16), (32, 16)], Treatment(16, buckets_of(16, 4)), prior=True)
    made = pictures([(32, 16), (32, 16)], Treatment(16, buckets_of(16, 4)), others=others)
    for i in range(2):
        one = made[i]
        assert one["other"]["prior"] and not one["prior"]
        assert one["other"]["picture"].shape == one["picture"].shape and one["other"]["text"] == "text 1"
    lonely = pictures([(16, 32)], Treatment(16, buckets_of(16, 4)), others=others)
    with pytest.raises(DataError, match="no class picture has the proportions"):
        lonely[0]


def test_texts_stand_beside_pictures_or_in_a_table(tmp_path):
    for name in ("a", "b"):
        drawn((6, 4)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"the picture {name}\n")
    found = load_splits(train=str(tmp_path), format="captioned", validation_fraction=0.0)["train"]
    assert found.rows["text"] == ["the picture a", "the picture b"] and found.where(0).endswith("a.png")
    (tmp_path / "b.txt").unlink()
    with pytest.raises(DataError, match=r"b\.png: no text, and 1 of the 2"):
        load_splits(train=str(tmp_path), format="captioned")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "A"}\n{"file_name": "b.png", "text": "B"}\n')  # fmt: skip
    found = load_splits(train=str(tmp_path), format="captioned", validation_fraction=0.0)["train"]
    assert found.rows["text"] == ["A", "B"]
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n')
    with pytest.raises(DataError, match="row 1: no 'text'"):
        load_splits(train=str(tmp_path), format="captioned")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "A"}\n{"file_name": "a.png", "text": "B"}\n')  # fmt: skip
    with pytest.raises(DataError, match=r"row 2: a\.png is told of in row 1 already"):
        load_splits(train=str(tmp_path), format="captioned")
