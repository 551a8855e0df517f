"""Worked answers as a thought of several steps and a solution: read, written, taken into steps, and spoiled in a measured way.

trace = read_trace(text)                        # or DataError with what is wrong with it
trace.steps, trace.solution
perturbed(trace, "shuffle", 0.67, random.Random(0)).text
"""

from __future__ import annotations

from adaptome.traces.keywords import count, opens_with_keyword, sentences
from adaptome.traces.perturb import HOW, STRUCTURAL, perturbed, rates
from adaptome.traces.sampling import pass_at_k
from adaptome.traces.trace import MARKERS, Markers, Trace, framed, read_trace, segment

__all__ = [
    "HOW",
    "MARKERS",
    "STRUCTURAL",
    "Markers",
    "Trace",
    "count",
    "framed",
    "opens_with_keyword",
    "pass_at_k",
    "perturbed",
    "rates",
    "read_trace",
    "segment",
    "sentences",
]
