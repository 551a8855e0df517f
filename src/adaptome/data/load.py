"""Finding, reading, splitting and mapping the data of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from adaptome.core.errors import DataError, did_you_mean, nearest
from adaptome.data.chats import with_joined
from adaptome.data.folds import by_fold
from adaptome.data.makers import PREFIX, make
from adaptome.data.manifests import with_files
from adaptome.data.readers import ReadOptions, endings, find_reader, format_of, readers_of_folders
from adaptome.data.readers.arrays import ARCHIVES, read_npz
from adaptome.data.readers.coop import read_coop
from adaptome.data.readers.folders import FolderKind, holds, read_class_folders
from adaptome.data.readers.images import IMAGES
from adaptome.data.readers.sounds import SOUNDS
from adaptome.data.shots import Fewer, few_shot
from adaptome.data.splits import Split, Splits, Table, to_split

Files = str | Sequence[str] | None
FOLDERS = (IMAGES, SOUNDS)  # where a folder could be either, the first
ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "devel"),
    "test": ("test",),
}


def load_splits(
    name: str | None = None,
    *,
    train: Files = None,
    validation: Files = None,
    test: Files = None,
    config: str | None = None,
    revision: str | None = None,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    tags: str = "convert",
    validation_fraction: float = 0.1,
    test_fraction: float = 0.0,
    split_by: Literal["hash", "seed"] = "hash",
    split_seed: int = 0,
    group: str | None = None,
    limit: int | None = None,
    shots: int | None = None,
    fewer: Fewer = "keep",
    folds: Mapping[str, Any] | None = None,
    paths: str | None = None,
    prefer: Mapping[str, str] | None = None,
    texts: Sequence[str] = (),
    files: str | None = None,
    chats: Sequence[str] = (),
) -> Splits:
    """Read the splits of a run; the arguments are the recipe's `data` section.

    Either `name` (a folder, an .npz or .safetensors file or a hub id that holds every split) or `train` and the others (files) is
    given; with a hub id, `train` and the others are names of its splits. When the data has no validation split,
    `validation_fraction` of train is held out, likewise for test.

    Args:
        group: column whose equal values are held out together, as the frames of one video.
        shots: rows of each label that are kept of train, and of validation; see `adaptome.data.shots`.
        fewer: what becomes of labels of train that have fewer rows, likewise.
        folds: {"column", "test", "validation"}: the folds that are held out, see `adaptome.data.folds`.
        paths: pattern of the files that a table's rows stand for, see `adaptome.data.manifests`.
        prefer: what an ending's format means for this task, e.g. {"tsv": "conll"}.
        texts: columns that the task reads as text; numbers in them are written out, and files of one split may lack
            some of them. Files of one split may then differ in columns the task does not read, which are left out.
        files: the task's column of sound files, whose paths are relative to the table that names them.
        chats: columns that may hold chats, for a task that reads text: contents in parts are joined, see `adaptome.data.chats`.

    Raises:
        DataError: names the file, and the line where there is one.
    """
    options = ReadOptions(encoding, delimiter, tags)
    named: dict[str, Files] = {"train": train, "validation": validation, "test": test}
    wanted: dict[str, Files] = {split: files for split, files in named.items() if files}
    mapping = dict(columns or {})
    tables: dict[str, Any]
    if name is not None and name.startswith(PREFIX):
        tables = _one_by_one(make(name, split_seed))
    elif name is not None:
        tables = _whole(name, wanted, format, config, revision, options, mapping, prefer or {})
    elif wanted:
        tables = _files(wanted, format, options, mapping, prefer or {})
    else:
        raise DataError("No data: give data.name (hub id, folder or .npz file) or data.train (files).")
    notes = [note for table in _read(tables) for note in table.notes]
    if files is not None or paths is not None:
        tables = {k: with_files(found, files, paths, mapping) for k, found in tables.items()}
    if chats:
        talked = {mapping.get(column, column) for column in chats}
        tables = {k: with_joined(found, talked) for k, found in tables.items()}
    wide = {mapping.get(column, column) for column in texts}
    splits = {
        k: found if isinstance(found, Split) else to_split(_with_texts(found, wide) if wide else found, k)
        for k, found in tables.items()
    }
    if folds is not None:
        splits = by_fold(splits, **folds)
    splits = {k: _renamed(split, k, mapping) for k, split in splits.items()}
    if "train" in splits:
        splits = _held_out(
            splits, {"test": test_fraction, "validation": validation_fraction}, split_by, split_seed, group
        )
    if shots is not None:
        splits, told = few_shot(splits, shots, split_seed, fewer)
        notes += told
    if limit is not None:
        splits = {k: _drawn(split, limit, split_seed) for k, split in splits.items()}
    return Splits({k: splits[k] for k in ("train", "validation", "test") if k in splits}, notes)


def _read(tables: Mapping[str, Any]) -> list[Table]:
    """All tables that were read from files; a hub's splits are none."""
    return [table for found in tables.values() if isinstance(found, list) for table in found]


