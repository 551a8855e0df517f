"""Reading and writing parameters in a schedule, whether they are plain or sharded over processes (FSDP2)."""

from __future__ import annotations

import hashlib

import torch
import torch.distributed as dist
from torch import Tensor


def whole(value: Tensor) -> Tensor:
    """The full tensor, detached; of a sharded one every process must call."""
    value = value.detach()
    return value.full_tensor() if hasattr(value, "full_tensor") else value


@torch.no_grad()
def write(place: Tensor, value: Tensor) -> None:
    """Copy a full tensor into a parameter."""
    if hasattr(place, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(place.device, place.dtype), place.device_mesh, place.placements)  # type: ignore[attr-defined]
    place.copy_(value)


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of what every process has; itself in a single one."""
    if in_parallel():
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


def in_parallel() -> bool:
    """Whether there are several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def still(value: Tensor) -> Tensor:
    """Without a gradient; over several processes with one of 0, for DDP waits for every parameter's."""
    return value.detach() + 0 * value if in_parallel() else value.detach()


def drawing(seed: str) -> torch.Generator:
    """A generator that draws the same on every process and at every resume."""
    digest = hashlib.sha256(seed.encode()).digest()[:7]
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
