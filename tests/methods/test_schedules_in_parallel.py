"""Schedules decide the same on every process, under DDP and under FSDP2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_end_as_one_does(tmp_path):
    worker = Path(__file__).with_name("schedules_in_parallel.py")
    processes = [
        subprocess.Popen(
            [sys.executable, worker, str(rank), tmp_path],
            env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        for rank, process in enumerate(processes):
            out, err = process.communicate(timeout=180)
            assert process.returncode == 0, f"process {rank}:\n{out}\n{err[-3000:]}"
            names = ("adalora", "triadaptlora", "diffora", "mos")
            assert out.split("\n")[:8] == [f"{name} {kind}" for name in names for kind in ("ddp", "fsdp")]
    finally:
        for process in processes:
            process.kill()
            process.wait()
