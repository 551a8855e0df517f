"""MTLoRA's task-specific outputs beat one shared LoRA of equal size in multi-task learning, and both beat frozen features.

claim      Agiza et al. 2024, arXiv:2403.20320: an update for all tasks and, where features leave for the decoders, one more for each
           task, resolve what a single shared update has to trade off
miniature  a tiny Swin (two stages of two blocks), pretrained here to tell stripes and which object lies on top, serves four dense tasks that
           want independent things of the same pixels: a disc's mask, a square's edges, the direction of the stripes behind both, and the
           shading over all. Every task has a linear decoder on the features of both stages. MTLoRA has r = 2 and a rank of 3 for each
           task in the last block of a stage, through one pass of ad.TaskStreams; LoRA has r = 6, as many parameters. Beside either,
           norms, patch embedding, patch merging and position biases are trained, as in the paper. 300 steps, one learning rate; the
           score is the mean over tasks of the held-out error relative to the same decoders on the frozen encoder
"""

from __future__ import annotations

import copy

import torch
from _harness import Table, descend, main
from torch import Tensor, nn
from torch.nn import functional as F

import adaptome as ad

TASKS = ("disc", "edges", "stripes", "shade")
SIDE, STEPS, RATE = 16, 300, 5e-3
STAGES = {f"encoder.layers.{i}.blocks.1": f"encoder.layers.{i}" for i in (0, 1)}
LAST = tuple(f"*layers.{i}.blocks.1.*" for i in (0, 1))
CHEAP = ("norm", "patch_embeddings", "reduction", "relative_position_bias_table")


def scene(count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Images [n, 1, 16, 16], a map [n, 16, 16] for every task, and the classes that the pretraining tells apart."""

    def draw(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(count, generator=generator))[:, None, None]

    y, x = (t[None].float() for t in torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"))
    turn, on_top = (
        torch.randint(4, (count,), generator=generator),
        torch.rand(count, generator=generator) < 0.5,
    )
    angle = (turn * torch.pi / 4)[:, None, None]
    dx, dy = x - draw(4, 12), y - draw(4, 12)
    disc = ((dx**2 + dy**2).sqrt() < draw(2.5, 4.5)).float()
    dx, dy = x - draw(4, 12), y - draw(4, 12)
    square = (torch.maximum(dx.abs(), dy.abs()) < draw(2, 4)).float()
    stripes = torch.sin((x * torch.cos(angle) + y * torch.sin(angle)) * 1.6 + draw(0, 6.28))
    shade = draw(-1, 1) * (x / SIDE - 0.5) + draw(-1, 1) * (y / SIDE - 0.5)
    seen = torch.where(on_top[:, None, None], disc - square * (1 - disc), disc * (1 - square) - square)
    image = 0.5 * stripes + seen + 1.5 * shade
    image = image + 0.1 * torch.randn(image.shape, generator=generator)
    edges = F.max_pool2d(square[:, None], 3, 1, 1)[:, 0] - square
    maps = {"disc": disc, "edges": edges, "stripes": torch.cos(2 * angle).expand_as(disc), "shade": shade}
    return image[:, None], maps, on_top * 4 + turn


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
    """A Swin that tells stripes, and which object is on top."""
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
        "lora r=6, shared": ("lora", {"r": 6, "alpha": 6.0}),
        "mtlora r=2, 3 a task": ("mtlora", {"r": 2, "task_r": 3, "scale": 1.0, "tasks": TASKS, "specific": LAST}),
    }  # fmt: skip
    frozen: dict[str, float] = {}
    for label, chosen in attached.items():
        model, count = copy.deepcopy(base), 0
        model.encoder.requires_grad_(False)
        if chosen is not None:
            plan = ad.attach(model.encoder, chosen[0], targets="all-linear", exclude="*.reduction", seed=seed, **chosen[1])  # fmt: skip
            cheap = [p for n, p in model.encoder.named_parameters() if any(part in n for part in CHEAP)]
            count = plan.trainable + sum(p.requires_grad_(True).numel() for p in cheap)
        descend(model, loss, STEPS, RATE, seed, adapted=chosen is not None)
        seen = errors(model)
        frozen = frozen or seen
        table.add(label, sum(seen[t] / frozen[t] for t in TASKS) / len(TASKS), count)
        for task in TASKS:
            table.add(f"({task}: {label})", seen[task] / frozen[task])


def judge(table: Table) -> dict[str, bool]:
    alone, shared, own = (k for k in table.values if not k.startswith("("))
    return {
        "equal parameters": table.parameters[own] == table.parameters[shared],
        "mtlora below the shared lora, every seed": table.below(own, shared),
        "the shared lora below the decoders alone, every seed": table.below(shared, alone),
    }


if __name__ == "__main__":
    main(__doc__, "error relative to frozen features", measure, judge)
