"""ComplEx: a link predictor with complex-valued embeddings (Trouillon et al. 2016, arXiv:1606.06357), and how it is trained
(Lacroix et al. 2018, arXiv:1806.07297; the regulariser is the objective `n3`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.errors import ModelError
from adaptome.core.files import write_atomic
from adaptome.data.graphs.graph import Vocabulary


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


# -- on disk ---------------------------------------------------------------------------------------------------------

CONFIG, WEIGHTS = "config.json", "model.safetensors"
#: names of the two tables in checkpoints of others: of the authors of CQD, and of PyKEEN, whose numbers are pairs (real, imaginary)
_OTHERS = {
    "embeddings.0.weight": "entities.weight",
    "embeddings.1.weight": "relations.weight",
    "entity_representations.0._embeddings.weight": "entities.weight",
    "relation_representations.0._embeddings.weight": "relations.weight",
}


def save_predictor(predictor: ComplEx, vocabulary: Vocabulary, folder: Path) -> None:
    """Write a predictor and the names of what it knows into a folder: config.json and model.safetensors."""
    config = {
        "model_type": "complex",
        "rank": predictor.rank,
        "bias": predictor.bias is not None,
        "entities": list(vocabulary.entities),
        "relations": list(vocabulary.relations),
    }
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().contiguous().cpu() for name, value in predictor.state_dict().items()}
    write_atomic(folder / WEIGHTS, save(tensors))
    write_atomic(folder / CONFIG, json.dumps(config, ensure_ascii=False))


def load_vocabulary(folder: Path) -> Vocabulary:
    """The names of a saved predictor.

    Raises:
        DataError: the folder holds none.
    """
    return Vocabulary.read(folder / CONFIG)


def load_predictor(folder: Path) -> ComplEx:
    """A saved predictor; the tables may bear the names that the authors of CQD or PyKEEN give them.

    Raises:
        ModelError: a file is missing, or the tensors are not those that the configuration describes.
    """
    names = load_vocabulary(folder)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if config.get("model_type") != "complex":
        raise ModelError(f"{folder / CONFIG}: model_type={config.get('model_type')!r}; expected 'complex'.")
    try:
        found = load((folder / WEIGHTS).read_bytes())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS} cannot be read: {error}.") from error
    pairs = any(name.startswith("entity_representations") for name in found)
    tensors = {_OTHERS.get(name, name): _halves(t) if pairs else t for name, t in found.items()}
    made = ComplEx(
        len(names.entities), len(names.relations), int(config["rank"]), bias=config.get("bias", False)
    )
    wanted = {name: tuple(value.shape) for name, value in made.state_dict().items()}
    there = {name: tuple(value.shape) for name, value in tensors.items()}
    if wanted != there:
        raise ModelError(f"{folder / WEIGHTS} holds {there}; its configuration describes {wanted}.")
    made.load_state_dict(tensors)
    return made


def _halves(table: Tensor) -> Tensor:
    """[rows, 2 k] of pairs (real, imaginary) with all real parts first."""
    return table.view(len(table), -1, 2).mT.reshape(len(table), -1).contiguous()
