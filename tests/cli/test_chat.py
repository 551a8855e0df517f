"""`adaptome chat`: turns from a pipe and from a terminal, streaming, history, system prompts, and a context that fills up."""

from __future__ import annotations

import io
import json

import pytest
import torch

import adaptome as ad
from adaptome.cli import main
from adaptome.core.errors import DataError, RecipeError
from adaptome.recipe import load_recipe
from adaptome.tasks import get_task
from adaptome.tasks.conversation import Conversation
from adaptome.training.runs import Loaded
from tests.tasks.tiny import small, spec

MODEL = small("llama", num_key_value_heads=2, vocab_size=258, max_position_embeddings=128)


@pytest.fixture
def loaded(monkeypatch):
    """A run that was not trained, whose adapter writes other things than its base."""
    task = get_task("dialogue", chat_template="human-assistant", max_new_tokens=6, system="Be brief.")
    where = spec(from_config=MODEL, tokenizer="bytes")
    processor = task.load_processor(where)
    torch.manual_seed(0)
    model = task.load_model(where, processor).eval()
    ad.attach(model, "lora", r=2, targets="all-linear", seed=0)
    for name, value in ad.parameters_of(model).items():
        if name.endswith("B"):
            torch.nn.init.normal_(value)
    recipe = load_recipe(
        {"task": "dialogue", "model": {"from_config": MODEL, "tokenizer": "bytes"}, "data": {}}
    )
    run = Loaded(recipe, task, processor, model)
    monkeypatch.setattr("adaptome.training.load_run", lambda folder: run)
    return run


def chat(monkeypatch, *words, said="", terminal=False):
    given = io.StringIO(said)
    given.isatty = lambda: terminal
    monkeypatch.setattr("sys.stdin", given)
    with pytest.raises(SystemExit) as ended:
        main(["chat", "run", *words])
    return ended.value.code


def conversation(run, **settings):
    return Conversation(run.model, run.processor, "Be brief.", **{"max_new_tokens": 6, **settings})


def test_every_line_of_a_pipe_is_a_turn(loaded, monkeypatch, capsys, tmp_path):
    file = tmp_path / "talk.json"
    assert chat(monkeypatch, "--json", "--history", str(file), said="Hello\n\nWhich test?\n") == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    talk = conversation(loaded)
    assert told == [{"role": "assistant", "content": talk.say(text)} for text in ("Hello", "Which test?")]
    assert json.loads(file.read_text()) == talk.history
    assert [one["role"] for one in talk.history] == ["system", "user", "assistant", "user", "assistant"]
    chat(monkeypatch, "--json", "--history", str(file), said="And then?\n")  # goes on with what was said
    assert json.loads(capsys.readouterr().out)["content"] == talk.say("And then?")


def test_the_prompt_is_the_runs_own_template_and_what_is_streamed_is_the_answer(loaded, monkeypatch):
    seen, pieces = [], []
    monkeypatch.setattr(type(loaded.processor), "__call__", lambda self, text, **k: seen.append(text) or {"input_ids": [5] * 9})  # fmt: skip
    answer = conversation(loaded).say("Hello", pieces.append)
    assert seen == ["Be brief.\n\nHuman: Hello\n\nAssistant:"] and "".join(pieces) == answer


def test_commands_change_the_conversation(loaded, monkeypatch, capsys):
    assert chat(monkeypatch, said="/system Say it twice.\nHello\n/history\n/reset\n/history\n/exit\nno more\n") == 0  # fmt: skip
    out, err = capsys.readouterr()
    assert out.count("system: Say it twice.") == 2 and out.count("user: Hello") == 1 and "no more" not in out
    chat(monkeypatch, said="/histroy\n/help\n")
    err = capsys.readouterr().err
    assert "/histroy is no command." in err and "/history" in err and "/reset  begin anew" in err


def test_the_base_answers_without_the_adapters(loaded, monkeypatch, capsys):
    chat(monkeypatch, "--json", said="Hello\n")
    chat(monkeypatch, "--json", "--base", said="Hello\n")
    own, base = (json.loads(line)["content"] for line in capsys.readouterr().out.splitlines())
    with ad.disabled(loaded.model):
        assert base == conversation(loaded).say("Hello")
    assert own != base


def test_drawn_answers_repeat_with_their_seed(loaded):
    def drawn(seed):
        return conversation(loaded, temperature=2.0, top_p=0.9, seed=seed).say("Hello")

    assert drawn(1) == drawn(1) and len({drawn(seed) for seed in range(4)}) > 1


def test_the_oldest_turns_are_left_out_when_the_context_is_full(loaded):
    talk = conversation(loaded)
    for text in ("a" * 30, "b" * 30, "c" * 30):
        talk.say(text)
    assert talk.forgotten in (2, 4) and len(talk.history) == 7
    with pytest.raises(DataError, match=r"the model reads\s+128 in all"):
        talk.say("d" * 120)
    assert len(talk.history) == 7
    with pytest.raises(DataError, match="the message is empty"):
        talk.say("  ")


def test_a_terminal_asks_line_by_line_and_tells_what_is_wrong(loaded, monkeypatch, capsys):
    lines = iter(["d" * 120, "Hello", ""])
    monkeypatch.setattr("adaptome.cli.chat._asker", lambda: lambda: next(lines, None) or _end())
    assert chat(monkeypatch, terminal=True) == 0
    told = capsys.readouterr()
    assert "Say it in fewer words" in told.err and conversation(loaded).say("Hello") in told.out


def _end():
    raise EOFError


def test_what_is_no_chat_is_refused(loaded, monkeypatch, capsys, tmp_path):
    with pytest.raises(RecipeError, match="Linear writes no text"):
        Conversation(torch.nn.Linear(2, 2), loaded.processor)
    file = tmp_path / "talk.json"
    for content, told in (("{}", "expected a list of messages"), ('[{"role": "user", "content": "a"}]', "ends with 'user'"), ("[", "cannot be read")):  # fmt: skip
        file.write_text(content)
        assert chat(monkeypatch, "--history", str(file), said="Hello\n") == 1
        assert told in capsys.readouterr().err
    loaded.processor.chat_template = None
    assert chat(monkeypatch, said="Hello\n") == 1 and "has no chat template" in capsys.readouterr().err
    assert chat(monkeypatch, "--template", "human-assistant", "--json", said="Hello\n") == 0
