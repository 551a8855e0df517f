"""Answers as mathematics: what is read out of a text, and what is equal, with the verifier and without it."""

from __future__ import annotations

import pytest

from adaptome.tasks import answers_math
from adaptome.tasks.answers_math import Math, boxed

EQUAL = [
    (r"so \boxed{12}", "12"),
    (r"\boxed{\frac{1}{2}}", "0.5"),
    (r"\boxed{\dfrac12}", r"\frac{1}{2}"),
    (r"\boxed{-\frac{3}{4}}", "-0.75"),
    (r"\boxed{1,234}", "1234"),
    (r"\boxed{5 \text{ cm}}", "5"),
    (r"\boxed{50\%}", r"50\%"),
    (r"first \boxed{3}, then \boxed{7}", "7"),
    ("the answer is 72", "3 * 24 = 72\n#### 72"),
    (r"\boxed{(3, 4)}", "(3,4)"),
]
IN_FULL = [
    (r"\boxed{\{2, 1\}}", r"\{1, 2\}"),
    (r"\boxed{x + 1}", "1 + x"),
    (r"\boxed{\frac{\sqrt{8}}{2}}", r"\sqrt{2}"),
    (r"\boxed{\frac{2}{6}}", r"\frac{1}{3}"),
]
DIFFERENT = [
    (r"\boxed{12}", "13"),
    (r"\boxed{\frac{1}{3}}", "0.33"),
    (r"\boxed{7} and \boxed{3}", "7"),
    ("no answer at all", "0"),
    (r"\boxed{", "0"),
    (r"\boxed{(4, 3)}", "(3,4)"),
]


@pytest.fixture(params=["verifier", "numbers alone"])
def rule(request, monkeypatch):
    if request.param == "verifier":
        pytest.importorskip("math_verify")
    else:
        monkeypatch.setattr(answers_math, "verifier", lambda: False)
    return Math()


@pytest.mark.parametrize(("text", "answer"), EQUAL)
def test_equal_answers(rule, text, answer):
    assert rule.right(text, answer)


@pytest.mark.parametrize(("text", "answer"), DIFFERENT)
def test_different_answers(rule, text, answer):
    assert not rule.right(text, answer)


@pytest.mark.parametrize(("text", "answer"), IN_FULL)
def test_equal_as_mathematics(text, answer):
    pytest.importorskip("math_verify")
    assert Math().right(text, answer)


def test_what_is_missing_without_the_verifier_is_told(monkeypatch):
    monkeypatch.setattr(answers_math, "verifier", lambda: False)
    (note,) = answers_math.without_a_verifier()
    assert "adaptome[math]" in note
    assert not Math().right(r"\boxed{\{2, 1\}}", r"\{1, 2\}")


def test_braces_are_matched():
    assert boxed(r"\boxed{\frac{a}{b}} .") == r"\frac{a}{b}"
    assert boxed(r"\boxed{1} \boxed{2") is None and boxed("1") is None


def test_a_text_without_an_answer_is_unread():
    assert Math().unread("I do not know.") and not Math().unread("It is 4.")
    assert Math().label("x + 1") == "x + 1"  # a record's own line needs no box
