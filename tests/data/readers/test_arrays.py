"""NumPy archives."""

from __future__ import annotations

import numpy as np
import pytest

from adaptome.core.errors import DataError
from adaptome.data import load_splits


def put(tmp_path, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    return str(tmp_path / "a.npz")


def message(path, **options) -> str:
    with pytest.raises(DataError) as caught:
        load_splits(path, **options)
    return str(caught.value)


def pixels(rows, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, *(shape or (4, 6))), dtype=np.uint8)


def test_splits_by_name_and_class_names(tmp_path):
    x = pixels(5, 4, 6, 3)
    path = put(
        tmp_path, x_train=x, y_train=[0, 1, 1, 0, 1], x_val=x[:2], y_val=[1, 0], classes=["cat", "dog"]
    )
    splits = load_splits(path)
    assert {k: len(s) for k, s in splits.items()} == {"train": 5, "validation": 2}
    assert splits["train"].rows.features["label"].names == ["cat", "dog"]
    assert np.array_equal(np.asarray(splits["train"].rows.with_format("numpy")[3]["image"]), x[3])
    assert splits["validation"].where(1) == f"{path}, validation row 1"


def test_whole_arrays_are_split_by_content_not_by_order(tmp_path):
    x, y = pixels(30), np.arange(30) % 3
    first = load_splits(put(tmp_path, x=x, y=y), validation_fraction=0.2, test_fraction=0.1)
    second = load_splits(put(tmp_path, x=x[::-1], y=y[::-1]), validation_fraction=0.2, test_fraction=0.1)
    assert {k: len(s) for k, s in first.items()} == {"train": 21, "validation": 6, "test": 3}
    for split in first:
        assert sorted(map(repr, first[split].rows.to_list())) == sorted(
            map(repr, second[split].rows.to_list())
        )


def test_mapped_arrays(tmp_path):
    path = put(tmp_path, x=pixels(10), subject=np.arange(10) % 2, shot=np.arange(10), scale=np.float32(2))
    splits = load_splits(path, columns={"label": "subject"}, validation_fraction=0)
    assert splits["train"].rows["label"][:4] == [0, 1, 0, 1]
    assert (
        "data.columns maps 'label' to 'subjekt', but the train split has no such array. Did you mean 'subject'?"
        in (message(path, columns={"label": "subjekt"}))
    )


def test_pickled_and_torn_archives_are_refused(tmp_path):
    np.savez(tmp_path / "p.npz", x=np.array([{"a": 1}], dtype=object))
    assert "p.npz is not a whole .npz archive of plain arrays" in message(str(tmp_path / "p.npz"))
    whole = (tmp_path / "p.npz").read_bytes()
    (tmp_path / "t.npz").write_bytes(whole[: len(whole) // 2])
    assert "t.npz is not a whole .npz archive" in message(str(tmp_path / "t.npz"))


def test_lengths_and_labels_are_checked(tmp_path):
    x = pixels(3)
    assert "the arrays of the train split differ in length: x_train 3, y_train 2" in message(
        put(tmp_path, x_train=x, y_train=[0, 1])
    )
    assert "train row 2: label 7, but `classes` has 2 names (0 to 1)" in message(
        put(tmp_path, x_train=x, y_train=[0, 1, 7], classes=["a", "b"])
    )
    assert "with `classes` they are row numbers" in message(
        put(tmp_path, x_train=x, y_train=[0.0, 1.0, 1.0], classes=["a", "b"])
    )
    assert "no arrays" in message(put(tmp_path, classes=["a", "b"]))
    assert "the train split is empty" in message(
        put(tmp_path, x_train=x[:0], y_train=np.array([], dtype=int))
    )
