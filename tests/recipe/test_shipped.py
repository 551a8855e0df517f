"""The recipes of the package: found by name, and a path stays a path."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import adaptome as ad
from adaptome.core.errors import RecipeError
from adaptome.recipe import load_recipe, shipped_recipe, shipped_recipes, stages_of

FILES = sorted((Path(ad.__file__).parent / "recipes").rglob("*.yaml"))
OWN = "task: causal-lm\ndata: mine.npz\nmethod: lora\n"


def refusal(source: str | Path) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(source)
    return str(caught.value)


def test_every_file_of_the_package_has_a_name_of_its_own():
    assert [n for n, count in Counter(f.stem for f in FILES).items() if count > 1] == []
    assert {n: r.text for n, r in shipped_recipes().items()} == {f.stem: f.read_text("utf-8") for f in FILES}
    assert all(f.parent.parent.name == "recipes" for f in FILES), "<task>/<name>.yaml"


def test_what_a_recipe_is_about():
    about = shipped_recipe("placement").about()
    assert about["command"] == "compare" and about["task"] == "reasoning"
    assert about["methods"] == ["series", "parallel", "lora", "prefix-tuning"]
    about = shipped_recipe("esc50-conformer").about()
    assert about["methods"] == ["conformer-adapter"] and about["model"].startswith("MIT/ast")
    assert about["purpose"].startswith("Tell 50 environmental sounds apart")
    for name, recipe in shipped_recipes().items():
        whole = load_recipe(name)
        last = stages_of(whole)[-1][1] if whole.stages else whole
        assert recipe.about()["task"] == last.task.name


def test_a_name_takes_overrides_as_a_file_does():
    assert load_recipe("gsm8k-lora", ["method.r=2"]).methods[0].settings["r"] == 2


def test_a_file_goes_before_a_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("gsm8k-lora").write_text(OWN)
    assert load_recipe("gsm8k-lora").data.name == "mine.npz"
    Path("gsm8k-lora").unlink()
    Path("gsm8k-lora").mkdir()  # a run's folder of that name is no recipe
    assert load_recipe("gsm8k-lora").data.name == "openai/gsm8k"


@pytest.mark.parametrize("source", ["mine.yaml", "mine.yml", "folder/mine", Path("mine.yaml")])
def test_a_path_is_read_as_a_file(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path(source).write_text(OWN)
    assert load_recipe(source).data.name == "mine.npz"


def test_what_is_neither_is_told_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no recipe called 'gsm8k'" in refusal("gsm8k") and "Did you mean 'gsm8k-lora'?" in refusal("gsm8k")
    assert "`adaptome recipes` lists them" in refusal("zzz")
    told = refusal("recipes/reasoning/gsm8k-lora.yaml")
    assert "no such file" in told and "say gsm8k-lora, without folder and ending" in told
    assert "comes with adaptome" not in refusal("mine.yaml") and "comes with adaptome" not in refusal(
        "./gsm8k"
    )
    Path(".hidden.yaml").write_text(OWN)
    assert refusal("hidden.yaml") == "hidden.yaml: no such file."


@pytest.mark.parametrize("library", ["pydantic", "yaml"])
def test_a_missing_library_names_the_extra(library):
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "from adaptome.core.errors import MissingExtraError\n"
        "try: import adaptome.recipe\n"
        "except MissingExtraError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith(library) and "pip install 'adaptome[train]'" in done.stdout, done.stderr
