"""Polyhistor-Lite adapts one Swin to three dense tasks better than LoRAs of its size, and nearly as well as far larger hypernetworks.

claim      Liu et al. 2022, arXiv:2210.03265: generated adapters with decomposed hypernetworks and scaling kernels (0.41M parameters) beat
           decoders alone and LoRA of about their size on PASCAL-Context, and come near HyperFormer, whose hypernetworks are 170 times as large
miniature  a tiny Swin (widths 16 to 128, a block each), pretrained here to name the form of a flat patch of colour, is adapted to three tasks on
           pictures of two shaded domes: their forms for every pixel (mean IoU), their outlines (maximal F), their surface normals (mean angle
           on the domes). Each task has a decoder that trains too, a linear map of every stage, so that frozen features do not do. LoRA has a
           pair for every task on the same maps, 0.96 of Lite's parameters. Steps, batches and the learning rate are equal; the rate
           was the better one of 5e-3 and 2e-2 for each of them on a seed that is not reported. The figure is minus Delta_m, the mean
           relative gain over decoders alone, in percent. "Near" is at least four fifths of HyperFormer's gain. Below 1 % of HyperFormer's
           hypernetworks Lite's cannot be at these widths: the share is printed; on Swin-T it is 0.53 %. All seeds share the base and the
           1,000 pictures; they draw the adapters, the decoders and the batches
seen       all adapters gain far more than the spread; Lite has 0.72 of HyperFormer's gain, and LoRA as much as HyperFormer, see README.md
"""

from __future__ import annotations

import copy
import functools

import torch
from _harness import Measure, Table, adapt, descend, main
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SwinConfig, SwinModel

import adaptome as ad
from adaptome.tasks.metrics import delta_m, normals_metrics, saliency_metrics

TASKS = ("segment", "outline", "normals")
OUTPUTS, WEIGHTS, WIDTHS = (4, 1, 3), (1.0, 5.0, 10.0), (16, 32, 64, 128)
PLACES = ["*.attention.o_proj", "*.mlp.fc2"]
SIZE, BATCH, STEPS, RATE, POOL = 32, 8, 300, 2e-2, 1000
HYPER = {"tasks": TASKS, "k": 16}
METHODS = {
    "lora for each task": ("omni-lora", {"layout": "T", "tasks": TASKS, "r": 3, "alpha": 6.0}),
    "polyhistor-lite": ("polyhistor-lite", {**HYPER, "r": 2}),
    "hyperformer": ("polyhistor", {**HYPER, "decompose": False}),
}
LORA, LITE, HYPERFORMER = METHODS
BASE, ALONE = "shapes named wrongly when pretrained", "decoders alone"


# -- pictures ------------------------------------------------------------------------------------------------------


