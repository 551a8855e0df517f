"""Objectives: what training minimises beside, or in place of, the model's own loss. One file each, found by its registration.

    objective:                                  # in a recipe: the terms, which are summed
      - cross-entropy
      - {name: align-uniform, uniform: 0.5, weight: 0.1, schedule: linear-up}

`model` is the model's own loss; a list without it replaces it. In a loop of one's own:

    terms = Terms(model, [Term(get_objective("info-nce"), weight=0.1)])
    with terms.watching():
        loss, values = terms.loss(model(**batch), batch)
        loss.backward()
    optimizer.step()
    terms.stepped(progress)                     # a teacher follows; `terms.end()` when training is over

An objective in another package registers itself the same way and is named under the entry point `adaptome.objectives`.
"""

from adaptome.objectives.base import (
    Needs,
    Objective,
    Seen,
    TermSettings,
    Watch,
    column,
    features,
    get_objective,
    objectives,
    output,
    register_objective,
)
from adaptome.objectives.deferred import deferred_logits
from adaptome.objectives.terms import PARTS, Schedule, Term, Terms, terms_of

__all__ = [
    "PARTS",
    "Needs",
    "Objective",
    "Schedule",
    "Seen",
    "Term",
    "TermSettings",
    "Terms",
    "Watch",
    "column",
    "deferred_logits",
    "features",
    "get_objective",
    "objectives",
    "output",
    "register_objective",
    "terms_of",
]
