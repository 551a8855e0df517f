"""Score adapter: calibrate a link predictor's scores by an affine map that its embeddings choose (CQD-A)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Adapter, Frozen
from adaptome.core.errors import MethodError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register

INPUTS = ("subject", "predicate", "object")


@register(
    "score-adapter", category="additive", subcategory="score calibration", merge="none", export="none", inference_overhead="extra modules",
    hosts=("predictor",), default_targets="predictor", needs="a link predictor", source="Arakelyan et al. 2023, arXiv:2301.12313, section 3",
)  # fmt: skip
class ScoreAdapter(Method):
    r"""Score adapter (CQD-A): scale and shift a link predictor's scores, by an affine map of its frozen embeddings.

        phi'(s, p, o) = phi(s, p, o) (1 + alpha) + beta,    [alpha, beta] = W_p p + b_p   (+ W_s s + b_s + W_o o + b_o)

    when        a link predictor answers queries of several atoms, whose scores were never meant to be joined
    shapes      phi' [..., N]; W [2, E], b [2] for each of `inputs`; embeddings s, p [..., E], o [N, E]. Without inputs, the pair is an
                affine map of phi itself: W [2, 1]
    init        W = 0, b = 0: starts as the base, bit for bit; the gradient of W is not 0, for phi multiplies alpha. (The authors scale
                torch's initialisation by 1e-3, and start nearly as the base)
    parameters  2 E + 2 for each of `inputs`, 4 without: 4,002 for E = 2000, 12,006 with all three
    merge       none in general; `fold_scores` writes a map of the predicate alone into the relations: p' = (1 + alpha_p) p, and beta_p a bias
    source      Arakelyan et al. 2023, arXiv:2301.12313, section 3; options as in the authors' code
    """

    inputs: tuple[str, ...] = option(
        ("predicate",), help="subject, predicate, object: whose embeddings choose the map"
    )

    def validate(self) -> None:
        wrong = [name for name in self.inputs if name not in INPUTS]
        if wrong or len(set(self.inputs)) < len(self.inputs):
            raise MethodError(
                f"score-adapter.inputs = {list(self.inputs)} must be different ones of {', '.join(INPUTS)}."
            )

    def parameters(self, host: Host) -> int:
        return len(self.inputs) * (2 * host.fan_in + 2) or 4

    def adapter(self, host: Host, shared: nn.Module | None = None) -> ScoreAdapterAdapter:
        return ScoreAdapterAdapter(self, host)


class ScoreAdapterAdapter(Adapter):
    """The affine maps of one link predictor."""

    own_strength = True

    def __init__(self, method: ScoreAdapter, host: Host):
        super().__init__(host)
        sizes = dict.fromkeys(method.inputs, host.fan_in) or {"score": 1}
        self.W = nn.ParameterDict({name: nn.Parameter(torch.zeros(2, size)) for name, size in sizes.items()})
        self.b = nn.ParameterDict({name: nn.Parameter(torch.zeros(2)) for name in sizes})
        #: alpha and beta are then the same for all candidates of a row
        self.constant_along_rows = set(sizes) <= {"subject", "predicate"}

    def pair(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and beta [...] that one input [..., E] asks for."""
        alpha, beta = self.share(F.linear(x, self.W[name].to(x.dtype), self.b[name].to(x.dtype))).unbind(-1)
        return alpha, beta

    def forward(
        self, frozen: Frozen, subjects: Tensor, relations: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        scores: Tensor = frozen(subjects, relations, *args, **kwargs)
        alpha, beta = 0.0, 0.0
        for name in self.W:
            if name == "score":
                a, b = self.pair(name, scores[..., None])
            elif name == "object":
                a, b = self.pair(name, self.host.layer.candidates())
            else:
                layer = self.host.layer
                x = layer.entities(subjects) if name == "subject" else layer.relations(relations)
                a, b = (value[..., None] for value in self.pair(name, x))
            alpha, beta = alpha + a, beta + b  # type: ignore[assignment]
        return scores * (1 + alpha) + beta


def fold_scores(predictor: nn.Module, name: str = "default") -> nn.Module:
    """A link predictor that gives, without the adapter, the scores that this one gives with it.

    Args:
        predictor: linear in its relations' embeddings, such as `ComplEx`, with a score adapter of the predicate alone.
        name: of the adapter.

    Raises:
        MethodError: the adapter sees more than the predicate, or there is none of this name.
    """
    from adaptome.core.adapter import adapters_on

    found = [a for a in adapters_on(predictor, name) if isinstance(a, ScoreAdapterAdapter)]
    if not found or list(found[0].W) != ["predicate"]:
        raise MethodError(
            f"fold_scores needs a score adapter {name!r} with inputs=['predicate']: no other can be written into the relations."
        )
    with torch.no_grad():
        layer: Any = predictor
        rows = layer.relations.weight
        alpha, beta = found[0].pair("predicate", rows)
        made: Any = type(layer)._base.from_settings(**{**layer.settings.model_dump(), "bias": True})
        before = 0.0 if layer.bias is None else layer.bias
        made.entities.weight.copy_(layer.entities.weight)
        made.relations.weight.copy_(rows * (1 + alpha)[:, None])
        made.bias.copy_(before * (1 + alpha) + beta)
    return made.to(rows)
