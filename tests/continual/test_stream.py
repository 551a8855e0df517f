"""Streams: the rows of each task, and what is refused."""

import datasets
import pytest

from adaptome.continual.joining import joined, own_labels
from adaptome.continual.stream import by_column, by_labels, with_classes
from adaptome.core.errors import DataError, RecipeError
from adaptome.data.splits import Splits, Table, to_split
from adaptome.recipe import load_recipe

NAMES = ["a", "b", "c", "d", "e"]
TRAIN, TEST = [0, 1, 2, 3, 4, 0, 2], [4, 3, 2, 1, 0]


def test_labels_by_size():
    stream = by_labels(TRAIN, TEST, NAMES, size=2)
    assert [p.classes for p in stream.parts] == [(0, 1), (2, 3), (4,)]
    assert [p.train for p in stream.parts] == [(0, 1, 5), (2, 3, 6), (4,)]
    assert [p.test for p in stream.parts] == [(3, 4), (1, 2), (0,)]


def test_labels_by_groups_and_in_random_order():
    stream = by_labels(TRAIN, TEST, NAMES, groups=[["e", "a"], ["b"]])
    assert [p.classes for p in stream.parts] == [(4, 0), (1,)]
    drawn = by_labels(TRAIN, TEST, NAMES, size=2, order="random", seed=3)
    assert sorted(c for p in drawn.parts for c in p.classes) == [0, 1, 2, 3, 4]
    assert drawn == by_labels(TRAIN, TEST, NAMES, size=2, order="random", seed=3)


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"groups": [["a", "b"], ["b"]]}, "label 'b' is in task 1 and in task 2"),
        ({"groups": [["a", "a"]]}, "label 'a' is in task 1 and in task 1"),
        ({"groups": [["a"], []]}, "task 2 has no label"),
        ({"groups": [["z"]]}, "there is no label 'z'"),
        ({}, "either size or groups"),
    ],
)
def test_groups_that_cannot_be(settings, told):
    with pytest.raises(RecipeError, match=told):
        by_labels(TRAIN, TEST, NAMES, **settings)


def test_a_label_in_two_tasks_where_it_may():
    stream = by_labels(TRAIN, TEST, NAMES, groups=[["a", "b"], ["b", "c"]], overlap=True)
    assert [p.classes for p in stream.parts] == [(0, 1), (1, 2)]


def test_an_empty_stream_is_refused():
    with pytest.raises(DataError, match="the stream is empty"):
        joined([], "test")
    with pytest.raises(DataError, match="the stream is empty"):
        by_labels([], [], NAMES, groups=[])
    with pytest.raises(DataError, match="task 'task-2' has no test rows"):
        by_labels(TRAIN, [0], NAMES, groups=[["a"], ["b"]])


def test_rows_with_several_labels_are_refused():
    with pytest.raises(DataError, match="one label for each row"):
        by_labels([[0, 1]], [[0]], NAMES, size=2)


# -- columns and data sets: labels that stay, that each task brings, or that only look the same -------------------------


def splits_of(name, **columns):
    made = {}
    for split in ("train", "test"):
        count = len(next(iter(columns.values())))
        made[split] = to_split([Table(name, columns, range(1, count + 1), "row")], split)
    return Splits(made)


NEWS = splits_of("news", text=["a", "b"], label=["good", "bad"])
LAW = splits_of("law", text=["c", "d"], label=["good", "bad"])
ART = splits_of("art", text=["e", "f"], label=["old", "new"])


def test_tasks_of_a_column_that_share_labels_or_bring_them():
    rows = splits_of("all", text=[*"abcd"], label=["cat", "car", "dog", "bus"], kind=["animal", "thing"] * 2)
    stream = by_column(rows["train"], rows["test"], "kind")
    assert stream.kind == "domain" and not any(p.classes for p in stream.parts)
    names = ["bus", "car", "cat", "dog"]
    numbers = [names.index(label) for label in rows["train"].rows["label"]]
    own = with_classes(stream, numbers, numbers, names)
    assert own.kind == "class" and [p.classes for p in own.parts] == [(2, 3), (0, 1)]
    assert own.labels == tuple(numbers)


