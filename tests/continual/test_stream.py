"""Streams: the rows of each task, and what is refused."""

import pytest

from adaptome.continual.joining import joined
from adaptome.continual.stream import by_labels
from adaptome.core.errors import DataError, RecipeError

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
