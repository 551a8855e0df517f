"""MTLoRA's task-specific outputs beat one shared LoRA of equal size in multi-task learning, and both beat frozen features.

claim      Agiza et al. 2024, arXiv:2403.20320: an update for all tasks and, where features leave for the decoders, one more for each
           task, resolve what a single shared update has to trade off
miniature  a tiny Swin (two stages of two blocks), pretrained here to tell shape and stripes of synthetic images, serves four dense tasks
           that want different things of the same pixels: the object's mask, its edges, the direction of the stripes behind it, and a
           shaded depth. Every task has a linear decoder on the features of both stages. MTLoRA has r = 4 and a rank of 2 for each task in
           the last block of a stage, through one pass of ad.TaskStreams; LoRA has r = 7, more parameters. 200 steps, one learning rate;
           the score is the mean over tasks of the held-out error relative to the same decoders on the frozen encoder
"""

from __future__ import annotations

import copy

import torch
from _harness import Table, descend, main
from torch import Tensor, nn
from torch.nn import functional as F

import adaptome as ad

TASKS = ("mask", "edges", "stripes", "depth")
SIDE, STEPS, RATE = 16, 200, 5e-3
STAGES = {f"encoder.layers.{i}.blocks.1": f"encoder.layers.{i}" for i in (0, 1)}
LAST = tuple(f"*layers.{i}.blocks.1.*" for i in (0, 1))


def scene(count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Images [n, 1, 16, 16], a map [n, 16, 16] for every task, and the classes that the pretraining tells apart."""

    def draw(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(count, generator=generator))[:, None, None]

    y, x = (t[None].float() for t in torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"))
    kind = torch.randint(2, (count,), generator=generator)
    turn = torch.randint(4, (count,), generator=generator)
    angle = (turn * torch.pi / 4)[:, None, None]
    dx, dy, size = x - draw(5, 11), y - draw(5, 11), draw(2.5, 5.0)
    far = torch.where(kind[:, None, None] == 0, (dx**2 + dy**2).sqrt(), torch.maximum(dx.abs(), dy.abs()))
    mask = (far < size).float()
    stripes = torch.sin((x * torch.cos(angle) + y * torch.sin(angle)) * 1.6 + draw(0, 6.28))
    near = F.max_pool2d(mask[:, None], 3, 1, 1)[:, 0]
    depth = mask * (1 - far / size) + (1 - mask) * y / SIDE
    image = mask * draw(0.5, 1.5) + (1 - mask) * 0.7 * stripes
    image = image + 0.1 * torch.randn(image.shape, generator=generator)
    maps = {"mask": mask, "edges": near - mask, "stripes": (1 - mask) * torch.cos(2 * angle), "depth": depth}
    return image[:, None], maps, kind * 4 + turn


class Dense(nn.Module):
    """The encoder with a linear decoder for every task on both stages' 4 x 4 tokens."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.decoders = nn.ModuleDict({task: nn.Linear(64, 16) for task in TASKS})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = ad.TaskStreams(self.encoder, TASKS, STAGES)(images)
        made = {}
        for task, decoder in self.decoders.items():
            pixels = decoder(torch.cat([stage[task] for stage in features], -1))  # [n, 16 tokens, 4 x 4]
            made[task] = pixels.view(-1, 4, 4, 4, 4).transpose(2, 3).reshape(-1, SIDE, SIDE)
        return made


def encoder(seed: int) -> nn.Module:
    """A Swin that tells shapes and stripes apart."""
    from transformers import SwinConfig, SwinModel

    config = SwinConfig(image_size=SIDE, patch_size=2, num_channels=1, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, drop_path_rate=0.0)  # fmt: skip
    model = nn.ModuleDict({"swin": SwinModel(config, add_pooling_layer=False), "head": nn.Linear(32, 8)})

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        images, _, classes = scene(32, generator)
        return F.cross_entropy(model["head"](model["swin"](images).last_hidden_state.mean(1)), classes)  # type: ignore[index]

    descend(model, loss, 200, 3e-3, seed, adapted=False)
    return model["swin"]


def errors(model: nn.Module) -> dict[str, float]:
    """Mean squared error of every task on fixed images."""
    images, maps, _ = scene(256, torch.Generator().manual_seed(12345))
    with torch.no_grad():
        made = model(images)
    return {task: float(F.mse_loss(made[task], maps[task])) for task in TASKS}


def measure(seed: int, table: Table) -> None:
    base = Dense(encoder(seed))
    spread = {task: float(m.var()) for task, m in scene(512, torch.Generator().manual_seed(1))[1].items()}

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        images, maps, _ = scene(16, generator)
        made = model(images)
        return torch.stack([F.mse_loss(made[task], maps[task]) / spread[task] for task in TASKS]).sum()

    attached = {
        "decoders alone": None,
        "lora r=7, shared": ("lora", {"r": 7, "alpha": 7.0}),
        "mtlora r=4, 2 a task": ("mtlora", {"r": 4, "task_r": 2, "scale": 1.0, "tasks": TASKS, "specific": LAST}),
    }  # fmt: skip
    frozen: dict[str, float] = {}
    for label, chosen in attached.items():
        model, count = copy.deepcopy(base), 0
        model.encoder.requires_grad_(False)
        if chosen is not None:
            plan = ad.attach(model.encoder, chosen[0], targets="all-linear", exclude="*.reduction", seed=seed, **chosen[1])  # fmt: skip
            count = plan.trainable
        descend(model, loss, STEPS, RATE, seed, adapted=chosen is not None)
        seen = errors(model)
        frozen = frozen or seen
        table.add(label, sum(seen[t] / frozen[t] for t in TASKS) / len(TASKS), count)
        for task in TASKS:
            table.add(f"({task}: {label})", seen[task] / frozen[task])


def judge(table: Table) -> dict[str, bool]:
    alone, shared, own = (k for k in table.values if not k.startswith("("))
    return {
        "mtlora has no more parameters than lora": table.parameters[own] <= table.parameters[shared],
        "mtlora below the shared lora, every seed": table.below(own, shared),
        "the shared lora below the decoders alone, every seed": table.below(shared, alone),
    }


if __name__ == "__main__":
    main(__doc__, "error relative to frozen features", measure, judge)
