"""What a question about a video comes with: features of its modalities from files or arrays, or the video and sound themselves.

features   .npz or .safetensors with `features`, or a single array in it; of points perhaps `coordinates` [n, 3] in voxels; or an array in the row
raw        a video file, a picture or a folder of frames, and a sound file, which the model's own encoders read

Nothing is unpickled.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from adaptome.core.errors import DataError
from adaptome.data.readers.sounds import ENDINGS as SOUNDS
from adaptome.data.sound import decode, resampled
from adaptome.data.video import taken
from adaptome.models.streams import PLACE, place_code
from adaptome.tasks.pixels import PixelProcessor

FEATURES = frozenset({".npz", ".npy", ".safetensors"})
#: the arrays of a file, where it has several
FEATURE, PLACES = "features", "coordinates"


@dataclass(frozen=True)
class Modality:
    """A modality as data know it: its kind, and the width of its features."""

    name: str
    kind: str
    width: int


def sampled(total: int, count: int) -> list[int]:
    """`count` of the numbers below `total`, evenly, each the middle of its part; repeated where there are fewer."""
    return [min(int((i + 0.5) * total / count), total - 1) for i in range(count)]


def read_features(source: Any, one: Modality, where: str, frames: int) -> Tensor:
    """Features of a modality: [frames, n, width], [A, n, width] or [n, width], as its kind says.

    Args:
        source: a file, or an array.
        where: names it in messages.
        frames: how many of a video's are taken.

    Raises:
        DataError: a file that cannot be read, or an array of another shape; names it.
    """
    arrays = _arrays(Path(source)) if isinstance(source, str | os.PathLike) else {FEATURE: np.asarray(source)}
    where = str(source) if isinstance(source, str | os.PathLike) else where
    found = arrays.get(FEATURE, next(iter(arrays.values())) if len(arrays) == 1 else None)
    if found is None:
        raise DataError(
            f"{where} holds {', '.join(arrays) or 'nothing'}; features are expected under the name {FEATURE!r}."
        )
    try:
        value = torch.as_tensor(np.asarray(found, np.float32))
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {one.name}: its features are no array of numbers: {error}.") from error
    wanted = 2 if one.kind == "whole" else 3
    if value.dim() == wanted - 1 and one.kind != "whole":
        value = value[:, None]  # one feature a frame
    if value.dim() != wanted or value.shape[-1] != one.width or 0 in value.shape:
        shape = "[n" if one.kind == "whole" else "[parts, n"
        raise DataError(
            f"{where}: {one.name} has the shape {list(np.shape(found))}; {shape}, {one.width}] is expected (model.modalities.{one.name})."
        )
    if not torch.isfinite(value).all():
        raise DataError(f"{where}: {one.name} holds NaN or infinity.")
    if PLACES in arrays and one.kind == "whole":
        value = value + PLACE * place_code(torch.as_tensor(np.asarray(arrays[PLACES], np.float32)), one.width)
    return value[sampled(len(value), frames)] if one.kind == "frames" else value


def _arrays(path: Path) -> dict[str, Any]:
    """The arrays of a file by name."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        if path.suffix == ".safetensors":
            return {name: value.float().numpy() for name, value in load_file(path).items()}
        if path.suffix == ".npy":
            return {FEATURE: np.load(path, allow_pickle=False)}
        with np.load(path, allow_pickle=False) as opened:
            return {name: opened[name] for name in opened.files}
    except (OSError, ValueError, EOFError, KeyError, BadZipFile, SafetensorError) as error:
        raise DataError(f"{path} cannot be read as features: {error}") from error


