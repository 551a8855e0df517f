"""`adaptome inspect` prints the inspection and takes its exit codes."""

import json

import pytest

from adaptome.cli import main


def run(*words):
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *words])
    return ended.value.code or 0


def test_json_holds_the_count(capsys):
    words = ["gpt2", "--method", "lora", "--targets", "attention", "--set", "r=4", "--length", "8", "--json"]
    assert run(*words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trainable"] == 12 * 4 * ((768 + 3 * 768) + (768 + 768))
    assert found["setup"]["dtype"] == "bf16"
    assert found["memory"]["peak"] > found["memory"]["weights"] == 2 * 124_439_808


def test_it_prints_tables(capsys):
    assert run("minilm-l6", "--method", "ia3", "--length", "8") == 0
    assert "activations" in capsys.readouterr().out


def test_a_budget_is_solved_and_what_came_of_it_is_told(capsys):
    words = ["gpt2", "--method", "lora", "--targets", "attention", "--budget", "200000", "--length", "8"]
    each = 12 * ((768 + 3 * 768) + (768 + 768))  # numbers of a rank
    assert run(*words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["budget"] == {"asked": 200_000, "got": 4 * each, "setting": "r", "value": 4}
    assert found["trainable"] == 4 * each and found["settings"]["r"] == 4
    assert run(*words) == 0
    assert f"budget 200,000: r=4 gives {4 * each:,}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code"),
    [(["minilm-l7"], 1), (["gpt2", "--method", "lora", "--set", "rank=3"], 1),
     (["gpt2", "--set", "r"], 2), (["gpt2", "--batch", "0"], 2), (["gpt2", "--method", "lora", "--set", "batch=3"], 2),
     (["gpt2", "--method", "lora", "--set", "budget=3"], 2), (["gpt2", "--budget", "20000"], 1), (["gpt2", "--method", "lora", "--budget", "few"], 1)],
)  # fmt: skip
def test_bad_requests_end_with_their_code(words, code, capsys):
    assert run(*words) == code
    assert capsys.readouterr().err
