"""Corrections of grammar told as edits, written as M2 files and scored, as the field's tool for Chinese does.

costs       what it costs to put one character in the place of another
alignment   the cheapest ways from one sentence to another
edits       the edits that an alignment amounts to
scores      precision, recall and F0.5 over a corpus with several references
m2          M2 files, read and written
"""

from adaptome.grammar.costs import Substitution
from adaptome.grammar.edits import Edit, edits, tokens
from adaptome.grammar.scores import Annotator, Counts, Ties, corpus

__all__ = ["Annotator", "Counts", "Edit", "Substitution", "Ties", "corpus", "edits", "tokens"]
