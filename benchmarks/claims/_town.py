"""What stands beside an adapted link predictor: the scoring of a model on prepared queries, and a predictor that knows popularity alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.tasks.inference import chunks, evaluating
from adaptome.tasks.ranking import collate


class Popular(nn.Module):
    """A predictor that knows how often each relation leads to each entity, whatever it starts from; scores are log-odds."""

    def __init__(self, task: Any, train: Any):
        super().__init__()
        names = task.vocabulary
        self.entities = nn.Embedding(len(names.entities), 1)
        counts = torch.zeros(len(names.relations), len(names.entities))
        for head, relation, tail in names.numbers(*(train[c] for c in ("head", "relation", "tail"))).tolist():
            counts[relation, tail] += 1
            counts[names.inverse(relation), head] += 1
        share = (counts + 1e-3) / (counts.sum(-1, keepdim=True) + 1)
        self.register_buffer("odds", torch.logit(share))

    def forward(self, subjects: Tensor, relations: Tensor) -> Tensor:
        subjects, relations = torch.broadcast_tensors(subjects, relations)
        return self.odds[relations]  # type: ignore[index]


def scored(loaded: Any, rows: Any) -> dict[str, float]:
    """The task's measures of a model on prepared rows."""
    found = []
    with evaluating(loaded.model):
        for part in chunks(range(len(rows)), 128):
            batch = collate([rows[i] for i in part])
            labels = batch.pop("labels")
            made = loaded.model(**batch)
            found.append(loaded.task.reduce((made["logits"], made["structures"]), labels))
    return loaded.task.metrics(SimpleNamespace(predictions=torch.cat(found).numpy()))
