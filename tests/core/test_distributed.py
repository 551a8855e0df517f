"""Two gloo processes on the CPU train the same adapters as one process, under DDP and under FSDP2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_train_what_one_does(tmp_path):
    worker = Path(__file__).with_name("distributed.py")
    processes = [
        subprocess.Popen(
            [sys.executable, worker, str(rank), tmp_path],
            env=os.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        for rank, process in enumerate(processes):
            out, err = process.communicate(timeout=180)
            assert process.returncode == 0, f"process {rank}:\n{out}\n{err[-3000:]}"
            assert out.split("\n")[:2] == ["ddp holds", "fsdp holds"]
    finally:
        for process in processes:
            process.kill()
            process.wait()
