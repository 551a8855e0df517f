"""Peak memory: of a stretch of a run, and of this process."""

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
        """The peak in bytes; 0 where nobody counts."""
        if torch.cuda.is_available():
            return int(torch.cuda.max_memory_allocated())
        return process_peak() or 0


def process_peak() -> int | None:
    """Most bytes this process held in memory at once: libraries, base model and all. None where nobody counts.

    Linux's `ru_maxrss` starts from the parent's, whose peak the child inherits through fork and exec; VmHWM does not.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
