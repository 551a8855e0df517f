"""Faces in the layouts of recognition benchmarks, as one table: whose each is, and what part it has in a protocol.

    people/anna/001.jpg                                a folder for each person
    TinyFace/Gallery_Match/2_18.jpg, Probe/2_1.jpg     gallery and probes, by person folders or with the person before the name's first
    TinyFace/Gallery_Distractor/1.jpg                  underscore; distractors are of nobody else
    pairs.txt                                          LFW's: `10 300`, then `name 1 4` for the same and `name 1 other 2` for different people
    gallery.csv, probe.csv                             IJB's: TEMPLATE_ID, SUBJECT_ID, FILENAME, and FACE_X, FACE_Y, FACE_WIDTH, FACE_HEIGHT

Every table has the columns image, label (the person), role (gallery, probe, distractor, or empty), template (pictures that are compared as
one), pairs (`fold:pair`, of those a picture is in) and box (left, top, right and bottom in pixels), empty where the layout does not say.
Files that are no pictures are left out, counted and named.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adaptome.core.errors import DataError
from adaptome.data.readers import ReadOptions, reader
from adaptome.data.readers.images import ENDINGS, IMAGES
from adaptome.data.readers.records import read_csv
from adaptome.data.splits import Table
from adaptome.data.textfile import lines_of, read_text

COLUMNS = ("image", "label", "role", "template", "pairs", "box")
#: names of folders, in any case, and the part of what is in them
ROLES = {
    "gallery_match": "gallery", "gallery": "gallery", "probe": "probe", "probes": "probe", "query": "probe",
    "gallery_distractor": "distractor", "distractor": "distractor", "distractors": "distractor",
}  # fmt: skip
#: how many files that cannot be read are named
NAMED = 3


@dataclass
class Rows:
    """Rows as they are found, and the files that were left out."""

    found: list[dict[str, str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    _checked: dict[Path, bool] = field(default_factory=dict)

    def add(self, file: Path, label: str, line: int, **own: str) -> None:
        """A row, unless its file is no picture."""
        if self.readable(file):
            self.found.append({**dict.fromkeys(COLUMNS, ""), "image": str(file), "label": label, **own})
            self.lines.append(line)

    def readable(self, file: Path) -> bool:
        """Whether a file is a picture, by its header; one that is not is noted."""
        if file not in self._checked:
            self._checked[file] = True
            try:
                if IMAGES.check is not None:
                    IMAGES.check(file)
            except DataError as error:
                self._checked[file] = False
                self.broken.append(str(error))
        return self._checked[file]

    def table(self, path: Path, places: Iterable[str] | None = None) -> Table:
        """All of them.

        Raises:
            DataError: there are none.
        """
        if not self.found:
            told = f" All {len(self.broken)} files are broken: {self.broken[0]}" if self.broken else ""
            raise DataError(
                f"{path}: no faces.{told or ' Endings read: ' + ', '.join(sorted(ENDINGS)) + '.'}"
            )
        notes = [left_out(path, self.broken)] if self.broken else []
        columns = {name: [row[name] for row in self.found] for name in COLUMNS}
        return Table(
            str(path), columns, self.lines, files={"image": "images"}, notes=notes, places=None if places is None else list(places)
        )  # fmt: skip


def left_out(path: Path, broken: list[str]) -> str:
    """What is told of files that cannot be read."""
    more = f"; and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
    return f"{path}: {len(broken)} files cannot be read as pictures and are left out: {'; '.join(broken[:NAMED])}{more}"


@reader("faces", ".faces", folders=True)
def read_faces(path: Path, options: ReadOptions) -> Table:
    """A folder of people, of gallery and probes, a file of pairs, or a table of templates.

    Raises:
        DataError: none of these, or a file that it names is not there.
    """
    if path.is_dir():
        parts = {
            d: ROLES[d.name.lower()] for d in sorted(path.iterdir()) if d.is_dir() and d.name.lower() in ROLES
        }
        return _protocol(path, parts) if parts else _people(path)
    if path.suffix.lower() == ".csv":
        return _templates(path, options)
    return _pairs(path, options)


def _people(folder: Path) -> Table:
    rows = Rows()
    people = sorted(d for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))
    if not people:
        raise DataError(
            f"{folder}: no folders of people, and none called Gallery or Probe; expected {folder.name}/<person>/<picture>."
        )
    for person in people:
        for file in pictures(person):
            rows.add(file, person.name, len(rows.lines) + 1)
    return rows.table(folder, [row["image"] for row in rows.found])


def _protocol(folder: Path, parts: Mapping[Path, str]) -> Table:
    rows = Rows()
    for part, role in parts.items():
        for file in pictures(part):
            inside = file.relative_to(part)
            own = inside.parts[0] if len(inside.parts) > 1 else file.stem.partition("_")[0]
            label = f"distractor {inside.as_posix()}" if role == "distractor" else own
            rows.add(file, label, len(rows.lines) + 1, role=role)
    missing = {"gallery", "probe"} - {row["role"] for row in rows.found}
    if missing:
        raise DataError(
            f"{folder}: no {' and no '.join(sorted(missing))} pictures; found {', '.join(p.name for p in parts)}. "
            "Expected the folders Gallery_Match (or Gallery) and Probe."
        )
    return rows.table(folder, [row["image"] for row in rows.found])


def pictures(folder: Path) -> list[Path]:
    """The files below a folder whose endings are those of pictures."""
    return sorted(f for f in folder.rglob("*") if f.suffix.lower() in ENDINGS and f.is_file())


# -- LFW's pairs -------------------------------------------------------------------------------------------------------


def _pairs(path: Path, options: ReadOptions) -> Table:
    lines = [(n, line.split()) for n, line in enumerate(lines_of(path, options.encoding), 1) if line.strip()]
    if not lines or not all(word.isdigit() for word in lines[0][1]) or len(lines[0][1]) > 2:
        raise DataError(
            f"{path}, line 1: {' '.join(lines[0][1])[:60] if lines else 'nothing'}; expected LFW's pairs: the number of folds and of pairs, e.g. '10 300'."
        )
    head = [int(word) for word in lines[0][1]]
    folds, each = (head[0], head[1]) if len(head) == 2 else (1, head[0])
    first = lines[1][1] if len(lines) > 1 else []
    root = next((r for r in _roots(path) if _picture(r, *first[:2])), None) if len(first) > 1 else None
    if root is None:
        raise DataError(
            f"{path}: no folder of people beside it has {first[0] if first else 'a pair'}'s picture; expected <person>/<person>_0001.jpg."
        )
    expected = 2 * folds * each
    if len(lines) - 1 != expected:
        raise DataError(
            f"{path}: {len(lines) - 1} pairs, and its first line tells of {folds} x 2 x {each} = {expected}."
        )
    rows, of, taken = Rows(), dict[Path, tuple[str, int, list[str]]](), 0
    for number, (line, words) in enumerate(lines[1:]):
        if len(words) not in (3, 4):
            raise DataError(
                f"{path}, line {line}: {' '.join(words)!r}; expected 'name 1 4' or 'name 1 other 2'."
            )
        members = [(words[0], words[1]), (words[0], words[2]) if len(words) == 3 else (words[2], words[3])]
        files = []
        for name, count in members:
            file = _picture(root, name, count)
            if file is None:
                raise DataError(f"{path}, line {line}: no picture {count} of {name!r} in {root}.")
            files.append(file)
        readable = [rows.readable(file) for file in files]
        if not all(readable):
            continue
        for (name, _), file in zip(members, files, strict=True):
            of.setdefault(file, (name, line, []))[2].append(f"{number // (2 * each)}:{taken}")
        taken += 1
    for file, (name, line, pairs) in of.items():
        rows.add(file, name, line, pairs=" ".join(pairs))
    return rows.table(path)


def _roots(path: Path) -> list[Path]:
    return [path.parent, *sorted(d for d in path.parent.iterdir() if d.is_dir())]


def _picture(root: Path, name: str, number: str) -> Path | None:
    """A person's picture of a number: <name>/<name>_0001.jpg, or <name>/<number>.<ending>."""
    folder = root / name
    if not folder.is_dir():
        return None
    if not number.isdigit():
        return folder / number if (folder / number).is_file() else None
    stems = (f"{name}_{int(number):04}", number, f"{int(number):04}")
    return next(
        (f for stem in stems for end in sorted(ENDINGS) if (f := folder / f"{stem}{end}").is_file()), None
    )


