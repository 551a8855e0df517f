"""The systems of papers: every entry agrees with what is registered and shipped."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import adaptome as ad
from adaptome.cli import main
from adaptome.core.errors import RecipeError
from adaptome.recipe import shipped_recipes
from adaptome.recipe.systems import get_system, system_of, systems
from adaptome.tasks import tasks

ROOT = Path(__file__).parents[2]


def test_there_are_forty_two_papers_each_once():
    papers = [system.paper for system in systems().values()]
    assert len(papers) == len(set(papers)) == 42
    assert all(re.fullmatch(r"2\d{3}\.\d{5}", paper) for paper in papers)


@pytest.mark.parametrize("name", systems())
def test_what_an_entry_names_is_there(name):
    system = systems()[name]
    told = system.about()
    assert set(told["methods"]) <= set(ad.list_methods())
    assert set(told["tasks"]) <= set(tasks())
    assert set(told["recipes"] + told["demos"]) <= set(shipped_recipes())
    assert system.claim is None or (ROOT / system.claim).is_file()
    assert told["state"] == ("recipes" if told["tasks"] else "method" if told["methods"] else "not yet")
    assert not system.does.endswith(".") and system.needs


def test_a_recipe_belongs_to_one_system_and_a_demo_to_some():
    for recipe in shipped_recipes():
        owners = [name for name, system in systems().items() if recipe in system.recipes()]
        assert len(owners) <= 1, f"{recipe}: {owners}"
        assert owners or not recipe.endswith("-demo"), (
            f"{recipe}: no system of recipe/systems.yaml has a pattern for it"
        )
    assert system_of("placement") == "llm-adapters"


def test_an_unknown_system_is_told_with_the_nearest():
    with pytest.raises(RecipeError, match="Did you mean 'gend'"):
        get_system("gent")


def test_the_command_lists_them_and_tells_one(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["systems", "--json"])
    assert not stopped.value.code
    assert [s["name"] for s in json.loads(capsys.readouterr().out)] == list(systems())
    with pytest.raises(SystemExit):
        main(["systems", "ast-petl"])
    shown = capsys.readouterr().out
    assert "arXiv:2312.03694" in shown and "benchmarks/claims/ast_petl.py" in shown and "ESC-50" in shown
