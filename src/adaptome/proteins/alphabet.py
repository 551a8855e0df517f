"""The 20 canonical amino acids, and what is done about other letters."""

from __future__ import annotations

import re
from typing import Literal

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
#: the nearest canonical residue of the rare and ambiguous letters; X, any residue, has none
NEAREST = {"B": "N", "J": "L", "O": "K", "U": "C", "Z": "Q"}
Letters = Literal["reject", "map"]

_TAGGED = re.compile(r"^\s*Seq=<([^>]*)>?\s*$", re.IGNORECASE)


def cleaned(sequence: str, letters: Letters = "reject") -> tuple[str, str | None]:
    """A sequence in capital canonical letters, and what is wrong with it; '' and the reason where it cannot be used.

    `Seq=<...>` around it, blanks within, and a stop (*) at its end are taken off.

    Args:
        letters: 'reject' a sequence with other letters, or 'map' B, J, O, U and Z to the nearest residue; X is always rejected.
    """
    tagged = _TAGGED.match(sequence)
    text = "".join((tagged.group(1) if tagged else sequence).split()).upper().removesuffix("*")
    if not text:
        return "", "empty"
    if letters == "map":
        text = "".join(NEAREST.get(letter, letter) for letter in text)
    other = sorted({letter for letter in text if letter not in AMINO_ACIDS})
    if other:
        return "", f"letters that are no amino acid ({''.join(other[:6])})"
    return text, None
