"""Files that are either whole or not there.

Everything adaptome stores goes through these functions, so that a kill, a full disk or a power cut at any
moment leaves the old state or the new one. The order is always the same: write beside the target under a
hidden name, fsync the bytes, rename, fsync the folder that holds the name.

    .<name>.writing-<pid>   a file being written
    .<name>.staging-<pid>   a folder being filled
    .<name>.old-<pid>       the folder that was just replaced, on its way out

Leftovers of processes that no longer run are removed by `sweep_staging`; a folder that was moved aside and
whose successor never arrived is moved back.
"""

from __future__ import annotations

import ctypes
import errno
import fnmatch
import functools
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from adaptome.core.errors import CheckpointError

_LEFTOVER = re.compile(r"^\.(?P<name>.+)\.(?P<kind>writing|staging|old)-(?P<pid>\d+)$")
# Names this process is writing, so that a leftover of an earlier process with our number is told apart.
_in_use: set[Path] = set()


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> Path:
    """Write `data` (text as UTF-8) to `path`: afterwards the file is the old one or the whole new one.

    Raises:
        CheckpointError: the disk is full.
    """
    path = _real(path)
    hidden = path.with_name(f".{path.name}.writing-{os.getpid()}")
    with _cleaned(hidden, _remove_file), _full_disk_told(path):
        file = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            view = memoryview(data.encode() if isinstance(data, str) else data)
            while view:
                view = view[os.write(file, view) :]
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(hidden, path)
        sync_folder(path.parent)
    return path


@contextmanager
def staged_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A hidden name to write a large file under that becomes `path` when the block ends without an exception.

    Raises:
        CheckpointError: the disk is full.
    """
    path = _real(path)
    hidden = path.with_name(f".{path.name}.writing-{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _cleaned(hidden, _remove_file), _full_disk_told(path):
        yield hidden
        with hidden.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(hidden, path)
        sync_folder(path.parent)


@contextmanager
def atomic_folder(path: str | os.PathLike[str], only: Sequence[str] | None = None) -> Iterator[Path]:
    """Fill a staging folder that becomes `path` when the block ends without an exception.

    An existing folder of that name is replaced as a whole; where the system can swap two names in one step
    (Linux, macOS) no reader ever finds the name missing. After an exception, Ctrl-C included, the old folder
    is as it was and the staging folder is gone.

    Args:
        path: the folder to make; missing parents are made.
        only: patterns of the entries an existing folder may hold to be replaced. Any other entry is somebody
            else's and the folder is refused. None replaces whatever is there.

    Yields:
        The staging folder, empty, on the same file system.

    Raises:
        CheckpointError: `path` is a file, holds foreign entries, or the disk is full.
    """
    path = _real(path)
    _refuse_foreign(path, only)
    staging = path.with_name(f".{path.name}.staging-{os.getpid()}")
    if staging in _in_use:
        raise CheckpointError(f"{path} is being written by this process already; wait for that to end.")
    with _full_disk_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_staging(path.parent, path.name)
        with _cleaned(staging, _remove_tree):
            os.mkdir(staging)
            yield staging
            sync_tree(staging)
            _put_in_place(staging, path)


def sweep_staging(parent: str | os.PathLike[str], name: str | None = None) -> list[Path]:
    """Clear what dead processes left half-written in `parent`; returns the leftovers dealt with.

    A folder moved aside by a replacement that was cut off is moved back to its name. Only process ids of
    this machine can be told dead or alive: on a folder that several machines write to, give `name`.
    """
    parent, swept = Path(parent), []
    if not parent.is_dir():
        return []
    for leftover in sorted(parent.iterdir()):
        found = _LEFTOVER.match(leftover.name)
        if not found or (name is not None and found["name"] != name):
            continue
        if leftover in _in_use or _runs_elsewhere(int(found["pid"])):
            continue
        target = parent / found["name"]
        if found["kind"] == "old" and not target.exists():
            os.rename(leftover, target)
        elif leftover.is_dir() and not leftover.is_symlink():
            _remove_tree(leftover)
        else:
            _remove_file(leftover)
        swept.append(leftover)
    if swept:
        sync_folder(parent)
    return swept


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Delete a folder so that its name is gone in one step: a kill leaves all of it or a hidden leftover."""
    path = _real(path)
    leaving = path.with_name(f".{path.name}.staging-{os.getpid()}")
    with _cleaned(leaving, _remove_tree):
        os.rename(path, leaving)
        sync_folder(path.parent)


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk (a rename is not durable before that)."""
    if os.name == "nt":  # Windows has no handle to a folder to flush; its renames are journalled
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def sync_tree(folder: Path) -> None:
    """Bring every file below `folder`, and every list of names, to the disk."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            file = os.open(os.path.join(place, name), os.O_RDWR if os.name == "nt" else os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)
        sync_folder(Path(place))


