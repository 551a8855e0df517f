"""How fast a run's model answers: examples a second of its forward, and the operations that one example takes.

Measured after training on the first batch of the split that is scored, in batches of `evaluation.batch_size`, and kept in the run's `speed.json`.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import torch

from adaptome.compare.work import Counted
from adaptome.core.files import write_atomic
from adaptome.tasks.inference import evaluating, to_device
from adaptome.training.runs import calibration, load_run

SPEED, RATE, OPERATIONS = "speed.json", "examples_per_second", "operations_per_example"
ROUNDS = 5


def speed_of(folder: Path, split: str) -> dict[str, float]:
    """examples_per_second (of the median of five forwards) and operations_per_example (of matrix products) of a finished run.

    Args:
        folder: the run's; what was measured there before is read.
        split: whose first batch is taken.

    Raises:
        RecipeError, DataError, CheckpointError: the run or its data cannot be read.
    """
    file = folder / SPEED
    if file.is_file():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    loaded = load_run(folder)
    (batch,) = calibration(loaded, 1, split)
    model, seconds = loaded.model, []
    with evaluating(model) as device:
        moved = to_device(batch, device)
        count = len(next(value for value in moved.values() if isinstance(value, torch.Tensor)))
        # and the first forward, which is slower; in inference mode linear maps are no products yet that could be counted
        with torch.inference_mode(False), torch.no_grad(), Counted() as counted:
            model(**moved)
        for _ in range(ROUNDS):
            _wait(device)
            began = time.perf_counter()
            model(**moved)
            _wait(device)
            seconds.append(time.perf_counter() - began)
    found = {
        RATE: count / statistics.median(seconds),
        OPERATIONS: counted.work().flops / count,
    }
    write_atomic(file, json.dumps(found))
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
