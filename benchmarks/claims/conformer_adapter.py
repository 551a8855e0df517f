"""The conformer adapter learns the order of neighbouring frames better than a bottleneck of its size, and a linear probe is the worst.

claim      Cappellazzo et al. 2023, arXiv:2312.03694: on a frozen spectrogram transformer the conformer adapter is better than the bottleneck
           adapter at equal parameters, and both are ahead of a linear probe
miniature  a tiny AST (hidden 32, 2 blocks, patches of 4 bands x 4 frames, 32 of them) is pretrained here to tell 12 textures apart, by where
           their energy lies and how fast it flickers, never by the order of frames. Then, frozen but for a new head, it is to tell
           gliding tones that rise from those that fall (and both from rising then falling, and falling then rising), anywhere in the
           spectrogram, in noise. Adapters beside the MLPs; the bottleneck has at least as many parameters. The figure is the share
           of wrong answers; guessing gives 0.75
seen       the conformer adapter is far ahead of both; the bottleneck is a little better than the probe
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from _harness import Loss, Score, Table, adapt, descend, main
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ASTConfig, ASTForAudioClassification

FRAMES, BANDS, BATCH, STEPS = 32, 16, 32, 250
RATES = (3e-3, 1e-2)
SIZE, KERNEL = 4, 15
Draw = Callable[[torch.Generator, int], tuple[Tensor, Tensor]]


def textures(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Energy in one of 4 ranges of bands, flickering at one of 3 rates, in noise: `[count, frames, bands]` and its class."""
    where, rate = (torch.randint(high, (count, 1, 1), generator=generator) for high in (4, 3))
    phase = 2 * torch.pi * torch.rand(count, 1, 1, generator=generator)
    time, band = torch.arange(FRAMES)[None, :, None], torch.arange(BANDS)[None, None]
    cycles = torch.tensor([1.0, 3.0, 8.0])[rate]
    envelope = 1.5 + 1.5 * torch.cos(2 * torch.pi * cycles * time / FRAMES + phase)
    inside = (band // (BANDS // 4) == where).float()
    noise = torch.randn(count, FRAMES, BANDS, generator=generator)
    return inside * envelope + 0.5 * noise, (3 * where + rate).flatten()


def glides(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """A tone that rises, falls, rises then falls, or falls then rises, from anywhere, around the ends of the spectrum."""
    kind = torch.randint(4, (count, 1, 1), generator=generator)
    start = BANDS * torch.rand(count, 1, 1, generator=generator)
    speed = 0.4 + 0.4 * torch.rand(count, 1, 1, generator=generator)
    time, band = torch.arange(FRAMES)[None, :, None], torch.arange(BANDS)[None, None]
    turned = (FRAMES / 2 - (time - FRAMES / 2).abs()) * (kind >= 2) + time * (kind < 2)
    place = (start + speed * turned * (1 - 2 * (kind % 2))) % BANDS
    away = torch.minimum((band - place) % BANDS, (place - band) % BANDS)
    noise = torch.randn(count, FRAMES, BANDS, generator=generator)
    return 2 * torch.exp(-((away / 1.2) ** 2)) + 0.5 * noise, kind.flatten()


def loss_of(draw: Draw) -> Loss:
    """Cross-entropy on a fresh batch."""

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        x, y = draw(generator, BATCH)
        return F.cross_entropy(model(input_values=x).logits, y)

    return loss


def errors_of(draw: Draw, count: int = 1000) -> Score:
    """The share of wrong answers on fixed examples."""
    x, y = draw(torch.Generator().manual_seed(99), count)

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model.eval()(input_values=x).logits.argmax(-1) != y).float().mean())

    return score


def pretrained(seed: int) -> tuple[nn.Module, float]:
    """The base with a new head, and its errors on textures."""
    torch.manual_seed(seed)
    config = ASTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, patch_size=4, frequency_stride=4, time_stride=4,
        max_length=FRAMES, num_mel_bins=BANDS, num_labels=12,
    )  # fmt: skip
    model = ASTForAudioClassification(config)
    descend(model, loss_of(textures), 800, 3e-3, seed, adapted=False)
    errors = errors_of(textures)(model)
    model.classifier.dense = nn.Linear(32, 4)
    return model, errors


def probe(base: nn.Module, loss: Loss, score: Score, seed: int) -> tuple[float, int]:
    """The head alone, at the learning rate that is best."""
    seen = []
    for rate in RATES:
        model = copy.deepcopy(base).requires_grad_(False)
        head = model.classifier.requires_grad_(True)
        descend(model, loss, STEPS, rate, seed, adapted=False)
        seen.append(score(model))
    return min(seen), sum(p.numel() for p in head.parameters())


def measure(seed: int, table: Table) -> None:
    base, errors = pretrained(seed)
    table.add("textures, when pretrained", errors)
    loss, score = loss_of(glides), errors_of(glides)
    table.add("linear probe", *probe(base, loss, score, seed))
    sizes = {"size": SIZE, "kernel": KERNEL}
    common = dict(steps=STEPS, rates=RATES, seed=seed, targets="mlp-blocks", train="classifier")
    conformer = adapt(base, "conformer-adapter", loss, score, **common, **sizes)
    table.add("conformer adapter", conformer.value, conformer.parameters)
    bottleneck = adapt(base, "adaptformer", loss, score, **common, size=9, scale=1.0, activation="gelu")
    table.add("bottleneck adapter", bottleneck.value, bottleneck.parameters)


def judge(table: Table) -> dict[str, bool]:
    counts = table.parameters
    return {
        "the base tells textures apart": table.mean("textures, when pretrained") < 0.1,
        "the conformer has no more parameters": counts["conformer adapter"] <= counts["bottleneck adapter"],
        "conformer below bottleneck, every seed": table.below("conformer adapter", "bottleneck adapter"),
        "conformer below the probe by a quarter, every seed": table.below(
            "conformer adapter", "linear probe", by=0.25
        ),
        "the probe is the worst, every seed": table.below("bottleneck adapter", "linear probe"),
    }


if __name__ == "__main__":
    main(__doc__, "share of wrong answers", measure, judge)
