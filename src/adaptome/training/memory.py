"""Peak memory of a stretch of a run."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Highest use of memory since it was made: the accelerator's where there is one, else the process's.

    On Linux the process's own peak is set back when this begins; elsewhere it counts from the process's start.
    """

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        elif _RESET.exists():
            with contextlib.suppress(OSError):  # a container may forbid it
                _RESET.write_text("5")

    def bytes(self) -> int:
        """The peak in bytes."""
        if torch.cuda.is_available():
            return int(torch.cuda.max_memory_allocated())
        if _STATUS.exists():
            line = next(row for row in _STATUS.read_text().splitlines() if row.startswith("VmHWM"))
            return int(line.split()[1]) * 1024
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(peak if sys.platform == "darwin" else peak * 1024)
