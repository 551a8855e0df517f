"""Run by test_schedules_in_parallel.py in two processes: every method that has a schedule ends as in one process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import adaptome as ad

SETTINGS: dict[str, dict[str, Any]] = {
    "adalora": dict(interval=2, settled=0.2, orthogonal=0.0),
    "triadaptlora": dict(r=4, interval=2, warmup=0.0),
    "diffora": dict(search=0.5),
    "mos": dict(r=2),
    "dylora": dict(r=4),
    "loca": dict(n=20, coefficient_steps=2, location_steps=1, location_share=1.0),
}
X = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))


def adapted(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 20))
    ad.attach(model, name, targets=["0", "2", "4"], seed=1, **SETTINGS[name])
    return model


def trained(runs: nn.Module, model: nn.Module, rows: Tensor) -> dict[str, Tensor]:
    """Every tensor of the adapter after eight steps."""
    runs.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02)
    ad.on_step(model, 0, 10)
    for step in range(1, 9):
        (runs(rows) - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ad.on_step(model, step, 10)
    a = ad.adapters(model)["default"]
    modules = {**a.adapters, **({"shared": a.shared} if a.shared is not None else {})}
    state = {f"{path}.{key}": t for path, m in modules.items() for key, t in m.state_dict().items()}
    return {
        k: (t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone() for k, t in state.items()
    }


def main(rank: int, folder: Path) -> None:
    expected = {name: trained(model := adapted(name), model, X) for name in SETTINGS}
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh, mine = init_device_mesh("cpu", (2,)), X[4 * rank : 4 * rank + 4]
    for name in SETTINGS:
        for kind in ("ddp", "fsdp"):
            model = adapted(name)
            runs = (
                nn.parallel.DistributedDataParallel(model) if kind == "ddp" else fully_shard(model, mesh=mesh)
            )
            torch.testing.assert_close(trained(runs, model, mine), expected[name], rtol=1e-4, atol=1e-6)
            print(name, kind, flush=True)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive the group


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
