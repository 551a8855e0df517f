"""PETALface's two branches, mixed by each image's quality, recognise low-resolution faces better than one LoRA of equal size.

claim      Narayan et al. 2024, arXiv:2412.07771: two low-rank branches mixed by an image-quality score beat full fine-tuning on
           low-resolution sets, and keep what the base can on sharp ones, which full fine-tuning loses
miniature  a tiny ViT is trained on sharp images of 128 synthetic identities (CosFace) and adapted to 64 new ones whose images are sharp or
           reduced 2 or 4 times. Probes: 4-times reduced images of 200 identities never trained on, against one sharp image of each; the
           score is the error of rank-1 retrieval. The sharp benchmark is the same with sharp probes. Quality: the energy of the image's
           Laplacian, scaled to 0..1 on the training images, its mean there as threshold. PETALface has r = 4 in both branches, LoRA
           r = 8, q, k and v both; a = 1/2 for all images is the ablation. 100 steps, the best of two learning rates for each, full
           fine-tuning included
"""

from __future__ import annotations

import copy

import torch
from _harness import Table, descend, main
from torch import Tensor, nn
from torch.nn import functional as F

import adaptome as ad

SIDE, STEPS, BATCH = 16, 100, 32
RATES = (3e-3, 1e-2)
FULL = (3e-4, 1e-3)


class Faces:
    """Identities as smooth patterns with detail; images of them, aligned, with their own light and noise."""

    def __init__(self, count: int, generator: torch.Generator):
        parts = [torch.randn(count, 1, s, s, generator=generator) for s in (4, 8, 16)]
        smooth = [F.interpolate(p, size=SIDE, mode="bilinear", align_corners=True) for p in parts]
        self.patterns = sum(w * p for w, p in zip((0.8, 0.8, 0.5), smooth, strict=True))

    def images(self, who: Tensor, reduced: Tensor, generator: torch.Generator) -> Tensor:
        """One image of each, reduced 1, 2 or 4 times and enlarged again."""
        n = len(who)
        x = self.patterns[who] * (0.8 + 0.4 * torch.rand(n, 1, 1, 1, generator=generator))
        made = x.clone()
        for times in (2, 4):
            small = F.interpolate(F.avg_pool2d(x, times), size=SIDE, mode="bilinear")
            made = torch.where((reduced == times)[:, None, None, None], small, made)
        return made + 0.4 * torch.randn(made.shape, generator=generator)


def energy(images: Tensor) -> Tensor:
    """Log energy of the Laplacian of slightly smoothed images: low where they are blurred."""
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return F.conv2d(F.avg_pool2d(images, 2, 1), kernel).square().mean((1, 2, 3)).log()


class Recogniser(nn.Module):
    """A linear embedding of a ViT's tokens; class centres for training."""

    def __init__(self, count: int):
        super().__init__()
        from transformers import ViTConfig, ViTModel

        config = ViTConfig(image_size=SIDE, patch_size=4, num_channels=1, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.embedding = nn.Linear(17 * 32, 32)
        self.centres = nn.Parameter(torch.randn(count, 32))

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.embedding(self.vit(images).last_hidden_state.flatten(1)), dim=-1)


def cosface(model: nn.Module, images: Tensor, who: Tensor) -> Tensor:
    """Cross-entropy of 16 (cos - 0.2 at the right class)."""
    cosines = model(images) @ F.normalize(model.centres, dim=-1).T  # type: ignore[arg-type]
    return F.cross_entropy(16 * (cosines - 0.2 * F.one_hot(who, cosines.shape[1])), who)


def rank_one(model: nn.Module, faces: Faces, times: int, steered) -> float:
    """Share of the probes whose nearest gallery image is another identity's."""
    generator = torch.Generator().manual_seed(54321)
    everyone = torch.arange(len(faces.patterns))
    gallery = faces.images(everyone, torch.ones_like(everyone), generator)
    who = everyone.repeat(4)
    probes = faces.images(who, torch.full_like(who, times), generator)
    with torch.no_grad():
        a, b = (steered(model, x) for x in (gallery, probes))
    return float(((b @ a.T).argmax(1) != who).float().mean())


