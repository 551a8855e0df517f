"""Tokens per second and per watt, by a method that is stated: energy counters of the processor (RAPL), or a GPU's power sampled (NVML).

    with Meter() as meter:
        ...
        meter.count(tokens)
    print(meter.reading)

Tokens/s/W is tokens over energy: (tokens / s) / (J / s) = tokens / J. Where no source can be read, speed alone is told.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import Self

RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Reading:
    """What was measured. joules is None where no source of power can be read; method says how it was."""

    tokens: int
    seconds: float
    joules: float | None
    method: str

    @property
    def per_second(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    @property
    def watts(self) -> float | None:
        """Mean power."""
        return None if self.joules is None else self.joules / self.seconds

    @property
    def per_second_and_watt(self) -> float | None:
        """Tokens per second and watt, which is tokens per joule."""
        return None if not self.joules else self.tokens / self.joules

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "tokens": self.tokens, "seconds": self.seconds, "tokens_per_second": self.per_second, "watts": self.watts,
            "tokens_per_second_and_watt": self.per_second_and_watt, "method": self.method,
        }  # fmt: skip


class Energy(ABC):
    """A source of energy readings between `start` and `stop`."""

    method = ""

    @abstractmethod
    def start(self) -> None:
        """Begin."""

    @abstractmethod
    def stop(self) -> float:
        """Joules since `start`."""


class Counter(Energy):
    """Counters of microjoules that wrap around, as the kernel's powercap gives them.

    Args:
        domains: their folders, with energy_uj and max_energy_range_uj.
    """

    method = "RAPL: energy counters of the processor's packages, at the beginning and the end; idle power included, memory and the rest of the machine not"

    def __init__(self, domains: list[Path]):
        self.domains = domains

    def _read(self) -> list[int]:
        return [int((domain / "energy_uj").read_text()) for domain in self.domains]

    def start(self) -> None:
        self._before = self._read()

    def stop(self) -> float:
        wraps = [int((domain / "max_energy_range_uj").read_text()) + 1 for domain in self.domains]
        return (
            sum(
                (now - then) % wrap for now, then, wrap in zip(self._read(), self._before, wraps, strict=True)
            )
            / 1e6
        )


class Sampled(Energy):
    """Power that is sampled, and integrated over time by trapezoids.

    Args:
        watts: the power now.
        clock: seconds.
        every: seconds between samples of a thread; None: samples are taken by `sample` alone, and at both ends.
    """

    def __init__(self, watts: Callable[[], float], clock: Callable[[], float] = time.perf_counter, every: float | None = 0.1, method: str = "sampled power"):  # fmt: skip
        self.watts, self.clock, self.every, self.method = watts, clock, every, method

    def sample(self) -> None:
        """Read the power now."""
        self._samples.append((self.clock(), self.watts()))

    def start(self) -> None:
        self._samples: list[tuple[float, float]] = []
        self._over = threading.Event()
        self.sample()
        if self.every is not None:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(self.every):
            self.sample()

    def stop(self) -> float:
        self._over.set()
        if self.every is not None:
            self._thread.join()
        self.sample()
        pairs = zip(self._samples, self._samples[1:], strict=False)
        return sum((p + q) / 2 * (t - s) for (s, p), (t, q) in pairs)


def source(root: Path = RAPL) -> Energy | None:
    """The GPU's power where there is a GPU and NVML can be read, else the processor's counters where they can; else None."""
    import torch

    if torch.cuda.is_available() and importlib.util.find_spec("pynvml") is not None:
        told = (
            "NVML: the GPU's power, sampled every 0.1 s and integrated; the rest of the machine not included"
        )
        return Sampled(lambda: torch.cuda.power_draw() / 1000, method=told)
    domains = sorted(domain for domain in root.glob("intel-rapl:*") if domain.name.count(":") == 1)
    readable = [domain for domain in domains if _readable(domain / "energy_uj")]
    return Counter(readable) if readable else None


def _readable(path: Path) -> bool:
    try:
        return path.read_text().strip().isdigit()
    except OSError:  # the counters are the administrator's on many systems
        return False


class Meter:
    """Measures between its beginning and its end.

    Args:
        energy: where power is read; default: `source()`.
        clock: seconds.
    """

    def __init__(self, energy: Energy | None = None, clock: Callable[[], float] = time.perf_counter):
        self.energy, self.clock, self.tokens = energy or source(), clock, 0

    def count(self, tokens: int) -> None:
        """Add tokens that were written."""
        self.tokens += tokens

    def __enter__(self) -> Self:
        if self.energy is not None:
            self.energy.start()
        self._began = self.clock()
        return self

    def __exit__(self, *error: object) -> None:
        seconds = self.clock() - self._began
        joules = None if self.energy is None else self.energy.stop()
        method = "no source of power can be read: speed alone" if self.energy is None else self.energy.method
        self.reading = Reading(self.tokens, seconds, joules, method)
