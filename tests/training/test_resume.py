"""A run killed at any moment and resumed ends in the bits of the run that was not; the kills are SIGKILLs."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from adaptome.core.errors import TornFileError
from adaptome.training.checkpoint import checkpoints, last_good, verify
from tests.training.killable import KILLED, Run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the runs that are killed")

STEPS = 12
LONG_LENGTHS = (("train_sampling_strategy", "group_by_length"),)
# evaluation beside the checkpoints draws random numbers; rotation and the best checkpoint delete folders
BUSY = (("eval_strategy", "steps"), ("eval_steps", 2), ("save_total_limit", 1), ("save_steps", 2))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The final bytes of uninterrupted runs, by kind and settings."""
    known = {}

    def final(kind, settings=()):
        if (kind, settings) not in known:
            run = Run(tmp_path_factory.mktemp("whole"), kind, settings=settings)
            assert run.start() == 0
            known[kind, settings] = run.final
        return known[kind, settings]

    return final


def dies_and_resumes(run, expected):
    assert run.start() == -run.signal or run.signal == signal.SIGINT
    for _, path in checkpoints(run.folder / "run"):
        verify(path)  # whatever carries the name of a checkpoint is whole
    assert not (run.folder / "final").exists()
    again = run.resumed()
    assert again.start() == 0
    assert again.final == expected
    assert not list((run.folder / "run").glob(".*"))


@pytest.mark.parametrize("step", [1, 5, 6, STEPS])
def test_killed_after_a_step(tmp_path, reference, step):
    dies_and_resumes(Run(tmp_path, kill_step=step), reference("bert"))


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3, 4, 7, 8, 9, 10, 11])
def test_killed_after_any_other_step(tmp_path, reference, step):
    dies_and_resumes(Run(tmp_path, kill_step=step), reference("bert"))


@pytest.mark.parametrize(
    ("step", "settings"),
    [(7, LONG_LENGTHS), (10, LONG_LENGTHS), (5, BUSY), (7, BUSY)],
    ids=["by-length-7", "by-length-10", "evaluating-5", "evaluating-7"],
)
def test_killed_with_other_samplers_and_evaluations(tmp_path, reference, step, settings):
    dies_and_resumes(Run(tmp_path, "llama", kill_step=step, settings=settings), reference("llama", settings))


@pytest.mark.parametrize("step", [1, 7])
def test_killed_with_methods_that_follow_a_schedule(tmp_path, reference, step):
    settings = (("weight_decay", 0.1),)
    dies_and_resumes(
        Run(tmp_path, "scheduled", kill_step=step, settings=settings), reference("scheduled", settings)
    )


def test_killed_twice(tmp_path, reference):
    assert Run(tmp_path, kill_step=4).start() == KILLED
    assert Run(tmp_path, kill_step=8, resume=True).start() == KILLED
    again = Run(tmp_path, resume=True)
    assert again.start() == 0 and again.final == reference("bert")


def killed_in_the_checkpoint(tmp_path, reference, calls, save=6, settings=()):
    """Kill at each of these calls of one checkpoint, up to its last; returns how many kills there were."""
    for call in calls:
        folder = tmp_path / str(call)
        run = Run(folder, kill_save=save, kill_call=call, settings=settings)
        status = run.start()
        if status == 0:
            return call - calls.start
        assert status == KILLED, call
        found = checkpoints(folder / "run")
        for _, path in found:
            verify(path)
        again = run.resumed()
        assert again.start() == 0 and again.final == reference("bert", settings), call
        shutil.rmtree(folder)
    return len(calls)


def test_killed_in_the_middle_of_a_checkpoint(tmp_path, reference):
    """Every 14th call to the file system; `test_killed_at_every_write` takes them all."""
    assert killed_in_the_checkpoint(tmp_path, reference, range(4, 50, 14)) == 4


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), BUSY], ids=["plain", "rotating"])
def test_killed_at_every_write(tmp_path, reference, settings):
    assert 50 <= killed_in_the_checkpoint(tmp_path, reference, range(1, 1000), settings=settings) < 999


def test_killed_while_the_best_and_the_old_checkpoint_rotate(tmp_path, reference):
    settings = (*BUSY, ("load_best_model_at_end", True), ("metric_for_best_model", "loss"))
    assert killed_in_the_checkpoint(tmp_path, reference, range(58, 74, 6), settings=settings) == 3


def test_ctrl_c_leaves_whole_checkpoints_only(tmp_path, reference):
    dies_and_resumes(Run(tmp_path, kill_step=4, signal=signal.SIGINT), reference("bert"))


def test_ctrl_c_in_a_checkpoint_leaves_none_of_it(tmp_path, reference):
    run = Run(tmp_path, kill_save=6, kill_call=30, signal=signal.SIGINT)
    assert run.start() == 1
    assert [step for step, _ in checkpoints(tmp_path / "run")] == [3]
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["checkpoint-3"]
    again = run.resumed()
    assert again.start() == 0 and again.final == reference("bert")


def test_resumed_in_a_new_interpreter(tmp_path, reference):
    assert Run(tmp_path, kill_step=5).start() == KILLED
    code = "import sys; from pathlib import Path; from tests.training.killable import Run, main; main(Run(Path(sys.argv[1]), resume=True))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
    assert Run(tmp_path).final == reference("bert")


def altered(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "no marker": lambda c: (c / "COMMITTED").unlink(),
    "half a marker": lambda c: (c / "COMMITTED").write_bytes((c / "COMMITTED").read_bytes()[:100]),
    "a missing file": lambda c: (c / "random.json").unlink(),
    "a changed bit in the adapter": lambda c: altered(c / "adapters" / "default" / "adapter.safetensors"),
    "a changed bit in the optimizer": lambda c: altered(c / "optimizer.safetensors"),
    "a cut file": lambda c: os.truncate(c / "trainer_state.json", 20),
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that died after step 7, with checkpoints 3 and 6."""
    run = Run(tmp_path_factory.mktemp("killed"), kill_step=7)
    assert run.start() == KILLED
    return run.folder


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_not_used(tmp_path, killed, damage, caplog):
    shutil.copytree(killed / "run", tmp_path / "run")
    DAMAGE[damage](tmp_path / "run" / "checkpoint-6")
    with pytest.raises(TornFileError):
        verify(tmp_path / "run" / "checkpoint-6")
    assert last_good(tmp_path / "run").name == "checkpoint-3"
    assert "checkpoint-6 is not used" in caplog.text


@pytest.mark.parametrize("by_name", [False, True])
def test_resuming_falls_back_to_the_last_good_checkpoint(tmp_path, killed, reference, by_name):
    shutil.copytree(killed / "run", tmp_path / "run")
    altered(tmp_path / "run" / "checkpoint-6" / "optimizer.safetensors")
    run = Run(tmp_path, resume=str(tmp_path / "run" / "checkpoint-6") if by_name else True)
    assert run.start() == 0 and run.final == reference("bert")
    verify(tmp_path / "run" / "checkpoint-6")  # replaced as the run came by


def test_a_moved_run_resumes(tmp_path, killed, reference):
    shutil.copytree(killed / "run", tmp_path / "elsewhere" / "run")
    run = Run(tmp_path / "elsewhere", resume=True)
    assert run.start() == 0 and run.final == reference("bert")


def test_no_pickle_is_written_or_read(killed):
    for path in (killed / "run").rglob("*"):
        assert path.is_dir() or path.suffix in (".json", ".safetensors") or path.name == "COMMITTED"
