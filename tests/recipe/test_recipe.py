"""Recipes: what is read, what is refused, and how the refusal reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adaptome.core.errors import RecipeError
from adaptome.recipe import Recipe, load_recipe, recipe_from_yaml, recipe_json_schema

MINIMAL: dict[str, Any] = {"task": "text-classification", "data": {"train": "train.jsonl"}}


def recipe(overrides: list[str] | None = None, **sections: Any) -> Recipe:
    return load_recipe({**MINIMAL, **sections}, overrides or [])


def message(**sections: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe(**sections)
    return str(caught.value)


def test_a_minimal_recipe_has_defaults_for_everything_else():
    made = recipe()
    assert (made.model.name, made.methods, made.training.batch_size) == ("minilm", [], 16)
    assert made.task.name == "text-classification"


def test_names_stand_for_sections():
    made = load_recipe(
        {"model": "m", "task": "causal-lm", "data": "d.npz", "method": "lora", "output": "o"}, validate=False
    )
    assert (made.model.name, made.data.name, made.methods[0].name, made.output.folder) == (
        "m",
        "d.npz",
        "lora",
        "o",
    )


def test_settings_of_tasks_and_methods_pass_through():
    made = recipe(task={"name": "text-classification", "max_length": 64}, method={"name": "lora", "r": 3})
    assert made.task.settings == {"max_length": 64}
    assert made.methods[0].settings == {"r": 3}


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("training.epochs=2", lambda r: r.training.epochs == 2),
        ("training.learning_rate=1e-3", lambda r: r.training.learning_rate == 0.001),
        ("method.alpha=1e1", lambda r: r.methods[0].settings["alpha"] == 10.0),
        ("method.r=16", lambda r: r.methods[0].settings["r"] == 16),
        ("methods.0.r=16", lambda r: r.methods[0].settings["r"] == 16),
        ("methods.1.name=bitfit", lambda r: [m.name for m in r.methods] == ["lora", "bitfit"]),
        ("method=dora", lambda r: [m.name for m in r.methods] == ["dora"]),
        ("task.max_length=32", lambda r: r.task.settings == {"max_length": 32}),
        ("data.columns.text=body", lambda r: r.data.columns == {"text": "body"}),
        ("method.targets=[q, v]", lambda r: r.methods[0].targets == ["q", "v"]),
        ("training.max_steps=null", lambda r: r.training.max_steps is None),
    ],
)
def test_overrides_read_yaml_and_reach_everywhere(override, read):
    assert read(recipe([override], methods=["lora"]))


def test_overrides_leave_the_callers_mapping_alone():
    given = {**MINIMAL, "methods": [{"name": "lora"}]}
    load_recipe(given, ["method.r=2", "data.limit=3"])
    assert given == {**MINIMAL, "methods": [{"name": "lora"}]}
    assert MINIMAL["data"] == {"train": "train.jsonl"}


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("training.epochs", "write key=value"),
        ("training.epochs=[1", "not valid YAML"),
        ("methods.5.r=1", "methods is a list of 2; no entry '5'"),
        ("method.r=1", "has 2 methods; say which: methods.0 (lora), methods.1 (bitfit)"),
        ("data.train.x=1", "data.train is 'train.jsonl', which has no keys"),
        ("training.epoch=1", "unknown key 'training.epoch'. Did you mean 'epochs'?"),
    ],
)
def test_bad_overrides_are_told(override, text):
    with pytest.raises(RecipeError) as caught:
        recipe([override], methods=["lora", "bitfit"])
    assert text in str(caught.value)


def test_unknown_keys_name_the_dotted_key_and_the_nearest():
    assert "unknown key 'trainig'. Did you mean 'training'?" in message(trainig={})
    assert "unknown key 'training.learning_rat'. Did you mean 'learning_rate'?" in message(
        training={"learning_rat": 1}
    )
    assert "unknown key 'learning_rate'. Did you mean 'training.learning_rate'?" in message(learning_rate=1)
    assert "Keys of output: folder, overwrite." in message(output={"zzzz": 1})


def test_unknown_task_and_options_name_the_nearest():
    assert "task 'text-clasification' is not known. Did you mean 'text-classification'?" in message(
        task="text-clasification"
    )
    text = message(task={"name": "text-classification", "max_len": 3})
    assert "unknown key 'task.max_len' for text-classification. Did you mean 'max_length'?" in text
    assert "task.max_length=2: input should be greater than or equal to 4" in message(
        task={"name": "text-classification", "max_length": 2}
    )


def test_unknown_methods_and_settings_name_the_entry_and_the_nearest():
    text = message(methods=["bitfit", {"name": "lora", "alpah": 1}])
    assert "methods.1: lora has no setting 'alpah'. Did you mean 'alpha'?" in text
    assert "A recipe's key near 'target': 'targets'." in message(method={"name": "lora", "target": "q"})
    assert "no setting 'rr'" in message(method={"name": "lora", "per_layer": {"*q*": {"rr": 2}}})
    assert "methods.0: no method is called 'lroa'" in message(method="lroa")


def test_values_out_of_range_say_key_value_and_meaning():
    text = message(training={"epochs": -1, "bf16": "maybe"})
    assert "training.epochs=-1: input should be greater than 0. (passes over the training data)" in text
    assert "training.bf16='maybe'" in text
    assert "training.fsdp=3: input should be a valid boolean" in message(training={"fsdp": 3})
    assert "data.train=3: input should be a valid string, or input should be a valid list." in message(
        data={"train": 3}
    )
    assert "Did you mean 'jsonl'?" in message(data={"format": "jsnl"})
    assert "'methods.0.name' is missing" in message(methods=[{"r": 8}])
    assert "give either name or from_config" in message(
        model={"name": "a", "from_config": {"model_type": "bert"}}
    )
    assert "from_config needs model_type" in message(model={"from_config": {}})
    assert "give either method or methods" in message(method="lora", methods=["lora"])


def test_files_are_named_in_errors(tmp_path: Path):
    file = tmp_path / "recipe.yaml"
    file.write_text("task: text-classification\ndata: {train: a.jsonl}\ntrainig: {}\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml: unknown key 'trainig'"):
        load_recipe(file)
    with pytest.raises(RecipeError, match=r"recip\.yaml: no such file\. Did you mean 'recipe\.yaml'\?"):
        load_recipe(tmp_path / "recip.yaml")
    file.write_text("task: text-classification\ntask: causal-lm\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml, line 2: not valid YAML: key 'task' is given twice"):
        load_recipe(file)
    file.write_text("task: [\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml, line 2: not valid YAML"):
        load_recipe(file)
    file.write_text("- a\n")
    with pytest.raises(RecipeError, match=r"a recipe is a mapping of sections .* found a list"):
        load_recipe(file)
    file.write_text("")
    with pytest.raises(RecipeError, match="found nothing"):
        load_recipe(file)


def test_yaml_never_builds_objects():
    with pytest.raises(RecipeError, match="not valid YAML"):
        recipe_from_yaml("task: !!python/object/apply:os.getcwd []\n")


def test_recipes_survive_yaml():
    made = recipe(
        ["training.learning_rate=3e-4", "method.r=5"],
        model={"from_config": {"model_type": "bert", "hidden_size": 8}, "tokenizer": "minilm"},
        method={"name": "lora", "per_layer": {"*q*": {"r": 2}}},
        title="Überschrift",
    )
    assert recipe_from_yaml(made.to_yaml()) == made
    assert recipe_from_yaml(made.to_yaml(full=True)).model_dump() == made.model_dump()
    assert "batch_size" not in made.to_yaml()
    assert "batch_size: 16" in made.to_yaml(full=True)


def test_the_json_schema_admits_what_the_reader_admits():
    schema = recipe_json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["additionalProperties"] is False
    assert {"task", "data", "method", "methods", "training"} <= set(schema["properties"])
    assert {"type": "string"} in schema["properties"]["task"]["anyOf"]
    assert schema["$defs"]["TrainingSection"]["properties"]["epochs"]["exclusiveMinimum"] == 0


def test_reading_a_recipe_imports_no_model_library():
    code = (
        "import sys; from adaptome.recipe import load_recipe;"
        "load_recipe({'task': 'text-classification', 'data': 'x.npz', 'method': 'lora'});"
        "print([m for m in ('transformers', 'trl', 'sklearn') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
