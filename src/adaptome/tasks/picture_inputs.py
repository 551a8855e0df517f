"""Pictures and texts as inputs are told apart, and pictures opened."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from adaptome.core.errors import DataError
from adaptome.data.readers.images import ENDINGS
from adaptome.tasks.image_classification import to_rgb


class Text(str):
    """A text that is one whatever it ends in."""


def is_picture(one: Any) -> bool:
    """Whether an input is a picture: a path with a picture's ending, or what is no text at all."""
    if isinstance(one, Text):
        return False
    return not isinstance(one, str) or Path(one).suffix.lower() in ENDINGS


def picture_of(one: Any) -> Any:
    """An RGB picture of what rows hold: also a file or its bytes, as tables name them.

    Raises:
        DataError: it cannot be read.
    """
    if isinstance(one, Mapping):
        if one.get("bytes") is not None:
            from PIL import Image

            try:
                return to_rgb(Image.open(BytesIO(one["bytes"])))
            except OSError as error:
                raise DataError(f"{one.get('path') or 'a picture'} cannot be read: {error}") from error
        one = one["path"]
    return to_rgb(one)
