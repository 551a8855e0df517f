"""Structures that an outside tool folded: its files read, and two structures compared. Nothing is folded here."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adaptome.core.errors import DataError


@dataclass(frozen=True)
class Structure:
    """The C-alpha atoms of a chain: coordinates [L, 3] in angstrom, and pLDDT [L] from 0 to 100."""

    coordinates: np.ndarray
    plddt: np.ndarray

    @property
    def mean_plddt(self) -> float:
        """Mean over residues."""
        return float(self.plddt.mean())


def read_pdb(path: Path | str) -> Structure:
    """C-alpha atoms of the first model of a PDB file, pLDDT from the B-factors; from 0 to 1, as ESMFold tells it, is brought to 0 to 100.

    Raises:
        DataError: it cannot be read, names the line; or has no C-alpha.
    """
    path, rows = Path(path), []
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    for number, line in enumerate(lines, 1):
        if line.startswith("ENDMDL"):
            break
        if not line.startswith("ATOM") or line[12:16].strip() != "CA" or line[16:17] not in (" ", "A"):
            continue
        try:
            rows.append([float(line[i:j]) for i, j in ((30, 38), (38, 46), (46, 54), (60, 66))])
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: coordinates and B-factor cannot be read ({error})."
            ) from error
    if not rows:
        raise DataError(f"{path} has no C-alpha atom.")
    found = np.array(rows)
    return Structure(found[:, :3], confidence(found[:, 3]))


def confidence(values: np.ndarray) -> np.ndarray:
    """pLDDT from 0 to 100 of values on that scale or from 0 to 1; of [..., L, atoms] (ESMFold's output) that of C-alpha, the second atom."""
    values = np.asarray(values, float)
    if values.ndim > 1:
        values = values[..., 1]
    return values * 100 if len(values) and values.max() <= 1 else values


def superposed(moving: np.ndarray, fixed: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """`moving` [L, 3] turned and shifted onto `fixed` [L, 3] at the least (weighted) square distance (Kabsch 1976); never mirrored."""
    w = np.ones(len(moving)) if weights is None else weights
    w = (w / w.sum())[:, None]
    a, b = moving - (w * moving).sum(0), fixed - (w * fixed).sum(0)
    u, _, vt = np.linalg.svd((w * a).T @ b)
    turn = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    made: np.ndarray = a @ turn + (w * fixed).sum(0)
    return made


def rmsd(first: np.ndarray, second: np.ndarray) -> float:
    """Root mean square distance in angstrom of corresponding atoms [L, 3] after superposition."""
    _same_length(first, second)
    return float(np.sqrt(((superposed(first, second) - second) ** 2).sum(1).mean()))


def scale(length: int) -> float:
    """d0 of the TM-score in angstrom, 1.24 (L - 15)^(1/3) - 1.8; at least 0.5, as for short chains it would vanish (L <= 21)."""
    return max(1.24 * (length - 15) ** (1 / 3) - 1.8, 0.5) if length > 21 else 0.5


def tm_score(model: np.ndarray, target: np.ndarray, superpose: bool = True, rounds: int = 20) -> float:
    """TM-score of corresponding atoms [L, 3] (Zhang and Skolnick 2004): mean of 1 / (1 + (d_i / d0)^2) over the target.

    With `superpose` the best of superpositions that are refined by weighting near atoms more, from the whole and from halves and quarters of the
    chain: a lower bound of the maximum that TM-align searches. For structures whose residues do not correspond use Foldseek or TM-align.
    """
    _same_length(model, target)
    length, d0 = len(target), scale(len(target))

    def score(placed: np.ndarray) -> tuple[float, np.ndarray]:
        near = 1 / (1 + ((placed - target) ** 2).sum(1) / d0**2)
        return float(near.mean()), near

    if not superpose:
        return score(model)[0]
    best = 0.0
    for parts in (1, 2, 4):
        for part in np.array_split(np.arange(length), parts):
            if len(part) < 3 and parts > 1:
                continue
            weights = np.full(length, 1e-6)
            weights[part] = 1
            for _ in range(rounds):
                value, near = score(superposed(model, target, weights))
                best, weights = max(best, value), near**2
    return best


def _same_length(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape or first.ndim != 2 or first.shape[1] != 3:
        raise DataError(
            f"structures of shapes {first.shape} and {second.shape} do not correspond; expected [L, 3] of one length."
        )


def read_folds(path: Path | str) -> dict[str, dict[str, float]]:
    """What a folding tool found, by the sequence's name: from a folder of PDB files, or a table with a column name and plddt, tm or both.

    Tables are CSV or tab-separated with a line of names; `query` or `id` may stand for name, and `alntmscore` (Foldseek) for tm. Of a name
    with several rows, as a search gives them, each value is the greatest.

    Raises:
        DataError: there is nothing to read, no such column, or a value that is no number; names the line.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.pdb"))
        if not files:
            raise DataError(f"{path} holds no .pdb files.")
        return {file.stem: {"plddt": read_pdb(file).mean_plddt} for file in files}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    made: dict[str, dict[str, float]] = {}
    rows = csv.DictReader(text.splitlines(), delimiter="\t" if "\t" in text.partition("\n")[0] else ",")
    names = {field.strip().lower(): field for field in rows.fieldnames or ()}
    name = next((names[key] for key in ("name", "query", "id") if key in names), None)
    values = {
        kind: names[key]
        for kind, key in (("plddt", "plddt"), ("tm", "alntmscore"), ("tm", "tm"))
        if key in names
    }
    if name is None or not values:
        raise DataError(
            f"{path}: expected a column name, and plddt or tm; found {', '.join(names) or 'nothing'}."
        )
    for number, row in enumerate(rows, 2):
        held = made.setdefault(str(row[name]), {})
        for kind, column in values.items():
            held[kind] = max(held.get(kind, -np.inf), _number(row, column, path, number))
    return made


def _number(row: Mapping[str, str | None], column: str, path: Path, line: int) -> float:
    try:
        return float(row[column] or "")
    except ValueError as error:
        raise DataError(f"{path}, line {line}: {column} is {row[column]!r}; expected a number.") from error
