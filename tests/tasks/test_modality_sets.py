"""Sets of modalities: which are trained and tested, how they are drawn, what adapters are told, and figures for each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adaptome.core.errors import DataError
from adaptome.data.splits import Table, to_split
from adaptome.tasks.modality_sets import (
    AVAILABLE,
    SetOptions,
    SetRows,
    by_set,
    chosen_sets,
    facts_of,
    filled,
    given_by_name,
    key,
    mask_of,
    numbered,
)

THREE = ["rgb", "depth", "heat"]


def options(**told) -> SetOptions:
    return SetOptions(**{"modalities": THREE, **told})


def rows(training: bool, count: int = 8, holes=(), **told) -> SetRows:
    columns = {name: [None if (i, name) in holes else f"{name}{i}" for i in range(count)] for name in THREE}
    split = to_split([Table("x.jsonl", columns, range(1, count + 1))], "train")
    return SetRows(split, options(**told), lambda index, rng=None: {"row": index}, training)


def names(sets) -> list[str]:
    return [key(one) for one in sets]


def test_all_sets_with_what_is_required_are_tested_and_training_draws_from_some():
    assert names(options().tested()) == ["rgb", "depth", "heat", "depth+rgb", "heat+rgb", "depth+heat", "depth+heat+rgb"]  # fmt: skip
    assert names(options(required=["rgb"]).tested()) == ["rgb", "depth+rgb", "heat+rgb", "depth+heat+rgb"]
    assert names(options(test_on=["heat+rgb"]).tested()) == ["heat+rgb"]
    assert names(options().trained()) == ["depth+heat+rgb"] and len(options(train_on="any").trained()) == 7
    assert len(options(train_on="missing").trained()) == 6
    assert names(options(train_on=["rgb", "heat+rgb"]).trained()) == ["rgb", "heat+rgb"]
    for told, message in (
        (
            {"train_on": ["rbg"]},
            "train_on names 'rbg', which is none of rgb, depth, heat.*Did you mean 'rgb'",
        ),
        ({"test_on": ["depth"], "required": ["rgb"]}, "test_on: the set 'depth' lacks 'rgb'"),
        ({"required": THREE, "train_on": "missing"}, "nothing can be missing"),
        ({"fill": {"x": 1}}, "fill names 'x'"),
        ({"modalities": ["rgb", "rgb"]}, "names one twice"),
    ):
        with pytest.raises(ValueError, match=message):
            options(**told)


def test_a_test_sees_every_row_with_every_set_that_it_has():
    found = rows(False, 3, holes={(1, "heat")})
    seen = [(one["row"], key(one[AVAILABLE])) for one in (found[i] for i in range(len(found)))]
    assert len(seen) == 7 + 3 + 7 and len(set(seen)) == len(seen)
    assert {s for row, s in seen if row == 1} == {"rgb", "depth", "depth+rgb"}
    assert found.notes("test") == ["1 of 3 rows of test lack a modality."]
    with pytest.raises(DataError, match="no row has all modalities of any set that is tested"):
        rows(False, 1, holes={(0, "heat")}, test_on=["heat"])
    with pytest.raises(DataError, match="line 1: this run cannot do without rgb; given: depth, heat"):
        rows(True, 2, holes={(0, "rgb")}, required=["rgb"])
    with pytest.raises(DataError, match="line 2: this run needs one modality at least; given: nothing"):
        rows(True, 2, holes={(1, name) for name in THREE})


def test_sets_are_drawn_evenly_anew_in_every_epoch_and_alike_again():
    found = rows(True, 600, train_on="missing")
    drawn = [key(found[i][AVAILABLE]) for i in range(600)]
    assert drawn == [key(found[i][AVAILABLE]) for i in range(600)]
    counts = {s: drawn.count(s) for s in set(drawn)}
    assert len(counts) == 6 and min(counts.values()) > 70
    found.set_epoch(1)
    assert drawn != [key(found[i][AVAILABLE]) for i in range(600)]
    lacking = rows(True, 1, holes={(0, "heat"), (0, "rgb")}, train_on=["rgb", "depth"])
    assert key(lacking[0][AVAILABLE]) == "depth"
    lacking = rows(True, 1, holes={(0, "heat"), (0, "rgb")}, train_on="full")
    assert key(lacking[0][AVAILABLE]) == "depth"  # what the row has, where it has none of the sets


def test_a_batch_has_the_set_of_its_first_row_or_each_row_its_own():
    found = rows(True, 12, holes={(3, "depth")}, train_on=["depth", "rgb"])
    batch = [found[i] for i in range(12)]
    first = batch[0][AVAILABLE]
    sets = chosen_sets(batch)
    assert all(s == first for i, s in enumerate(sets) if i != 3) and sets[3] <= batch[3]["present"]
    alone = rows(True, 12, train_on=["depth", "rgb"], draw="row")
    assert len(set(chosen_sets([alone[i] for i in range(12)]))) == 2


def test_adapters_are_told_the_set_or_a_row_of_the_table_for_each():
    same, mixed = [frozenset({"rgb", "heat"})] * 3, [frozenset({"rgb"}), frozenset({"depth"})]
    assert facts_of(mask_of(same, THREE), THREE) == {AVAILABLE: "heat+rgb"}
    told = facts_of(mask_of(mixed, THREE), THREE)
    assert told["modalities"] == ("rgb", "depth", "heat")
    assert told[AVAILABLE].tolist() == [[True, False, False], [False, True, False]]
    assert numbered(told[AVAILABLE]).tolist() == [1, 2]
    values = torch.arange(1.0, 9).view(2, 2, 2)
    assert filled(values, torch.tensor([True, False]), 0.0)[1].eq(0).all()
    assert filled(values, torch.tensor([False, True]), 1.0)[0].eq(1).all()


def test_figures_are_of_each_set_and_their_mean_over_sets():
    own = options(test_on=["rgb", "depth+rgb"])
    numbers = np.array([1, 1, 3, 3, 3, 4])  # the last is of a set that is not tested
    found = by_set(numbers, own, lambda places: {"n": float(len(places)), "first": float(places[0])})
    assert found == {"n": 2.5, "first": 1.0, "n@rgb": 2, "first@rgb": 0, "n@depth+rgb": 3, "first@depth+rgb": 2}  # fmt: skip


def test_words_say_of_which_modality_they_are(tmp_path):
    own = options()
    found = given_by_name(["rgb=a.png", "depth=b.png", "depth=c.png"], own)
    assert [one.value for one in found] == [{"rgb": "a.png", "depth": "b.png"}, {"depth": "c.png"}]
    assert given_by_name(["rgb=" + "x" * 300], own)[0].value == {"rgb": "x" * 300}  # no file has such a name
    for folder, files in (("one", ("a", "b")), ("two", ("b", "c"))):
        (tmp_path / folder).mkdir()
        for file in files:
            (tmp_path / folder / f"{file}.png").write_bytes(b"x")
    found = given_by_name([f"rgb={tmp_path}/one", f"heat={tmp_path}/two"], own)
    assert [sorted(one.value) for one in found] == [["rgb"], ["heat", "rgb"], ["heat"]]
    with pytest.raises(
        DataError, match=r"b: this run cannot do without rgb|c: this run cannot do without rgb"
    ):
        given_by_name([f"rgb={tmp_path}/one", f"heat={tmp_path}/two"], options(required=["rgb"]))
    with pytest.raises(DataError, match="'photo.png' does not say of which modality it is.*Write rgb=... depth=... heat=..."):  # fmt: skip
        given_by_name(["photo.png"], own)
    with pytest.raises(DataError, match="'dept=a.png' does not say.*Did you mean 'depth'"):
        given_by_name(["dept=a.png"], own)
