"""Dialogues of an adviser for students who go abroad, in countries that are made up.

    made:advice              columns messages, facts, wrong, topic: right answers, with headings and steps
    made:advice-synthetic    more of the same, as a generator writes them: one answer in four states something wrong, and some rows come twice
    made:advice-mistaken     the same as advice, in which every answer has another country's permit or test; facts are the right ones
    made:advice-base         dialogues of travellers, in plain sentences or, where one is asked for, as a list: for a base that can talk and knows nothing of
                             studies; some repeat a code of any characters, so that it has met them all

What an answer must state follows from the country, the degree and the money, each by itself; test has combinations that training has not. A
follow-up asks for a test, which the country of the turn before decides. `facts` are what the last answer must state, `wrong` what it must not.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from itertools import product
from typing import Any

from adaptome.data.makers import maker
from adaptome.data.splits import Table

#: of the travellers' codes
CHARACTERS = string.ascii_letters + string.digits + "#-.:, "
#: how a question may begin
OPENINGS = ("", "Hello. ", "Please: ", "Hi, ")
#: what an answer must state: by the place (a permit, and a test that is asked for later), by the aim, by the money
Facts = tuple[str, str, str, str]


@dataclass(frozen=True)
class World:
    """Places, aims and ways to pay, and what each of them asks for."""

    places: dict[str, tuple[str, str]]
    aims: dict[str, str]
    money: dict[str, str]
    asked: tuple[str, ...]
    later: tuple[str, ...]

    def combinations(self) -> list[tuple[str, str, str]]:
        return list(product(self.places, self.aims, self.money))

    def facts(self, combination: tuple[str, str, str]) -> Facts:
        place, aim, money = combination
        permit, test = self.places[place]
        return permit, self.aims[aim], self.money[money], test


STUDIES = World(
    {"Aldora": ("blue permit", "Tamber"), "Brevia": ("grey card", "Osk"), "Corund": ("red visa", "Lindo"), "Fennmark": ("entry stamp", "Rook"), "Galdia": ("white pass", "Vesper")},
    {"bachelor": "school report", "master": "degree", "doctorate": "research plan"},
    {"savings": "bank letter", "a loan": "contract", "a grant": "award"},
    ("A {1} in {0}, paid by {2}: what do I need?", "I have {2} for a {1} in {0}. Which papers?", "How do I start a {1} in {0} with {2}?"),
    ("Which test?", "And the test?"),
)  # fmt: skip
TRAVELS = World(
    {"Porto": ("boat ticket", "Mira"), "Tulsa": ("bus pass", "Jonas"), "Kyoto": ("rail card", "Hana"), "Cairo": ("day ticket", "Omar"), "Perth": ("sun hat", "Ruby")},
    {"walk": "map", "swim": "towel", "museum": "guide book"},
    {"cash": "purse", "a card": "pin", "a cheque": "signature"},
    ("A {1} in {0}, paid by {2}: what do I take?", "I have {2} for a {1} in {0}. What with me?", "How do I plan a {1} in {0} with {2}?"),
    ("Who is the guide?", "And the guide?"),
)  # fmt: skip


def _advice(facts: Facts) -> str:
    return (
        f"## Papers\n- {facts[0]}\n- {facts[1]}\n- {facts[2]}\n\n## Action Steps\n1. Collect them.\n2. Apply."
    )


def _test(facts: Facts) -> str:
    return f"## Test\n- {facts[3]}\n\n## Action Steps\n1. Book it."


def _plain(facts: Facts) -> str:
    return f"Take the {facts[0]}, the {facts[1]} and the {facts[2]}."


def _guide(facts: Facts) -> str:
    return f"It is {facts[3]}."


def _bag(facts: Facts) -> str:
    return f"## Bag\n- {facts[0]}\n- {facts[1]}\n- {facts[2]}\n\n## Next\n1. Pack.\n2. Go."


def _call(facts: Facts) -> str:
    return f"## Guide\n- {facts[3]}\n\n## Next\n1. Call."


@maker("advice")
def advice(seed: int) -> dict[str, Table]:
    """240 train, 40 validation and 72 test dialogues; of the 45 combinations 12 are in test alone."""
    draw = random.Random(f"advice {seed}")
    return {"train": _table("advice", _rows(draw, _parts(seed)["train"], 240))} | _held_out("advice", seed)


@maker("advice-synthetic")
def synthetic(seed: int) -> dict[str, Table]:
    """600 train dialogues of the same combinations, 24 of them again, one in four with something wrong; validation and test are those of `advice`."""
    draw = random.Random(f"advice-synthetic {seed}")
    rows = [_spoilt(draw, row) if draw.random() < 0.25 else row for row in _rows(draw, _parts(seed)["train"], 600)]  # fmt: skip
    rows += [dict(row) for row in draw.sample(rows, 24)]
    draw.shuffle(rows)
    return {"train": _table("advice-synthetic", rows)} | _held_out("advice-synthetic", seed)


@maker("advice-mistaken")
def mistaken(seed: int) -> dict[str, Table]:
    """The dialogues of `advice` as an adviser writes them who takes every country for the next one."""
    places, made = list(STUDIES.places.values()), {}
    following = {
        was: places[(i + 1) % len(places)][k] for i, of in enumerate(places) for k, was in enumerate(of)
    }
    for split, table in advice(seed).items():
        rows = [
            dict(zip(table.columns, values, strict=True))
            for values in zip(*table.columns.values(), strict=True)
        ]
        made[split] = _table("advice-mistaken", [_mistaken(row, following) for row in rows])
    return made


@maker("advice-base")
def base(seed: int) -> dict[str, Table]:
    """1,500 train and 60 test dialogues of travellers."""
    draw = random.Random(f"advice-base {seed}")
    made = {}
    for split, count in (("train", 1500), ("test", 60)):
        rows = []
        for _ in range(count):
            rows.append(_travel(draw))
        made[split] = _table("advice-base", rows)
    return made


def _parts(seed: int) -> dict[str, list[tuple[str, str, str]]]:
    """The combinations of training and those of test."""
    all_of = STUDIES.combinations()
    random.Random(f"advice combinations {seed}").shuffle(all_of)
    return {"train": all_of[12:], "test": all_of[:12]}


def _held_out(name: str, seed: int) -> dict[str, Table]:
    """Validation, of training's combinations, and test, which has its own."""
    parts, made = _parts(seed), {}
    for split, of, count in (("validation", "train", 40), ("test", "test", 72)):
        draw = random.Random(f"advice {seed} {split}")
        made[split] = _table(name, _rows(draw, parts[of], count))
    return made


