"""Run by test_terms_distributed.py in two processes: terms over rows of all processes give what one process gives."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))
import adaptome as ad
from adaptome.objectives import Schedule, Term, Terms, get_objective
from tests.core.models import llama, move

IDS = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5], [8, 9, 7, 9, 3], [1, 2, 3, 8, 4]])
OTHER = (IDS * 7 + 3) % 32
LABELS = torch.tensor([0, 1, 0, 0])
TERMS = {
    "info-nce": {"left": "hidden_states", "right": "second", "learnable": True},
    "align-uniform": {"features": "hidden_states"},
}


def made(name: str) -> tuple[nn.Module, Terms]:
    model = llama()
    terms = [Term(get_objective(name, **TERMS[name]), 1.0, Schedule())]
    also = Terms.install(model, terms)
    ad.attach(model, "lora", r=2, targets="all-linear", train=also, seed=0)
    move(model)
    return model.train(), Terms(model, terms)


def step(model: nn.Module, terms: Terms, rows: slice) -> dict[str, torch.Tensor]:
    batch = {"input_ids": IDS[rows], "second_input_ids": OTHER[rows], "labels": LABELS[rows]}
    with terms.watching():
        loss, _ = terms.loss(model(batch["input_ids"], **terms.asks()), batch)
        loss.backward()
    return {key: p.grad for key, p in ad.parameters_of(terms.model).items() if p.grad is not None} | {
        "loss": loss.detach()
    }


def check(name: str, rank: int, alone: dict[str, torch.Tensor]) -> None:
    model, terms = made(name)
    wrapped = nn.parallel.DistributedDataParallel(model)
    found = step(wrapped, terms, slice(2 * rank, 2 * rank + 2))
    assert found.keys() == alone.keys()
    for key, value in alone.items():
        torch.testing.assert_close(
            found[key], value, rtol=1e-3, atol=2e-5, msg=lambda m, k=key: f"{name} {k}: {m}"
        )
    assert any(value.abs().max() > 1e-6 for key, value in alone.items() if key != "loss")


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    alone = {name: step(*made(name), slice(0, 4)) for name in TERMS}
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name in TERMS:
        check(name, rank, alone[name])
        print(name, "holds", flush=True)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive the group
