"""`adaptome methods`."""

import json

import pytest

import adaptome as ad
from adaptome.cli import main


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    return stopped.value.code or 0


def test_json_lists_every_method_with_its_options(capsys):
    assert run("methods", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert [m["name"] for m in shown] == list(ad.list_methods())
    lora = next(m for m in shown if m["name"] == "lora")
    assert lora["options"][0]["name"] == "r"
    assert lora["options"][0]["default"] == ad.LoRA().r


def test_the_table_has_a_line_for_every_method(capsys):
    assert run("methods") == 0
    lines = capsys.readouterr().out.splitlines()
    firsts = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    assert set(ad.list_methods()) <= set(firsts)


@pytest.mark.parametrize("name", sorted(ad.list_methods()))
def test_one_method_shows_its_settings(name, capsys):
    assert run("methods", name) == 0
    shown = capsys.readouterr().out
    assert ad.list_methods()[name].summary() in shown
    assert all(option["name"] in shown for option in ad.list_methods()[name].about()["options"])


def test_one_method_as_json(capsys):
    assert run("methods", "lora", "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(ad.LoRA.about()))


def test_an_unknown_method_names_the_nearest(capsys):
    assert run("methods", "lorra") == 1
    assert "Nearest: lora" in capsys.readouterr().err


def test_types_are_written_out_and_the_size_a_budget_solves_is_named(capsys):
    assert run("methods", "ssf") == 0
    shown = capsys.readouterr().out
    assert "'identity' | 'normal'" in shown and "budget solves       nothing" in shown
    assert run("methods", "lora") == 0
    assert "budget solves       r " in capsys.readouterr().out
    about = ad.list_methods()["series"].about()
    assert about["budget_solves"] == "size"
    types = {option["type"] for cls in ad.list_methods().values() for option in cls.about()["options"]}
    assert not [
        name for name in types if name.startswith("typing.") or (name[0].isupper() and name != "None")
    ]


def test_what_other_libraries_types_are_here(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert run("methods", "--peft") == 0
    lines = capsys.readouterr().out.splitlines()
    firsts = {line.split()[0]: line.split()[1] for line in lines if line and not line.startswith(" ")}
    assert firsts["HRA"] == "hra" and firsts["XLORA"] == "none" and firsts["tlora"] == "t-lora"
    assert any("gram_schmidt=apply_GS" in line for line in lines)
    assert run("methods", "--peft", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert {entry["type"]: entry["method"] for entry in shown["peft"]}["MISS"] == "miss"
    assert all(entry["method"] or entry["note"] for entries in shown.values() for entry in entries)