# --- where the rows come from ----------------------------------------------------------------------------------------


def _whole(
    name: str,
    wanted: dict[str, Files],
    format: str,
    config: str | None,
    revision: str | None,
    options: ReadOptions,
    mapping: dict[str, str],
    prefer: Mapping[str, str],
) -> dict[str, Any]:
    """Tables (or, from the hub, splits) of a source that holds all of them."""
    path = Path(name).expanduser()
    if format != "hub" and path.is_file():
        if wanted:
            raise DataError(
                f"data.name={name!r} is a file; then data.{next(iter(wanted))} has no meaning. Write data.train={name!r}."
            )
        if format == "npz" or path.suffix.lower() in ARCHIVES:
            return _one_by_one(read_npz(path, mapping))
        if _is_coop(path, format, prefer):
            return _one_by_one(read_coop(path))
        return _files({"train": name}, format, options, mapping, prefer)
    if format != "hub" and path.is_dir():
        own = prefer.get("folder") if format == "auto" else format
        kind = None if own in readers_of_folders() else _folder_kind(path, format)
        if kind is not None:
            return _one_by_one(read_class_folders(path, kind))
        inside: dict[str, Files] = {
            k: str(path / f) if isinstance(f, str) else [str(path / g) for g in f]
            for k, f in wanted.items()
            if f
        }
        return _files(inside or _split_files(path), format, options, mapping, prefer)
    if format not in ("auto", "hub") or (format == "auto" and _looks_local(name)):
        raise _missing(path, "data.name")
    from adaptome.data.hub import hub_splits

    return hub_splits(name, config, revision, wanted)


def _folder_kind(path: Path, format: str) -> FolderKind | None:
    """What kind of class folder this is: as the format says, else by the files in it."""
    named = next((kind for kind in FOLDERS if kind.format == format), None)
    if named is not None or format != "auto":
        return named
    return next((kind for kind in FOLDERS if holds(path, kind)), None)


def _one_by_one(tables: Mapping[str, Table]) -> dict[str, list[Table]]:
    return {split: [table] for split, table in tables.items()}


def _files(
    wanted: dict[str, Files],
    format: str,
    options: ReadOptions,
    mapping: dict[str, str],
    prefer: Mapping[str, str],
) -> dict[str, list[Table]]:
    found: dict[str, list[Table]] = {}
    for split, files in wanted.items():
        for file in [files] if isinstance(files, str) else list(files or ()):
            path = Path(file).expanduser()
            if not path.exists():
                raise _missing(path, f"data.{split}")
            found.setdefault(split, []).extend(_one_file(path, split, format, options, mapping, prefer))
    return found


