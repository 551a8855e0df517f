"""LoCA fits an update better when it learns where its cosine coefficients are.

claim      Du et al. 2025, arXiv:2502.06820: coefficients at learned places approximate an update better than at random ones, and than
           FourierFT's with as many coefficients; for a Gaussian update the best n cosine cells hold more of it than the best low rank
miniature  a 48 x 64 layer is fitted to W + dW*, dW* of 60 cosine cells, each within 2 rows and 2 columns of one that LoCA starts from, or, in
           "anywhere", drawn at random. All have n = 60 coefficients; learned places are 120 numbers more while they move, and the
           saved adapter has them. The last rows need no training: what is left of Gaussian 128 x 128 updates by the best rank 4 and by the best
           cosine cells, once for as many coefficients as the low rank has numbers (1,024), once a third of that (341: a cell's place counted too)
"""

from __future__ import annotations

import torch
from _harness import Table, fit_matrix, main
from torch import Tensor

from adaptome.forms.spectrum import dct, idct
from adaptome.methods.spectral.fourierft import positions

OUT, IN, N = 48, 64, 60
METHODS = {
    "loca": ("loca", {"n": N, "location_share": 0.5}),
    "loca, fixed places": ("loca", {"n": N, "locations": "fixed"}),
    "fourierft": ("fourierft", {"n": N, "alpha": float(OUT * IN)}),
}


def planted(rows: Tensor, columns: Tensor) -> Tensor:
    """The update with standard coefficients at these cells of its cosine spectrum, of norm sqrt(OUT)."""
    S = torch.zeros(OUT, IN).index_put((rows, columns), 1 + torch.rand(N), accumulate=True)
    delta = idct(idct(S, IN).mT, OUT).mT
    return delta * (OUT**0.5 / delta.norm())


def left(energy: Tensor, kept: int) -> float:
    """The relative error when the largest of these squares are kept."""
    return float(1 - energy.flatten().topk(kept).values.sum() / energy.sum()) ** 0.5


def measure(seed: int, table: Table) -> None:
    W = torch.randn(OUT, IN) / IN**0.5
    rows, columns = positions(OUT, IN, N, 777)
    near = (
        (rows + torch.randint(-2, 3, (N,))).clamp(0, OUT - 1),
        (columns + torch.randint(-2, 3, (N,))).clamp(0, IN - 1),
    )
    anywhere = torch.randint(OUT, (N,)), torch.randint(IN, (N,))
    for kind, cells in (("near", near), ("anywhere", anywhere)):
        delta = planted(*cells)
        for label, (method, settings) in METHODS.items():
            seen = fit_matrix(W, W + delta, method, seed, **settings)
            table.add(f"{kind}: {label}", seen.value, seen.parameters)
    gaussian = torch.randn(128, 128)
    cosines = dct(dct(gaussian).mT).square()
    table.add("gaussian: rank 4", left(torch.linalg.svdvals(gaussian).square(), 4), 1024)
    table.add("gaussian: cosine cells", left(cosines, 1024), 1024)
    table.add("gaussian: cosine cells and places", left(cosines, 341), 1023)


def judge(table: Table) -> dict[str, bool]:
    return {
        "near: learned places below fixed ones in every seed": table.below("near: loca", "near: loca, fixed places"),
        "near: learned places below fourierft in every seed": table.below("near: loca", "near: fourierft"),
        "anywhere: learned places below fixed ones in every seed": table.below(
            "anywhere: loca", "anywhere: loca, fixed places"
        ),
        "anywhere: fixed places within a tenth of fourierft": table.as_good(
            "anywhere: loca, fixed places", "anywhere: fourierft", 0.1
        ),
        "gaussian: the best cells hold more than the best rank 4": table.below(
            "gaussian: cosine cells", "gaussian: rank 4"
        ),
    }


if __name__ == "__main__":
    main(__doc__, "relative error", measure, judge)