# -- IJB's templates ---------------------------------------------------------------------------------------------------


def _templates(path: Path, options: ReadOptions) -> Table:
    text = read_text(path, options.encoding)
    names = [name.strip().lower() for name in next(csv.reader(text.splitlines()), [])]
    if "template_id" not in names:
        return read_csv(path, options)
    absent = [name for name in ("subject_id", "filename") if name not in names]
    if absent:
        raise DataError(
            f"{path}: no column {' and no '.join(a.upper() for a in absent)}. Columns there: {', '.join(names)}."
        )
    told = re.search("gallery|probe|distractor", path.stem.lower())
    rows = Rows()
    for line, values in enumerate(csv.reader(text.splitlines()[1:]), 2):
        if not values:
            continue
        if len(values) < len(names):
            raise DataError(f"{path}, line {line}: {len(values)} values for {len(names)} columns.")
        one = dict(zip(names, (v.strip() for v in values), strict=False))
        file = next((p for p in (path.parent / one["filename"], Path(one["filename"])) if p.is_file()), None)
        if file is None:
            raise DataError(f"{path}, line {line}: no file {one['filename']!r}, here or in {path.parent}.")
        role = one.get("role", "").lower() or (told.group() if told else "")
        rows.add(
            file,
            one["subject_id"],
            line,
            role=role,
            template=one["template_id"],
            box=_box(one, f"{path}, line {line}"),
        )
    return rows.table(path)


def _box(one: Mapping[str, str], where: str) -> str:
    given = [one.get(name, "") for name in ("face_x", "face_y", "face_width", "face_height")]
    if not all(given):
        return ""
    try:
        x, y, width, height = map(float, given)
    except ValueError as error:
        raise DataError(
            f"{where}: FACE_X, FACE_Y, FACE_WIDTH, FACE_HEIGHT are {', '.join(given)}; expected numbers."
        ) from error
    return f"{x:g} {y:g} {x + width:g} {y + height:g}"
