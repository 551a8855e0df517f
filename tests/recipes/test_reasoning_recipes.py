"""The recipes for reasoning: each is valid, and runs two steps on a small model with records of the same form."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

import adaptome as ad
from adaptome.compare import compare
from adaptome.recipe import load_recipe
from adaptome.training import plans, run
from tests.tasks.conftest import byte_tokenizer_folder  # noqa: F401  (a fixture)

FOLDER = Path(ad.__file__).parent / "recipes" / "reasoning"
RECIPES = sorted(FOLDER.glob("*.yaml"))
MODEL = "{model_type: llama, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, num_attention_heads: 2, vocab_size: 258}"
SMALL = ["model.name=null", f"model.from_config={MODEL}", "model.dtype=float32", "task.max_new_tokens=2", "task.max_length=600", "task.num_beams=1",
         "training.max_steps=2", "training.eval_steps=null", "training.batch_size=2", "training.gradient_accumulation=1", "training.warmup=0", "training.device=cpu"]  # fmt: skip
ANSWERS = {
    "AQuA": "B", "boolq": "true", "piqa": "solution1", "social_i_qa": "answer3", "hellaswag": "ending4", "winogrande": "option2",
    "ARC-Easy": "answer1", "ARC-Challenge": "answer4", "openbookqa": "answer2", "gsm8k": "3", "mawps": "1.5", "SVAMP": "8.0",
    "math_10k": "7", "commonsense_170k": "false",
}  # fmt: skip


def records(name: str, count: int) -> list[dict[str, str]]:
    answer = ANSWERS[name]
    return [
        {
            "instruction": f"{name} {i}?",
            "input": "",
            "output": f"the correct answer is {answer}",
            "answer": answer,
        }
        for i in range(count)
    ]


def local_files(recipe) -> None:
    """Small files where the recipe looks for its own."""
    for file in [recipe.data.train, *recipe.data.test]:
        path = Path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.parent.name if path.stem == "test" else path.stem
        path.write_text(json.dumps(records(name, 2 if path.stem == "test" else 200)))


def from_the_hub(name, config=None, revision=None):
    """What the hub would give under the recipes' names: the same columns and splits."""
    if name == "openai/gsm8k":
        assert config == "main"
        rows = [{"question": f"what is {i} + 1?", "answer": f"It is {i}+1.\n#### {i + 1}"} for i in range(60)]
        return datasets.DatasetDict(
            train=datasets.Dataset.from_list(rows), test=datasets.Dataset.from_list(rows[:3])
        )
    assert name == "zwhe99/commonsense_170k"
    rows = [row for task in ("boolq", "piqa", "winogrande") for row in records(task, 70)]
    return datasets.DatasetDict(train=datasets.Dataset.from_list(rows))


@pytest.fixture
def small(tmp_path, monkeypatch, byte_tokenizer_folder):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", from_the_hub)
    return [*SMALL, f"model.tokenizer={byte_tokenizer_folder}"]


def test_there_are_recipes():
    assert {"gsm8k-lora", "math10k-lora", "commonsense170k-lora", "placement"} <= {
        path.stem for path in RECIPES
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipe_is_valid_and_tells_how_to_run_it(path):
    recipe = load_recipe(path)
    assert recipe.methods or recipe.compare.methods
    assert f"adaptome {'compare' if recipe.compare else 'train'} {path.stem}" in path.read_text()


@pytest.mark.parametrize(
    "path",
    [p for p in RECIPES if p.stem != "placement" and not p.stem.startswith("long-cot")],
    ids=lambda path: path.stem,
)
def test_the_recipe_runs(path, small):
    sketched = ["model.quantization={scheme: sketch}"] if path.stem.startswith("sketchtune") else []
    recipe = load_recipe(path, [*small, *sketched])
    if recipe.data.name is None:
        local_files(recipe)
    result = run(recipe)
    assert result.steps == 2 and "accuracy" in result.metrics
    expected = {
        "gsm8k-lora": {"gsm8k"},
        "math10k-lora": {"gsm8k", "aqua", "aqua_first_letter", "mawps", "svamp"},
        "sketchtune-math10k": {"gsm8k", "aqua", "aqua_first_letter", "mawps", "svamp"},
        "commonsense170k-lora": {
            "boolq",
            "piqa",
            "siqa",
            "hellaswag",
            "winogrande",
            "arc_e",
            "arc_c",
            "obqa",
        },
        "commonsense170k-hub": {"commonsense_170k"},
        "randlora-commonsense170k": {"commonsense_170k"},
    }[path.stem]
    assert {k.removeprefix("accuracy_") for k in result.metrics if k.startswith("accuracy_")} == expected


def test_the_placement_study_has_a_row_for_every_place(small):
    sizes = [
        f"compare.methods.{row}.{'size' if row < 6 else 'r'}=2" for row in range(9)
    ]  # the paper's are for billions
    recipe = load_recipe(FOLDER / "placement.yaml", [*small, *sizes, "data.limit=3"])
    d, m = 32, 48
    assert [plan.trainable for plan in plans(recipe, recipe.compare.methods)][:9] == [
        4 * d, 4 * d, 8 * d, 12 * d, 4 * (d + m), 12 * d + 4 * (d + m), 12 * d, 4 * (d + m), 12 * d + 4 * (d + m),
    ]  # fmt: skip


def test_the_placement_study_makes_one_table(small):
    """Three of its rows, and the prefix where it is there."""
    rows = ["{name: series, size: 2, targets: o}", "{name: parallel, size: 2}", "{name: lora, r: 2}"]
    if "prefix-tuning" in ad.list_methods():
        rows.append("{name: prefix-tuning, p: 10, learning_rate: 0.03}")
    changes = ["training.max_steps=1", "compare.seeds=[0]", "data.limit=3", "data.validation_fraction=0"]
    found = compare(
        load_recipe(FOLDER / "placement.yaml", [*small, *changes, f"compare.methods=[{', '.join(rows)}]"])
    )
    assert len(found.rows) == len(rows) and found.metric == "accuracy"
    assert Path("runs/placement/report.html").is_file()
