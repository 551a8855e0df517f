"""What a forward changes on a module for its own time, when several threads run one model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import nn

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_making = threading.Lock()


@contextmanager
def alone(module: nn.Module) -> Iterator[None]:
    """Let one thread at a time run the block for this module; the same thread may enter again.

    The locks are not on the modules, which would then have no copies and pickles. Compiled code changes nothing on a module while it runs.
    """
    if torch.compiler.is_compiling():
        yield
        return
    with _making:
        lock = _locks.setdefault(module, threading.RLock())
    with lock:
        yield
