"""ComplEx: a link predictor with complex-valued embeddings (Trouillon et al. 2016, arXiv:1606.06357), and its training with the N3
regulariser (Lacroix et al. 2018, arXiv:1806.07297)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ComplEx(nn.Module):
    r"""Scores of all entities as the object of (subject, predicate):

        phi(s, p, o) = Re <s, p, conj(o)> = (s_r p_r - s_i p_i) . o_r + (s_i p_r + s_r p_i) . o_i

    shapes      entities [N, 2 k], relations [R, 2 k]: k real parts, then k imaginary ones; R counts inverse relations as relations
    init        N(0, 1) times `init_size`
    parameters  (N + R) 2 k: 29,958,000 for FB15k-237 (N = 14,505, R = 474, k = 1000)

    Args:
        entities, relations: N and R.
        rank: k.
        init_size: of the embeddings at the start.
        bias: give every relation a number that is added to its scores, as `fold_scores` needs.
    """

    def __init__(self, entities: int, relations: int, rank: int, init_size: float = 1e-3, bias: bool = False):
        super().__init__()
        self.entities = nn.Embedding(entities, 2 * rank)
        self.relations = nn.Embedding(relations, 2 * rank)
        self.bias = nn.Parameter(torch.zeros(relations)) if bias else None
        with torch.no_grad():
            self.entities.weight.mul_(init_size)
            self.relations.weight.mul_(init_size)

    @property
    def rank(self) -> int:
        """k, the number of complex dimensions."""
        return self.entities.embedding_dim // 2

    def candidates(self) -> Tensor:
        """The embeddings of all entities [N, 2 k], as adapters on the table make them."""
        table = self.entities
        if getattr(table, "_chain", ()):  # an adapter that adds to the output is not in the weight
            made: Tensor = table(torch.arange(table.num_embeddings, device=table.weight.device))
            return made
        return table.weight

    def forward(self, subjects: Tensor, relations: Tensor) -> Tensor:
        """Scores [..., N] of every entity as the object; subjects and relations are numbers [...] that broadcast."""
        query = turned(self.entities(subjects), self.relations(relations))
        scores = F.linear(query, self.candidates())
        return scores if self.bias is None else scores + self.bias[relations][..., None]

    def subjects(self, relations: Tensor, objects: Tensor) -> Tensor:
        """Scores [..., N] of every entity as the subject."""
        # Re <s, p, conj(o)> is linear in s: its coefficients are those of conj(p) o
        query = turned(self.entities(objects), conjugate(self.relations(relations)))
        scores = F.linear(query, self.candidates())
        return scores if self.bias is None else scores + self.bias[relations][..., None]


def turned(subject: Tensor, predicate: Tensor) -> Tensor:
    """The complex product s p of embeddings [..., 2 k], real parts first."""
    s_r, s_i = subject.chunk(2, -1)
    p_r, p_i = predicate.chunk(2, -1)
    return torch.cat([s_r * p_r - s_i * p_i, s_i * p_r + s_r * p_i], -1)


def conjugate(embedding: Tensor) -> Tensor:
    """The complex conjugate of [..., 2 k]."""
    real, imaginary = embedding.chunk(2, -1)
    return torch.cat([real, -imaginary], -1)


def modulus(embedding: Tensor) -> Tensor:
    """The absolute values [..., k] of complex embeddings [..., 2 k]; their gradient at 0 is 0."""
    real, imaginary = embedding.chunk(2, -1)
    square = real.square() + imaginary.square()
    safe = square.clamp_min(torch.finfo(square.dtype).tiny)
    return torch.where(square > 0, safe.sqrt(), 0.0)


def n3(*factors: Tensor) -> Tensor:
    """The N3 regulariser: the sum of |f|^3 over the factors [B, k] of a batch of triples, divided by B (Lacroix et al. 2018, section 4)."""
    total = torch.stack([factor.abs().pow(3).sum() for factor in factors]).sum()
    return total / len(factors[0])


class LinkPrediction(nn.Module):
    """A link predictor in training: the softmax over all objects, over all subjects too unless told otherwise, and the N3 regulariser.

    Args:
        predictor: what scores.
        regularization: the weight of N3.
        sides: 'both', or 'objects' alone, which the inverse triples of a graph make up for (Lacroix et al. 2018, section 3).
    """

    def __init__(self, predictor: ComplEx, regularization: float = 0.05, sides: str = "both"):
        super().__init__()
        self.predictor, self.regularization, self.sides = predictor, regularization, sides

    def forward(self, heads: Tensor, relations: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        """Scores [B, N] of every entity as the tail of (head, relation).

        Args:
            labels: the tail [B], or [B, L] with what `adaptome.tasks.ranking` says; the loss is that of the first column.

        Returns:
            logits, and loss where labels are given.
        """
        scores = self.predictor(heads, relations)
        if labels is None:
            return {"logits": scores}
        tails = labels if labels.dim() == 1 else labels[:, 0]
        loss = F.cross_entropy(scores, tails)
        if self.sides == "both":
            loss = loss + F.cross_entropy(self.predictor.subjects(relations, tails), heads)
        if self.training and self.regularization:
            entities, table = self.predictor.entities, self.predictor.relations
            factors = (modulus(entities(heads)), modulus(table(relations)), modulus(entities(tails)))
            loss = loss + self.regularization * n3(*factors)
        return {"loss": loss, "logits": scores}
