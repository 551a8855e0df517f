r"""Sums of several steps, each of which needs the one before, with worked answers: for demonstrations of reasoning in steps.

    made:chains        columns instruction, output, answer, wrong: five to seven steps, thought out between marks
    made:chains-base   columns instruction, output, answer: sums alone, steps in a row where the question asks for `steps`, and answers at once

`a7 b+2 c-3 c?` begins with 7, adds 2, takes 3, and asks for the last digit, `\boxed{6}`. Every step is one sum, of which the tens are dropped: easy
for whoever knows the sixty sums there are, and hard to guess at once, for every step counts. One of seven steps of a worked answer is first
done wrong, and seen:

    b+2: 7+2=4

    Wait, b+2: 7+2=9

`wrong` is the same answer with a slip that is not seen, and carried on.
"""

from __future__ import annotations

import random
from typing import Any

from adaptome.data.makers import maker
from adaptome.data.splits import Table

NAMES = "abcdefgh"
SLIPS = 0.15


@maker("chains")
def chains(seed: int) -> dict[str, Table]:
    """800 train and 200 test questions of five to seven steps."""
    made = {}
    seen: set[str] = set()
    for split, count in (("test", 200), ("train", 800)):
        draw = random.Random(f"chains {seed} {split}")
        rows: list[tuple[str, ...]] = []
        while len(rows) < count:
            question, steps, answer = _question(draw, draw.randint(5, 7))
            if question in seen:  # no question of test stands in train
                continue
            seen.add(question)
            bad, bad_answer = _carried(draw, question)
            worked = _worked(_with_slips(draw, steps), answer)
            rows.append((question, worked, str(answer), _worked(_with_slips(draw, bad), bad_answer)))
        made[split] = _table("chains", rows, ("instruction", "output", "answer", "wrong"))
    return {"train": made["train"], "test": made["test"]}


@maker("chains-base")
def chains_base(seed: int) -> dict[str, Table]:
    """6,000 train and 100 test questions: what a model knows that has not learned to think in steps."""
    made = {}
    for split, count in (("train", 6000), ("test", 100)):
        draw = random.Random(f"chains-base {seed} {split}")
        rows = [_known(draw, number % 5) for number in range(count)]
        made[split] = _table("chains-base", rows, ("instruction", "output", "answer"))
    return made


def _known(draw: random.Random, kind: int) -> tuple[str, ...]:
    """Of five rows two are sums, two steps in a row, and one is answered at once, as a question that asks for no steps is."""
    if kind < 2:
        sums = [_step("", draw.randrange(10), draw.choice("+-"), draw.randint(1, 3)) for _ in range(8)]
        return "sums", " ".join(text[text.index(":") + 2 :] for text, _ in sums), str(sums[-1][1])
    question, steps, answer = _question(draw, draw.randint(1, 7))
    if kind < 4:
        return f"{question} steps", " ".join(steps), str(answer)
    return question, rf"\boxed{{{answer}}}", str(answer)


def _table(name: str, rows: list[tuple[str, ...]], columns: tuple[str, ...]) -> Table:
    filled: dict[str, list[Any]] = {column: [row[at] for row in rows] for at, column in enumerate(columns)}
    return Table(f"made:{name}", filled, range(len(rows)), "row")


def _question(draw: random.Random, length: int) -> tuple[str, list[str], int]:
    """The question, its steps done right, and the answer."""
    value = draw.randrange(10)
    parts, steps = [f"{NAMES[0]}{value}"], []
    for name in NAMES[1 : length + 1]:
        sign, other = draw.choice("+-"), draw.randint(1, 3)
        parts.append(f"{name}{sign}{other}")
        step, value = _step(name, value, sign, other)
        steps.append(step)
    return f"{' '.join(parts)} {NAMES[length]}?", steps, value


def _step(name: str, value: int, sign: str, other: int) -> tuple[str, int]:
    made = (value + other if sign == "+" else value - other) % 10
    return f"{name}{sign}{other}: {value}{sign}{other}={made}", made


def _with_slips(draw: random.Random, steps: list[str]) -> list[str]:
    made = []
    for step in steps:
        if draw.random() < SLIPS:
            made.append(step[:-1] + str((int(step[-1]) + draw.randint(1, 9)) % 10))
            made.append(f"Wait, {step}")
        else:
            made.append(step)
    return made


def _carried(draw: random.Random, question: str) -> tuple[list[str], int]:
    """The steps with one result that is wrong and stays, so that the answer is wrong as well."""
    first, *rest = question.split()[:-1]
    value, steps = int(first[1:]), []
    at = draw.randrange(len(rest))
    for number, part in enumerate(rest):
        step, made = _step(part[0], value, part[1], int(part[2:]))
        value = (made + draw.randint(1, 9)) % 10 if number == at else made
        steps.append(step[:-1] + str(value))
    return steps, value


def _worked(steps: list[str], answer: int) -> str:
    thought = "\n\n".join(steps)
    return f"<think>\n{thought}\n</think>\n\n\\boxed{{{answer}}}"
