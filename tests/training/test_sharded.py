"""Two gloo processes over which FSDP shards the model: whole adapters are written, and resuming is exact."""

import os
import shutil

import pytest
from safetensors.torch import load_file

from adaptome.training.checkpoint import verify
from adaptome.training.state import read_state
from tests.training.killable import KILLED, Run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the runs")

PLAIN = (("gradient_accumulation_steps", 1), ("ddp_backend", "gloo"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("sharded"), "llama", shards=2, settings=PLAIN)
    assert run.start() == 0
    return run


def test_every_shard_is_in_the_checkpoint(whole):
    folder = whole.folder / "run" / "checkpoint-12"
    verify(folder)
    stored = load_file(folder / "adapters" / "default" / "adapter.safetensors")
    assert {tuple(t.shape) for key, t in stored.items() if key.endswith("A")} == {(3, 16)}
    # a missing shard would leave rows of zeros in B, which starts as zero
    assert all(t.abs().sum(1).min() > 0 for key, t in stored.items() if key.endswith("B"))
    moments = read_state(folder, "optimizer")["state"]
    assert len(moments) == len(stored) and {tuple(m["exp_avg"].shape) for m in moments.values()} == {
        (3, 16),
        (16, 3),
    }
    assert len(read_state(folder, "random")) == 2


def test_a_killed_sharded_run_resumes_to_the_same_bits(tmp_path, whole):
    run = Run(tmp_path, "llama", shards=2, settings=PLAIN, kill_step=7)
    assert run.start() == KILLED
    again = run.resumed()
    assert again.start() == 0 and again.final == whole.final


def test_what_shards_wrote_loads_in_one_process(tmp_path, whole):

    shutil.copytree(whole.folder / "run", tmp_path / "run")
    alone = Run(tmp_path, "llama", resume=True, settings=(PLAIN[0], ("num_train_epochs", 1)))
    assert alone.start() == 0 and alone.final == whole.final
