"""Sounds: wav, flac, ogg and the like read by libsndfile, mixed down and resampled.

A sound is a path; {"path", "bytes"} as the hub stores it; or {"array", "sampling_rate"} with samples [n] or [n, channels],
integers of 16 or 32 bits or floats from -1 to 1.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from adaptome.core.errors import DataError, MissingExtraError, nearest

#: sizes from here on say "unknown" in the header of a wav that was written to a pipe
_UNKNOWN = 0x7FFFF000


def header(sound: Any, where: str) -> tuple[int, int]:
    """Samples per channel and sampling rate, with the file's last sample read, so that a torn file is found.

    Args:
        where: what to call the sound in a message.

    Raises:
        DataError: no such file, no sound, or a file that is cut short.
    """
    if _is_array(sound):
        return len(_array(sound, where)), _rate(sound, where)
    with _opened(sound, where) as (name, file):
        frames, rate = int(file.frames), int(file.samplerate)
        if frames:
            file.seek(frames - 1)
            if len(file.read(1)) != 1:
                raise DataError(f"{name} is cut short: its header tells {frames} samples.")
        return frames, rate


def decode(sound: Any, where: str) -> tuple[np.ndarray, int]:
    """Samples [n] as float32, channels mixed down, and their rate.

    Raises:
        DataError: as `header`; or samples that are no numbers.
    """
    if _is_array(sound):
        name, samples, rate = where, _floats(_array(sound, where), where), _rate(sound, where)
    else:
        with _opened(sound, where) as (name, file):
            samples, rate = file.read(dtype="float32", always_2d=True), int(file.samplerate)
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    if not np.isfinite(samples).all():
        raise DataError(f"{name} holds NaN or infinity.")
    return np.ascontiguousarray(samples, dtype=np.float32), rate


class Sounds(Sequence[Any]):
    """The sounds of a column of a `datasets.Dataset`, each read when it is asked for; samples keep their type."""

    def __init__(self, rows: Any, column: str = "audio"):
        self._rows, self._column = rows.select_columns([column]).with_format("arrow"), column

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        stored = self._rows[row].column(self._column)[0]
        sound = {key: stored[key] for key in stored}
        samples = sound.pop("array", None)
        made = {key: value.as_py() for key, value in sound.items()}
        return made if samples is None else {**made, "array": _numbers(samples.values)}


def _numbers(values: Any) -> np.ndarray:
    """An arrow array, or one of lists of equal length, as numpy."""
    if hasattr(values.type, "value_type"):
        return np.stack([_numbers(one.values) for one in values])
    made: np.ndarray = values.to_numpy(zero_copy_only=False)
    return made


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Samples [n] at the wanted rate, by polyphase filtering."""
    if rate == wanted:
        return samples
    try:
        from scipy.signal import resample_poly
    except ImportError:
        raise MissingExtraError("scipy", "audio") from None
    common = gcd(rate, wanted)
    made: np.ndarray = resample_poly(samples, wanted // common, rate // common)
    return made.astype(np.float32)


# -- arrays ----------------------------------------------------------------------------------------------------------


def _is_array(sound: Any) -> bool:
    if isinstance(sound, np.ndarray | list):
        raise DataError(
            "a sound is given as samples without their rate. Give {'array': samples, 'sampling_rate': 16000}."
        )
    return isinstance(sound, Mapping) and "array" in sound


def _array(sound: Mapping[str, Any], where: str) -> np.ndarray:
    array = np.asarray(sound["array"])
    if array.ndim not in (1, 2):
        raise DataError(
            f"{where}: samples have the shape {list(array.shape)}; expected [n] or [n, channels]."
        )
    return array


def _rate(sound: Mapping[str, Any], where: str) -> int:
    rate = sound.get("sampling_rate")
    if not isinstance(rate, int | np.integer) or rate < 1:
        raise DataError(f"{where}: sampling_rate is {rate!r}; expected samples per second, such as 16000.")
    return int(rate)


def _floats(array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype in (np.int16, np.int32):
        return (array / float(-int(np.iinfo(array.dtype).min))).astype(np.float32)
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{where}: samples are {array.dtype}; expected int16, int32, or floats from -1 to 1.")
    return array.astype(np.float32)


# -- files -----------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(sound: Any, where: str) -> Any:
    """The name of a sound file and an open `soundfile.SoundFile`; its errors become DataError."""
    try:
        import soundfile
    except ImportError:
        raise MissingExtraError("soundfile", "audio") from None
    name, source = _source(sound, where)
    try:
        if _cut_short(source):
            raise DataError(f"{name} is cut short: it ends before its header says. Copy it again.")
        with soundfile.SoundFile(source) as file:
            yield name, file
    except soundfile.LibsndfileError as error:
        raise DataError(f"{name} is not a sound that can be read: {error.error_string}") from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}.") from error


def _source(sound: Any, where: str) -> tuple[str, Any]:
    """The sound's name for messages, and a path or the bytes as a file."""
    if isinstance(sound, Mapping) and ("path" in sound or "bytes" in sound):
        if sound.get("bytes") is not None:
            return f"{where} ({sound['path']})" if sound.get("path") else where, io.BytesIO(sound["bytes"])
        sound = sound.get("path")
    if not isinstance(sound, str | Path):
        raise DataError(
            f"{where}: a sound is a path, {{path, bytes}} or {{array, sampling_rate}}; found {type(sound).__name__}."
        )
    path = Path(sound).expanduser()
    if not path.is_file():
        there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        close = nearest(path.name, there)
        told = f" Near names: {', '.join(close)}." if close else ""
        raise DataError(
            f"{where}: there is no file {path}.{told}" if where != str(path) else f"no file {path}.{told}"
        )
    return str(path), path


def _cut_short(source: Any) -> bool:
    """Whether a wav ends before the end of its data; libsndfile reads what is left without a word."""
    content = source.open("rb") if isinstance(source, Path) else source
    try:
        if content.read(4) != b"RIFF":
            return False
        end = content.seek(0, io.SEEK_END)
        at = content.seek(12)
        while at + 8 <= end:
            kind, size = content.read(4), int.from_bytes(content.read(4), "little")
            if kind == b"data":
                return size < _UNKNOWN and at + 8 + size > end
            at = content.seek(at + 8 + size + size % 2)
        return False  # no data at all: libsndfile tells
    finally:
        content.close() if isinstance(source, Path) else content.seek(0)
