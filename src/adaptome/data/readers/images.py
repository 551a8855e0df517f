"""Image folders: one subfolder per class, with or without a folder per split above."""

from __future__ import annotations

from pathlib import Path

from adaptome.core.errors import DataError, MissingExtraError
from adaptome.data.readers.folders import FolderKind


def _check(file: Path) -> None:
    """Read the header, so that a file that is no image is found before training."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("Pillow", "vision") from None
    try:
        with Image.open(file) as image:
            image.size  # noqa: B018 -- the header has been read
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError on some broken headers
        raise DataError(f"{file} is not an image that can be read: {error}") from error


ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
IMAGES = FolderKind("imagefolder", "image", "images", ENDINGS, _check)
