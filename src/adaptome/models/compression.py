r"""Fewer tokens of a stream: neighbours averaged or stacked, and projected to a language model's width, a projector for each rate.

    average   y_t = mean(x_{rt}, ..., x_{rt + r - 1})          stack   y_t = [x_{rt}; ...; x_{rt + r - 1}],    t < floor(T / r)
    P(y) = LN(W_2 relu(W_1 y + b_1) + b_2)                     `norm: false` leaves LN out, as the authors' code does by mistake

shapes    x [batch, T, d]; y [batch, floor(T / r), d or r d]; a remainder of the last r - 1 or fewer is dropped
source    Omni-AVSR (Cappellazzo et al.), arXiv:2511.07253; matryoshka rates: Llama-MTSK, arXiv:2503.06362
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

Compression = Literal["average", "stack"]
#: by which a layer tells that some forwards pass it by
IDLE = "may_idle"


def compressed(x: Tensor, lengths: Tensor, rate: int, how: Compression = "average") -> tuple[Tensor, Tensor]:
    """The stream at 1 / rate of its tokens, and its clips' lengths then."""
    kept = x.shape[1] // rate
    parts = x[:, : kept * rate].unflatten(1, (kept, rate))
    return (parts.mean(2) if how == "average" else parts.flatten(2)), lengths // rate


class Projectors(nn.ModuleDict):
    """P for each rate of a stream, or one for all of them.

    Args:
        width, hidden, out: of x, of the middle, of the language model.
        rates: of the stream.
        how: 'stack' makes the first map r times as wide.
        norm: LN at the end.
        shared: one for all rates; with 'average' alone.
    """

    def __init__(
        self, width: int, hidden: int, out: int, rates: Sequence[int], how: Compression, norm: bool, shared: bool
    ):  # fmt: skip
        names = ["all"] if shared else [str(rate) for rate in rates]
        widths = [width * rate if how == "stack" else width for rate in rates]
        made = {name: _projector(w, hidden, out, norm) for name, w in zip(names, widths, strict=False)}
        for layer in (layer for one in made.values() for layer in one):
            setattr(layer, IDLE, len(made) > 1)  # a step is of one rate alone
        super().__init__(made)

    def at(self, rate: int) -> nn.Module:
        """The projector of a rate."""
        found: nn.Module = self["all"] if "all" in self else self[str(rate)]
        return found


def _projector(width: int, hidden: int, out: int, norm: bool) -> nn.Sequential:
    layers = [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out)]
    return nn.Sequential(*layers, nn.LayerNorm(out)) if norm else nn.Sequential(*layers)
