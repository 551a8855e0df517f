"""Dialogues: ShareGPT's layout, strict turns, and planted duplicates; no training dialogue is in validation or test."""

import datasets
import numpy as np
import pytest

from adaptome.core.errors import DataError
from adaptome.data.dialogues import check_turns, with_messages, without_duplicates
from adaptome.data.makers import make
from adaptome.data.makers.advice import STUDIES
from adaptome.data.splits import Splits, Table, to_split
from adaptome.tasks import get_task
from tests.tasks.tiny import small, spec

LONG = "Apply to the university of Aldora before March with transcripts, a motivation letter, two references and proof of funds; {} is the language test that they ask for."


def chat(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def splits(**rows):
    tables = {name: Table(f"{name}.jsonl", {"messages": chats}, range(1, len(chats) + 1)) for name, chats in rows.items()}  # fmt: skip
    return Splits({name: to_split([table], name) for name, table in tables.items()})


def test_sharegpt_becomes_messages_and_other_columns_stay():
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    table = Table("a.jsonl", {"conversations": [turns], "topic": ["x"]}, [1])
    made = with_messages(Splits({"train": to_split([table], "train")}))["train"]
    assert (
        made.rows[0] == {"topic": "x", "messages": chat("Hi", "Hello")} and made.where(0) == "a.jsonl, line 1"
    )
    table = Table("a.jsonl", {"conversations": [turns, [{"from": "humna", "value": "Hi"}]]}, [1, 2])
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: turn 1 is from 'humna'.*human"):
        with_messages(Splits({"train": to_split([table], "train")}))


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], "a dialogue is a list of messages"),
        ([{"role": "assistant", "content": "Hello"}], "message 1 is from 'assistant'; expected 'user'"),
        ([{"role": "user", "content": "Hi"}], "ends with 'user'"),
        ([*chat("a", "b"), {"role": "assistant", "content": "c"}], "message 3 is from 'assistant'; expected 'user'"),
        ([{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "message 3"),
        (chat("a", "  "), "message 2 says nothing"),
    ],
)  # fmt: skip
def test_turns_out_of_order_are_named(messages, told):
    with pytest.raises(DataError, match=f"here: .*{told}"):
        check_turns("here", messages)


def test_a_system_prompt_may_come_first():
    check_turns("here", [{"role": "system", "content": "Be brief."}, *chat("a", "b"), *chat("c", "d")])


def test_planted_duplicates_are_found_and_the_splits_never_overlap():
    own = [chat(f"Question {i} about the town of {name}?", f"The answer for {name} is number {i}.") for i, name in enumerate(("Ober", "Unter", "Mittel"))]  # fmt: skip
    near = [chat("What do they want?", LONG.format(name)) for name in ("Tamber", "Quill", "Rook")]
    twice = [*chat("a", "the same"), *chat("b", "the same")]
    spaced = chat("Question 0  about the town of Ober?", "The answer for Ober is number 0. ")
    given = splits(train=[*own, spaced, near[0], near[1], twice, own[2]], test=[near[2], own[1]])
    made = without_duplicates(given)
    assert made["train"].rows["messages"][:] == [own[0], own[2], near[0], near[1]]
    assert made.notes == [
        "1 of 8 dialogues of train are in validation or test too and were left out.",
        "2 of 8 dialogues of train are the same as an earlier one and were left out.",
        "1 of 8 dialogues of train give one answer twice and were left out.",
    ]
    made = without_duplicates(given, near=0.8)
    assert made["train"].rows["messages"][:] == [own[0], own[2]]
    assert "2 of 8 dialogues of train are nearly one of validation or test and were left out." in made.notes
    alone = without_duplicates(splits(train=[*own, *near]), near=0.8)  # a chain of near ones keeps its first
    assert alone["train"].rows["messages"][:] == [*own, near[0]]
    kept = {str(row) for row in made["train"].rows["messages"]}
    assert not kept & {str(row) for row in made["test"].rows["messages"]}


def test_words_that_all_stop_are_near_nothing():
    made = without_duplicates(splits(train=[chat("the", "of"), chat("a", "and")]), near=0.5)
    assert len(made["train"]) == 2


@pytest.mark.parametrize("name", ["advice", "advice-synthetic"])
def test_made_advice_is_right_where_it_says_so_and_test_has_its_own_combinations(name):
    made = make(f"made:{name}", 3)
    assert str(make(f"made:{name}", 3)["train"].columns) == str(made["train"].columns)
    assert made["test"].columns["messages"] == make("made:advice", 3)["test"].columns["messages"]
    words = [*STUDIES.places, *STUDIES.aims, *STUDIES.money]
    questions = {split: {tuple(word in row[0]["content"] for word in words) for row in table.columns["messages"]} for split, table in made.items()}  # fmt: skip
    assert not questions["train"] & questions["test"]
    rows = made["train"].columns
    right = np.array([all(fact in row[-1]["content"] for fact in facts) for row, facts in zip(rows["messages"], rows["facts"], strict=True)])  # fmt: skip
    false = np.array([any(one in row[-1]["content"] for one in wrong) for row, wrong in zip(rows["messages"], rows["wrong"], strict=True)])  # fmt: skip
    assert right.all() != (name == "advice-synthetic") and (right == ~false).all()
    if name == "advice-synthetic":
        assert 0.15 < false.mean() < 0.35 and len(right) == 624
    datasets.Dataset.from_dict(dict(rows))  # one type a column


def test_mistaken_advice_is_wrong_in_every_answer_and_like_the_right_one_else():
    right, wrong = (make(f"made:{name}", 1)["test"].columns for name in ("advice", "advice-mistaken"))
    assert right["facts"] == wrong["facts"]
    for one, other, facts in zip(right["messages"], wrong["messages"], right["facts"], strict=True):
        assert [m["content"] for m in one if m["role"] == "user"] == [m["content"] for m in other if m["role"] == "user"]  # fmt: skip
        assert sum(fact not in other[-1]["content"] for fact in facts) == 1
        assert len(other[-1]["content"].split("\n")) == len(one[-1]["content"].split("\n"))


def test_other_tasks_read_sharegpt_too(tmp_path):
    table = Table("a.jsonl", {"conversations": [[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]]}, [1])  # fmt: skip
    task = get_task("causal-lm", chat_template="human-assistant")
    processor = task.load_processor(spec(from_config=small("llama"), tokenizer="bytes"))
    data = task.prepare(task.shaped(Splits({"train": to_split([table], "train")})), processor)
    assert data["train"][0] == {"messages": chat("Hi", "Hello")}
