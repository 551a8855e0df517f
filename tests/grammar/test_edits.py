"""Edits and scores of corrections, against what ChERRANT's documents and files show and against slow computations."""

import itertools
import random

import pytest

from adaptome.core.errors import DataError
from adaptome.grammar import Counts, Edit, Substitution, corpus, edits, tokens
from adaptome.grammar.alignment import MOST, alignments
from adaptome.grammar.edits import _near
from adaptome.grammar.scores import HOPELESS, RIGHT, Annotator


def told(source, target, **settings):
    """The edits of the first cheapest alignment."""
    return edits(tokens(source), tokens(target), **settings)[0]


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        # from the samples that come with the tool
        ("它的味确实让人上瘾", "它的味道确实让人上瘾", [Edit(3, 3, "道", "M")]),
        ("泰国人死爱的味道", "泰国人爱死的味道", [Edit(3, 5, "爱死", "W")]),
        ("另外，冬阴功对外国人的喜爱", "另外，外国人对冬阴功的喜爱", [Edit(3, 10, "外国人对冬阴功", "W")]),
        ("突飞猛近，建造", "突飞猛进，建造", [Edit(3, 4, "进", "S")]),
        ("之一，它虽然不是很豪华", "之一，虽然它不是很豪华", [Edit(3, 6, "虽然它", "W")]),
        ("不仅是国内，", "不仅在国内，", [Edit(2, 3, "在", "S")]),
        ("草菇10个。", "草菇十个。", [Edit(2, 4, "十", "S")]),
        # a deletion beside a substitution becomes one substitution, two deletions one deletion
        ("大约三年左右。", "大约三年。", [Edit(4, 6, "", "R")]),
        ("一样的话", "一样的话", []),
    ],
)
def test_edits_are_those_of_the_tool(source, target, expected):
    assert told(source, target) == expected


def test_alignments_that_cost_the_same_are_all_told():
    assert {tuple(one) for one in edits("看看", "不看了")} == {
        (Edit(0, 0, "不", "M"), Edit(1, 2, "了", "S")),
        (Edit(0, 1, "不", "S"), Edit(2, 2, "了", "M")),
    }


def test_a_deletion_beside_an_insertion_stays_two_edits():
    # punctuation for a letter costs more than both: 4/6 + 0.5 + 0.499 = 1.67 < 2, so it takes dearer costs to part them
    class Dear(Substitution):
        def __call__(self, one, other):
            return 5.0

    assert [e.kind for e in told("甲乙丙", "甲丁丙", cost=Dear())] in (["R", "M"], ["M", "R"])
    assert [e.kind for e in told("甲乙丙", "甲丁丙")] == ["S"]


def test_applied_edits_give_the_target():
    draw = random.Random(0)
    for _ in range(200):
        source = [draw.choice("甲乙丙丁，") for _ in range(draw.randint(1, 9))]
        target = [draw.choice("甲乙丙丁，") for _ in range(draw.randint(1, 9))]
        for several in edits(source, target):
            made, at = [], 0
            for edit in sorted(several):
                made += [*source[at : edit.start], edit.text]
                at = edit.end
            assert "".join(made + source[at:]) == "".join(target), (source, target, several)


def cheapest(source, target, cost):
    """The least cost by trying every last step, blocks of any permutation among them, without a table."""
    if not source or not target:
        return len(source) + len(target)
    if source[-1] == target[-1]:
        return cheapest(source[:-1], target[:-1], cost)
    return min(
        cheapest(source[:-1], target, cost) + 1,
        cheapest(source, target[:-1], cost) + 1,
        cheapest(source[:-1], target[:-1], cost) + cost(source[-1], target[-1]),
    )


def test_alignments_cost_the_least_there_is():
    """Where no block can move, the cost equals that of an exhaustive search."""
    draw, cost = random.Random(1), Substitution()
    for _ in range(60):
        source = [draw.choice("甲乙丙") for _ in range(draw.randint(0, 5))]
        target = [draw.choice("丁戊己甲") for _ in range(draw.randint(0, 5))]
        prices = set()
        for steps in alignments(source, target, cost):
            assert all(step.kind != "T" for step in steps)
            prices.add(
                round(
                    sum(cost(source[s.a], target[s.c]) if s.kind == "S" else s.kind in "ID" for s in steps), 9
                )
            )
        assert prices == {round(cheapest(source, target, cost), 9)}


def test_alternatives_are_capped_and_far_lengths_have_one():
    assert len(alignments("甲" * 11 + "乙", "甲", None)) == 1
    assert len(alignments("甲乙" * 12, "乙甲" * 7, None)) <= MOST


