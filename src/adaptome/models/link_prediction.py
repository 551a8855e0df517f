"""ComplEx: a link predictor with complex-valued embeddings (Trouillon et al. 2016, arXiv:1606.06357), and how it is trained
(Lacroix et al. 2018, arXiv:1806.07297; the regulariser is the objective `n3`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.errors import ModelError
from adaptome.graphs.graph import Vocabulary
from adaptome.models.base import CompositeModel, CompositeSettings, register_model


class ComplExSettings(CompositeSettings):
    entities: list[str] = Field(
        description="their names, in the order of their numbers; of a recipe's run the task tells them"
    )
    relations: list[str] = Field(description="likewise; inverse relations are relations")
    rank: int = Field(ge=1, description="k, complex dimensions of an embedding")
    init_size: float = Field(default=1e-3, ge=0, description="scale of the embeddings at the start")
    bias: bool = Field(default=False, description="a number for every relation that is added to its scores")


@register_model("complex")
class ComplEx(CompositeModel):
    r"""Scores of all entities as the object of (subject, predicate):

        phi(s, p, o) = Re <s, p, conj(o)> = (s_r p_r - s_i p_i) . o_r + (s_i p_r + s_r p_i) . o_i

    shapes      entities [N, 2 k], relations [R, 2 k]: k real parts, then k imaginary ones; R counts inverse relations as relations
    init        N(0, 1) times `init_size`
    parameters  (N + R) 2 k: 29,958,000 for FB15k-237 (N = 14,505, R = 474, k = 1000)
    """

    Settings = ComplExSettings

    def build(self) -> None:
        """The tables, and a bias where there is one."""
        told = self.settings
        self.entities = nn.Embedding(len(told.entities), 2 * told.rank)
        self.relations = nn.Embedding(len(told.relations), 2 * told.rank)
        self.bias = nn.Parameter(torch.zeros(len(told.relations))) if told.bias else None
        with torch.no_grad():
            self.entities.weight.mul_(told.init_size)
            self.relations.weight.mul_(told.init_size)

    @classmethod
    def sized(cls, entities: int, relations: int, rank: int, **settings: Any) -> ComplEx:
        """A predictor of so many entities and relations, whose names are their numbers."""
        names, kinds = ([str(i) for i in range(count)] for count in (entities, relations))
        return cls.from_settings(entities=names, relations=kinds, rank=rank, **settings)

    @property
    def vocabulary(self) -> Vocabulary:
        """The names of what it knows."""
        return Vocabulary(tuple(self.settings.entities), tuple(self.settings.relations))

    @property
    def rank(self) -> int:
        """k, the number of complex dimensions."""
        return int(self.settings.rank)

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


class LinkPrediction(nn.Module):
    """A link predictor in training: the softmax over all objects and, unless told otherwise, over all subjects.

    Args:
        predictor: what scores.
        sides: 'both', or 'objects' alone, which the inverse triples of a graph make up for (Lacroix et al. 2018, section 3).
    """

    def __init__(self, predictor: ComplEx, sides: str = "both"):
        super().__init__()
        self.predictor, self.sides = predictor, sides

    def forward(self, heads: Tensor, relations: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        """Scores [B, N] of every entity as the tail of (head, relation).

        Args:
            labels: the tail [B], or [B, L] whose first column it is.

        Returns:
            logits; where labels are given loss, and factors [B, 3, k], the moduli of the triple's embeddings, which the objective `n3` reads.
        """
        scores = self.predictor(heads, relations)
        if labels is None:
            return {"logits": scores}
        tails = labels if labels.dim() == 1 else labels[:, 0]
        loss = F.cross_entropy(scores, tails)
        if self.sides == "both":
            loss = loss + F.cross_entropy(self.predictor.subjects(relations, tails), heads)
        entities, table = self.predictor.entities, self.predictor.relations
        factors = [modulus(e) for e in (entities(heads), table(relations), entities(tails))]
        return {"loss": loss, "logits": scores, "factors": torch.stack(factors, 1)}


# -- tables of others ------------------------------------------------------------------------------------------------

#: names of the two tables in checkpoints of the authors of CQD, and of PyKEEN, whose numbers are pairs (real, imaginary)
_OTHERS = {
    "embeddings.0.weight": "entities.weight",
    "embeddings.1.weight": "relations.weight",
    "entity_representations.0._embeddings.weight": "entities.weight",
    "relation_representations.0._embeddings.weight": "relations.weight",
}


def from_tables(path: Path, vocabulary: Vocabulary) -> ComplEx:
    """A predictor from a safetensors file of CQD's or PyKEEN's ComplEx; write it with `save_pretrained`.

    Args:
        path: the file; a checkpoint that is a pickle is to be written anew as safetensors by who trusts it.
        vocabulary: names in the order of the tables' rows.

    Raises:
        ModelError: the file cannot be read, or does not hold two tables that fit the names.
    """
    try:
        found = load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from error
    tensors = {
        _OTHERS[name]: _halves(table) if name.endswith("_embeddings.weight") else table
        for name, table in found.items()
        if name in _OTHERS
    }
    rows = {name: len(table) for name, table in tensors.items()}
    wanted = {"entities.weight": len(vocabulary.entities), "relations.weight": len(vocabulary.relations)}
    if rows != wanted:
        raise ModelError(
            f"{path} holds {sorted(found)}, as tables of {rows} rows; the names are of {wanted}."
        )
    made = ComplEx.from_settings(
        entities=list(vocabulary.entities),
        relations=list(vocabulary.relations),
        rank=tensors["entities.weight"].shape[1] // 2,
    )
    made.load_state_dict(tensors)
    return made


def _halves(table: Tensor) -> Tensor:
    """[rows, 2 k] of pairs (real, imaginary) with all real parts first."""
    return table.view(len(table), -1, 2).mT.reshape(len(table), -1).contiguous()
