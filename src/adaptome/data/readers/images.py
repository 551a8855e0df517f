"""Image folders: one subfolder per class, with or without a folder per split above."""

from __future__ import annotations

from pathlib import Path

from adaptome.core.errors import DataError, MissingExtraError
from adaptome.data.splits import Table

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_SPLITS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
}


def is_image_folder(folder: Path) -> bool:
    """True when an image stands one or two folders down."""
    return any(f.suffix.lower() in ENDINGS for depth in ("*/*", "*/*/*") for f in folder.glob(depth))


def read_image_folder(folder: Path) -> dict[str, Table]:
    """The splits of an image folder: columns `image` (path) and `label` (the class folder's name).

    Every file's header is read, so that a file that is no image is found before training.

    Raises:
        DataError: no class folders, a class without images, or a file that is not an image.
    """
    below = _folders(folder)
    if below and all(d.name.lower() in _SPLITS for d in below):
        return {_SPLITS[d.name.lower()]: _classes(d) for d in below}
    return {"train": _classes(folder)}


def _folders(folder: Path) -> list[Path]:
    return sorted(d for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))


def _classes(folder: Path) -> Table:
    paths: list[str] = []
    labels: list[str] = []
    kinds = _folders(folder)
    if not kinds:
        raise DataError(f"{folder}: no class folders; expected one subfolder of images per class.")
    for kind in kinds:
        found = sorted(f for f in kind.rglob("*") if f.suffix.lower() in ENDINGS)
        if not found:
            raise DataError(f"{kind}: no images. Endings read: {', '.join(sorted(ENDINGS))}.")
        for file in found:
            _check(file)
        paths += [str(f) for f in found]
        labels += [kind.name] * len(found)
    return Table(
        str(folder),
        {"image": paths, "label": labels},
        range(1, len(paths) + 1),
        images=("image",),
        places=paths,
    )


def _check(file: Path) -> None:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("Pillow", "vision") from None
    try:
        with Image.open(file) as image:
            image.size  # noqa: B018 -- the header has been read
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError on some broken headers
        raise DataError(f"{file} is not an image that can be read: {error}") from error
