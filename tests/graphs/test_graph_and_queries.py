"""Graphs, queries as trees, as nested lists and as lines; and queries drawn from a graph."""

import itertools

import numpy as np
import pytest

from adaptome.core.errors import DataError
from adaptome.data.makers.family_town import family_graph, split_triples
from adaptome.graphs.graph import Graph, Vocabulary
from adaptome.graphs.query import (
    STRUCTURES,
    Anchor,
    And,
    Not,
    Or,
    Project,
    filled,
    from_nested,
    normal,
    structure_of,
    template,
    to_nested,
)
from adaptome.graphs.sampling import answers, sample, sample_all
from adaptome.graphs.text import parse, write

NAMES = Vocabulary(
    ("acme", "york", "anna", "bob smith", "and"),
    ("works_for", "works_for^-1", "lives_in", "lives_in^-1", "parent_of", "parent_of^-1"),
)
WORKS, LIVES, PARENT = 0, 2, 4


# -- graphs ------------------------------------------------------------------------------------------------------------


def test_a_relation_is_walked_both_ways():
    names = Vocabulary.of([("anna", "likes", "bo"), ("cy", "likes", "bo")])
    graph = Graph(names, names.numbers(["anna", "cy"], ["likes"] * 2, ["bo"] * 2))
    likes = names.relation("likes")
    anna, bo, cy = map(names.entity, ("anna", "bo", "cy"))
    assert graph.after(anna, likes) == {bo} and graph.after(bo, names.inverse(likes)) == {anna, cy}
    assert graph.after(bo, likes) == set()
    assert graph.both_ways.shape == (4, 3) and (anna, likes) in graph.into(bo)


@pytest.mark.parametrize(
    ("relations", "inverses"),
    [
        (("x", "x^-1"), (1, 0)),
        (("+x", "-x"), (1, 0)),
        (("x", "x_reverse"), (1, 0)),
        (("x", "y"), (None, None)),
    ],
)
def test_inverse_relations_are_known_by_their_names(relations, inverses):
    names = Vocabulary(("a",), relations)
    assert names.inverses == inverses
    assert names.relation("x") == 0
    if inverses[0] is None:
        with pytest.raises(DataError, match=r"no inverse here: there is no 'x\^-1'"):
            names.inverse(0)


def test_unknown_and_repeated_names_are_told():
    with pytest.raises(DataError, match="no entity 'ana'. Did you mean 'anna'"):
        NAMES.entity("ana")
    with pytest.raises(DataError, match="no relation 'live_in'. Did you mean 'lives_in'"):
        NAMES.relation("live_in")
    with pytest.raises(DataError, match="entity 'a' stands twice"):
        Vocabulary(("a", "b", "a"), ())


# -- structures --------------------------------------------------------------------------------------------------------

#: as BetaE writes its structures, with numbers for the letters
NESTED = {
    "1p": (7, (3,)),
    "2p": (7, (3, 4)),
    "3p": (7, (3, 4, 5)),
    "2i": ((7, (3,)), (8, (4,))),
    "3i": ((7, (3,)), (8, (4,)), (9, (5,))),
    "ip": (((7, (3,)), (8, (4,))), (5,)),
    "pi": ((7, (3, 4)), (8, (5,))),
    "2in": ((7, (3,)), (8, (4, -2))),
    "3in": ((7, (3,)), (8, (4,)), (9, (5, -2))),
    "inp": (((7, (3,)), (8, (4, -2))), (5,)),
    "pin": ((7, (3, 4)), (8, (5, -2))),
    "pni": ((7, (3, 4, -2)), (8, (5,))),
    "2u": ((7, (3,)), (8, (4,)), (-1,)),
    "up": (((7, (3,)), (8, (4,)), (-1,)), (5,)),
}


@pytest.mark.parametrize("name", NESTED)
def test_nested_tuples_are_read_as_their_structure(name):
    query = from_nested(NESTED[name])
    form, entities, relations = template(query)
    assert structure_of(query) == name and form == STRUCTURES[name]
    assert entities == (7, 8, 9)[: len(entities)] and relations == (3, 4, 5)[: len(relations)]
    assert filled(form, entities, relations) == query == normal(query)
    assert from_nested(to_nested(query)) == query


def test_the_negation_of_two_steps_is_of_an_atom_or_of_the_set():
    first = Project(Anchor(7), 3)
    other = Project(Anchor(8), 5)
    assert from_nested(NESTED["pni"], "atom") == And((Project(first, 4, negated=True), other))
    assert from_nested(NESTED["pni"], "set") == And((Not(Project(first, 4)), other))
    assert structure_of(from_nested(NESTED["pni"], "set")) == "pni-set"


@pytest.mark.parametrize("wrong", [5, [], [5], [5, []], [5, [-3]], [[5, [0]]], [[5, [0]], [-1]]])
def test_what_is_no_query_is_told(wrong):
    with pytest.raises(DataError, match="is no query"):
        from_nested(wrong)


def test_what_nested_lists_cannot_say_is_told():
    both = And((Project(Anchor(0), 1), Project(Anchor(1), 1)))
    with pytest.raises(DataError, match="Write it as text"):
        to_nested(Not(both))


