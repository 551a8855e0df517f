"""The faces in frames of a video, as the user says where they are: by a program, by a file of boxes, or all of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptome.core.errors import DataError
from adaptome.data.faces.crops import SCALE, Boxes, Detector, crop, largest


class FaceFinder:
    """Crops of the largest face in each frame.

    Args:
        detector: a program that finds faces, see `data.faces.crops`. boxes: or a file of their boxes.
        scale: side of a crop, of its box's.
    """

    def __init__(self, detector: str | None = None, boxes: str | None = None, scale: float = SCALE):
        self.detector = Detector(detector) if detector else None
        self.boxes = Boxes(Path(boxes)) if boxes else None
        self.scale = scale

    @property
    def looks(self) -> bool:
        """Whether anything tells where faces are."""
        return self.detector is not None or self.boxes is not None

    def __call__(self, one: Any, seen: Sequence[tuple[int, Any]]) -> list[tuple[int, Any]]:
        """Numbers and crops of the frames that have a face; the frames themselves where nothing tells where faces are.

        Args:
            one: the path of the video, or what else the user gave.
            seen: numbers and PIL pictures of its frames.

        Raises:
            DataError: none of them has one.
        """
        if self.boxes is not None and isinstance(one, str | Path):
            places = [self.boxes.of(one, at) for at, _ in seen]
        elif self.detector is not None:
            places = self.detector([picture for _, picture in seen])
        else:
            return list(seen)
        pairs = zip(seen, places, strict=True)
        found = [(at, crop(p, face, self.scale)) for (at, p), faces in pairs if (face := largest(faces))]
        if not found:
            raise DataError(f"{one}: no face in any of the {len(seen)} frames looked at.")
        return found
