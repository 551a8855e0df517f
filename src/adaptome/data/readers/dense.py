"""Pictures with maps for several dense tasks, in the layouts of PASCAL-MT and NYUD-MT.

    PASCAL_MT/JPEGImages/2008_000008.jpg   semseg/VOC12/..png  human_parts/..png  sal_distill/..png  normals_distill/..png
    NYUD_MT/images/0001.jpg                segmentation/..png  edge/..npy  normals/..npy  depth/..npy
    gt_sets/train.txt                      names, one a line; also below gt_sets/<data set> or ImageSets/<data set>

A split is named by its list of names; its folder, or one above, holds the folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adaptome.core.errors import DataError
from adaptome.data.readers import ReadOptions, reader
from adaptome.data.readers.images import ENDINGS, IMAGES
from adaptome.data.splits import Table
from adaptome.data.textfile import lines_of

PICTURES = ("JPEGImages", "images", "image")
#: column -> the folders it may be in, the likeliest first
MAPS: dict[str, tuple[str, ...]] = {
    "semseg": ("semseg/pascal-context", "semseg/VOC12", "semseg", "segmentation"),
    "human_parts": ("human_parts",),
    "sal": ("sal_distill", "sal"),
    "normals": ("normals_distill", "normals"),
    "edge": ("edge", "edges"),
    "depth": ("depth",),
}
#: folders that a list of names may lie below its root
DEPTH = 3


@reader("dense", ".dense")
def read_dense(path: Path, options: ReadOptions) -> Table:
    """Columns image, and of semseg, human_parts, sal, normals, edge and depth those that there are folders of: paths, None where a file is missing.

    Raises:
        DataError: no folder of pictures by the list, a name without a picture, or no map of any kind.
    """
    root = root_of(path, PICTURES)
    pictures = folder_of(root, PICTURES)
    folders = {name: folder for name, names in MAPS.items() if (folder := folder_of(root, names))}
    if not folders:
        raise DataError(
            f"{root}: no folder of maps. Known: {', '.join(n for names in MAPS.values() for n in names)}."
        )
    columns: dict[str, list[str | None]] = {"image": [], **{name: [] for name in folders}}
    numbers = []
    for number, line in enumerate(lines_of(path, options.encoding), 1):
        name = line.strip()
        if not name:
            continue
        picture = file_of(pictures, name, ENDINGS)
        if picture is None:
            raise DataError(f"{path}, line {number}: no picture {name!r} in {pictures}.")
        if IMAGES.check is not None:
            IMAGES.check(Path(picture))
        columns["image"].append(picture)
        numbers.append(number)
        for column, folder in folders.items():
            columns[column].append(file_of(folder, name, {".png", ".npy", ".tif", ".tiff", ".jpg"}))
    for column in folders:
        if not any(columns[column]):
            del columns[column]
    return Table(str(path), columns, numbers)


def root_of(path: Path, names: Sequence[str]) -> Path:
    """The nearest folder above a list of names that has one of these folders.

    Raises:
        DataError: there is none.
    """
    for above in [path.parent, *path.parents[1:DEPTH]]:
        if folder_of(above, names):
            return above
    raise DataError(f"{path}: no folder {', '.join(names)} beside the list or above it.")


def folder_of(root: Path, names: Sequence[str]) -> Path | None:
    """The first of these folders that is there."""
    return next((root / name for name in names if (root / name).is_dir()), None)


def file_of(folder: Path | None, name: str, endings: set[str] | frozenset[str]) -> str | None:
    """The file of a name in a folder, whose ending may be told."""
    assert folder is not None
    stem = name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in endings else name
    return next((str(f) for end in sorted(endings) if (f := folder / f"{stem}{end}").is_file()), None)
