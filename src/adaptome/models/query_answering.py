"""Logical queries answered by a link predictor: each atom scored, the scores joined by fuzzy logic, the entities in between searched.

Arakelyan et al. 2021 (arXiv:2011.03459, CQD) and 2023 (arXiv:2301.12313, CQD-A). An entity in between is one of the `beam` best; behind two
steps every one of these goes on with its own `beam` best, as in the paper: `beam`^2 ways, each with the truth of all its atoms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adaptome.core.errors import ModelError
from adaptome.graphs.query import STRUCTURES, Anchor, And, Not, Or, Project, Query
from adaptome.models.fuzzy_logic import AND, OR, truth

#: truth values that are held at once when no gradient is asked for
AT_ONCE = 2**26
#: the offset within the logarithm of the loss
EPSILON = 1e-4

FORMS = tuple(STRUCTURES.values())
#: places for entities and relations in a batch: what the largest structures have
PLACES = 3


@dataclass(frozen=True)
class Step:
    """An atom of an explanation: relation(before, after), how true it is, and whether it was negated (the truth is then of the negation)."""

    before: int
    relation: int
    after: int
    truth: float
    negated: bool = False


class QueryAnswerer(nn.Module):
    """A link predictor that answers queries.

    Args:
        predictor: scores [..., N] of all entities from numbers of subjects and relations [...]; `ComplEx`, say.
        normalization: how scores become truth values: 'sigmoid', 'min-max' or 'softmax'. Raw scores cannot be joined, so it must be said.
        t_norm: 'product' or 'min'.
        beam: entities that are tried for every variable in between.
        eval_beam: the same in evaluation mode; None for `beam`.
        log_scores: whether the loss is a softmax over the logarithms of the truth values (else over these).

    Raises:
        ModelError: a setting is not one of those.
    """

    def __init__(
        self,
        predictor: nn.Module,
        *,
        normalization: str,
        t_norm: str = "product",
        beam: int = 5,
        eval_beam: int | None = None,
        log_scores: bool = True,
    ):
        super().__init__()
        for name, value, known in (
            ("normalization", normalization, ("sigmoid", "min-max", "softmax")),
            ("t_norm", t_norm, tuple(AND)),
        ):
            if value not in known:
                raise ModelError(f"{name}={value!r} is not known; there are {', '.join(known)}.")
        if min(beam, eval_beam or beam) < 1:
            raise ModelError(f"beam={beam}, eval_beam={eval_beam}: at least one entity must be tried.")
        self.predictor, self.normalization, self.log_scores = predictor, normalization, log_scores
        self._and, self._or = AND[t_norm], OR[t_norm]
        self.beam, self.eval_beam = beam, eval_beam or beam

    def forward(
        self, structures: Tensor, anchors: Tensor, relations: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Truth values [B, N] of every entity as the answer.

        Args:
            structures: [B], places in the order of `STRUCTURES`.
            anchors, relations: [B, 3], the queries' numbers, filled up with anything.
            labels: [B, L], answers as `loss` takes them.

        Returns:
            logits, structures, and loss where labels are given.
        """
        found: list[Tensor] = []
        order: list[Tensor] = []
        for kind in structures.unique().tolist():
            rows = (structures == kind).nonzero()[:, 0]
            found.append(self.answer(FORMS[kind], anchors[rows], relations[rows]))
            order.append(rows)
        scores = torch.cat(found)[torch.cat(order).argsort()]
        made = {"logits": scores, "structures": structures}
        return made if labels is None else {"loss": self.loss(scores, labels), **made}

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy of the answers among all entities.

        Args:
            scores: [B, N].
            labels: [B, L]: the number of an answer that is asked for; -2 - number of one that is known and does not compete; -1 to fill up.
        """
        if self.log_scores:
            scores = (EPSILON - scores.amin(-1, keepdim=True).clamp_max(0) + scores).log()
        known, asked = labels <= -2, labels >= 0
        out = torch.zeros(len(scores), scores.shape[1] + 1, dtype=torch.bool, device=scores.device)
        out.scatter_(1, torch.where(known, -2 - labels, scores.shape[1]), True)
        each = -scores.masked_fill(out[:, :-1], -torch.inf).log_softmax(-1).gather(1, labels.clamp_min(0))
        return (torch.where(asked, each, 0.0).sum(-1) / asked.sum(-1).clamp_min(1)).mean()

    # -- answering -------------------------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """Entities tried for a variable now."""
        return self.beam if self.training else self.eval_beam

    def answer(self, form: Query, anchors: Tensor, relations: Tensor) -> Tensor:
        """Truth values [B, N] of every entity.

        Args:
            form: a query whose entities and relations are columns of the next two; see `adaptome.graphs.query.template`.
            anchors, relations: [B, at least as many as the form has].
        """
        self._check_adapters()
        if torch.is_grad_enabled():
            return self._run(form, anchors, relations)
        entities = self.predictor.entities.num_embeddings  # type: ignore[union-attr]
        rows = max(1, AT_ONCE // (int(entities) * min(self.width, int(entities)) ** _searched(form)))  # type: ignore[arg-type]
        parts = zip(anchors.split(rows), relations.split(rows), strict=True)
        return torch.cat([self._run(form, *part) for part in parts])

    def _check_adapters(self) -> None:
        constant = any(getattr(m, "constant_along_rows", False) for m in self.predictor.modules())
        if self.normalization == "min-max" and constant:
            raise ModelError(
                "normalization='min-max' takes away what an adapter adds to a whole row of scores, and this one adds nothing else: it would never learn.\n"
                "  Take 'sigmoid', or let the adapter see the object: inputs=['predicate', 'object']."
            )

    def truth(self, subjects: Tensor, relations: Tensor) -> Tensor:
        """Truth [..., N] of relation(subject, every entity)."""
        return truth(self.predictor(subjects, relations), self.normalization)

    def _run(self, form: Query, anchors: Tensor, relations: Tensor) -> Tensor:
        if isinstance(form, Project):
            return self._ways(form, anchors, relations).amax(1)
        if isinstance(form, Not):
            return 1 - self._run(form.of, anchors, relations)
        if isinstance(form, Anchor):
            raise ModelError("a given entity alone is no query.")
        join = self._and if isinstance(form, And) else self._or
        first, *others = (self._run(part, anchors, relations) for part in form.parts)
        for other in others:
            first = join(first, other)
        return first

    def _ways(self, form: Project, anchors: Tensor, relations: Tensor) -> Tensor:
        """Truth values [B, ways, N] of every way to every entity."""
        values, entities = self._tried(form.of, anchors, relations)
        atoms = self.truth(entities, relations[:, form.relation, None])
        atoms = 1 - atoms if form.negated else atoms
        return atoms if values is None else self._and(values[..., None], atoms)

    def _tried(self, form: Query, anchors: Tensor, relations: Tensor) -> tuple[Tensor | None, Tensor]:
        """What a step starts from: truth values (None where there is nothing to search) and entities [B, ways]."""
        if isinstance(form, Anchor):
            return None, anchors[:, form.entity, None]
        stepped = isinstance(form, Project) and not isinstance(form.of, Anchor)
        found = self._ways(form, anchors, relations) if stepped else self._run(form, anchors, relations)  # type: ignore[arg-type]
        values, entities = found.topk(min(self.width, found.shape[-1]), dim=-1)
        return values.flatten(1), entities.flatten(1)  # the ways of one parent stay together

    # -- explaining ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def explain(self, form: Query, anchors: Tensor, relations: Tensor, answer: int) -> list[Step]:
        """The atoms that make an entity an answer, with the entities in between that make it truest; of a union, its truest part.

        Args:
            form, anchors, relations: one query, as for `answer` with B = 1.
        """
        if isinstance(form, Project):
            ways = self._ways(form, anchors, relations)[0, :, answer]
            values, entities = self._tried(form.of, anchors, relations)
            best = int(entities[0, int(ways.argmax())])
            relation = relations[:, form.relation]
            atom = self.truth(torch.tensor([best], device=relation.device), relation)[0, answer]
            last = Step(best, int(relation), answer, float(1 - atom if form.negated else atom), form.negated)
            return [last] if values is None else [*self.explain(form.of, anchors, relations, best), last]
        if isinstance(form, Not):
            inner = self.explain(form.of, anchors, relations, answer)
            return [Step(s.before, s.relation, s.after, 1 - s.truth, not s.negated) for s in inner]
        if isinstance(form, Anchor):
            raise ModelError("a given entity alone is no query.")
        parts = list(form.parts)
        if isinstance(form, Or):
            parts = [max(parts, key=lambda part: float(self._run(part, anchors, relations)[0, answer]))]
        return [step for part in parts for step in self.explain(part, anchors, relations, answer)]


def _searched(form: Query) -> int:
    """How many variables in a row are searched: the ways are `beam` to this power."""
    if isinstance(form, Anchor):
        return 0
    if isinstance(form, Project):
        if isinstance(form.of, Anchor):
            return 0
        return 1 + (_searched(form.of) if isinstance(form.of, Project) else 0)
    parts = form.parts if isinstance(form, (And, Or)) else (form.of,)
    return max(map(_searched, parts))


__all__ = ["FORMS", "PLACES", "QueryAnswerer", "Step"]
