"""Proteins as sequences of amino acids: letters and their cleaning, measures of generated sequences, structures that others folded, and what writing costs."""

from adaptome.proteins.alphabet import AMINO_ACIDS, cleaned
from adaptome.proteins.meter import Meter, Reading
from adaptome.proteins.nearest import Nearest, identity
from adaptome.proteins.sequences import divergence, low_complexity
from adaptome.proteins.structures import Structure, read_folds, read_pdb, rmsd, tm_score

__all__ = [
    "AMINO_ACIDS",
    "Meter",
    "Nearest",
    "Reading",
    "Structure",
    "cleaned",
    "divergence",
    "identity",
    "low_complexity",
    "read_folds",
    "read_pdb",
    "rmsd",
    "tm_score",
]
