"""Comparisons at several budgets, with a search per row, in several processes and on a local Ray cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyarrow import parquet
from transformers import TrainerCallback

from adaptome.compare import compare
from adaptome.compare import study as module
from adaptome.compare.results import read_published
from adaptome.core.errors import DataError
from adaptome.recipe import load_recipe
from tests.training.test_runs import SMALL, animals, tokenizers  # noqa: F401


@pytest.fixture
def recipe(tmp_path, tokenizers):  # noqa: F811
    content = {
        "model": {"from_config": {"model_type": "bert", "vocab_size": 20, **SMALL}, "tokenizer": tokenizers["words"]},
        "task": "text-classification",
        "data": {"train": animals(tmp_path), "test_fraction": 0.2, "validation_fraction": 0.3},
        "training": {"max_steps": 3, "batch_size": 8, "learning_rate": 0.01, "device": "cpu", "logging_steps": 1},
        "evaluation": {"predictions": True},
        "output": str(tmp_path / "out"),
        "compare": {"methods": ["lora", "paca"], "seeds": [0, 1], "budget": [200, 400]},
    }  # fmt: skip
    return lambda *changes: load_recipe(content, changes)


def test_every_method_has_a_row_for_each_budget_and_all_is_written(recipe, tmp_path):
    seen = []
    found = compare(recipe(), callbacks=[], watch=seen.append)
    assert [row.label for row in found.rows] == ["lora @ 200", "lora @ 400", "paca @ 200", "paca @ 400"]
    small, large = found.rows[0].parameters, found.rows[1].parameters
    assert small < large and found.rows[0].budget == 200
    assert [s.finished for s in seen if s.done] == list(range(1, 9)) and seen[-1].total == 8
    table = parquet.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert [(line["label"], line["seed"]) for line in table][:3] == [("lora @ 200", 0), ("lora @ 200", 1), ("lora @ 400", 0)]  # fmt: skip
    assert [line["metric/accuracy"] for line in table[:2]] == found.rows[0].values
    told = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert "| lora @ 200 |" in told and "p (Holm)" in told
    shown = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for part in ("Recall by label", "Versions", "The recipe", "Peak memory", "paired t test", "trained parameters"):  # fmt: skip
        assert part in shown, part
    for row in found.rows:
        assert row.classes and all(0 <= share <= 1 for share in row.classes.values())
        assert 0 < row.step_seconds < 60 and row.memory > 0


def test_every_row_is_tuned_by_as_many_trials_and_nothing_is_repeated(recipe, tmp_path, monkeypatch):
    wanted = recipe("compare.trials=2", "compare.budget=200", "compare.metric=loss")
    found = compare(wanted, callbacks=[])
    for row in found.rows:
        folder = tmp_path / "out" / f"{row.method}"
        searched = json.loads((folder / "search" / "search.json").read_text(encoding="utf-8"))
        assert len(searched["trials"]) == row.trials == 2
        assert row.learning_rate == searched["best"]["settings"]["training.learning_rate"]
        assert 0.001 <= row.learning_rate <= 0.1
        run = load_recipe(folder / "seed-1" / "recipe.yaml")
        assert run.training.learning_rate == row.learning_rate and run.methods[0].budget == 200

    def again(*given):
        raise AssertionError("done again")

    monkeypatch.setattr(module, "run", again)
    monkeypatch.setattr(module, "search", again)
    assert compare(wanted, callbacks=[]) == found


@pytest.mark.slow
def test_processes_give_what_one_gives(recipe):
    words = ("compare.budget=200", "compare.seeds=[0]")
    alone = compare(recipe(*words), callbacks=[])
    many = compare(recipe(*words, "output.folder=" + str(Path(alone.folder).with_name("many"))), jobs=2)
    assert [row.values for row in many.rows] == [row.values for row in alone.rows]


@pytest.mark.slow
def test_a_local_ray_cluster_gives_what_one_process_gives(recipe):
    pytest.importorskip("ray")
    words = ("compare.budget=200", "compare.seeds=[0]")
    alone = compare(recipe(*words), callbacks=[])
    there = compare(
        recipe(*words, "output.folder=" + str(Path(alone.folder).with_name("ray"))), jobs=2, ray="local"
    )
    assert [row.values for row in there.rows] == [row.values for row in alone.rows]


def children(process):
    """The processes that a process has begun."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [Path("/proc") / pid for pid in listed.read_text().split()] if listed.exists() else []


