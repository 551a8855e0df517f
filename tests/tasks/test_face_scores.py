"""Scores of face recognition on figures that were worked out by hand."""

import numpy as np
import pytest

from adaptome.core.errors import DataError
from adaptome.data.splits import Table, to_split
from adaptome.tasks import face_scores
from adaptome.tasks.face_protocols import protocol_of, scored
from adaptome.tasks.face_scores import (
    all_pairs,
    best_threshold,
    crossed_pairs,
    fold_accuracy,
    identification,
    pooled,
    searched,
    threshold_at,
    unit,
    verification,
)


def split(**columns):
    count = len(next(iter(columns.values())))
    return to_split([Table("faces", columns, range(count))], "test")


def test_ranks_of_a_matrix_of_three_probes_and_five_pictures():
    likeness = np.array(
        [
            [0.9, 0.1, 0.2, 0.3, 0.0],  # of person 0, the likest is theirs
            [0.8, 0.7, 0.1, 0.2, 0.3],  # of person 1, theirs comes second
            [0.5, 0.4, 0.1, 0.3, 0.2],  # of person 3, theirs are third and fifth
        ]
    )
    found = identification(likeness, np.array([0, 1, 3]), np.array([0, 1, 3, 3, 4]), [1, 2, 3, 5], [0.5])
    assert found == {"rank_1": 1 / 3, "rank_2": 2 / 3, "rank_3": 1.0, "rank_5": 1.0}
    level = identification(np.array([[0.5, 0.5]]), np.array([1]), np.array([0, 1]), [1, 2], [])
    assert level == {"rank_1": 0.0, "rank_2": 1.0}  # a tie is not in one's favour


def test_strangers_set_the_threshold_of_an_open_set():
    likeness = np.array([[0.9, 0.0], [0.0, 0.6], [0.2, 0.5], [0.7, 0.1], [0.4, 0.3]])
    probes, gallery = np.array([0, 1, 0, 8, 9]), np.array([0, 1])
    found = identification(likeness, probes, gallery, [1], [0.5, 0.1])
    assert found["rank_1"] == pytest.approx(2 / 3)
    # one of two strangers (0.7) may pass: the threshold is the other's 0.4; probe 2 is taken for the wrong person
    assert found["tpir_at_0.5"] == pytest.approx(2 / 3)
    assert "tpir_at_0.1" not in found  # two strangers tell nothing of one in ten


def test_tar_is_told_at_rates_that_there_are_pairs_for():
    same = np.array([True] * 4 + [False] * 10)
    likeness = np.array([0.95, 0.85, 0.6, 0.1, *np.arange(10) / 10])
    found = verification(likeness, same, [0.1, 0.01])
    assert found["tar_at_0.1"] == 0.5  # one of ten is above 0.8: 0.9
    assert "tar_at_0.01" not in found and found["threshold"] == pytest.approx(0.8)
    assert (likeness[~same] > threshold_at(likeness[~same], 0.1)).mean() == 0.1
    assert found["auroc"] == pytest.approx(np.mean([a > b for a in likeness[same] for b in likeness[~same]]) + 0.5 * np.mean([a == b for a in likeness[same] for b in likeness[~same]]))  # fmt: skip


def test_each_folds_threshold_comes_from_the_others():
    likeness = np.array([0.9, 0.1, 0.8, 0.2, 0.45, 0.3])
    same = np.array([True, False] * 3)
    folds = np.array([0, 0, 1, 1, 2, 2])
    assert best_threshold(likeness[:4], same[:4]) == pytest.approx(0.5)
    assert fold_accuracy(likeness, same, folds) == pytest.approx((1 + 1 + 0.5) / 3)


def test_templates_are_means_of_directions_of_embeddings_or_by_quality():
    features, members = np.array([[4.0, 0.0], [0.0, 1.0], [3.0, 4.0]]), np.array([0, 0, 1])
    np.testing.assert_allclose(pooled(features, members)[0], [0.5**0.5, 0.5**0.5])
    np.testing.assert_allclose(pooled(features, members, "raw")[0], unit(np.array([4.0, 1.0])))
    weighed = pooled(features, members, "quality", np.array([0.2, 0.6, 0.5]))
    np.testing.assert_allclose(weighed[0], unit(np.array([0.2, 0.6])))
    np.testing.assert_allclose(pooled(features, members)[1], [0.6, 0.8])