class QuestionProcessor:
    """The tokenizer of the language model, and what makes pixels of frames and spectrograms of sounds."""

    def __init__(self, tokenizer: Any, size: int, pixels: PixelProcessor, extractor: Any = None):
        self.tokenizer, self.size, self.pixels, self.extractor = tokenizer, size, pixels, extractor

    @property
    def end(self) -> int:
        """The number of the token that ends an answer."""
        found = self.tokenizer.eos_token_id
        return int(self.tokenizer.sep_token_id if found is None else found)

    def ids(self, text: str) -> list[int]:
        """Token numbers of a text, without special ones."""
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def text(self, ids: Sequence[int]) -> str:
        """The text of token numbers."""
        return str(self.tokenizer.decode([i for i in ids if i >= 0], skip_special_tokens=True)).strip()

    def frames(self, path: Path, count: int) -> Tensor:
        """Pixels [count, 3, size, size] of a video, a picture or a folder of frames, at the times at which features are taken."""
        seen = [picture for _, picture in taken(path, lambda total: sampled(total, count))]
        pictures = [np.asarray(seen[i].resize((self.size, self.size))) for i in sampled(len(seen), count)]
        return self.pixels(pictures)

    def sound(self, path: Path) -> Tensor:
        """Spectrograms [A, frames, mels] of a sound, one for each stretch as long as the encoder takes.

        Raises:
            DataError: the model has no encoder of sounds, or the file is none.
        """
        if self.extractor is None:
            raise DataError(
                f"{path}: a sound, and the model has no audio_encoder. Give its features (.npz), or model.audio_encoder."
            )
        samples, rate = decode(str(path), str(path))
        wanted = int(self.extractor.sampling_rate)
        samples = resampled(samples, rate, wanted)
        length = int(getattr(self.extractor, "max_length", 1024)) * wanted // 100
        parts = [samples[i * length : (i + 1) * length] for i in range(max(1, math.ceil(len(samples) / length)))]  # fmt: skip
        made = self.extractor(parts, sampling_rate=wanted, return_tensors="pt")["input_values"]
        return torch.as_tensor(made)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the tokenizer, how pixels are made, and the sounds' extractor."""
        self.tokenizer.save_pretrained(folder)
        self.pixels.save_pretrained(folder)


def is_raw(source: Any) -> bool:
    """Whether a source is a video, a picture, a folder of frames or a sound, and no features."""
    return isinstance(source, str | os.PathLike) and Path(source).suffix.lower() not in FEATURES


def is_sound(source: Any) -> bool:
    """By its ending."""
    return Path(source).suffix.lower() in SOUNDS


def padded(values: Sequence[Tensor | None], kind: str) -> tuple[Tensor, Tensor | None]:
    """Features of several rows as one tensor, and a mask where their sizes differ; rows without any have zeros.

    At least one row has some.
    """
    shapes = [value.shape for value in values if value is not None]
    largest = [max(shape[i] for shape in shapes) for i in range(len(shapes[0]))]
    made, mask = torch.zeros(len(values), *largest), torch.zeros(len(values), *largest[:-1], dtype=torch.bool)
    for row, value in enumerate(values):
        if value is None:
            mask[row] = True
            continue
        place = tuple(slice(0, n) for n in value.shape)
        made[row][place] = value
        mask[row][place[:-1]] = True
    return made, None if mask.all() else mask


def in_batch(
    rows: Sequence[Mapping[str, Any]], modalities: Sequence[Modality]
) -> dict[str, dict[str, Tensor]]:
    """features, masks, raw and available of rows of {"features": {name: tensor}, "raw": {name: tensor}}, as the model takes them."""
    mixed = [one.name for one in modalities if len({key for row in rows for key in ("features", "raw") if one.name in row[key]}) > 1]  # fmt: skip
    if mixed:
        raise DataError(
            f"{mixed[0]}: some rows have features, others the recording itself. Give one of the two in a split."
        )
    made: dict[str, dict[str, Tensor]] = {"features": {}, "masks": {}, "raw": {}, "available": {}}
    for one in modalities:
        for key in ("features", "raw"):
            values = [row[key].get(one.name) for row in rows]
            if all(value is None for value in values):
                continue
            joined, mask = padded(values, one.kind)
            made[key][one.name] = joined
            if mask is not None and key == "features":
                made["masks"][one.name] = mask
        has = [one.name in row["features"] or one.name in row["raw"] for row in rows]
        if any(has):
            made["available"][one.name] = torch.tensor(has)
    return {key: value for key, value in made.items() if value}
