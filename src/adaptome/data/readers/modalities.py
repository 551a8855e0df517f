"""Pictures of one place in several modalities, with a mask of classes: MFNet's, NYUDv2's and MCubeS' layouts, and folders like them.

    MFNet    images/00001D.png of four bands (RGB and thermal), labels/00001D.png, train.txt
    NYUDv2   RGB/0.jpg  HHA/0.jpg  Label/0.png  train.txt           (as CMX and DFormer have it; also depth/)
    MCubeS   polL_color/..  polL_dolp/..  polL_aolp_sin/..  polL_aolp_cos/..  NIR_warped/..  GT/..  list_folder/train.txt

A split is named by its list of names, one a line (what follows on a line is passed over: `RGB/0.jpg Label/0.png`); its folder, or one above, holds the
folders. Without a folder of thermal pictures, four bands of a picture are RGB and thermal: both columns then name it (`task.bands` says which is which).
"""

from __future__ import annotations

from pathlib import Path

from adaptome.core.errors import DataError
from adaptome.data.readers import ReadOptions, reader
from adaptome.data.readers.dense import file_of, folder_of, root_of
from adaptome.data.readers.images import ENDINGS, IMAGES
from adaptome.data.splits import Table
from adaptome.data.textfile import lines_of

#: column -> the folders it may be in, the likeliest first
FOLDERS: dict[str, tuple[str, ...]] = {
    "rgb": ("RGB", "rgb", "images", "polL_color", "JPEGImages", "image"),
    "depth": ("HHA", "hha", "depth", "Depth"),
    "thermal": ("thermal", "Thermal", "th", "ir"),
    "nir": ("NIR_warped", "NIR", "nir"),
    "dolp": ("polL_dolp", "dolp"),
    "aolp_sin": ("polL_aolp_sin", "aolp_sin"),
    "aolp_cos": ("polL_aolp_cos", "aolp_cos"),
    "mask": ("labels", "Label", "label", "GT", "masks", "segmentation"),
}
FILES = frozenset({*ENDINGS, ".npy"})


@reader("modalities", ".modalities")
def read_modalities(path: Path, options: ReadOptions) -> Table:
    """Columns mask, and of the modalities those that there are folders of: paths, None where a file is missing.

    Raises:
        DataError: no folders by the list, a name without a mask, or without a picture of any modality.
    """
    root = root_of(path, FOLDERS["mask"])
    folders = {name: folder for name, names in FOLDERS.items() if (folder := folder_of(root, names))}
    if len(folders) < 2:
        known = ", ".join(n for name, names in FOLDERS.items() if name != "mask" for n in names)
        raise DataError(f"{root}: no folder of pictures beside the masks. Known: {known}.")
    columns: dict[str, list[str | None]] = {name: [] for name in folders}
    numbers = []
    for number, line in enumerate(lines_of(path, options.encoding), 1):
        if not line.strip():
            continue
        name = Path(line.split()[0]).name
        found = {column: file_of(folder, name, FILES) for column, folder in folders.items()}
        if found["mask"] is None:
            raise DataError(f"{path}, line {number}: no mask {name!r} in {folders['mask']}.")
        if not any(found[column] for column in folders if column != "mask"):
            raise DataError(f"{path}, line {number}: no picture {name!r} of any modality in {root}.")
        for column, file in found.items():
            if file is not None and not file.endswith(".npy") and IMAGES.check is not None:
                IMAGES.check(Path(file))
            columns[column].append(file)
        numbers.append(number)
    if "thermal" not in columns and _four_bands(columns.get("rgb", [])):
        columns["thermal"] = list(columns["rgb"])
    return Table(str(path), {name: files for name, files in columns.items() if any(files)}, numbers)


def _four_bands(files: list[str | None]) -> bool:
    """Whether the pictures have four bands, by the first."""
    from PIL import Image

    first = next((file for file in files if file is not None and not file.endswith(".npy")), None)
    if first is None:
        return False
    with Image.open(first) as opened:
        return opened.mode == "RGBA"
