"""Memory that a step frees and the next one takes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from adaptome.training import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
def step():  # 3 blocks of 24 MiB, all written to
    blocks = [b"x" * (24 << 20) for _ in range(3)]
    return len(blocks)
step(), step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def outcome(how, **more):
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))} | more
    made = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], env=settings, capture_output=True, text=True, check=True
    )
    done, faults = made.stdout.split()
    return done, int(faults)


@glibc
def test_what_a_step_frees_the_next_one_takes_without_a_page_fault():
    assert outcome("give back") == ("None", pytest.approx(5 * 3 * (24 << 20) / 4096, rel=0.5))
    done, faults = outcome("keep")
    assert done == "True" and faults < 100


@glibc
def test_what_the_user_set_stands():
    assert outcome("keep", MALLOC_TOP_PAD_="4096")[0] == "False"
