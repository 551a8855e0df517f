"""The command line's frame: exit codes, versions, and a start without torch."""

import json
import subprocess
import sys
import types

import pytest
import typer

import adaptome
from adaptome.cli import _app, main
from adaptome.cli._output import print_json, print_table
from adaptome.core.errors import TargetError


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    return stopped.value.code or 0


@pytest.fixture
def failing_command(monkeypatch):
    """A command `boom KIND` that fails in the way asked for."""

    def boom(kind: str) -> None:
        if kind == "known":
            raise TargetError("targets='q' matches nothing.")
        raise ZeroDivisionError("a fault of our own")

    command = types.ModuleType("adaptome.cli.boom")
    command.register = lambda app: app.command()(boom)
    monkeypatch.setitem(sys.modules, "adaptome.cli.boom", command)
    found = _app.commands()
    monkeypatch.setattr(_app, "commands", lambda: [*found, "boom"])


def test_version_names_adaptome_torch_and_python(capsys):
    assert run("--version") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"adaptome {adaptome.__version__} (torch ")
    assert "Python 3." in shown


def test_help_lists_every_command(capsys):
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert all(f" {name.replace('_', '-')} " in shown for name in _app.commands())


@pytest.mark.parametrize("name", _app.commands())
def test_the_help_of_a_command_names_its_arguments_and_shows_examples(name, capsys):
    assert run(name, "--help") == 0
    shown = capsys.readouterr().out
    assert f"Usage: adaptome {name}" in shown and shown.count(f"adaptome {name}") >= 3
    assert "[[" not in shown and "{recipe}" not in shown and "{run}" not in shown


def test_bad_usage_exits_with_2(capsys):
    assert run("no-such-command") == 2
    assert run("--no-such-option") == 2
    assert "no-such-option" in capsys.readouterr().err


def test_a_failure_is_a_message_on_stderr_and_exit_1(failing_command, capsys):
    assert run("boom", "known") == 1
    shown = capsys.readouterr()
    assert shown.err == "TargetError: targets='q' matches nothing.\n"
    assert shown.out == ""


@pytest.mark.parametrize("words", [["--debug", "boom", "known"], ["boom", "known", "--debug"]])
def test_debug_shows_where_it_failed(failing_command, words):
    with pytest.raises(TargetError):
        main(words)


def test_a_fault_of_our_own_is_not_hidden(failing_command):
    with pytest.raises(ZeroDivisionError):
        main(["boom", "unknown"])


def test_a_missing_typer_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "adaptome.cli._app")
    assert run("--version") == 1
    assert "pip install 'adaptome[cli]'" in capsys.readouterr().err


def test_help_starts_without_torch():
    """A page of help must not wait for torch, nor for what is slower still."""
    code = (
        "import sys\n"
        "from adaptome.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'transformers', 'datasets', 'pydantic'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_python_m_adaptome_is_the_command():
    done = subprocess.run([sys.executable, "-m", "adaptome", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("adaptome ")


def test_json_is_refused_rather_than_written_wrong(capsys):
    print_json({"method": "lora", "parameters": 3})
    assert json.loads(capsys.readouterr().out) == {"method": "lora", "parameters": 3}
    with pytest.raises(ValueError, match="JSON compliant"):
        print_json({"loss": float("nan")})


def test_a_table_shows_every_cell(capsys):
    print_table(["name", "count", "exact"], [["lora[q]", 1234567, True], ["ia3", 8, False]], title="Methods")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "Methods"
    assert lines[2].split() == ["lora[q]", "1,234,567", "yes"]
    assert lines[3].split() == ["ia3", "8", "no"]
    print_table(["name"], [["a"]], title="A title that is wider than its table")
    assert capsys.readouterr().out.splitlines()[0] == "A title that is wider than its table"


def test_every_command_file_registers():
    app = typer.Typer()
    for name in _app.commands():
        module = __import__(f"adaptome.cli.{name}", fromlist=["register"])
        module.register(app)
    assert len(app.registered_commands) + len(app.registered_groups) >= len(_app.commands())
