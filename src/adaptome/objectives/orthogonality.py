r"""orthogonality: an adapter's rows are kept orthogonal, among themselves or to those of the adapters before it.

    within    L = 1/L sum_l |M_l M_l^T - I|_F^2                          as AdaLoRA's, arXiv:2303.10512, equation 4
    between   L = 1/L sum_l sum_{e before} |M_l M_{l,e}^T|_F^2           as O-LoRA's, arXiv:2310.14152, equation 6

over the layers l that have a matrix of this name: M [r, in] is `A` of LoRA. A matrix that is higher than wide is taken transposed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from adaptome.core.errors import TrainingError
from adaptome.core.model import active, parameters_of
from adaptome.objectives.base import Objective, Seen, TermSettings, register_objective


class OrthogonalitySettings(TermSettings):
    matrix: str = Field(default="A", description="the parameter's name in the adapter")
    kind: Literal["within", "between"] = Field(
        default="within", description="among its own rows, or to those of the adapters attached before"
    )


@register_objective("orthogonality")
class Orthogonality(Objective):
    """Rows of the adapters' matrices kept orthogonal."""

    Settings = OrthogonalitySettings

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        name, kind = self.settings.matrix, self.settings.kind
        found = [_matrices(seen.model, adapter, name) for adapter in active(seen.model)]
        if kind == "within":
            terms = [
                _gram(M, M) - torch.eye(min(M.shape[-2:]), device=M.device)
                for group in found
                for M in group.values()
            ]
        else:
            terms = [
                _gram(M, before[key])
                for n, group in enumerate(found)
                for key, M in group.items()
                for before in found[:n]
                if key in before
            ]
        if not terms:
            what = f"a trained matrix {name!r}" + (
                " in two active adapters of one layer" if kind == "between" else ""
            )
            raise TrainingError(
                f"the objective 'orthogonality' finds no {what}.\n  Say which with matrix=, e.g. A of LoRA."
            )
        return torch.stack([term.square().sum() for term in terms]).sum() / len(terms)


def _matrices(model: Any, adapter: str, name: str) -> dict[str, Tensor]:
    return {
        key: value
        for key, value in parameters_of(model, adapter).items()
        if key.rpartition(".")[2] == name and value.dim() >= 2
    }


def _gram(M: Tensor, N: Tensor) -> Tensor:
    """M N^T over the longer side."""
    M, N = (m.float() if m.shape[-1] >= m.shape[-2] else m.float().mT for m in (M, N))
    return M @ N.mT