def _one_file(
    path: Path,
    split: str,
    format: str,
    options: ReadOptions,
    mapping: dict[str, str],
    prefer: Mapping[str, str],
) -> list[Table]:
    if path.is_dir():
        own = prefer.get("folder") if format == "auto" else format
        if own in readers_of_folders():
            return [find_reader(own)(path, replace(options, split=split))]
        return list(read_class_folders(path, _folder_kind(path, format) or FOLDERS[0]).values())
    if _is_coop(path, format, prefer):
        tables = read_coop(path)
        if split not in tables and path.suffix != ".txt":
            raise DataError(f"{path} has no pictures of the split {split}. It has: {', '.join(tables)}.")
        return [tables[split]] if split in tables else list(tables.values())[:1]
    kind = format if format != "auto" else ("npz" if path.suffix.lower() in ARCHIVES else format_of(path))
    if kind is None:
        known = ", ".join([*endings(), *ARCHIVES])
        raise DataError(
            f"{path}: the ending does not tell the format. Say data.format; endings known: {known} (and .gz)."
        )
    if format == "auto":
        kind = prefer.get(kind, kind)
    if kind == "npz":
        tables = read_npz(path, mapping)
        return [tables[split]] if split in tables else list(tables.values())[:1]
    return [find_reader(kind)(path, options)]


def _is_coop(path: Path, format: str, prefer: Mapping[str, str]) -> bool:
    """Whether this is a file of CoOp's splits: by the format, or where the task's tables of this ending are such."""
    kind = prefer.get(format_of(path) or "") if format == "auto" else format
    return kind == "coop"


def _split_files(folder: Path) -> dict[str, Files]:
    """train.*, validation.* and test.* of a folder."""
    found: dict[str, Files] = {}
    for split, aliases in ALIASES.items():
        files = sorted(f for f in folder.iterdir() if f.is_file() and f.name.split(".")[0].lower() in aliases)
        files = files or sorted(f for f in folder.iterdir() if f.is_dir() and f.name.lower() in aliases)
        if len(files) > 1:
            raise DataError(
                f"{folder}: {', '.join(f.name for f in files)} could all be the {split} split. Name one: data.{split}."
            )
        if files:
            found[split] = str(files[0])
    if "train" not in found:
        there = ", ".join(sorted(f.name for f in folder.iterdir())[:12]) or "nothing"
        raise DataError(
            f"{folder}: no train.* file and no class folders of images or sounds. There: {there}. Name the files: data.train."
        )
    return found


def _looks_local(name: str) -> bool:
    """True for what cannot be a hub id: `owner/name` or `name`, without a data file's ending."""
    path = Path(name)
    return (
        name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or path.suffix in ARCHIVES
        or bool(format_of(path))
    )


def _missing(path: Path, key: str) -> DataError:
    folder = path.parent
    while not folder.is_dir():
        path, folder = folder, folder.parent
    there = sorted(f.name for f in folder.iterdir())
    close = nearest(path.name, there)
    listed = (
        f" Near names: {', '.join(close)}." if close else f" There: {', '.join(there[:10]) or 'nothing'}."
    )
    kind = "no file or folder"
    return DataError(f"{key}: {kind} {path.name!r} in {folder.resolve()}.{listed}")


# --- mapping and splitting -------------------------------------------------------------------------------------------


def _with_texts(tables: list[Table], texts: set[str]) -> list[Table]:
    """The tables with these columns as text, wherever one of them has it; columns that only some have go."""
    everywhere = set.intersection(*(set(table.columns) for table in tables))
    kept = [c for c in dict.fromkeys(c for t in tables for c in t.columns) if c in everywhere | texts]
    return [
        replace(
            table,
            columns={
                c: _written(table.columns[c]) if c in texts and c in table.columns
                else table.columns.get(c, [None] * len(table.lines))
                for c in kept
            },
        )
        for table in tables
    ]  # fmt: skip


def _written(values: Sequence[Any] | np.ndarray) -> list[Any]:
    """Numbers and booleans as JSON writes them; everything else as it is."""
    return [json.dumps(v) if isinstance(v, (bool, int, float)) else v for v in values]