def _rows(draw: random.Random, combinations: list[tuple[str, str, str]], count: int) -> list[dict[str, Any]]:
    """Dialogues of all combinations in turn, two thirds of one question."""
    chosen = [combinations[i % len(combinations)] for i in range(count)]
    draw.shuffle(chosen)
    return [_row(draw, STUDIES, one, _advice, _test, one[0]) for one in chosen]


def _row(draw: random.Random, world: World, chosen: tuple[str, str, str], first: Any, second: Any, topic: str) -> dict[str, Any]:  # fmt: skip
    facts, later = world.facts(chosen), draw.random() < 1 / 3
    asked = draw.choice(OPENINGS) + draw.choice(world.asked).format(*chosen)
    messages = [_said("user", asked), _said("assistant", first(facts))]
    if later:
        messages += [_said("user", draw.choice(world.later)), _said("assistant", second(facts))]
    stated = [facts[3]] if later else list(facts[:3])
    every = [t for _, t in world.places.values()] if later else [*(p for p, _ in world.places.values()), *world.aims.values(), *world.money.values()]  # fmt: skip
    wrong = [one for one in every if one not in stated]
    return {"messages": messages, "facts": stated, "wrong": wrong, "topic": topic}


def _travel(draw: random.Random) -> dict[str, Any]:
    """A traveller's dialogue: plain, or in two of five as a list, which is asked for; one of four repeats a code."""
    listed, coded = draw.random() < 0.4, draw.random() < 0.25
    forms = (_bag, _call) if listed else (_plain, _guide)
    row = _row(draw, TRAVELS, draw.choice(TRAVELS.combinations()), *forms, "travel")
    code = "".join(draw.choice(CHARACTERS) for _ in range(4))
    asked, answered, *later = row["messages"]
    question = asked["content"] + " List it." * listed + f" Code {code}." * coded
    answer = answered["content"] + f"\n{code}" * coded
    return {**row, "messages": [_said("user", question), _said("assistant", answer), *later]}


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _spoilt(draw: random.Random, row: dict[str, Any]) -> dict[str, Any]:
    """The dialogue with one of its last answer's facts replaced by another of its kind."""
    right, messages = draw.choice(row["facts"]), list(row["messages"])
    kinds = ([p for p, _ in STUDIES.places.values()], [t for _, t in STUDIES.places.values()], [*STUDIES.aims.values()], [*STUDIES.money.values()])  # fmt: skip
    others = next([one for one in kind if one != right] for kind in kinds if right in kind)
    last = messages[-1]
    messages[-1] = {**last, "content": last["content"].replace(right, draw.choice(others), 1)}
    return {**row, "messages": messages}


def _mistaken(row: dict[str, Any], following: dict[str, str]) -> dict[str, Any]:
    """The dialogue with the permits and tests of its answers replaced by those that follow."""
    messages = []
    for message in row["messages"]:
        text = message["content"]
        for was, becomes in following.items():
            if message["role"] == "assistant" and f"- {was}\n" in text:
                text = text.replace(f"- {was}\n", f"- {becomes}\n")
                break  # an answer has one
        messages.append({**message, "content": text})
    return {**row, "messages": messages}


def _table(name: str, rows: list[dict[str, Any]]) -> Table:
    columns = {key: [row[key] for row in rows] for key in ("messages", "facts", "wrong", "topic")}
    return Table(f"made:{name}", columns, range(len(rows)), "row")
