"""The random generators that a run draws from: Python's, numpy's, torch's on the CPU and on the accelerator."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_state(devices: list[torch.device]) -> dict[str, Any]:
    """The state of every generator, made of numbers and tensors only.

    Args:
        devices: CUDA devices of this process; empty on a CPU.
    """
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "torch": torch.random.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device) for device in devices],
    }


def set_random_state(state: dict[str, Any], devices: list[torch.device]) -> None:
    """Put every generator back to `state`; accelerators beyond those it was taken on are left alone."""
    random.setstate(state["python"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.random.set_rng_state(state["torch"])
    for device, stored in zip(devices, state["cuda"], strict=False):
        torch.cuda.set_rng_state(stored, device)
