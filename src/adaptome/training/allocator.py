"""What the C library does with memory that a step on a CPU has freed.

glibc takes large blocks from the system and gives them back when they are freed, so every step's tensors are mapped and cleared page by page
anew: thousands of page faults a step, more with an adapter than without, and all of them served by one thread. Kept, they are the next step's.
"""

from __future__ import annotations

import ctypes
import os
import platform

#: numbers of `mallopt` (malloc.h): free memory at the heap's top that is given back, and the size of a block that is mapped by itself
_TRIM, _MAP = -1, -3
#: what a user sets stands
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
MOST = 1 << 30


def keep_freed_memory() -> bool:
    """Let this process keep memory of freed tensors for coming ones, until it ends: less time a step on a CPU, and no higher peak of a loop.

    Returns:
        Whether it was done: not outside of Linux with glibc, nor where the environment sets glibc's allocator (MALLOC_TRIM_THRESHOLD_,
        MALLOC_MMAP_THRESHOLD_, MALLOC_TOP_PAD_, GLIBC_TUNABLES).
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    if any(name in os.environ for name in _SETTINGS):
        return False
    set_option = ctypes.CDLL(None).mallopt
    return bool(set_option(_TRIM, MOST)) and bool(set_option(_MAP, MOST) or set_option(_MAP, 32 << 20))