def pictures(count: int, generator: torch.Generator, flat: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Images [n, 3, 32, 32] of two domes, discs, squares or triangles, every pixel's class [n, 16, 16] and normal [n, 16, 16, 3], 0 beside them.

    `flat` draws one shape, without relief and so without shading.
    """
    grid = torch.arange(SIZE).float()
    y, x = grid[:, None], grid[None, :]
    label = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    normal = torch.tensor([0.0, 0.0, 1.0]).expand(count, SIZE, SIZE, 3).clone()
    colour = 0.4 * torch.rand(count, 3, 1, 1, generator=generator).expand(-1, -1, SIZE, SIZE).clone()
    for _ in range(1 if flat else 2):
        kind = torch.randint(1, 4, (count, 1, 1), generator=generator)
        cx, cy = (8 + 16 * torch.rand(count, 1, 1, generator=generator) for _ in range(2))
        radius = 6 + 5 * torch.rand(count, 1, 1, generator=generator)
        u, v = torch.broadcast_tensors((x - cx) / radius, (y - cy) / radius)
        inside = torch.where(kind == 1, u**2 + v**2 < 1, torch.where(kind == 2, (u.abs() < 0.8) & (v.abs() < 0.8), (v < 0.8) & (v > 2 * u.abs() - 1)))  # fmt: skip
        up = (1 - (u**2 + v**2) / 2).clamp(min=0.1).sqrt()
        dome = F.normalize(torch.stack([u * 0.7, v * 0.7, up], -1), dim=-1)
        paint = 0.4 + 0.6 * torch.rand(count, 3, 1, 1, generator=generator)
        label = torch.where(inside, kind, label)
        normal = normal if flat else torch.where(inside[..., None], dome, normal)
        colour = torch.where(inside[:, None], paint, colour)
    light = F.normalize(torch.tensor([0.5, -0.5, 0.7]), dim=0)
    image = colour * (0.3 + 0.7 * (normal @ light).clamp(min=0))[:, None]
    image = (image - 0.3) / 0.2  # patches are normalised one by one: off zero, brightness would be lost
    noisy = image + 0.2 * torch.randn(image.shape, generator=generator)
    normal = torch.where(label[..., None] > 0, normal, 0.0)
    return noisy, label[:, ::2, ::2], normal[:, ::2, ::2]


def outline(label: Tensor) -> Tensor:
    """Where a neighbour is of another class."""
    wide = label[:, None].float()
    return (F.max_pool2d(wide, 3, 1, 1) != -F.max_pool2d(-wide, 3, 1, 1))[:, 0].float()


# -- the model -----------------------------------------------------------------------------------------------------


class Decoder(nn.Module):
    """A linear map of every stage's features, upsampled to the first one's size and summed: what is not linear, the encoder has to do."""

    def __init__(self, outputs: int):
        super().__init__()
        self.maps = nn.ModuleList([nn.Sequential(nn.GroupNorm(1, width), nn.Conv2d(width, outputs, 1)) for width in WIDTHS])  # fmt: skip

    def forward(self, stages: list[Tensor]) -> Tensor:
        parts = [m(h) for m, h in zip(self.maps, stages, strict=True)]
        return torch.stack([F.interpolate(p, parts[0].shape[-2:], mode="bilinear") for p in parts]).sum(0)


class Dense(nn.Module):
    """One encoder and a decoder for each task; hypernetworks serve all tasks in one pass, LoRA in one for each."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.decoders = nn.ModuleDict({t: Decoder(n) for t, n in zip(TASKS, OUTPUTS, strict=True)})

    def stages(self, images: Tensor) -> list[Tensor]:
        return list(self.encoder(images, output_hidden_states=True).reshaped_hidden_states[:4])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {task: self.decoders[task](stages) for task, stages in self.features(images).items()}

    def features(self, images: Tensor) -> dict[str, list[Tensor]]:
        """The stages of every task."""
        attached = ad.adapters(self)
        if not attached:
            with torch.no_grad():
                return dict.fromkeys(TASKS, self.stages(images))
        if "polyhistor" in attached["default"].method.name:
            with ad.steer(task=torch.arange(len(TASKS)).repeat_interleave(len(images))):
                chunks = [h.chunk(len(TASKS)) for h in self.stages(images.repeat(len(TASKS), 1, 1, 1))]
            return {task: [h[i] for h in chunks] for i, task in enumerate(TASKS)}
        made = {}
        for task in TASKS:
            with ad.steer(task=task):
                made[task] = self.stages(images)
        return made


@functools.cache
def training() -> tuple[Tensor, Tensor, Tensor]:
    """What all adapt to."""
    return pictures(POOL, torch.Generator().manual_seed(77))


def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
    """The weighted sum of the tasks' losses."""
    rows = torch.randint(POOL, (BATCH,), generator=generator)
    images, label, normal = (t[rows] for t in training())
    out = model(images)
    made = (
        F.cross_entropy(out["segment"], label),
        F.binary_cross_entropy_with_logits(out["outline"][:, 0], outline(label)),
        (F.normalize(out["normals"].movedim(1, -1), dim=-1) - normal)[label > 0].abs().mean(),
    )
    return sum((w * value for w, value in zip(WEIGHTS, made, strict=True)), torch.zeros(()))


@functools.cache
def held_out() -> tuple[Tensor, Tensor, Tensor]:
    return pictures(256, torch.Generator().manual_seed(999))


def scores(model: nn.Module) -> dict[str, float]:
    """Mean IoU, maximal F and mean angle on unseen pictures."""
    images, label, normal = held_out()
    with torch.no_grad():
        out = model.eval()(images)
    found = out["segment"].argmax(1)
    ious = [((found == c) & (label == c)).sum() / ((found == c) | (label == c)).sum() for c in range(4)]
    edges = saliency_metrics(out["outline"][:, 0].sigmoid().numpy(), outline(label).numpy())
    angles = normals_metrics(out["normals"].movedim(1, -1).numpy(), normal.numpy())
    return {
        "segment": float(torch.stack(ious).mean()),
        "outline": edges["max_f"],
        "normals": angles["mean"],
    }


def kinds(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Flat pictures, and the form in each."""
    images, label, _ = pictures(count, generator, flat=True)
    return images, label.flatten(1).amax(1) - 1


def pretrained() -> tuple[nn.Module, float]:
    """A tiny Swin that learned to name the shape in a picture, and the share that it names wrongly of unseen ones."""
    torch.manual_seed(0)
    config = SwinConfig(
        image_size=SIZE, patch_size=2, embed_dim=16, depths=[1] * 4, num_heads=[2, 2, 4, 4], window_size=2, mlp_ratio=2.0, drop_path_rate=0.0, initializer_range=0.1,
    )  # fmt: skip
    encoder, head = SwinModel(config, add_pooling_layer=False), nn.Linear(WIDTHS[-1], 3)
    x, y = kinds(torch.Generator().manual_seed(5), 3000)

    def named(images: Tensor) -> Tensor:
        return head(encoder(images).last_hidden_state.mean(1))  # type: ignore[no-any-return]

    def naming(model: nn.Module, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(x), (24,), generator=generator)
        return F.cross_entropy(named(x[rows]), y[rows])

    descend(nn.ModuleList([encoder, head]), naming, 500, 3e-3, seed=0, adapted=False)
    unseen, truth = kinds(torch.Generator().manual_seed(6), 500)
    with torch.no_grad():
        return encoder, float((named(unseen).argmax(1) != truth).float().mean())


def decoders_alone(base: nn.Module, seed: int) -> nn.Module:
    """The base with its decoders trained."""
    model = copy.deepcopy(base)
    model.get_submodule("encoder").requires_grad_(False)
    descend(model, loss, STEPS, RATE, seed, adapted=False)
    return model


def measurement() -> Measure:
    """The function that measures a seed; the encoder is pretrained once."""
    encoder, wrong = pretrained()

    def measure(seed: int, table: Table) -> None:
        torch.manual_seed(seed)
        base = Dense(copy.deepcopy(encoder))
        alone = scores(decoders_alone(base, seed))

        def score(model: nn.Module) -> float:
            return -delta_m(scores(model), alone, ["normals"])

        table.add(BASE, 100 * wrong)
        table.add(ALONE, 0.0)
        for label, (method, settings) in METHODS.items():
            seen = adapt(base, method, loss, score, steps=STEPS, rates=[RATE], seed=seed, targets=PLACES, train="decoders", **settings)  # fmt: skip
            own = ad.trainable(seen.model).roles
            table.add(label, seen.value, sum(n for role, n in own.items() if role != "head"))

    return measure


def hypernetworks(method: str, settings: dict[str, object]) -> int:
    """Numbers in what generates the adapters, on the tiny Swin."""
    model = SwinModel(SwinConfig(embed_dim=16, depths=[1] * 4, num_heads=[2, 2, 4, 4], mlp_ratio=2.0))
    ad.attach(model, method, targets=PLACES, **settings)
    return sum(p.numel() for key, p in ad.parameters_of(model).items() if ".H." in key)


def judge(table: Table) -> dict[str, bool]:
    share = hypernetworks(*METHODS[LITE]) / hypernetworks(*METHODS[HYPERFORMER])
    near = table.mean(LITE) / table.mean(HYPERFORMER)
    less = table.parameters[LORA] / table.parameters[LITE]
    return {
        f"parameters: lora has {less:.2f} of lite's": 0.9 < less < 1.1,
        "the base names at most a tenth of the flat shapes wrongly": table.mean(BASE) <= 10,
        "every adapter beats decoders alone, every seed": all(table.below(m, ALONE) for m in METHODS),
        "lite beats lora on average": table.mean(LITE) < table.mean(LORA),
        f"lite has {near:.2f} of hyperformer's gain with {share:.1%} of its hypernetworks, at least 0.8": near
        >= 0.8,
    }


if __name__ == "__main__":
    main(__doc__, "minus Delta_m in percent", measurement(), judge)
