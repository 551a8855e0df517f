"""Pairs of pictures of one place at two times, with a mask of what changed.

    LEVIR-CD/train/A/1.png  B/1.png  label/1.png         a folder of each split; also t1, t2, mask (DSIFN) and the like
    A/1.png  B/1.png  label/1.png  list/train.txt        one folder with lists of names
    train.txt                                            lines of three paths: before  after  mask

Paths of a list are relative to its own folder or to where the command runs.
"""

from __future__ import annotations

from pathlib import Path

from adaptome.core.errors import DataError
from adaptome.data.readers import ReadOptions, reader
from adaptome.data.readers.images import ENDINGS, IMAGES
from adaptome.data.splits import Table
from adaptome.data.textfile import lines_of

#: what the folders of the two times and of the masks are called
BEFORE = ("A", "t1", "time1", "T1", "im1", "before", "pre")
AFTER = ("B", "t2", "time2", "T2", "im2", "after", "post")
MASK = ("label", "mask", "labels", "masks", "gt", "GT", "OUT", "change")
Triple = tuple[Path, Path, Path | None]


@reader("change-pairs", ".change-pairs", folders=True)
def read_change_pairs(path: Path, options: ReadOptions) -> Table:
    """Columns before, after and mask: paths.

    Raises:
        DataError: no pairs, a picture without its counterpart, or a file that is no picture; names it.
    """
    found = pairs_of(path, masks=True) if path.is_dir() else _listed(path, options.encoding)
    if not found:
        raise DataError(f"{path}: no pairs of pictures. Endings read: {', '.join(sorted(ENDINGS))}.")
    for triple in found:
        for file in triple:
            if IMAGES.check is not None and file is not None and file.suffix.lower() not in (".tif", ".tiff"):
                IMAGES.check(file)
    columns = dict(zip(("before", "after", "mask"), map(list, zip(*found, strict=True)), strict=True))
    return Table(
        str(path),
        {name: [str(file) for file in files] for name, files in columns.items()},
        range(1, len(found) + 1),
        places=[str(mask) for _, _, mask in found],
    )


def pairs_of(folder: Path, masks: bool = False) -> list[Triple]:
    """Pictures of the same name in a folder's two folders, sorted, with their masks where these are asked for.

    Raises:
        DataError: a folder is missing, or a picture has no counterpart.
    """
    first, second = (_kind(folder, names) for names in (BEFORE, AFTER))
    third = _kind(folder, MASK) if masks else None
    made: list[Triple] = []
    others = [_by_stem(one) for one in (second, third) if one is not None]
    for stem, file in sorted(_by_stem(first).items()):
        for where, one in zip((second, third), others, strict=False):
            if stem not in one:
                raise DataError(f"{file} has no counterpart in {where}.")
        made.append((file, others[0][stem], others[1][stem] if masks else None))
    for one in others:
        for stem, file in one.items():
            if stem not in _by_stem(first):
                raise DataError(f"{file} has no counterpart in {first}.")
    return made


def has_pairs(folder: Path) -> bool:
    """Whether a folder has one for each of two times."""
    return all(any((folder / name).is_dir() for name in names) for names in (BEFORE, AFTER))


def _kind(folder: Path, names: tuple[str, ...]) -> Path:
    found = next((folder / name for name in names if (folder / name).is_dir()), None)
    if found is None:
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"
        raise DataError(f"{folder} has no folder called {', '.join(names)}. There: {there}.")
    return found


def _by_stem(folder: Path) -> dict[str, Path]:
    """Pictures by their names below the folder, without endings: a JPEG's mask is a PNG."""
    files = [f for f in folder.rglob("*") if f.suffix.lower() in ENDINGS]
    return {f.relative_to(folder).with_suffix("").as_posix(): f for f in files}


def _listed(path: Path, encoding: str) -> list[Triple]:
    made: list[Triple] = []
    for number, line in enumerate(lines_of(path, encoding), 1):
        if not line.strip():
            continue
        where, words = f"{path}, line {number}", _words(line)
        if len(words) == 3:
            before, after, mask = (_found(word, path.parent, where) for word in words)
            made.append((before, after, mask))
        elif len(words) == 1:
            made.append(_named(words[0], path, where))
        else:
            raise DataError(
                f"{where}: expected three paths (before, after, mask) with two spaces or a tab between, or one name; found {len(words)}."
            )
    return made


def _words(line: str) -> list[str]:
    """Split by tabs or two spaces, else by single ones: a path may have spaces in it."""
    for sign in ("\t", "  "):
        if sign in line.strip():
            return [word.strip() for word in line.strip().split(sign) if word.strip()]
    return line.split()


def _named(name: str, path: Path, where: str) -> Triple:
    """A name in the A, B and label folders beside the list, or beside the list's folder."""
    root = next((p for p in (path.parent, path.parent.parent) if has_pairs(p)), None)
    if root is None:
        raise DataError(f"{where}: {name!r} is a name alone, and there are no folders A and B by the list.")
    first, second, third = (_kind(root, names) for names in (BEFORE, AFTER, MASK))
    mask = next((third / other for other in (name, f"{Path(name).stem}.png") if (third / other).is_file()), None)  # fmt: skip
    if mask is None:
        raise DataError(f"{where}: no mask for {name!r} in {third}.")
    return _found(str(first / name), root, where), _found(str(second / name), root, where), mask


def _found(word: str, folder: Path, where: str) -> Path:
    found = next((p for p in (folder / word, Path(word)) if p.is_file()), None)
    if found is None:
        raise DataError(f"{where}: no file {word!r}, here or in {folder}.")
    return found
