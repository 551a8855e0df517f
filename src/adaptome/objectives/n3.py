r"""n3: the nuclear 3-norm of a batch's triples, which keeps a link predictor's embeddings small.

    L = 1/B sum_b sum_{f in (|s_b|, |p_b|, |o_b|)} sum_k f_k^3

over the moduli of the complex embeddings of subject, predicate and object (Lacroix et al. 2018, arXiv:1806.07297, section 4). The weight
is the paper's lambda.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adaptome.objectives.base import Objective, Seen, output, register_objective


@register_objective("n3")
class N3(Objective):
    """The cubes of a triple's embeddings, summed; reads the output `factors` [B, 3, k] of a link predictor."""

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        factors: Tensor = output(outputs, "factors", "the objective 'n3'")
        return factors.abs().pow(3).sum() / len(factors)
