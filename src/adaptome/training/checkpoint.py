"""Checkpoint folders of a run: written whole, marked when complete, and verified before anything is read.

    checkpoint-120/
      adapters/<name>/     adapter.safetensors, adaptome.json: what `ad.load` reads
      optimizer.json, .safetensors; scheduler.json; scaler.json; random.json, .safetensors
      trainer_state.json   step, epoch, log, best metric, callbacks (transformers' TrainerState)
      COMMITTED            written last: the size and SHA-256 of every file above

The base model is never in it, and nothing in it is a pickle. The folder is filled under a hidden name and
renamed when every byte is on the disk, so that a kill leaves no folder of this name; the marker tells a
checkpoint that was cut off or changed later, by a copy or a failing disk.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adaptome.core.errors import CheckpointError, FormatError, TornFileError
from adaptome.core.files import atomic_folder, remove_folder, sha256, write_atomic

logger = logging.getLogger(__name__)

MARKER = "COMMITTED"
FORMAT = 1
_NAME = re.compile(r"^checkpoint-(\d+)$")


@contextmanager
def new_checkpoint(folder: Path, step: int, resumable: bool = True) -> Iterator[Path]:
    """A staging folder that becomes the committed checkpoint `folder` when the block ends without exception.

    Args:
        folder: the checkpoint to be; one of that name is replaced as a whole.
        step: optimizer steps done.
        resumable: whether it will hold more than the adapters.
    """
    with atomic_folder(folder) as staging:
        yield staging
        files = {
            path.relative_to(staging).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(staging.rglob("*"))
            if path.is_file()
        }
        marker = {"format": FORMAT, "step": step, "resumable": resumable, "files": files}
        write_atomic(staging / MARKER, json.dumps(marker, indent=1))


def verify(folder: Path) -> dict[str, Any]:
    """Check that a checkpoint is complete and unchanged; returns its marker.

    Raises:
        TornFileError: it was cut off, or a file is missing or altered.
        FormatError: a newer version wrote it.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder.")
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        files, version = marker["files"].items(), int(marker["format"])
    except FileNotFoundError:
        raise TornFileError(f"{folder} has no {MARKER} file: it was never completed.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TornFileError(f"{folder / MARKER} is damaged: {error}") from error
    if version > FORMAT:
        raise FormatError(f"{folder} has format {version}, this version reads {FORMAT}. Update adaptome.")
    for name, expected in files:
        path = folder / name
        if not path.is_file():
            raise TornFileError(f"{path} is missing.")
        if path.stat().st_size != expected["size"] or sha256(path) != expected["sha256"]:
            raise TornFileError(f"{path} was changed after it was written.")
    return marker


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Every checkpoint folder with its step, by ascending step, complete or not."""
    if not folder.is_dir():
        return []
    found = [
        (int(m[1]), path) for path in folder.iterdir() if (m := _NAME.match(path.name)) and path.is_dir()
    ]
    return sorted(found)


def last_good(folder: Path, up_to: int | None = None, resumable: bool = True) -> Path | None:
    """The newest checkpoint that verifies; each newer one that does not is told in a warning.

    Args:
        folder: where the checkpoints are.
        up_to: only those of at most this step.
        resumable: leave out those that hold the adapters only.
    """
    for step, path in reversed(checkpoints(folder)):
        if up_to is not None and step > up_to:
            continue
        try:
            if verify(path)["resumable"] or not resumable:
                return path
            logger.warning("%s holds the adapters only (save_only_model): it cannot be resumed from.", path)
        except CheckpointError as error:
            logger.warning("%s is not used: %s", path, error)
    return None


def rotate(current: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints beyond `limit`; `current` and the best always stay.

    A removed one leaves its name in one step, so that a kill does not leave half of it. Those of later steps
    belong to an earlier run that was cut off: they do not count, and are replaced when their step comes.
    """
    if not limit:
        return
    known = [path for step, path in checkpoints(current.parent) if step <= int(current.name.split("-")[1])]
    protected = {current.name, os.path.basename(best)} if best else {current.name}
    removable = [path for path in known if path.name not in protected]
    excess = len(known) - max(limit, len(known) - len(removable))
    for path in removable[: max(excess, 0)]:
        remove_folder(path)
