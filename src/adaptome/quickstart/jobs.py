"""Runs the worker in a process of its own and follows what it tells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from adaptome.core.errors import TrainingError

# No look at a hub, and no second set of threads beside PyTorch's.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
# Threads that wait spin by default; where another program wants a core too, that made a step ten times slower.
UNLESS_SET = {"OMP_WAIT_POLICY": "PASSIVE"}


def run_job(
    job: str, folder: Path, argument: str, progress: Callable[[str, int, int], None] | None = None
) -> dict[str, Any]:
    """The result of `python -m adaptome.quickstart.worker JOB FOLDER ARGUMENT`. The process never outlives the call.

    Raises:
        TrainingError: the process failed; the message ends with its last words.
    """
    command = [sys.executable, "-m", "adaptome.quickstart.worker", job, str(folder), argument]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
        told: dict[str, Any] = {}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=complaints, text=True, encoding="utf-8",
            env={**UNLESS_SET, **os.environ, **ENVIRONMENT},
        ) as process:  # fmt: skip
            assert process.stdout is not None
            with ExitStack() as stopped:
                stopped.callback(process.kill)  # by Ctrl-C above all: the process must not outlive us
                for line in process.stdout:
                    told.update(json.loads(line))
                    if progress is not None and "progress" in told:
                        progress(*told.pop("progress"))
                stopped.pop_all()
        if "result" in told:
            return dict(told["result"])
        complaints.seek(0)
        words = told.get("error") or "".join(complaints.readlines()[-5:]).strip() or "it said nothing"
    raise TrainingError(
        f"the {job} process for {argument!r} ended with status {process.returncode}:\n  {words}"
    )
