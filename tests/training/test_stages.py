"""Recipes of several stages: what each starts from, what is resumed after a kill, and what is refused."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from adaptome.core.errors import RecipeError, TrainingError
from adaptome.recipe import load_recipe, stages_of
from adaptome.training import evaluate, load_run, predict, run_stages
from adaptome.training.folder import ADAPTER, METRICS
from tests.training.test_runs import SMALL, animals, tokenizers  # noqa: F401


def staged(tmp_path, words, stages, **changes):
    content = {
        "model": {"from_config": {"model_type": "bert", "vocab_size": 20, **SMALL}, "tokenizer": words},
        "task": "text-classification",
        "data": {"train": animals(tmp_path), "test_fraction": 0.2},
        "methods": [{"name": "lora", "r": 2, "targets": "attention"}],
        "training": {
            "epochs": 1,
            "batch_size": 8,
            "learning_rate": 0.02,
            "device": "cpu",
            "save_steps": 2,
            "eval_steps": 2,
        },
        "output": str(tmp_path / "out"),
        "stages": stages,
        **changes,
    }
    return load_recipe(content)


TWO = [{"name": "first"}, {"name": "second", "training": {"epochs": 2}}]


def tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / ADAPTER / "adapter.safetensors")


def test_the_second_stage_goes_on_with_the_firsts_adapter(tmp_path, tokenizers):  # noqa: F811
    recipe = staged(
        tmp_path, tokenizers["words"], [TWO[0], {"name": "second", "training": {"learning_rate": 1e-9}}]
    )
    made = run_stages(recipe)
    out = tmp_path / "out"
    assert list(made.stages) == ["1-first", "2-second"]
    first, second = tensors(out / "1-first"), tensors(out / "2-second")
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], atol=1e-6, rtol=0)
    assert evaluate(out) == pytest.approx(made.last.metrics)
    assert predict(out, ["the cat runs"])[0]["label"] in ("cat", "dog")
    told = json.loads((out / "stages.json").read_text())
    assert [stage["name"] for stage in told["stages"]] == ["1-first", "2-second"]
    with pytest.raises(TrainingError, match="holds a finished run of 2 stages"):
        run_stages(recipe)


def test_a_stage_may_start_from_merged_weights_and_another_method(tmp_path, tokenizers):  # noqa: F811
    stages = [
        {"name": "first"},
        {
            "name": "second",
            "start": "merged",
            "method": {"name": "bitfit"},
            "training": {"max_steps": 1, "learning_rate": 1e-12},
        },
    ]
    run_stages(staged(tmp_path, tokenizers["words"], stages))
    out = tmp_path / "out"
    texts = ["the cat runs", "a dog sleeps", "garden of the house"]
    before, after = predict(out / "1-first", texts), predict(out, texts)
    assert [round(p["score"], 4) for p in before] == [round(p["score"], 4) for p in after]
    assert (out / "1-first" / "merged" / "model.safetensors").is_file()


def test_a_stage_may_hold_the_firsts_adapters_beside_its_own(tmp_path, tokenizers):  # noqa: F811
    stages = [
        {"name": "first"},
        {"name": "second", "start": "frozen", "method": {"name": "lora", "r": 1, "targets": "mlp"}},
    ]
    run_stages(staged(tmp_path, tokenizers["words"], stages))
    out = tmp_path / "out"
    both = out / "2-second" / ADAPTER
    assert sorted(p.name for p in both.iterdir()) == ["default", "second"]
    held = (both / "default" / "adapter.safetensors").read_bytes()
    assert held == (out / "1-first" / ADAPTER / "adapter.safetensors").read_bytes()
    import adaptome as ad

    assert ad.active(load_run(out).model) == ["default", "second"]


def test_stages_lay_their_sections_over_the_recipes(tmp_path, tokenizers):  # noqa: F811
    stages = [
        {
            "name": "a",
            "task": {"max_length": 20},
            "objective": [{"name": "cross-entropy", "label_smoothing": 0.1}],
        },
        {"name": "b", "task": "token-classification", "start": "base", "method": "bitfit"},
    ]
    (_, a), (_, b) = stages_of(
        staged(
            tmp_path, "minilm", stages, task={"name": "text-classification", "max_length": 8, "dropout": 0.2}
        )
    )
    assert a.task.settings == {"max_length": 20, "dropout": 0.2} and a.objective[0].name == "cross-entropy"
    assert b.task.settings == {} and b.objective[0].name == "model" and b.start is None
    assert b.methods[0].name == "bitfit" and b.training.learning_rate == 0.02
    assert b.output.folder.endswith("out/2-b")


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ([{"name": "a"}, {"name": "b", "method": "bitfit"}], "say what it starts from"),
        ([{"name": "a"}, {"name": "b", "start": "adapter", "method": "bitfit"}], "leave its own out"),
        ([{"name": "a"}, {"name": "b", "start": "frozen"}], "name a method of its own"),
        ([{"name": "a", "start": "merged"}], "no stage is before it"),
        ([{"name": "a", "output": "x"}], "belongs to the recipe"),
        ([{"name": "a", "trainig": {}}], r"unknown key 'trainig'\. Did you mean 'training'"),
        ([{"name": "a"}, {"name": "a"}], "the same name"),
    ],
)
def test_stages_that_do_not_go_together_are_refused(tmp_path, stages, told):
    with pytest.raises(RecipeError, match=told):
        stages_of(staged(tmp_path, "minilm", stages))


def test_another_head_goes_on_with_the_layers(tmp_path, tokenizers):  # noqa: F811
    """Other labels, another task: one adapter, whose layers go on and whose head is new."""
    stages = [{"name": "a"}, {"name": "b", "task": {"labels": ["dog", "cat"]}, "training": {"max_steps": 1, "learning_rate": 1e-12}}]  # fmt: skip
    made = run_stages(staged(tmp_path, tokenizers["words"], stages))
    out = tmp_path / "out"
    first, second = tensors(out / "1-a"), tensors(out / "2-b")
    assert first.keys() == second.keys()
    layers = [key for key in first if key.startswith("bert.encoder")]
    assert layers and all(torch.allclose(first[key], second[key], atol=1e-6) for key in layers)
    assert not torch.allclose(first["classifier.weight"], second["classifier.weight"])
    assert any("default goes on from" in note and "the head is new" in note for note in made.last.notes)
    import adaptome as ad

    assert list(ad.adapters(load_run(out).model)) == ["default"]


def test_held_adapters_of_another_task_are_refused(tmp_path, tokenizers):  # noqa: F811
    stages = [
        {"name": "a", "training": {"max_steps": 1}},
        {"name": "b", "start": "frozen", "method": "bitfit", "task": {"labels": ["dog", "cat"]}},
    ]
    with pytest.raises(RecipeError, match=r"Start from its weights \(start\.how=merged\), or go on"):
        run_stages(staged(tmp_path, tokenizers["words"], stages))


SLOWED = """
import sys, time
from transformers import TrainerCallback
from adaptome.training import run_stages
class Slow(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        print("step", flush=True)
        time.sleep(0.15)
run_stages(sys.argv[1], [Slow()], tell=lambda line: print(line, flush=True))
"""


@pytest.mark.parametrize("steps", [pytest.param(3, marks=pytest.mark.slow), 8])
def test_killed_in_any_stage_it_resumes_to_the_same_bits(tmp_path, tokenizers, steps):  # noqa: F811
    whole = staged(tmp_path, tokenizers["words"], TWO, output=str(tmp_path / "whole"))
    run_stages(whole)
    recipe = staged(tmp_path, tokenizers["words"], TWO)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWED, tmp_path / "recipe.yaml"], stdout=subprocess.PIPE, text=True
    )
    seen, deadline = 0, time.time() + 120
    while seen < steps and time.time() < deadline:
        seen += process.stdout.readline() == "step\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert seen == steps and not (tmp_path / "out" / "stages.json").exists()
    assert (tmp_path / "out" / "1-first" / METRICS).exists() == (steps > 5)
    told = []
    run_stages(load_recipe(tmp_path / "recipe.yaml", ["training.resume=true"]), tell=told.append)
    assert len(told) == (1 if steps > 5 else 2)
    for stage in ("1-first", "2-second"):
        files = [tmp_path / folder / stage / ADAPTER / "adapter.safetensors" for folder in ("out", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes()