@pytest.mark.slow
def test_after_a_kill_it_goes_on_and_repeats_nothing(recipe, tmp_path, monkeypatch):
    """Killed outright in the middle: its processes end, finished runs stay as they are, the one that was cut off goes on from its checkpoint."""
    wanted = recipe(
        "compare.trials=2", "compare.budget=200", "training.max_steps=60", "training.save_steps=5"
    )
    path, script, out = tmp_path / "recipe.yaml", tmp_path / "script.py", tmp_path / "out"
    path.write_text(wanted.to_yaml(), encoding="utf-8")
    code = f"from adaptome.compare import compare\nif __name__ == '__main__': compare({str(path)!r}, callbacks=[], jobs=2)"
    script.write_text(code, encoding="utf-8")
    process = subprocess.Popen([sys.executable, str(script)], env=dict(os.environ))
    deadline = time.monotonic() + 250
    while not (list(out.glob("*/seed-0/metrics.json")) and list(out.glob("*/seed-1/checkpoints/checkpoint-*"))):  # fmt: skip
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    begun = children(process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while any(one.exists() for one in begun):
        assert time.monotonic() < deadline, "a process of the comparison outlives it"
        time.sleep(0.1)
    finished = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in out.glob("**/metrics.json")}
    assert finished
    trained, resumed = [], {}

    class Begins(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            folder = Path(args.output_dir).parent
            trained.append(folder)
            resumed[folder] = state.global_step

    found = compare(wanted, callbacks=[Begins()])
    assert not {file.parent for file in finished} & set(trained) and len(set(trained)) == len(trained)
    assert all((file.stat().st_mtime_ns, file.read_bytes()) == kept for file, kept in finished.items())
    assert any(step > 0 for folder, step in resumed.items() if "seed" in folder.name)
    runs = len(found.rows) * (2 + 2)  # trials and seeds of every row, some of them done before
    assert len(finished) + len(trained) <= runs
    for row in found.rows:
        search = json.loads((out / row.label / "search" / "search.json").read_text())
        assert len(search["trials"]) == 2 and len(row.values) == 2


HEAD = "task,experiment,peft_type,status,train_time_s,final_test_accuracy,accelerator_memory_max,num_trainable_params,lr,accelerator,final_test_dino_similarity"  # fmt: skip


def test_published_rows_are_laid_beside_with_their_conditions(recipe, tmp_path):
    file = tmp_path / "peft.csv"
    lines = ["MetaMathQA,lora/<r32>,LORA,success,100.5,0.5,1048576,42,1e-4,L40S,", "cats,oft,OFT,success,,,,7,,,0.25", "MetaMathQA,broken,LORA,failed,,,,1,,,"]  # fmt: skip
    file.write_text("\n".join([HEAD, *lines]), encoding="utf-8")
    rows = read_published(file)
    assert [(row["method"], row["test score"], row["peak MiB"]) for row in rows] == [("LORA", 0.5, 1.0), ("OFT", 0.25, None)]  # fmt: skip
    assert rows[0]["conditions"] == "lr 1e-4, accelerator L40S"
    compare(
        recipe("compare.budget=200", "compare.seeds=[0]", "training.max_steps=1"), callbacks=[], beside=file
    )
    shown = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Published results of PEFT" in shown and "lora/&lt;r32&gt;" in shown
    file.write_text("a,b\n1,2", encoding="utf-8")
    with pytest.raises(DataError, match="peft_type"):
        read_published(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_published(tmp_path / "none.csv")
