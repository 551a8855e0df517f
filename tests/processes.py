"""A script run as two processes that talk to one another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def in_two_processes(worker: Path, folder: Path) -> list[str]:
    """The lines that each process printed, which must be the same; both must end well.

    Args:
        worker: a script, called with its rank and the folder.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, worker, str(rank), folder],
            env=os.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    told = []
    try:
        for rank, process in enumerate(processes):
            out, err = process.communicate(timeout=180)
            assert process.returncode == 0, f"process {rank}:\n{out}\n{err[-3000:]}"
            told.append(out.splitlines())
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert told[0] == told[1]
    return told[0]
