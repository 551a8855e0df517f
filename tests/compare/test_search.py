"""A search: what is drawn, pruned and told; and after a kill nothing is repeated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import optuna
import pytest

from adaptome.compare import search as module
from adaptome.compare.search import search
from adaptome.core.errors import RecipeError, TrainingError
from adaptome.recipe import load_recipe
from tests.training.test_runs import SMALL, animals, tokenizers  # noqa: F401

RANGES = {
    "training.learning_rate": {"low": 1e-4, "high": 0.1, "log": True},
    "method.r": [1, 2],
    "training.warmup": {"low": 0, "high": 2},
}


@pytest.fixture
def recipe(tmp_path, tokenizers):  # noqa: F811
    content = {
        "model": {"from_config": {"model_type": "bert", "vocab_size": 20, **SMALL}, "tokenizer": tokenizers["words"]},
        "task": "text-classification",
        "data": {"train": animals(tmp_path), "test_fraction": 0.2, "validation_fraction": 0.3},
        "method": {"name": "lora", "r": 2, "targets": "attention"},
        "training": {"epochs": 2, "batch_size": 8, "device": "cpu"},
        "output": str(tmp_path / "out"),
        "search": {"ranges": RANGES, "trials": 4, "metric": "loss", "pruner": "none"},
    }  # fmt: skip

    def make(*changes, **sections):
        return load_recipe({**content, **sections}, changes)

    return make


def test_trials_lie_in_their_ranges_and_the_best_is_told(recipe, tmp_path):
    told = []
    found = search(recipe(), told.append, [])
    assert [t.state for t in found.trials] == ["complete"] * 4 and len(told) == 4
    for trial in found.trials:
        assert 1e-4 <= trial.settings["training.learning_rate"] <= 0.1
        assert trial.settings["method.r"] in (1, 2) and trial.settings["training.warmup"] in (0, 1, 2)
        metrics = json.loads((tmp_path / "out" / f"trial-{trial.number}" / "metrics.json").read_text())
        assert metrics["split"] == "validation" and metrics["metrics"]["loss"] == trial.value
    assert found.best.value == min(t.value for t in found.trials) and not found.greater_is_better
    assert "loss" in found.test
    best = load_recipe(tmp_path / "out" / "best.yaml")
    assert best.methods[0].settings["r"] == found.best.settings["method.r"]
    assert best.training.learning_rate == found.best.settings["training.learning_rate"]
    assert json.loads((tmp_path / "out" / "search.json").read_text())["best"]["number"] == found.best.number


def test_a_search_goes_on_and_repeats_nothing(recipe, monkeypatch):
    ran = []
    real = module.run
    monkeypatch.setattr(
        module, "run", lambda one, callbacks: (ran.append(one.output.folder), real(one, callbacks))[1]
    )
    first = search(recipe("search.trials=2"), callbacks=[])
    again = search(recipe("search.trials=2"), callbacks=[])
    assert again.trials == first.trials and len(ran) == 2
    longer = search(recipe("search.trials=3"), callbacks=[])
    assert longer.trials[:2] == first.trials and len(ran) == 3
    with pytest.raises(TrainingError, match="only search.trials may change"):
        search(recipe("training.batch_size=4"), callbacks=[])


KILLED = """
import os, sys, signal
from transformers import TrainerCallback
from adaptome.compare.search import search
class Kill(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        if "trial-1" in args.output_dir:
            os.kill(os.getpid(), signal.SIGKILL)
search(sys.argv[1], callbacks=[Kill()])
"""


def test_a_killed_search_goes_on_inside_its_trial(recipe, tmp_path):
    """Killed in the second trial: the same values in the same folder go on from the checkpoint, and end as if nothing had been."""
    asked = recipe("search.trials=3", "training.eval_steps=2", "training.save_steps=2")
    whole = search(asked.model_copy(update={"output": asked.output.model_copy(update={"folder": str(tmp_path / "whole")})}), callbacks=[])  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(asked.to_yaml())
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], env={**os.environ}, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert (tmp_path / "out/trial-0/metrics.json").exists() and not (
        tmp_path / "out/trial-1/metrics.json"
    ).exists()
    stamp = (tmp_path / "out/trial-0/metrics.json").stat().st_mtime_ns
    resumed = []

    def watch(line):
        resumed.append((line, time.time()))

    found = search(asked, watch, [])
    assert (tmp_path / "out/trial-0/metrics.json").stat().st_mtime_ns == stamp and len(resumed) == 2
    assert [t.settings for t in found.trials] == [t.settings for t in whole.trials]
    assert [t.value for t in found.trials] == pytest.approx([t.value for t in whole.trials])
    assert found.trials[1].folder == str(tmp_path / "out" / "trial-1")


def test_what_is_behind_is_stopped(recipe, monkeypatch):
    monkeypatch.setattr(optuna.pruners.MedianPruner, "prune", lambda self, study, trial: trial.number == 1)
    found = search(recipe("search.trials=3", "search.pruner=median"), callbacks=[])
    assert [t.state for t in found.trials] == ["complete", "pruned", "complete"] and found.best.number != 1


def test_a_run_without_a_loss_is_told_and_the_search_goes_on(recipe, monkeypatch):
    real = module.run

    def failing(one, callbacks):
        if one.output.folder.endswith("trial-0"):
            raise TrainingError("the loss became NaN at step 3.\n  Lower the rate.")
        return real(one, callbacks)

    monkeypatch.setattr(module, "run", failing)
    found = search(recipe("search.trials=2"), callbacks=[])
    assert [t.state for t in found.trials] == ["failed", "complete"]
    assert found.trials[0].error == "the loss became NaN at step 3."


def test_the_same_values_are_not_run_twice(recipe, monkeypatch):
    ran = []
    real = module.run
    monkeypatch.setattr(module, "run", lambda one, callbacks: (ran.append(1), real(one, callbacks))[1])
    section = {"ranges": {"method.r": [1, 2]}, "trials": 5, "metric": "loss", "sampler": "random"}
    found = search(recipe(search=section), callbacks=[])
    assert len(found.trials) == 5 and len(ran) == len({t.settings["method.r"] for t in found.trials}) == 2


def test_the_first_stages_are_carried_out_once(recipe, tmp_path):
    stages = [
        {"name": "first", "training": {"max_steps": 2}},
        {"name": "second", "start": "merged", "method": {"name": "lora", "r": 1, "targets": "mlp"}},
    ]
    section = {"ranges": {"method.r": [1, 3], "training.max_steps": [2]}, "trials": 2, "metric": "loss", "sampler": "random", "seed": 1}  # fmt: skip
    found = search(recipe(stages=stages, search=section), callbacks=[])
    folders = {p.name for p in (tmp_path / "out").iterdir() if p.is_dir()}
    assert {"1-first", "trial-0"} <= folders and "2-second" not in folders
    assert load_recipe(found.trials[0].folder + "/recipe.yaml").start.run == str(tmp_path / "out" / "1-first")


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_samplers_draw_by_their_seed(sampler):
    section = load_recipe({"task": "text-classification", "data": "x.csv", "method": "lora", "search": {"ranges": RANGES, "sampler": sampler}}).search  # fmt: skip
    drawn = []
    for number in (0, 0, 1):
        study = optuna.create_study(sampler=module._sampler(section, number))
        trial = study.ask()
        for key, values in section.ranges.items():
            module._suggest(trial, key, values)
        drawn.append(trial.params)
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_cannot_be_searched_is_refused_before_anything_runs(recipe, tmp_path):
    with pytest.raises(RecipeError, match="there is nothing to search for"):
        search(recipe(search=None))
    with pytest.raises(RecipeError, match=r"Did you mean 'learning_rate'|training.learning_rate"):
        search(recipe(search={"ranges": {"training.learning_rat": [0.1]}}))
    with pytest.raises(RecipeError, match="either choices .a list., or low and high"):
        recipe(search={"ranges": {"method.r": {"low": 1}}})
    with pytest.raises(RecipeError, match="low is at most high, and above 0 with log"):
        recipe(search={"ranges": {"method.r": {"low": 0, "high": 1, "log": True}}})
    assert not (tmp_path / "out").exists()