def _put_in_place(staging: Path, path: Path) -> None:
    if not path.exists():
        os.rename(staging, path)
    elif not _swap(staging, path):  # swapped: the staging name holds the old folder, the caller removes it
        _move_aside(staging, path)
    sync_folder(path.parent)


def _move_aside(staging: Path, path: Path) -> None:
    """The replacement in two renames; `sweep_staging` moves the old folder back if we die between them."""
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    with _cleaned(old, _remove_tree):
        os.rename(path, old)
        try:
            os.rename(staging, path)
        finally:
            if not path.exists():
                os.rename(old, path)
        sync_folder(path.parent)


@functools.cache
def _swapper() -> Callable[[bytes, bytes], int] | None:
    """The system's call that swaps two names in one step, if it has one."""
    if os.name == "nt":
        return None
    library = ctypes.CDLL(None, use_errno=True)
    here = -100 if sys.platform != "darwin" else -2  # AT_FDCWD
    for name, exchange in (("renameat2", 2), ("renameatx_np", 2)):  # RENAME_EXCHANGE, RENAME_SWAP
        call = getattr(library, name, None)
        if call is not None:
            call.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
            return lambda a, b: int(call(here, a, here, b, exchange))
    return None


def _swap(a: Path, b: Path) -> bool:
    """Exchange two names atomically; False where the system or the file system cannot."""
    swapper = _swapper()
    return swapper is not None and swapper(os.fsencode(a), os.fsencode(b)) == 0


def _refuse_foreign(path: Path, only: Sequence[str] | None) -> None:
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file; a folder is to be written there.\n  Choose another name.")
    if only is None or not path.is_dir():
        return
    foreign = sorted(e.name for e in path.iterdir() if not any(fnmatch.fnmatch(e.name, p) for p in only))
    if foreign:
        raise CheckpointError(
            f"{path} holds {', '.join(foreign[:3])}{' and more' if foreign[3:] else ''}, which replacing the "
            f"folder would delete.\n  Choose an empty or a new folder, for example {path / 'adapter'}."
        )


def _real(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.realpath(path))  # a link stays a link: what it points to is replaced


def _runs_elsewhere(pid: int) -> bool:
    """Whether another process of this number runs; our own number on a leftover means an earlier process."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@contextmanager
def _cleaned(leftover: Path, remove: Callable[[Path], None]) -> Iterator[None]:
    """Mark a hidden name as ours, and remove it at the end whatever happened."""
    _in_use.add(leftover)
    try:
        yield
    finally:
        _in_use.discard(leftover)
        remove(leftover)


def _remove_file(path: Path) -> None:
    path.unlink(missing_ok=True)


def _remove_tree(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


@contextmanager
def _full_disk_told(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # safetensors and tokenizers report the system's error as text only, the latter in a bare Exception
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and "os error 28" not in str(error):
            raise
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        raise CheckpointError(
            f"{path} could not be written: the disk is full ({free:,} bytes free in {path.parent}).\n"
            f"  What was there before is unchanged. Free some space or choose another folder."
        ) from error
