"""Worked answers: read and written to the letter, taken into steps, and spoiled by a known share, the same for the same seed."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from adaptome.core.errors import DataError
from adaptome.data.makers import make
from adaptome.traces import (
    HOW,
    MARKERS,
    STRUCTURAL,
    count,
    framed,
    opens_with_keyword,
    pass_at_k,
    perturbed,
    rates,
    read_trace,
    segment,
    sentences,
)
from adaptome.traces.keywords import KEYWORDS, has_keyword

SKY, THINK = MARKERS["sky"], MARKERS["think"]
STEPS = [
    "First, 12 + 30 = 42.",
    "Wait, is it 43? 12 + 30 is 42. Fine.",
    "Then 42 / 7 = 6.",
    "But 6 is not the end.",
    "So 6 * 3.5 = 21.",
    "Done: 21.",
]
TRACE = framed(STEPS, r"It is \boxed{21}.", SKY)


def made(trace, how, share, seed=0, others=("foreign one.", "foreign two.")):
    return perturbed(trace, how, share, random.Random(seed), others)


# -- reading and writing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "markers"),
    [
        (TRACE.text, SKY),
        (framed(STEPS, "21", THINK).text, THINK),
        (
            "<|begin_of_thought|>a\n\n\n b<|end_of_thought|> <|begin_of_solution|>c\n<|end_of_solution|>\n",
            SKY,
        ),
        ("  <think>a</think>21  ", THINK),
    ],
)
def test_what_is_read_is_written_to_the_letter(text, markers):
    assert read_trace(text, markers).text == text


def test_a_traces_parts():
    read = read_trace(TRACE.text, SKY)
    assert list(read.steps) == STEPS and read.solution == r"It is \boxed{21}."
    assert read.text.startswith("<|begin_of_thought|>\n\nFirst") and read.text.endswith(
        "\n\n<|end_of_solution|>"
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("no marks", "no <|begin_of_thought|>"),
        (TRACE.text.replace("<|end_of_thought|>", ""), "no <|end_of_thought|>"),
        (TRACE.text.replace("begin_of_thought", "slow_thought"), "no <|begin_of_thought|>"),  # the released prompt's names
        (TRACE.text * 2, "stands 2 times"),
        ("<|end_of_thought|>a<|begin_of_thought|><|begin_of_solution|>b<|end_of_solution|>", "another order"),
        (framed([], "21", SKY).text, "the thought is empty"),
        (framed(["a"], " ", SKY).text, "the solution is empty"),
    ],
)  # fmt: skip
def test_a_malformed_trace_is_refused_with_the_reason(text, why):
    with pytest.raises(DataError, match=re.escape(why)):
        read_trace(text, SKY)


def test_steps_of_ones_own_have_to_be_the_thoughts():
    own = [" ".join(STEPS[:3]), " ".join(STEPS[3:])]
    assert read_trace(TRACE.text, SKY, own).steps == tuple(own)
    with pytest.raises(DataError, match="not the thought's"):
        read_trace(TRACE.text, SKY, STEPS[:2])


def test_a_step_ends_at_a_blank_line_and_before_a_sentence_that_turns():
    assert segment("One. Two.\n\nThree. Wait, four. Five.\nAlternatively six.\n \nSeven") == (
        "One. Two.", "Three.", "Wait, four. Five.", "Alternatively six.", "Seven",
    )  # fmt: skip


# -- keywords ------------------------------------------------------------------------------------------------------


def test_sentences_join_to_the_text_and_points_within_numbers_end_none():
    text = "It is 3.5. Wait!  Really?\nYes.\n\nSo 2.\t"
    assert "".join(sentences(text)) == text
    assert [part.strip() for part in sentences(text)] == ["It is 3.5.", "Wait!", "Really?", "Yes.", "So 2."]


def test_keywords_are_whole_words():
    assert count("Wait, but await the butter. Let me check this again. Alternatively, hmm.") == 5
    assert opens_with_keyword("  Wait, no") and not opens_with_keyword("So wait")


def test_all_keywords_taken_out_leaves_none_and_the_rest_as_it_was():
    spoiled = made(TRACE, "keywords", 1.0)
    assert count(TRACE.thought) == 2 and count(spoiled.thought) == 0
    assert len(KEYWORDS.findall(spoiled.thought)) == 0
    kept = [part.strip() for part in sentences(TRACE.thought) if not has_keyword(part)]
    assert [part.strip() for part in sentences(spoiled.thought)] == kept


# -- what is spoiled -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOW)
def test_nothing_is_spoiled_at_zero_and_one_seed_spoils_the_same(how):
    assert made(TRACE, how, 0.0) is TRACE
    assert made(TRACE, how, 0.67, 3) == made(TRACE, how, 0.67, 3)
    several = {made(TRACE, how, 0.67, seed).text for seed in range(8)}
    assert len(several) > 1 or how == "keywords"


@pytest.mark.parametrize(("how", "share"), list(itertools.product(STRUCTURAL, (0.33, 0.67, 1.0))))
def test_a_structural_edit_leaves_the_solution_to_the_letter(how, share):
    spoiled = made(TRACE, how, share)
    assert spoiled.solution == TRACE.solution and spoiled.thought != TRACE.thought
    assert (spoiled.head, spoiled.middle, spoiled.tail) == (TRACE.head, TRACE.middle, TRACE.tail)


def test_digits_at_one_every_digit_is_drawn_anew_and_nothing_else_changes():
    long = framed([f"{n} + {n} = {2 * n}" for n in range(100, 900)], r"\boxed{12}", SKY)
    spoiled = made(long, "digits", 1.0)
    before, after = long.text, spoiled.text
    assert len(before) == len(after)
    assert all(a == b or (a.isdigit() and b.isdigit()) for a, b in zip(before, after, strict=True))
    same = [a == b for a, b in zip(before, after, strict=True) if a.isdigit()]
    assert 0.08 < sum(same) / len(same) < 0.12  # by chance


@pytest.mark.parametrize("share", HOW["digits"])
def test_digits_as_many_as_the_share_says(share):
    long = framed([f"{n} + {n} = {2 * n}" for n in range(100, 900)], r"\boxed{12}", SKY)
    pairs = zip(long.text, made(long, "digits", share).text, strict=True)
    differ = [a != b for a, b in pairs if a.isdigit()]
    assert sum(differ) / len(differ) == pytest.approx(0.9 * share, abs=0.02)


def test_deleted_steps_are_gone_and_the_others_stand_in_order():
    spoiled = made(TRACE, "delete", 0.67)
    assert len(spoiled.steps) == 6 - 4
    assert list(spoiled.steps) == [step for step in STEPS if step in spoiled.steps]
    empty = made(TRACE, "delete", 1.0)
    assert empty.thought == "" and empty.solution == TRACE.solution


def test_inserted_steps_are_all_foreign_and_as_many():
    for share, count_ in ((0.33, 2), (0.67, 4), (1.0, 6)):
        spoiled = made(TRACE, "insert", share)
        assert len(spoiled.steps) == 6
        assert sum(step.startswith("foreign") for step in spoiled.steps) == count_
        assert all(a == b for a, b in zip(spoiled.steps, STEPS, strict=True) if not a.startswith("foreign"))
    with pytest.raises(DataError, match="there are none"):
        made(TRACE, "insert", 0.5, others=())


def test_shuffled_steps_are_the_same_ones_and_about_the_share_moves():
    long = framed([f"step {n}" for n in range(100)], "1", SKY)
    for share in (0.33, 0.67, 1.0):
        spoiled = made(long, "shuffle", share)
        assert sorted(spoiled.steps) == sorted(long.steps)
        moved = sum(a != b for a, b in zip(spoiled.steps, long.steps, strict=True))
        assert 100 * share - 6 <= moved <= 100 * share


def test_a_wrong_answer_is_wrong_in_thought_and_solution():
    spoiled = made(TRACE, "wrong", 1.0)
    (answer,) = re.findall(r"\d+", spoiled.solution)
    assert answer != "21" and len(answer) == 2 and spoiled.thought.endswith(f"Done: {answer}.")
    with pytest.raises(DataError, match="no number"):
        made(framed(["a"], "b", SKY), "wrong", 1.0)


def test_a_smaller_share_is_part_of_a_larger_one():
    long = framed([f"step {n}" for n in range(30)], "1", SKY)
    few, many = (set(made(long, "delete", share).steps) for share in (0.33, 0.67))
    assert many < few


def test_the_papers_shares():
    assert len(rates()) == 1 + 4 + 3 + 3 * 3
    assert HOW["digits"] == (0.2, 0.5, 0.7, 1.0) and HOW["shuffle"] == (0.33, 0.67, 1.0)


# -- several answers -----------------------------------------------------------------------------------------------


def test_pass_at_k_is_the_share_of_choices_that_hold_a_right_one():
    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                choices = list(itertools.combinations(range(n), k))
                share = sum(any(i < c for i in choice) for choice in choices) / len(choices)
                assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-12)
    with pytest.raises(DataError):
        pass_at_k(2, 3, 1)


# -- data that is made ---------------------------------------------------------------------------------------------


def test_chains_are_traces_whose_answers_are_right_and_whose_slips_are_seen():
    tables = make("made:chains", 0)
    columns = tables["train"].columns
    assert not set(columns["instruction"]) & set(tables["test"].columns["instruction"])
    for question, text, answer, wrong in list(zip(*(columns[c] for c in ("instruction", "output", "answer", "wrong")), strict=True))[:200]:  # fmt: skip
        value = _computed(question)
        trace, bad = read_trace(text, THINK), read_trace(wrong, THINK)
        assert answer == str(value) and trace.solution == rf"\boxed{{{value}}}"
        assert bad.solution != trace.solution
        right = [step.removeprefix("Wait, ") for step in trace.steps]
        for at, step in enumerate(right):
            sum_, result = step.partition(": ")[2].split("=")
            sound = eval(sum_) % 10 == int(result)
            assert sound or (
                at + 1 < len(right) and right[at + 1][0] == step[0]
            )  # a slip is done again at once


def _computed(question: str) -> int:
    """The answer by Python: `a7 b+2 c-3 c?` is 7+2-3."""
    return int(eval("".join(part[1:] for part in question.split()[:-1])) % 10)
