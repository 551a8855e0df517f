"""Folds: the test fold tests, and nothing else."""

from __future__ import annotations

import json

import pytest

from adaptome.core.errors import DataError
from adaptome.data import load_splits


def table(path, folds=5, each=4):
    rows = [{"text": f"{fold} {i}", "fold": fold} for fold in range(1, folds + 1) for i in range(each)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def folds_of(splits):
    return {name: sorted(set(split.rows["fold"][:])) for name, split in splits.items()}


def test_three_folds_train_one_validates_and_one_tests(tmp_path):
    file = table(tmp_path / "a.jsonl")
    for test, expected in (
        (2, ([1, 4, 5], [3], [2])),
        (5, ([2, 3, 4], [1], [5])),
        (None, ([3, 4, 5], [2], [1])),
    ):
        splits = load_splits(train=file, folds={"column": "fold", "test": test, "validation": "next"})
        assert folds_of(splits) == dict(zip(("train", "validation", "test"), expected, strict=True))
    splits = load_splits(train=file, folds={"column": "fold", "test": "4", "validation": 1})
    assert folds_of(splits) == {"train": [2, 3, 5], "validation": [1], "test": [4]}
    assert splits["test"].where(0) == f"{file}, line 13"


def test_without_a_validation_fold_it_is_cut_from_the_training_folds(tmp_path):
    """UrbanSound8K has none: choosing the best epoch on the test fold is what the released code does."""
    splits = load_splits(
        train=table(tmp_path / "a.jsonl", each=10),
        folds={"column": "fold", "test": 3},
        validation_fraction=0.25,
    )
    assert folds_of(splits) == {"train": [1, 2, 4, 5], "validation": [1, 2, 4, 5], "test": [3]}
    assert len(splits["validation"]) == 10 and len(splits["train"]) == 30
    texts = [set(split.rows["text"][:]) for split in splits.values()]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 50


@pytest.mark.parametrize(
    ("folds", "told"),
    [
        ({"column": "flod"}, "data.folds.column='flod': no such column. Did you mean 'fold'"),
        ({"column": "fold", "test": 9}, "data.folds.test=9: the folds are 1, 2, 3, 4, 5"),
        ({"column": "fold", "test": 1, "validation": 1}, "fold 1 cannot be test and validation at once"),
    ],
)
def test_folds_that_are_not_there_are_told(tmp_path, folds, told):
    with pytest.raises(DataError, match=told):
        load_splits(train=table(tmp_path / "a.jsonl"), folds=folds)


def test_folds_need_data_that_is_whole_and_enough_of_them(tmp_path):
    file = table(tmp_path / "a.jsonl", folds=2)
    with pytest.raises(DataError, match=r"the data has its own splits \(train, test\)"):
        load_splits(train=file, test=file, folds={"column": "fold"})
    with pytest.raises(DataError, match="2 folds; test and validation leave none to train on"):
        load_splits(train=file, folds={"column": "fold", "validation": "next"})


def test_folds_are_in_the_order_of_their_numbers(tmp_path):
    splits = load_splits(
        train=table(tmp_path / "a.jsonl", folds=11), folds={"column": "fold", "test": 2, "validation": "next"}
    )
    assert folds_of(splits)["validation"] == [3]
