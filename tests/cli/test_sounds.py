"""The commands on sounds: train, eval, predict on files, folds, and what is told when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from adaptome.cli import main
from tests.sounds import AST, chirp, esc50, urbansound8k, write

pytest.importorskip("soundfile")


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    return stopped.value.code or 0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    esc50(folder / "esc")
    recipe = {
        "model": {"from_config": AST},
        "task": "audio-classification",
        "data": {
            "train": "esc/meta/esc50.csv",
            "paths": "../audio/{filename}",
            "columns": {"label": "category"},
            "folds": {"validation": "next"},
        },
        "method": {"name": "lora", "r": 2, "targets": "attention"},
        "training": {"max_steps": 2, "batch_size": 4},
        "output": "out",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("train", "recipe.yaml") == 0
    return folder


@pytest.fixture(autouse=True)
def _inside(place, monkeypatch):
    monkeypatch.chdir(place)


def test_the_linear_probe_is_a_recipes_method_and_progress_is_told_without_a_terminal(capsys):
    words = ["method={name: linear-probe}", "task.pooling=mean", "training.logging_steps=1", "output=probe"]
    assert run("train", "recipe.yaml", *words, "--json") == 0
    shown = capsys.readouterr()
    told = json.loads(shown.out)  # nothing else on standard output
    assert told["method"] == "linear-probe" and told["trainable_parameters"] == 16 * 2 + 2
    lines = shown.err.splitlines()
    assert [line for line in lines if line.startswith("step 1 of 2: loss ")]
    assert [line for line in lines if line.startswith("step 2 of 2: eval_loss ") and "eval_accuracy" in line]
    assert "LOAD REPORT" not in shown.err and "runtime" not in shown.err
    assert run("eval", "probe", "--json") == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(told["metrics"], rel=1e-5)


def test_predict_takes_paths(capsys):
    write(Path("a.ogg"), chirp(1), 44100)
    assert run("predict", "out", "a.ogg", "esc/audio/1-0-A-0.wav") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[1] for line in lines] == ["a.ogg", "esc/audio/1-0-A-0.wav"]
    assert all(line.startswith(("up (", "down (")) for line in lines)
    assert run("predict", "out", "a.ogg", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)[0]["scores"]) == {"up", "down"}


def test_eval_gives_the_runs_own_metrics_again_and_takes_another_fold(capsys):
    assert run("eval", "out", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again == pytest.approx(json.loads(Path("out/metrics.json").read_text())["metrics"], rel=1e-5)
    assert run("eval", "out", "data.folds.test=3", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)) == set(again)


def test_folds_are_told_as_a_table_and_as_json(capsys):
    urbansound8k(Path("us8k"), folds=3, each=1)
    data = "{train: us8k/metadata/UrbanSound8K.csv, paths: '../audio/fold{fold}/{slice_file_name}', columns: {label: class}, "
    words = [f"data={data} folds: {{validation: next}}}}", "training.max_steps=1", "--folds"]
    assert run("train", "recipe.yaml", "output=many", *words) == 0
    made = capsys.readouterr()
    shown, before = made.out, made.err
    assert [line for line in before.splitlines() if line.startswith("fold")] == [f"fold {i} ({i} of 3)" for i in (1, 2, 3)]  # fmt: skip
    assert (
        "3 folds, in many" in shown and "fold 3" in shown and "\nmean " in shown and "\n± deviation " in shown
    )
    assert run("train", "recipe.yaml", "output=again", *words, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(Path("again/folds.json").read_text())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["predict", "out", "none.wav"], "none.wav"),
        (["predict", "out", "torn.wav"], "torn.wav is cut short"),
        (["predict", "out", "empty.wav"], "empty.wav: the clip holds no samples"),
        (["train", "recipe.yaml", "data.folds.colum=fold"], "Did you mean 'column'?"),
        (["train", "recipe.yaml", "output=x", "data.folds.column=flod"], "Did you mean 'fold'?"),
        (["train", "recipe.yaml", "output=x", "data.columns.label=categori"], "Did you mean 'category'?"),
        (["train", "recipe.yaml", "training.epochs_ESC=5"], "unknown key 'training.epochs_ESC'. Did you mean 'epochs'"),
        (["train", "recipe.yaml", "task.epochs_US8K=5"], "unknown key 'task.epochs_US8K'"),
        (["train", "recipe.yaml", "task.max_lenght=400"], "Did you mean 'max_length'?"),
        (["train", "recipe.yaml", "--folds", "output=x", "data.folds.test=1"], "leave out data.folds.test"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_exits_with_1_and_a_reason(words, told, capsys):
    write(Path("empty.wav"), np.zeros(0, np.float32))
    write(Path("torn.wav"), chirp(0))
    Path("torn.wav").write_bytes(Path("torn.wav").read_bytes()[:-1000])
    assert run(*words) == 1
    shown = capsys.readouterr()
    assert told in shown.err
    assert shown.out == ""


def test_the_merged_model_needs_no_adaptome(capsys):
    import torch
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    path = "esc/audio/2-0-A-1.wav"
    assert run("predict", "out", path, "--json") == 0
    before = json.loads(capsys.readouterr().out)[0]["scores"]
    assert run("merge", "out", "merged") == 0
    import soundfile
    from scipy.signal import resample_poly

    samples, rate = soundfile.read(path, dtype="float32")
    extractor = AutoFeatureExtractor.from_pretrained("merged")
    batch = extractor(resample_poly(samples, 16000 // rate, 1), sampling_rate=16000, return_tensors="pt")
    model = AutoModelForAudioClassification.from_pretrained("merged").eval()
    with torch.no_grad():
        scores = model(**batch).logits.softmax(-1)[0].tolist()
    after = {model.config.id2label[i]: score for i, score in enumerate(scores)}
    assert after == pytest.approx(before, abs=1e-5)