def test_a_label_in_two_tasks_is_refused_where_it_must_not_be():
    splits, stream = joined([("news", NEWS), ("law", LAW)], "test")
    assert stream.kind == "domain" and [p.train for p in stream.parts] == [(0, 1), (2, 3)]
    with pytest.raises(DataError, match="label 'bad' is in task 'news' and in task 'law'"):
        with_classes(stream, [1, 0, 1, 0], [1, 0, 1, 0], ["bad", "good"])
    named = own_labels(splits, stream, "test")
    assert named["train"].rows["label"][:] == ["news: good", "news: bad", "law: good", "law: bad"]
    assert named["test"].where(2) == "law, row 1"


def test_a_task_must_bring_the_labels_that_it_is_scored_on():
    _, stream = joined([("news", NEWS), ("art", ART)], "test")
    with pytest.raises(DataError, match="task 'art' is scored on rows with the label 'c', which it does not bring"):  # fmt: skip
        with_classes(stream, [0, 1, 3, 4], [0, 1, 2, 4], NAMES)
    with pytest.raises(DataError, match="one label for each row"):
        with_classes(stream, [[0], [1], [2], [3]], [[0]] * 4, NAMES)


def test_labels_that_data_sets_number_otherwise_are_joined_by_name():
    def numbered(names, values):
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})  # fmt: skip
        made = Splits(dict(splits_of("x", text=["a", "b"], label=values)))
        for split in made.values():
            split.rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": values}, features)
        return made

    splits, _ = joined([("one", numbered(["x", "y"], [0, 1])), ("two", numbered(["y", "x"], [0, 1]))], "test")
    assert splits["train"].rows["label"][:] == ["x", "y", "y", "x"]
    other = splits_of("odd", text=[1, 2], label=["good", "bad"])
    with pytest.raises(DataError, match="the column 'text' of task 'odd' is"):
        joined([("news", NEWS), ("odd", other)], "test")
    with pytest.raises(DataError, match="two tasks are called 'news'"):
        joined([("news", NEWS), ("news", LAW)], "test")


@pytest.mark.parametrize(
    "stream, told",
    [
        ({"by": "labels", "size": 2, "labels": "own"}, "labels belongs to by=column or data or recipes"),
        ({"by": "column", "column": "kind", "recipes": ["a.yaml"]}, "recipes belongs to by=recipes"),
        ({"by": "recipes", "recipes": ["a.yaml"], "labels": "mine"}, "continual.stream.labels"),
        ({"by": "column"}, "needs the column's name"),
    ],
)
def test_keys_that_do_not_belong(stream, told):
    with pytest.raises(RecipeError, match=told):
        load_recipe({"task": "text-classification", "data": "x", "method": "lora", "continual": {"stream": stream}})  # fmt: skip


def test_a_stream_of_data_sets_needs_no_data_of_its_own():
    stream = {"by": "data", "tasks": [{"name": "one", "data": "made:glyphs"}]}
    made = load_recipe({"task": "image-classification", "method": "lora", "continual": {"stream": stream}})
    assert made.data.name is None and load_recipe(made.model_dump(mode="json")) == made
    with pytest.raises(RecipeError, match="data"):
        load_recipe({"task": "image-classification", "method": "lora"})


def test_columns_in_random_order_and_by_likeness():
    texts = {"law": "法院判决合同", "farm": "农民种植小麦", "court": "法院审理判决", "field": "农民收割小麦"}
    rows = {"domain": list(texts) * 3, "text": list(texts.values()) * 3}
    split = to_split([Table("t.jsonl", rows, range(12))], "train")
    names = [[p.name for p in by_column(split, split, "domain", how, 1).parts] for how in ("given", "similar", "random")]  # fmt: skip
    assert names[0] == list(texts)
    assert names[1] == ["law", "court", "farm", "field"] or names[1] == ["law", "court", "field", "farm"]
    assert sorted(names[2]) == sorted(texts) and names[2] == [p.name for p in by_column(split, split, "domain", "random", 1).parts]  # fmt: skip
    bare = to_split([Table("t.jsonl", {"domain": ["a", "b"], "label": [0, 1]}, range(2))], "train")
    with pytest.raises(DataError, match="order=similar needs a column of texts"):
        by_column(bare, bare, "domain", "similar")
