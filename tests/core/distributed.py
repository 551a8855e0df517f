"""Run by test_distributed.py in two processes: each check prints its name when it holds."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))
import adaptome as ad
from adaptome.core.errors import StateError
from tests.core.models import llama, move, run

IDS = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5], [8, 9, 7, 9, 3], [1, 2, 3, 8, 4]])


def adapted() -> nn.Module:
    model = llama()
    ad.attach(model, "lora", targets="attention", train=["lm_head"], seed=1)
    ad.attach(model, "dora", "second", targets="mlp", seed=2)
    ad.attach(model, "series", "third", targets="blocks", size=4, seed=3)
    ad.attach(model, "norm-tuning", "fourth", seed=4)
    ad.attach(model, "dora", "fifth", targets="embeddings", seed=5)
    for name in ad.adapters(model):
        move(model, name)
    return model


def train(model: nn.Module, rows: Tensor) -> None:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        model(rows, labels=rows).loss.backward()
        ad.check_gradients(model)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def whole(model: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name in ad.adapters(model):
        for key, value in ad.parameters_of(model, name).items():
            full = value.full_tensor() if hasattr(value, "full_tensor") else value
            found[f"{name}: {key}"] = full.detach().clone()
    return found


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


def refused(words: str, act) -> None:
    try:
        act()
    except StateError as error:
        if words in str(error):
            return
        raise
    raise AssertionError(f"not refused: {words}")


def ddp(reference: nn.Module, mine: Tensor, folder: Path) -> None:
    model = adapted()
    wrapped = nn.parallel.DistributedDataParallel(model)
    assert torch.equal(run(wrapped, IDS), run(adapted(), IDS))
    refused(
        "wrapped by DistributedDataParallel already", lambda: ad.attach(wrapped, "lora", "late", targets="q")
    )
    train(wrapped, mine)
    close(whole(wrapped), whole(reference))


def fsdp(reference: nn.Module, mine: Tensor, folder: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, mesh = adapted(), init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    torch.testing.assert_close(run(model, IDS), run(adapted(), IDS))
    with ad.disabled(model):
        torch.testing.assert_close(run(model, IDS), run(llama(), IDS))
    model.reshard()  # an evaluation leaves the root whole, and an optimizer made then would train the copies
    train(model, mine)
    close(whole(model), whole(reference))
    for name in ad.adapters(model):
        ad.save(model, folder / name, name)
    fresh = llama()
    for name in ad.adapters(model):
        assert ad.load(fresh, folder / name, name).base == "structure and weights"
    close(whole(fresh), whole(reference))
    assert all(value.any() for value in whole(fresh).values())
    torch.testing.assert_close(run(fresh, IDS), run(reference, IDS), rtol=1e-3, atol=1e-4)
    refused("this model is sharded (FSDPModule): merging", lambda: ad.merge(model, "default"))
    refused("this model is sharded (FSDPModule): detaching", lambda: ad.detach(model))
    refused("wrapped by FSDPModule already", lambda: ad.load(model, folder / "default", "late"))


def inactive(reference: nn.Module, mine: Tensor, folder: Path) -> None:
    """Neither waits for an adapter that does not run."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def idle(*running: str) -> nn.Module:
        model = adapted()
        ad.activate(model, list(running))
        return model

    alone = idle("second", "third")
    train(alone, IDS)
    wrapped = nn.parallel.DistributedDataParallel(idle("second", "third"))
    train(wrapped, mine)  # three steps: DDP finds what it still waits for in the second
    close(whole(wrapped), whole(alone))
    wrapped.train()
    refused("synchronises what trained when it was wrapped", lambda: ad.activate(wrapped, "default"))
    refused("synchronises what trained when it was wrapped", lambda: ad.activate(wrapped, "second"))
    wrapped.eval()
    ad.activate(wrapped, "default")
    with ad.disabled(wrapped):
        pass
    torch.testing.assert_close(run(wrapped, IDS), run(idle("default"), IDS))
    ad.activate(wrapped, ["second", "third"])
    train(wrapped, mine)
    train(alone, IDS)
    close(whole(wrapped), whole(alone))

    sharded, mesh = idle("second"), init_device_mesh("cpu", (2,))
    for layer in sharded.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    one = idle("second")
    for name in ("second", "third"):
        ad.activate(sharded, name)
        ad.activate(one, name)
        train(sharded, mine)
        train(one, IDS)
        sharded.reshard()
        close(whole(sharded), whole(one))


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    reference = adapted()
    train(reference, IDS)
    for check in (ddp, fsdp, inactive):
        check(copy.deepcopy(reference), IDS[2 * rank : 2 * rank + 2], folder)
        print(check.__name__, "holds", flush=True)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive the group
