"""What machines can do: accelerators by name, from their makers' data sheets, and this machine, measured."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from adaptome.core.errors import ModelError, did_you_mean

GIB, TERA, GIGA = 2**30, 1e12, 1e9
#: shares of the printed rates that training reaches, as a rule of thumb: they are assumed, not measured
ACHIEVED_MATMUL, ACHIEVED_BANDWIDTH = 0.5, 0.8
#: seconds that starting one operation takes from Python, assumed for an accelerator
LAUNCH = 10e-6
#: bytes that the driver and its libraries hold on an accelerator before the first tensor, assumed
CONTEXT = int(0.6 * GIB)
#: share of the memory that is taken up for lost to the allocator's pieces: above it a run is called tight
ROOM = 0.92


@dataclass(frozen=True)
class Device:
    """What a machine has and how fast it is.

    Attributes:
        name: by which it is asked for, or of this machine's.
        memory: bytes. taken: of these by others, the driver and the libraries.
        bandwidth: of its memory, bytes a second.
        rates: operations a second of dense matrix products, by dtype (two for a multiplication with its addition).
        launch: seconds to start an operation.
        matmul, copying: shares of rate and bandwidth that a step is expected to reach; 1 where they are measured as they are reached.
        source: where the figures are from.
        kernels: 'gpu' or 'cpu'.
    """

    name: str
    memory: int
    bandwidth: float
    rates: Mapping[str, float]
    source: str
    launch: float = LAUNCH
    matmul: float = ACHIEVED_MATMUL
    copying: float = ACHIEVED_BANDWIDTH
    taken: int = CONTEXT
    kernels: str = "gpu"

    def rate(self, dtype: str) -> float:
        """Of products in this dtype; what the device has no unit for runs as float32."""
        return self.rates.get(dtype, self.rates["float32"])

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def _sheet(name: str, memory: float, bandwidth: float, half: float, single: float, source: str, bf16: bool = True) -> Device:  # fmt: skip
    """A row of the table: GiB, GB/s, and TFLOP/s without sparsity."""
    rates = {"float16": half * TERA, "float32": single * TERA} | ({"bfloat16": half * TERA} if bf16 else {})
    return Device(name, int(memory * GIB), bandwidth * GIGA, rates, source)


#: float32 is the rate without TF32, which torch leaves off by default
DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _sheet("h200-141g", 141, 4800, 989, 67, "NVIDIA H200 data sheet (SXM)"),
        _sheet("h100-80g", 80, 3350, 989, 67, "NVIDIA H100 data sheet (SXM)"),
        _sheet("h100-pcie-80g", 80, 2000, 756, 51, "NVIDIA H100 data sheet (PCIe)"),
        _sheet("a100-80g", 80, 2039, 312, 19.5, "NVIDIA A100 80GB data sheet (SXM)"),
        _sheet("a100-40g", 40, 1555, 312, 19.5, "NVIDIA A100 40GB data sheet (SXM)"),
        _sheet("l40s-48g", 48, 864, 362, 91.6, "NVIDIA L40S data sheet"),
        _sheet("l4-24g", 24, 300, 121, 30.3, "NVIDIA L4 data sheet"),
        _sheet("a10-24g", 24, 600, 125, 31.2, "NVIDIA A10 data sheet"),
        _sheet("t4-16g", 16, 300, 65, 8.1, "NVIDIA T4 data sheet", bf16=False),
        _sheet("v100-32g", 32, 900, 125, 15.7, "NVIDIA V100 data sheet (SXM2)", bf16=False),
        _sheet("rtx-4090-24g", 24, 1008, 165, 82.6, "NVIDIA Ada GPU architecture white paper"),
        _sheet("rtx-3090-24g", 24, 936, 71, 35.6, "NVIDIA Ampere GA102 architecture white paper"),
        _sheet("mi300x-192g", 192, 5300, 1307, 163.4, "AMD Instinct MI300X data sheet"),
    )
}


def named_device(name: str) -> Device:
    """A device of the table.

    Raises:
        ModelError: there is none of this name.
    """
    if name not in DEVICES:
        raise ModelError(
            f"there is no device {name!r}.{did_you_mean(name, DEVICES)}\n  Known: {', '.join(DEVICES)}; without a name, this machine."
        )
    return DEVICES[name]


@cache
def this_device() -> Device:
    """This machine: its accelerator where there is one, else its processor; measured, which takes a second or two."""
    place = "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = ("float32", "bfloat16", "float16") if place == "cuda" else ("float32", "bfloat16")
    rates = {name: _matmul(place, getattr(torch, name)) for name in dtypes}
    found: dict[str, Any] = dict(
        bandwidth=_bandwidth(place), rates=rates, launch=_launch(place), matmul=1.0, copying=1.0
    )
    if place == "cuda":
        free, memory = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return Device(name, memory, source="measured on it", taken=memory - free, **found)
    name = f"this CPU, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    return Device(name, _processor_memory(), source="measured on it", taken=0, kernels="cpu", **found)


def resident() -> int:
    """Bytes that this process holds in memory now; 0 where nobody counts."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


def _processor_memory() -> int:
    """Bytes that this process could come to hold: what it does, and what is free beside it, within the container's limit."""
    info, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if not info.exists():
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        return pages * size
    free = next(int(line.split()[1]) * 1024 for line in info.read_text().splitlines() if line.startswith("MemAvailable"))  # fmt: skip
    most = free + resident()
    told = limit.read_text().strip() if limit.exists() else "max"
    return most if told == "max" else min(most, int(told))


def _timed(work: Callable[[], Any], place: str, least: float = 0.15) -> float:
    """Seconds of one call: the fastest of some, until they have taken `least` seconds in all."""
    work()
    best, spent = float("inf"), 0.0
    while spent < least:
        if place == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if place == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - start
        best, spent = min(best, took), spent + took
    return best


def _matmul(place: str, dtype: torch.dtype) -> float:
    size = 4096 if place == "cuda" else 768
    a, b = (torch.randn(size, size, device=place).to(dtype) for _ in range(2))
    return 2 * size**3 / _timed(lambda: a @ b, place)


def _bandwidth(place: str) -> float:
    source = torch.zeros((2**28 if place == "cuda" else 2**24), device=place)  # beyond the caches
    target = torch.empty_like(source)
    return 2 * source.nbytes / _timed(lambda: target.copy_(source), place)


def _launch(place: str) -> float:
    small = torch.zeros(8, device=place, requires_grad=True)

    def several() -> None:
        made = small
        for _ in range(100):
            made = made + 1.0

    return _timed(several, place, 0.02) / 100
