"""LoRA with PYRA is better than LoRA on a model that merges tokens as ToMe does, at a high rate and no more parameters.

claim      Xiong et al. 2024, arXiv:2403.09192: token merging at high rates hurts an adapted model; two vectors a layer that weigh the tokens
           about to disappear, trained with LoRA on the task alone, win much of it back, at the inference cost of plain merging
miniature  a ViT of 4 blocks and 50 tokens is pretrained here on pictures of a red, a green and a blue grating among noise, to name the
           directions of the red and the green one, and adapted to name the blue one's (LoRA on q, k, v, 200 steps, the better of two learning
           rates for each method). The high rate leaves 8 of 50 tokens. LoRA beside ToMe has rank 5 and LoRA beside PYRA rank 4, so PYRA has
           fewer parameters. Five seeds draw pretraining, task and adapters.
           Times: a forward and a training step (LoRA r = 4) of a ViT with ViT-B's depth and schedule, 192 wide, on the CPU
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from _harness import Table, adapt, descend, main
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

import adaptome as ad

HIGH = (16, 12, 8, 6)
UNMERGED, TOME, PYRA = "lora r=4, nothing merged", "lora r=5, tome", "lora r=4, pyra"
FORWARD, STEP = "forward of {}, share of the unmerged", "training step of {}, share of the unmerged"


def pictures(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures `[count, 3, 28, 28]`, and the directions `[count, 3]` (0 to 3) of their red, green and blue gratings of 8 x 8."""
    x = 0.5 * torch.randn(count, 3, 28, 28, generator=generator)
    directions = torch.randint(4, (count, 3), generator=generator)
    corners = torch.stack([torch.randperm(9, generator=generator)[:3] for _ in range(count)])
    angle = directions[..., None, None] * torch.pi / 4
    across = torch.arange(8.0)[:, None] * angle.cos() + torch.arange(8.0) * angle.sin()
    gratings = torch.sin(1.6 * across)
    for i in range(count):
        for colour, corner in enumerate(corners[i].tolist()):
            top, left = corner // 3 * 8, corner % 3 * 8
            x[i, colour, top : top + 8, left : left + 8] += 1.5 * gratings[i, colour]
    return x, directions


def loss_on(x: Tensor, y: Tensor) -> Callable[[nn.Module, torch.Generator], Tensor]:
    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(x), (32,), generator=generator)
        return F.cross_entropy(model(x[rows]).logits, y[rows])

    return loss


def error_on(x: Tensor, y: Tensor) -> Callable[[nn.Module], float]:
    def error(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(x).logits.argmax(-1) != y).float().mean())

    return error


def base(generator: torch.Generator) -> nn.Module:
    config = ViTConfig(
        image_size=28, patch_size=4, hidden_size=48, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_labels=16
    )  # fmt: skip
    model = ViTForImageClassification(config)
    x, directions = pictures(4000, generator)
    descend(model, loss_on(x, 4 * directions[:, 0] + directions[:, 1]), 500, 2e-3, 0, adapted=False)
    model.classifier = nn.Linear(48, 4)
    return model


def measure(seed: int, table: Table) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = base(generator)
    (x, y), (held, truth) = pictures(1000, generator), pictures(1000, generator)
    loss, score = loss_on(x, y[:, 2]), error_on(held, truth[:, 2])

    def beside(r: int) -> Callable[[nn.Module], None]:
        return lambda model: print(end="") if ad.attach(model, "lora", "lora", targets="qkv", r=r, seed=seed) else None

    how = {"steps": 200, "rates": (3e-3, 1e-2), "seed": seed, "train": "classifier"}
    for label, seen in (
        (UNMERGED, adapt(model, "lora", loss, score, targets="qkv", r=4, **how)),
        (TOME, adapt(model, "pyra", loss, score, targets=None, r=HIGH, modulate=False, prepare=beside(5), **how)),
        (PYRA, adapt(model, "pyra", loss, score, targets=None, r=HIGH, prepare=beside(4), **how)),
    ):  # fmt: skip
        table.add(label, seen.value, ad.trainable(seen.model).count)
    times(table)


def times(table: Table) -> None:
    """Medians over rounds in which every variant has its turn."""
    config = ViTConfig(hidden_size=192, intermediate_size=768, num_attention_heads=3, num_labels=10)
    models: dict[str, nn.Module] = {}
    for name, settings in (("unmerged", None), ("tome", {"modulate": False}), ("pyra", {})):
        torch.manual_seed(0)
        models[name] = ViTForImageClassification(config).eval()
        if settings is not None:
            ad.attach(models[name], "pyra", r="vit-b-high", **settings)
        ad.attach(models[name], "lora", "lora", targets="qkv", r=4)
    x = torch.randn(4, 3, 224, 224)
    forward: dict[str, list[float]] = {name: [] for name in models}
    step: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(4):
        for name, model in models.items():
            start = time.perf_counter()
            with torch.no_grad():
                model(x)
            middle = time.perf_counter()
            model(x).logits.sum().backward()
            forward[name].append(middle - start)
            step[name].append(time.perf_counter() - middle)
    for text, seen in ((FORWARD, forward), (STEP, step)):
        for name in ("tome", "pyra"):
            table.add(text.format(name), statistics.median(seen[name]) / statistics.median(seen["unmerged"]))


def judge(table: Table) -> dict[str, bool]:
    return {
        "pyra has no more parameters than tome": table.parameters[PYRA] <= table.parameters[TOME],
        "pyra's mean error below tome's": table.mean(PYRA) < table.mean(TOME),
        "merging hurts: tome's mean error above the unmerged model's": table.mean(TOME) > table.mean(UNMERGED),
        "a forward takes at most half of the unmerged one's time": table.mean(FORWARD.format("pyra")) < 0.5,
        "so does a training step": table.mean(STEP.format("pyra")) < 0.5,
    }  # fmt: skip


if __name__ == "__main__":
    main(__doc__, "error, or share", measure, judge)
