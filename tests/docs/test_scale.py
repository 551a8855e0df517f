"""The guide's script for many machines, run by torchrun as two nodes that find each other, stopped and started again."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from .pages import ROOT, blocks

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="torchrun's gloo is tested on POSIX")


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """`train.py`, as the guide has it."""
    text = (ROOT / "docs" / "guides" / "scale.md").read_text(encoding="utf-8")
    (block,) = [b for b in blocks(text) if b.code.startswith("# train.py\n")]
    path = tmp_path_factory.mktemp("scale") / "train.py"
    path.write_text(block.code, encoding="utf-8")
    return path


def run_nodes(script, folder, steps: int, nodes: int = 2) -> None:
    """The guide's command, once for each node."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", str(nodes), "--nproc-per-node", "1", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "run-1", script, folder, str(steps),
    ]  # fmt: skip
    started = [
        subprocess.Popen(
            list(map(str, command)),
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(nodes)
    ]
    try:
        for node in started:
            told, _ = node.communicate(timeout=250)
            assert node.returncode == 0, told[-3000:]
    finally:
        for node in started:
            node.kill()
            node.wait()


@pytest.mark.slow
def test_two_nodes_resume_to_the_same_bits(script, tmp_path):
    run_nodes(script, tmp_path / "whole", 4)
    (tmp_path / "stopped").mkdir()
    shutil.copytree(tmp_path / "whole" / "2", tmp_path / "stopped" / "2")
    (tmp_path / "stopped" / "3").mkdir()  # a checkpoint that was cut off
    run_nodes(script, tmp_path / "stopped", 4)
    whole, stopped = (
        load_file(tmp_path / run / "4" / "adapter" / "adapter.safetensors") for run in ("whole", "stopped")
    )
    assert whole.keys() == stopped.keys() and all(torch.equal(whole[k], stopped[k]) for k in whole)
    half = load_file(tmp_path / "whole" / "2" / "adapter" / "adapter.safetensors")
    assert all(not torch.equal(whole[k], half[k]) and whole[k].any() for k in whole)