def test_a_split_is_scored_by_its_pairs_its_roles_or_everybody():
    rng = np.random.default_rng(0)
    features, who = rng.normal(size=(8, 6)), ["a", "a", "b", "b", "c", "c", "d", "d"]
    everybody = protocol_of(split(label=who))
    assert everybody.gallery.tolist() == [0, 2, 4, 6] and everybody.probes.tolist() == [1, 3, 5, 7]
    found = scored(everybody, features, None, "unit", [0.1], [1], [0.5])
    directions = unit(features)
    near = (directions[[1, 3, 5, 7]] @ directions[[0, 2, 4, 6]].T).argmax(1)
    assert found["rank_1"] == (near == np.arange(4)).mean() and 0 <= found["tar_at_0.1"] <= 1

    roles = ["gallery", "probe", "gallery", "gallery", "distractor", "probe", "probe", "probe"]
    person = protocol_of(split(label=who, role=roles), by_person=True)
    assert len(person.gallery) == 3 and len(person.members) == 8 and len(person.people) == 7
    mean = pooled(features, person.members)
    np.testing.assert_allclose(mean[person.members[2]], unit(directions[[2, 3]].mean(0)))

    pairs = protocol_of(split(label=who, pairs=["0:0 1:2", "0:0", "0:1", "1:3", "", "0:1 1:2", "1:3", ""]))
    assert pairs.pairs.tolist() == [[0, 1], [2, 5], [0, 5], [3, 6]] and pairs.folds.tolist() == [0, 0, 1, 1]
    assert "accuracy" in scored(pairs, features, None, "unit", [0.5], [1], [])


def test_what_cannot_be_scored_is_told():
    with pytest.raises(DataError, match="the template '7' is 'b' here and 'a' in faces"):
        protocol_of(split(label=["a", "b", "b"], template=["7", "7", "8"]))
    with pytest.raises(DataError, match="0 gallery and 2 probe templates; both are needed"):
        protocol_of(split(label=["a", "a"], role=["probe", "probe"]))
    with pytest.raises(DataError, match="none of the 1 probes is of a person in the gallery, such as 'a'"):
        protocol_of(split(label=["a", "a", "b"], role=["gallery", "gallery", "probe"]))
    with pytest.raises(DataError, match="2 faces of 2 people"):
        protocol_of(split(label=["a", "b"]))


def test_too_many_pairs_are_drawn_from():
    people = np.repeat(np.arange(30), 4)
    assert len(all_pairs(people)) == 120 * 119 // 2
    few = all_pairs(people, most=500)
    same = people[few[:, 0]] == people[few[:, 1]]
    assert same.sum() == 30 * 6 and 400 < (~same).sum() <= 500


def test_a_large_gallery_is_searched_in_parts_and_its_pairs_are_drawn(monkeypatch):
    rng = np.random.default_rng(0)
    who, whose = rng.integers(0, 12, 40), np.concatenate([np.arange(8), 100 + np.arange(30)])
    probes, gallery = (unit(rng.normal(size=(n, 6))) for n in (40, 38))
    whole = identification(probes @ gallery.T, who, whose, [1, 5], [0.5])
    monkeypatch.setattr(face_scores, "PROBES", 7)
    assert searched(probes, gallery, who, whose, [1, 5], [0.5]) == whole and "tpir_at_0.5" in whole
    a, b = crossed_pairs(who, whose)
    assert len(set(zip(a, b, strict=True))) == 40 * 38
    drawn_a, drawn_b = crossed_pairs(who, whose, most=500)
    own = {(i, j) for i, j in zip(a, b, strict=True) if who[i] == whose[j]}
    drawn = list(zip(drawn_a, drawn_b, strict=True))
    assert {pair for pair in drawn if who[pair[0]] == whose[pair[1]]} == own and set(drawn[: len(own)]) == own
    assert 400 < len(drawn) - len(own) <= 500


def test_every_file_of_pairs_numbers_its_own():
    one = Table(
        "a",
        {"image": ["1", "2", "3"], "label": ["x", "x", "y"], "pairs": ["0:0 0:1", "0:0", "0:1"]},
        range(3),
    )
    two = Table("b", {"image": ["4", "5"], "label": ["z", "w"], "pairs": ["0:0", "0:0"]}, range(2))
    made = protocol_of(to_split([one, two], "test"))
    assert made.pairs.tolist() == [[0, 1], [0, 2], [3, 4]] and made.folds.tolist() == [0, 0, 1]
