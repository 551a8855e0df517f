"""The made-up town."""

import itertools

import pytest

from adaptome.core.errors import DataError
from adaptome.data import load_splits
from adaptome.data.makers.family_town import RELATIONS, family_graph, split_triples


def test_it_is_data_that_a_recipe_names():
    splits = load_splits("made:family-town", split_seed=1)
    assert set(splits) == {"train", "validation", "test"}
    rows = splits["test"].rows
    assert (
        sorted(zip(rows["head"], rows["relation"], rows["tail"], strict=True))
        == split_triples(family_graph(seed=1), seed=1)["test"]
    )
    assert splits["test"].where(0) == "made:family-town, test triple 1"
    with pytest.raises(DataError, match="Did you mean 'family-town'"):
        load_splits("made:family-twon")


def test_the_town_is_the_same_every_time_and_all_its_kinship_follows():
    triples = family_graph()
    assert triples == family_graph() and triples != family_graph(seed=1)
    assert {r for _, r, _ in triples} == set(RELATIONS)
    facts = set(triples)
    parents = {(a, b) for a, r, b in facts if r == "parent_of"}
    grand = {(a, c) for a, b in parents for b2, c in parents if b == b2}
    assert grand == {(a, b) for a, r, b in facts if r == "grandparent_of"}
    siblings = {(a, b) for p, a in parents for q, b in parents if p == q and a != b}
    assert siblings == {(a, b) for a, r, b in facts if r == "sibling_of"}
    assert {(b, a) for a, r, b in facts if r == "cousin_of"} == {
        (a, b) for a, r, b in facts if r == "cousin_of"
    }
    assert 250 <= len({n for a, _, b in triples for n in (a, b)}) <= 350


def test_every_name_keeps_an_edge_in_train():
    triples = family_graph(couples=10)
    parts = split_triples(triples, 0.1, 0.2)
    assert sorted(itertools.chain(*parts.values())) == triples
    assert len(parts["test"]) == round(0.2 * len(triples))
    assert {n for t in parts["train"] for n in t} == {n for t in triples for n in t}