# -- lines -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "query"),
    [
        (
            "? : works_for(?, acme) and not lives_in(?, york)",
            And((Project(Anchor(0), WORKS + 1), Not(Project(Anchor(1), LIVES + 1)))),
        ),
        (
            "parent_of(anna, ?a) and parent_of(?a, ?)",
            Project(Project(Anchor(2), PARENT), PARENT),
        ),
        (
            "? : parent_of(?a, ?) and not works_for(?a, acme) and lives_in(?a, york)",
            Project(And((Project(Anchor(1), LIVES + 1), Not(Project(Anchor(0), WORKS + 1)))), PARENT),
        ),
        (
            'lives_in("bob smith", ?) or not not lives_in("and", ?)',
            Or((Project(Anchor(3), LIVES), Project(Anchor(4), LIVES))),
        ),
        (
            "not (parent_of(anna, ?a) and parent_of(?a, ?)) and lives_in(?, york)",
            And((Not(Project(Project(Anchor(2), PARENT), PARENT)), Project(Anchor(1), LIVES + 1))),
        ),
        (
            "parent_of(anna, ?a) and not parent_of(?a, ?) and lives_in(?, york)",
            And((Project(Project(Anchor(2), PARENT), PARENT, negated=True), Project(Anchor(1), LIVES + 1))),
        ),
        (  # `and` binds closer than `or`
            "lives_in(?, york) or works_for(?, acme) and lives_in(?, acme)",
            Or((
                Project(Anchor(1), LIVES + 1),
                And((Project(Anchor(0), WORKS + 1), Project(Anchor(0), LIVES + 1))),
            )),
        ),
    ],
)  # fmt: skip
def test_a_line_is_read(line, query):
    found = parse(line, NAMES)
    assert found == normal(query)
    assert parse(write(found, NAMES), NAMES) == found


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_structure_is_written_and_read_back(name):
    for entities, relations in itertools.product(([0, 1, 3], [4, 3, 2]), ([0, 3, 4], [5, 1, 2])):
        query = filled(STRUCTURES[name], entities, relations)
        assert parse(write(query, NAMES), NAMES) == query


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("? : works_fr(?, acme)", "no relation 'works_fr'. Did you mean 'works_for'"),
        ("? : works_for(?, acne)", "no entity 'acne'. Did you mean 'acme'"),
        ("? : works_for(?, acme", r"expected '\)' at column 22, found 'the end'"),
        ("works_for(anna, acme)", "asks for nothing"),
        ("works_for(?a, ?)", r"nothing is said of \?a"),
        ('works_for(?, "acme)', "quotation mark left open"),
        ("lives_in(?, york) works_for(?, acme)", "expected 'and' or 'or'"),
        ("and(?, york)", "expected 'a name' at column 1"),
        ("lives_in(?, ?)", "beside itself"),
        ("parent_of(?a, ?) and lives_in(?a, ?) and lives_in(?a, york)", "form a tree"),
        ("lives_in(?, york) and works_for(?a, acme)", r"speaks of \?a"),
        ("", "expected 'a name'"),
    ],
)
def test_what_is_wrong_with_a_line_is_told(line, told):
    with pytest.raises(DataError, match=told):
        parse(line, NAMES)


# -- drawn queries -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def town():
    triples = family_graph(couples=16)
    names = Vocabulary.of(triples)
    parts = [
        Graph(names, names.numbers(*zip(*rows, strict=True))) for rows in split_triples(triples).values()
    ]
    return parts[0], parts[0] + parts[1], parts[0] + parts[1] + parts[2]


def enumerated(graph, query):
    """The answers by trying every assignment against the list of triples."""
    facts, everyone = set(map(tuple, graph.both_ways.tolist())), range(len(graph.vocabulary.entities))

    def holds(node, entity):
        if isinstance(node, Anchor):
            return node.entity == entity
        if isinstance(node, Project):
            return any(
                ((e, node.relation, entity) in facts) != node.negated for e in everyone if holds(node.of, e)
            )
        if isinstance(node, Not):
            return not holds(node.of, entity)
        return (all if isinstance(node, And) else any)(holds(part, entity) for part in node.parts)

    return {e for e in everyone if holds(query, e)}


@pytest.mark.parametrize("name", [n for n in STRUCTURES if n != "3p"])
def test_answers_are_those_of_all_assignments(name, town):
    known, _, whole = town
    for drawn in sample(name, 2, known, whole, seed=3):
        assert answers(whole, drawn.query) == enumerated(whole, drawn.query)


@pytest.mark.parametrize("name", STRUCTURES)
def test_hard_answers_need_what_is_not_known(name, town):
    _, known, whole = town
    drawn = sample(name, 12, known, whole, most=60)
    assert len(drawn) == 12 == len({d.query for d in drawn})
    for d in drawn:
        old, new = answers(known, d.query), answers(whole, d.query)
        assert set(d.easy) == old & new and set(d.hard) == new - old
        assert d.hard and len(new) <= 60
        assert structure_of(d.query) == ("pni-set" if name == "pni" else name)
    assert sample(name, 12, known, whole, most=60) == drawn


@pytest.mark.parametrize("name", ["2in", "3in", "pin", "pni"])
def test_a_negation_excludes_something(name, town):
    known, _, _ = town
    for d in sample(name, 8, known, seed=2, most=200):
        positive = [p for p in d.query.parts if not isinstance(p, Not)]
        assert set(d.hard) < set.intersection(*(answers(known, p) for p in positive))


def test_a_graph_without_such_queries_is_told():
    names = Vocabulary(("a", "b"), ("r",))
    graph = Graph(names, np.array([[0, 0, 1]]))
    assert [d.query for d in sample("1p", 5, graph)] == [Project(Anchor(0), 0)]
    with pytest.raises(DataError, match="not one query of the structure 2in"):
        sample("2in", 5, graph)
    with pytest.raises(DataError, match="There are: 1p, 2p"):
        dict(sample_all({"4p": 1}, graph))