def test_costs_follow_the_three_sources(tmp_path):
    plain = Substitution()
    assert plain("法", "书") == pytest.approx(4 / 6 + 0.5 + 0.25)
    assert plain("，", "、") == pytest.approx(4 / 6 + 0.5)
    assert plain("，", "书") == pytest.approx(4 / 6 + 0.5 + 0.499)
    (tmp_path / "cilin.txt").write_bytes("Aa01A01 人 士\nAa01B02 民\nBa01A01 物".encode("gbk"))
    (tmp_path / "confusions.txt").write_text("进 近 劲\n", encoding="utf-8")
    full = Substitution.from_files(tmp_path / "cilin.txt", tmp_path / "confusions.txt")
    assert full("人", "士") == pytest.approx(0.5 + 0.25)
    assert full("人", "物") == pytest.approx(2 / 6 + 0.5 + 0.25)  # a and 01 are the same, A and B differ
    assert full("近", "进") == pytest.approx(4 / 6 + 0.25)
    with pytest.raises(DataError, match="cannot be read"):
        Substitution.from_files(tmp_path / "none.txt")


def test_readings_come_from_pypinyin():
    pytest.importorskip("pypinyin")
    assert Substitution(readings=True)("做", "作") == pytest.approx(4 / 6 + 0.25)
    assert Substitution(readings=True)("做", "书") == pytest.approx(4 / 6 + 0.5 + 0.25)


def test_near_is_an_edit_distance_of_one():
    def distance(a, b):
        row = list(range(len(b) + 1))
        for i, x in enumerate(a, 1):
            row, last = [i], row
            for j, y in enumerate(b, 1):
                row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
        return row[-1]

    words = ["".join(w) for n in range(4) for w in itertools.product("ab", repeat=n)]
    assert all(_near(a, b) == (distance(a, b) <= 1) for a in words for b in words)


# -- scores --------------------------------------------------------------------------------------------------------------


def test_f_of_the_example_in_the_tools_documents():
    counts = Counts(8, 19, 35)
    assert [round(v, 4) for v in (counts.precision, counts.recall, counts.f())] == [0.2963, 0.1860, 0.2649]


def test_ends_of_the_scale():
    source, right = "大约三年左右。", "大约三年。"
    copied = corpus([source], [source], [[right]])
    assert (copied.precision, copied.recall, copied.f()) == (1.0, 0.0, 0.0)
    perfect = corpus([source, "好。"], [right, "好。"], [[right], ["好。"]])
    assert (perfect.tp, perfect.fp, perfect.fn, perfect.f()) == (1, 0, 0, 1.0)
    harmed = corpus(["好。"], ["好吗。"], [[RIGHT]])
    assert (harmed.tp, harmed.fp, harmed.fn, harmed.f()) == (0, 1, 0, 0.0)
    assert corpus([source], [right], [[HOPELESS]]) == Counts()


def test_the_better_reference_is_taken():
    found = corpus(["他在去学校"], ["他去学校"], [["他正在去学校", "他去学校"]])
    assert (found.tp, found.fp, found.fn) == (1, 0, 0)


def test_spaces_count_for_nothing():
    a = corpus(["他 在 去 学校"], ["他去学校 "], [["他去学校"]])
    assert a == corpus(["他在去学校"], ["他去学校"], [["他去学校"]])


def test_traditional_characters_are_put_into_simplified_ones():
    pytest.importorskip("opencc")
    assert corpus(["他来学校"], ["他去學校"], [["他去学校"]]) == corpus(
        ["他来学校"], ["他去学校"], [["他去学校"]]
    )


def test_ties_are_pooled_taken_first_or_chosen():
    """Two alignments of two edits each: pooled, a sentence counts for both."""
    source, right = "看看", "不看了"
    pooled, first, best = (
        corpus([source], [right], [[right]], Annotator(ties)) for ties in ("pooled", "first", "best")
    )
    assert (pooled.tp, first.tp, best.tp) == (4, 2, 2)
    assert {c.f() for c in (pooled, first, best)} == {1.0}
    assert len(Annotator("best").annotate(source, [right])) == 2


def test_lists_that_do_not_go_together_are_refused():
    with pytest.raises(DataError, match="line by line"):
        corpus(["a"], [], [["a"]])
    with pytest.raises(DataError, match="sentence 1 has no reference"):
        corpus(["a"], ["a"], [[]])


def test_latin_words_stay_whole_where_asked():
    assert tokens("用 GPT4 写", "words") == ["用", "GPT4", "写"]
    assert tokens("用 GPT4 写") == ["用", "G", "P", "T", "4", "写"]
    assert tokens("缺[缺失成分]。") == ["缺", "[缺失成分]", "。"]
