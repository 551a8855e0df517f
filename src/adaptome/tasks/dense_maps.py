"""Maps of dense tasks: read from files and arrays as labels, made of a model's outputs, and drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from adaptome.core.errors import DataError
from adaptome.data.masks import IGNORED, binary, classes, read_mask
from adaptome.data.rasters import read_array, read_raster
from adaptome.models.windows import resized
from adaptome.report.shown import COLOURS, overlaid

#: what a label holds where it is not known
OUTSIDE: dict[str, float] = {"classes": IGNORED, "saliency": IGNORED, "edges": IGNORED, "normals": 0.0, "depth": 0.0}  # fmt: skip
#: pixels between the pictures of a panel
GAP = 4


def read_map(kind: str, one: Any, size: tuple[int, int], target: tuple[int, int], outputs: int) -> np.ndarray:
    """A label at a size: class numbers, 0 and 1 (uint8 [h, w], 255 where not known), directions [h, w, 3] or depths [h, w] (float32).

    Args:
        one: a path, an array, or None where there is none: then nothing of it is known.
        size: of the picture (height, width), which the map must have.
        target: the size to give it.
        outputs: classes, for class numbers.

    Raises:
        DataError: it cannot be read, is of another size, or holds what its kind does not; names the file.
    """
    if one is None or (isinstance(one, np.ndarray) and one.dtype == object and one.item() is None):
        blank = np.full((*target, 3) if kind == "normals" else target, OUTSIDE[kind])
        return blank.astype(np.float32 if kind in ("normals", "depth") else np.uint8)
    one = str(one) if isinstance(one, np.str_) else one
    name = one if isinstance(one, str) else f"a map of kind {kind}"
    stored = _array(one, kind)
    if stored.shape[:2] != size:
        raise DataError(
            f"{name} is {stored.shape[1]} x {stored.shape[0]} pixels, and its picture {size[1]} x {size[0]}; a map lies pixel by pixel."
        )
    if kind in ("normals", "depth"):
        made = _directions(stored, name) if kind == "normals" else stored.astype(np.float32).reshape(size)
    else:
        flat = stored if stored.ndim == 2 else read_mask(stored)[0]
        made = classes(flat, outputs, name) if kind == "classes" else binary(flat, None if flat.max() <= 1 else _unknown(flat))  # fmt: skip
    return _nearest(made, target)


def _array(one: Any, kind: str) -> np.ndarray:
    if not isinstance(one, str):
        return np.asarray(one)
    if one.endswith(".npy"):
        found = read_array(Path(one))
        return found[..., 0] if found.shape[-1] == 1 else found
    return read_raster(one).pixels if kind == "normals" else read_mask(one)[0]


def _unknown(mask: np.ndarray) -> int | None:
    """255 is not known beside 0 and 1; beside greater numbers it is white."""
    return IGNORED if set(np.unique(mask).tolist()) <= {0, 1, IGNORED} and (mask == 1).any() else None


def _directions(stored: np.ndarray, name: str) -> np.ndarray:
    """Directions of bytes (0 to 255 for -1 to 1; black is not known) or of floats."""
    if stored.ndim != 3 or stored.shape[-1] != 3:
        raise DataError(f"{name} has the shape {list(stored.shape)}; normals are [height, width, 3].")
    if stored.dtype != np.uint8:
        return np.nan_to_num(stored.astype(np.float32))
    made = stored.astype(np.float32) / 127.5 - 1
    return np.where(stored.any(-1, keepdims=True), made, np.float32(0))


def _nearest(values: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    if values.shape[:2] == target:
        return values
    rows, columns = (((np.arange(n) + 0.5) * values.shape[i] / n).astype(int) for i, n in enumerate(target))
    return values[rows][:, columns]


def pictured(kind: str, found: Tensor, size: tuple[int, int]) -> np.ndarray:
    """What a model's map [1, outputs, h, w] says at a size: class numbers, probabilities, directions of length 1 or depths."""
    maps = resized(found.float(), size)[0]
    if kind == "classes":
        return maps.argmax(0).byte().cpu().numpy()
    if kind in ("saliency", "edges"):
        return maps[0].sigmoid().cpu().numpy()
    if kind == "normals":
        return F.normalize(maps, dim=0).movedim(0, -1).cpu().numpy()
    return maps[0].cpu().numpy()


def panel(picture: Any, maps: Mapping[str, tuple[str, np.ndarray]]) -> dict[str, Any]:
    """A PIL picture for each task, and `panel`: all of them in a row behind the input.

    Args:
        maps: task -> its kind and its map, as `pictured` gives them.
    """
    from PIL import Image

    made = {task: drawn(kind, values, picture) for task, (kind, values) in maps.items()}
    wide, high = picture.size
    whole = Image.new("RGB", ((wide + GAP) * (len(made) + 1) - GAP, high), (255, 255, 255))
    for place, one in enumerate([picture, *made.values()]):
        whole.paste(one, (place * (wide + GAP), 0))
    return {"panel": whole, **made}


def drawn(kind: str, values: np.ndarray, picture: Any) -> Any:
    """A map as a PIL picture: classes over the input, probabilities and depths in grey, directions in colours."""
    from PIL import Image

    if kind == "classes":
        return overlaid(picture, values, 0.75 if values.max(initial=0) < len(COLOURS) else 0.9)
    if kind == "normals":
        return Image.fromarray(np.round((values + 1) * 127.5).clip(0, 255).astype(np.uint8))
    if kind == "depth":
        low, high = float(values.min()), float(values.max())
        values = (values - low) / max(high - low, 1e-12)
    return Image.fromarray(np.round(values.clip(0, 1) * 255).astype(np.uint8)).convert("RGB")
