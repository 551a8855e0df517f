"""A finished run's inputs, and a folder's items in the order of their likeness to each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptome.tasks.base import Gallery
from adaptome.tasks.showing import Given
from adaptome.training.folder import ADAPTER, GALLERIES, last_stage, stamp
from adaptome.training.runs import Loaded, load_run


def ranked(
    folder: str | Path,
    words: Sequence[str],
    gallery: str | Path,
    top: int = 5,
    batch_size: int = 32,
    overrides: Sequence[str] = (),
) -> tuple[Loaded, list[Given], list[Any]]:
    """A finished run, its inputs, and for each the items of a gallery in the order of their likeness to it.

    What the model made of the gallery is kept in the run's folder, and made again only where its files, the adapters, or the overrides have changed.

    Args:
        words: names of the inputs, as on a command line.
        gallery: a folder.
        overrides: changes to the run's recipe.

    Raises:
        DataError: the run's task ranks nothing, or there is no such folder.
    """
    loaded, place = load_run(folder, overrides), last_stage(Path(folder))
    # a change to the recipe may change what a picture is embedded to
    made_by = "\n".join([stamp(place / ADAPTER), *sorted(overrides)])
    against = Gallery(Path(gallery), place / GALLERIES, made_by, top)
    given, found = loaded.task.ranked(loaded.model, loaded.processor, words, against, batch_size)
    return loaded, given, found