def _renamed(split: Split, name: str, mapping: Mapping[str, str]) -> Split:
    """Give columns the names the task uses."""
    there = split.rows.column_names
    for wanted, column in mapping.items():
        if column not in there:
            raise DataError(
                f"{split.source}: data.columns maps {wanted!r} to {column!r}, but the {name} split has no such "
                f"column.{did_you_mean(column, there)} Columns there: {', '.join(there)}."
            )
    moves = {column: wanted for wanted, column in mapping.items() if column != wanted}
    if not moves:
        return split
    hidden = [
        c for c in moves.values() if c in there and c not in moves
    ]  # the mapping wins over a column so named
    rows = split.rows.remove_columns(hidden).rename_columns(moves)
    return Split(rows, split.tables, split.origin)


def _held_out(
    splits: dict[str, Split], fractions: Mapping[str, float], by: str, seed: int, group: str | None = None
) -> dict[str, Split]:
    """Take the splits that are missing out of train, as shares of the whole of it."""
    missing = {k: share for k, share in fractions.items() if k not in splits and share > 0}
    if not missing:
        return splits
    train = splits["train"]
    if sum(missing.values()) >= 1:
        raise DataError(f"data: holding out {sum(missing.values()):g} of train leaves nothing to train on.")
    if group is not None:
        keys = _group_keys(train, group, by, seed)
    else:
        keys = _hashes(train, seed) if by == "hash" else np.random.default_rng(seed).permutation(len(train))
    order, made, start = np.argsort(keys, kind="stable"), dict(splits), 0
    for name, share in missing.items():
        end = start + max(1, round(share * len(train)))
        while (by == "hash" or group) and 0 < end < len(order) and keys[order[end]] == keys[order[end - 1]]:
            end += 1  # equal rows stay together
        made[name] = train.select(np.sort(order[start:end]))
        start = end
    if start >= len(train):
        alike = len(train) - len(set(keys.tolist()))
        told = f", of which {alike} repeat others and stay with them," if by == "hash" and alike else ""
        raise DataError(
            f"{train.source}: {len(train)} rows{told} are too few to hold out {' and '.join(missing)}. "
            "Give the split a file of its own, or set the fraction to 0."
        )
    made["train"] = train.select(np.sort(order[start:]))
    return made


def _group_keys(split: Split, group: str, by: str, seed: int) -> np.ndarray:
    """A number per row, the same for rows of one group.

    Raises:
        DataError: there is no such column.
    """
    there = split.rows.column_names
    if group not in there:
        raise DataError(
            f"{split.source}: data.group={group!r}, and there is no such column.{did_you_mean(group, there)} Columns there: {', '.join(there)}."
        )
    names, which = np.unique([str(v) for v in split.rows[group]], return_inverse=True)
    if by == "seed":
        return np.random.default_rng(seed).permutation(len(names))[which]
    digests = [hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:8] for name in names]
    return np.array([int.from_bytes(d, "big") for d in digests], dtype=np.uint64)[which]


def _drawn(split: Split, limit: int, seed: int) -> Split:
    """At most `limit` rows, drawn at random since files are often sorted by label; their order stays."""
    if len(split) <= limit:
        return split
    return split.select(np.sort(np.random.default_rng(seed).permutation(len(split))[:limit]))


def _hashes(split: Split, seed: int) -> np.ndarray:
    """A number per row, made from its content alone: the same rows are held out whatever their order."""
    keys = np.empty(len(split), dtype=np.uint64)
    rows = split.rows.with_format(None)
    images = [c for c, f in rows.features.items() if f.__class__.__name__ == "Image"]
    for column in images:
        rows = rows.cast_column(column, type(rows.features[column])(decode=False))
    for i, row in enumerate(rows):
        digest = hashlib.sha256(str(seed).encode())
        for column in sorted(row):
            digest.update(f"\0{column}\0{_stable(row[column])}".encode())
        keys[i] = int.from_bytes(digest.digest()[:8], "big")
    return keys


def _stable(value: Any) -> str:
    """Text of a value; of an image file, the names of it and its folder, so that moving the data changes nothing."""
    if isinstance(value, dict) and set(value) == {"bytes", "path"} and value["path"]:
        return "/".join(Path(value["path"]).parts[-2:])
    return repr(value)
