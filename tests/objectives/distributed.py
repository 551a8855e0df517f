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
from adaptome.models import composite_models
from adaptome.objectives import Schedule, Term, Terms, get_objective
from adaptome.objectives.base import all_rows
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


def views(rank: int | None) -> dict[str, torch.Tensor]:
    """Loss, gradients, centres and teacher of dinov2 in one step over four pictures, or over this process's two."""
    torch.manual_seed(0)
    part = {"model_type": "dinov2", "image_size": 8, "patch_size": 4, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}  # fmt: skip
    model = composite_models()["view-encoder"].from_settings(encoder={"from_config": part})
    terms = [
        Term(get_objective("dinov2", prototypes=5, hidden=6, bottleneck=4, hold=0, centring=kind), label=kind)
        for kind in ("sinkhorn", "softmax")
    ]  # fmt: skip
    also = Terms.install(model, terms)
    ad.attach(model, "lora", r=2, targets=["encoder.q"], train=["encoder.norms", *also], seed=0)
    move(model)
    whole = Terms(model.train(), terms)
    rows = slice(0, 4) if rank is None else slice(2 * rank, 2 * rank + 2)
    pixels = torch.randn(4, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(4, 2, 4, dtype=torch.bool)
    masks[0, :, 1] = masks[1, 0, :3] = True  # the second process has none hidden
    batch = {"pixel_values": pixels[rows], "masks": masks[rows]}
    wrapped = model if rank is None else nn.parallel.DistributedDataParallel(model)
    loss, _ = whole.loss(wrapped(**batch), batch)
    loss.backward()
    if rank is not None:
        loss = all_rows(loss.detach()[None]).mean()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()
    whole.stepped(0.0)
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **grads, **whole.state()}


def check_views(rank: int, alone: dict[str, torch.Tensor]) -> None:
    found = views(rank)
    assert found.keys() == alone.keys() and any("centre" in key for key in alone)
    for key, value in alone.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=2e-5, msg=lambda m, k=key: f"dinov2 {k}: {m}")  # fmt: skip
    mine = torch.cat([value.flatten() for value in found.values()])
    assert torch.equal(*all_rows(mine[None])), "the processes differ"


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    alone = {name: step(*made(name), slice(0, 4)) for name in TERMS}
    seen = views(None)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name in TERMS:
        check(name, rank, alone[name])
        print(name, "holds", flush=True)
    check_views(rank, seen)
    print("dinov2 holds", flush=True)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive the group
