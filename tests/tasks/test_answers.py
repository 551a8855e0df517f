"""Reading answers out of text: the arithmetic and commonsense sets' rules on strings that trip them."""

from __future__ import annotations

import math
import time

import pytest

from adaptome.tasks.answers import (
    RULES,
    Choice,
    Letter,
    Number,
    Text,
    contaminated,
    overlap,
    rule_for,
    set_name,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 1,234.5", 1234.5),
        ("it fell to -3", -3.0),
        ("1,000,000 then 7.", 7.0),
        ("5 apples, then 12 in all.\n#### 12", 12.0),
        ("he paid $45.50", 45.5),
        ("50% of 8 is 4%", 4.0),
        ("so 10-3 = 7", 7.0),
        ("so 10-3", -3.0),  # the source's rule: the sign belongs to the digits
        ("x2y", 2.0),
        ("no number here", math.inf),
        ("", math.inf),
    ],
)
def test_the_last_number_is_the_answer(text, number):
    assert Number().read(text) == number


def test_numbers_agree_within_a_thousandth_and_none_agrees_with_nothing():
    rule = Number()
    assert rule.right("about 1.8333", "1.8333333333333335")
    assert rule.right("70000", "70,000") and rule.right("3", "3.0")
    assert not rule.right("1.8", "1.8333333333333335")
    assert not rule.right("I do not know", "3")
    assert rule.label("none") is None and not rule.right("none", "none")


@pytest.mark.parametrize(
    ("text", "letter", "first"),
    [
        ("The answer is (C).", "C", "C"),
        ("All choices fail but one: the answer is B", "B", "A"),
        ("Based on this, the answer is D.", "D", "B"),
        ("Each is wrong.\nAnswer: E", "E", "E"),
        ("The answer is A, no: the answer is (B)", "B", "A"),
        ("the answer is **D**", "D", "D"),
        ("C", "C", "C"),
        (" (e) ", "", ""),
        ("A train leaves at noon", "", "A"),
        ("the answer is Angle", "", "A"),
        ("none of these", "", ""),
        ("so x = 5.\nAnswer D", "D", "A"),
        ("so x = 5.\nANSWER:B", "B", "A"),
        ("so x = 5. Ans - C", "C", "A"),
        ("Answer: Option D) 12", "D", "A"),
        ("The correct option is B. Option D is too large.", "B", "B"),
        ("Correct Option: OPTION E", "E", "C"),
        ("It comes to 40.\nChoice B.", "B", "C"),
        ("Option A gives 3, option B gives 4.\nC", "C", "A"),
        ("Dividing by 5, hence (E) is the correct answer, and A is wrong", "E", "D"),
        ("Hence the answer will be A. 5 pi", "A", "A"),
        (r"The final answer is $\boxed{\text{E}}$.", "E", "E"),
        ("**Answer:** **B**", "B", "A"),
        ("Answer Choices: (A) 3 (B) 4 (C) 5", "", "A"),
        ("the answer is not A", "", "A"),
        ("To answer, Bob adds 3", "", "B"),
    ],
)
def test_letters_by_their_phrase_and_by_the_first_capital(text, letter, first):
    rule = RULES["aqua"]
    assert rule.read(text) == letter
    for truth in "ABCDE":
        assert rule.right(text, truth) is (letter == truth)
        assert rule.also(text, truth) == {"first_letter": first == truth}


@pytest.mark.parametrize(
    ("name", "text", "choice"),
    [
        ("boolq", "the correct answer is false, not true", "false"),
        ("piqa", "solution2 over solution1", "solution2"),
        ("piqa", "solution3", ""),
        ("siqa", "the correct answer is answer3", "answer3"),
        ("arc_c", "answer5", "answer5"),
        ("hellaswag", "ending4", "ending4"),
        ("winogrande", "option1option2", "option1"),
        ("obqa", "Answer1", ""),
    ],
)
def test_the_first_of_the_choices_is_the_answer(name, text, choice):
    assert RULES[name].read(text) == choice


def test_a_longer_choice_is_not_taken_for_its_beginning():
    assert Choice(("answer1", "answer10")).read("answer10") == "answer10"


@pytest.mark.parametrize(
    ("text", "choice"),
    [("I know: Yes.", "yes"), ("NO", "no"), ("nothing", ""), ("it is no_good", ""), ("yes\nno", "yes")],
)
def test_choices_of_ones_own_are_words_in_whatever_case(text, choice):
    assert Choice(("yes", "no"), whole=True).read(text) == choice


def test_choices_that_differ_by_case_are_kept_apart_and_other_scripts_have_no_spaces():
    assert Choice(("A", "a"), whole=True).read("so a.") == "a"
    assert Choice(("是", "否"), whole=True).read("答案是。") == "是"
    assert Choice(("C++", "C"), whole=True).read("in C++") == "C++"


def test_reading_a_letter_takes_no_longer_than_the_text(monkeypatch):
    """No pattern goes back over a long text again and again."""
    began = time.perf_counter()
    for text in (
        "Answer" + " " * 20000 + "x",
        "answer is " * 5000 + "(" * 5000,
        "\\" * 20000,
        "answer " + "\\boxed{" * 5000,
    ):
        assert RULES["aqua"].read(text) == ""
    assert time.perf_counter() - began < 5  # quadratic would be minutes


def test_whole_texts_agree_up_to_spaces_and_case():
    assert Text().right(" New  York\n", "new york") and not Text().right("York", "New York")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("dataset/AddSub/test.json", "addsub"),
        ("math/gsm8k/test.jsonl.gz", "gsm8k"),
        ("openai/gsm8k", "gsm8k"),
        ("C:\\data\\ARC-Easy\\test.json", "arc_e"),
        ("social_i_qa/test.json", "siqa"),
        ("openbookqa/validation.json", "obqa"),
        ("gsm8k_test.jsonl", "gsm8k"),
        ("ft-training_set/math_10k.json", "math_10k"),
        ("my-questions.json", "my_questions"),
        ("test.json", "test"),
    ],
)
def test_sets_are_named_after_their_files(source, name):
    assert set_name(source) == name


def test_an_unknown_set_is_read_as_its_answers_are():
    assert isinstance(rule_for("mine", ["3", "-4.5", "1,200"]), Number)
    assert isinstance(rule_for("mine", ["A", "E", "A"]), Letter)
    assert rule_for("mine", ["yes", "no", "yes"]) == Choice(("no", "yes"), whole=True)
    assert isinstance(rule_for("mine", [f"word {i}" for i in range(30)]), Text)
    assert isinstance(rule_for("gsm8k", ["yes"]), Number)  # a known set's own rule


def test_mawps_holds_three_of_the_test_sets():
    assert contaminated(["mawps"], ["addsub", "svamp"]) == [("mawps", "addsub")]
    assert contaminated(["math_10k"], ["singleeq", "multiarith"]) == [
        ("math_10k", "multiarith"),
        ("math_10k", "singleeq"),
    ]
    assert contaminated(["mawps_asdiv_svamp"], ["addsub"]) == [("mawps_asdiv_svamp", "addsub")]
    assert contaminated(["math_7k", "gsm8k", "mawpsish"], ["addsub", "mawps"]) == []


def test_overlap_passes_over_case_spaces_and_punctuation():
    assert overlap(["Tom has 3 hens . How many ?"], ["tom has 3 hens. How many?", "Tom has 4 hens."]) == 1