def measure(seed: int, table: Table) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    old, new, unseen = (Faces(n, generator) for n in (128, 64, 200))
    base = Recogniser(128)

    def sharp(model: nn.Module, generator: torch.Generator) -> Tensor:
        who = torch.randint(128, (BATCH,), generator=generator)
        return cosface(model, old.images(who, torch.ones_like(who), generator), who)

    descend(base, sharp, 250, 3e-3, seed, adapted=False)
    base.centres = nn.Parameter(torch.randn(64, 32, generator=generator))

    def mixed(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        who = torch.randint(64, (BATCH,), generator=generator)
        times = torch.tensor([1, 2, 4])[torch.randint(3, (BATCH,), generator=generator)]
        return new.images(who, times, generator), who

    known = energy(torch.cat([mixed(generator)[0] for _ in range(16)]))
    low, high = known.min(), known.max()
    threshold = float(((known - low) / (high - low)).mean())

    def by_quality(model: nn.Module, images: Tensor) -> Tensor:
        with ad.steer(quality=((energy(images) - low) / (high - low)).clamp(0, 1)):
            return model(images)

    def blind(model: nn.Module, images: Tensor) -> Tensor:
        with ad.steer(quality=threshold):
            return model(images)

    def plainly(model: nn.Module, images: Tensor) -> Tensor:
        return model(images)

    twin = ("petalface", {"r": 4, "threshold": threshold, "init": "kaiming", "scale": 2.0})
    methods = {
        "petalface": (*twin, by_quality, RATES),
        "petalface, a = 1/2": (*twin, blind, RATES),
        "lora r=8": ("lora", {"r": 8, "alpha": 16.0}, plainly, RATES),
        "full": (None, {}, plainly, FULL),
    }
    table.add("base", rank_one(base, unseen, 4, plainly))
    table.add("(sharp: base)", rank_one(base, unseen, 1, plainly))
    for label, (method, settings, steered, rates) in methods.items():
        runs = []
        for rate in rates:
            model = copy.deepcopy(base)
            count = sum(p.numel() for p in model.parameters()) - model.centres.numel()
            if method is not None:
                count = ad.attach(model.vit, method, targets="qkv", seed=seed, **settings).trainable
                model.centres.requires_grad_(True)

            def loss(model: nn.Module, generator: torch.Generator, steered=steered) -> Tensor:
                images, who = mixed(generator)
                cosines = steered(model, images) @ F.normalize(model.centres, dim=-1).T  # type: ignore[arg-type]
                return F.cross_entropy(16 * (cosines - 0.2 * F.one_hot(who, 64)), who)

            descend(model, loss, STEPS, rate, seed, adapted=method is not None)
            runs.append((rank_one(model, unseen, 4, steered), rank_one(model, unseen, 1, steered), count))
        error, sharp_error, count = min(runs)
        table.add(label, error, count)
        table.add(f"(sharp: {label})", sharp_error)


def judge(table: Table) -> dict[str, bool]:
    kept = {label: table.mean(f"(sharp: {label})") for label in ("petalface", "full")}
    return {
        "equal parameters": table.parameters["petalface"] == table.parameters["lora r=8"],
        "low resolution: petalface below the base, every seed": table.below("petalface", "base"),
        "petalface at least as good as lora on average": table.as_good("petalface", "lora r=8", 0.0),
        "petalface at least as good as without quality on average": table.as_good("petalface", "petalface, a = 1/2", 0.0),
        "petalface at least as good as full fine-tuning on average": table.as_good("petalface", "full", 0.0),
        f"sharp: full fine-tuning loses more ({kept['full']:.3f}) than petalface ({kept['petalface']:.3f})": kept["full"] > kept["petalface"],
    }  # fmt: skip


if __name__ == "__main__":
    main(__doc__, "rank-1 error", measure, judge)
