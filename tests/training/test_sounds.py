"""Sounds from recipe to prediction: runs, resumed runs, folds, and which epoch is kept."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import TrainerCallback

import adaptome as ad
from adaptome.core.errors import DataError, RecipeError
from adaptome.recipe import load_recipe
from adaptome.training import evaluate, load_run, predict, run, run_folds
from tests.sounds import AST, class_folders, esc50, urbansound8k

pytest.importorskip("soundfile")


def recipe(folder, data, **changes):
    base = {
        "model": {"from_config": AST},
        "task": {"name": "audio-classification", "pooling": "mean", "frequency_mask": 8, "time_mask": 8},
        "data": data,
        "methods": [
            {"name": "lora", "r": 2, "targets": "attention", "dropout": 0.1, "train": ["encoder.layernorm"]}
        ],
        "training": {"epochs": 3, "batch_size": 4, "learning_rate": 0.01, "device": "cpu", "base_eval": True},
        "output": str(folder),
    }
    for key, value in changes.items():
        merged = isinstance(base.get(key), dict) and isinstance(value, dict)
        base[key] = {**base[key], **value} if merged else value
    return load_recipe(base)


def esc(tmp_path, **folds):
    return {
        "train": esc50(tmp_path / "esc"),
        "paths": "../audio/{filename}",
        "columns": {"label": "category"},
        "folds": {"validation": "next", **folds},
    }


class Stop(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


def test_a_run_on_files_is_scored_predicts_and_resumes_to_the_bit(tmp_path):
    """With dropout and SpecAugment drawing in every step."""
    data = {"name": class_folders(tmp_path / "s"), "validation_fraction": 0.2, "test_fraction": 0.2}
    whole = run(recipe(tmp_path / "whole", data, evaluation={"predictions": True}))
    assert set(whole.metrics) == {"loss", "accuracy", "macro_f1", "mcc"} and whole.split == "test"
    assert evaluate(tmp_path / "whole") == pytest.approx(whole.metrics)
    assert whole.notes[0].startswith("clips are resampled from 8,000 Hz to 16,000 Hz: 8 of 8 in train")
    lines = [json.loads(line) for line in (tmp_path / "whole" / "predictions.jsonl").read_text().splitlines()]
    assert lines[0]["where"].endswith(".wav")
    again = predict(tmp_path / "whole", [line["where"] for line in lines], batch_size=1)
    for line, made in zip(lines, again, strict=True):
        assert line["prediction"]["scores"] == pytest.approx(made["scores"], abs=1e-5)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(tmp_path / "cut", data), callbacks=[Stop()])
    resumed = run(recipe(tmp_path / "cut", data, training={"resume": True}))
    assert resumed.metrics == whole.metrics
    stored = [(tmp_path / n / "adapter" / "adapter.safetensors").read_bytes() for n in ("whole", "cut")]
    assert stored[0] == stored[1]


def test_the_best_epoch_is_kept_as_it_was(tmp_path):
    """The released code stores the best state by reference, so that later training goes on changing it."""
    kept = {}

    class Copy(TrainerCallback):
        def on_epoch_begin(self, args, state, control, model=None, **kwargs):
            if state.epoch and state.epoch >= 2:  # from here on it gets worse, whatever training does
                with torch.no_grad():
                    for value in ad.parameters_of(model).values():
                        value.add_(torch.randn_like(value) * 10)

        def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs):
            kept[state.global_step] = (
                metrics["eval_loss"],
                {k: v.detach().clone() for k, v in ad.parameters_of(model).items()},
            )

    made = recipe(
        tmp_path / "out",
        esc(tmp_path, test=1),
        training={
            "epochs": 4,
            "learning_rate": 0.3,
            "scheduler": "constant",
            "warmup": 0.0,
            "metric": "loss",
        },
        evaluation={"split": "validation"},
    )
    result = run(made, callbacks=[Copy()])
    losses = {step: loss for step, (loss, _) in kept.items()}
    best = min(losses, key=losses.get)
    assert best != max(losses), "the last epoch is best here, and nothing is tested"
    assert result.best_step == best
    loaded = ad.parameters_of(load_run(tmp_path / "out").model)
    assert loaded.keys() == kept[best][1].keys()
    assert all(torch.equal(loaded[name], value) for name, value in kept[best][1].items())
    assert any(not torch.equal(loaded[name], value) for name, value in kept[max(losses)][1].items())
    assert result.metrics["loss"] == pytest.approx(losses[best], rel=1e-5)


def test_no_epoch_is_chosen_on_the_test_fold(tmp_path, monkeypatch):
    """UrbanSound8K has no validation fold; the released code takes the test fold for one."""
    from adaptome.training.trainer import AdaptomeTrainer

    seen = []
    monkeypatch.setattr(
        AdaptomeTrainer,
        "evaluate",
        lambda self, *a, real=AdaptomeTrainer.evaluate, **k: seen.append((self.state.epoch, (a or [self.eval_dataset])[0])) or real(self, *a, **k),
    )  # fmt: skip
    data = {
        "train": urbansound8k(tmp_path / "us8k"),
        "paths": "../audio/fold{fold}/{slice_file_name}",
        "columns": {"label": "class"},
        "folds": {"test": 2},
        "validation_fraction": 0.25,
    }
    result = run(recipe(tmp_path / "out", data, training={"epochs": 2}))
    *during, last = [set(rows.split.rows["fold"][:]) for _, rows in seen]
    assert during and all(folds <= {"1", "3"} for folds in during) and last == {"2"}
    assert result.split == "test"


def test_every_fold_tests_once_and_the_mean_is_told(tmp_path):
    data = esc(tmp_path)
    result = run_folds(recipe(tmp_path / "out", data, training={"epochs": 1}))
    assert list(result.folds) == ["1", "2", "3", "4", "5"]
    scores = []
    for fold in result.folds:
        out = tmp_path / "out" / f"fold-{fold}"
        metrics = json.loads((out / "metrics.json").read_text())
        assert metrics["split"] == "test" and metrics["metrics"] == result.folds[fold]
        assert load_recipe(out / "recipe.yaml").data.folds.test == fold
        scores.append(metrics["metrics"]["accuracy"])
    mean = sum(scores) / 5
    assert result.mean["accuracy"] == pytest.approx(mean)
    assert result.deviation["accuracy"] == pytest.approx((sum((s - mean) ** 2 for s in scores) / 4) ** 0.5)
    assert json.loads((tmp_path / "out" / "folds.json").read_text()) == result.to_dict()


def test_runs_over_folds_that_cannot_be_are_refused(tmp_path):
    data = esc(tmp_path)
    for changes, told in (
        ({"data": {**data, "folds": None}}, "the data has no folds: say which column"),
        ({"data": {**data, "folds": {"test": 2}}}, "leave out data.folds.test"),
        ({"data": {**data, "folds": {"validation": 3}}}, "leave out data.folds.test"),
        (
            {"data": data, "evaluation": {"split": "validation"}},
            "the mean over the folds is of the test split",
        ),
    ):
        made = recipe(tmp_path / "out", **{"data": data, **changes})
        with pytest.raises(RecipeError, match=told):
            run_folds(made)
    with pytest.raises(DataError, match="no such column. Did you mean 'fold'"):
        run_folds(recipe(tmp_path / "out", {**data, "folds": {"column": "folds"}}))
