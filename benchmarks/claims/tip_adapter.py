"""A cache of a few labelled features lifts a zero-shot classifier without training, and training its keys lifts it further.

claim      Zhang et al. 2021, arXiv:2111.03930: Tip-Adapter beats zero-shot CLIP with nothing trained, from one to sixteen samples a class,
           and Tip-Adapter-F beats Tip-Adapter. Gao et al. 2021, arXiv:2110.04544: CLIP-Adapter beats zero-shot CLIP as well
miniature  a CLIP-like pair, an image encoder and an embedding of the ten digits' names, is trained contrastively here on one domain of
           scikit-learn's digits (moved a pixel to the right, noisy) and used on another (as they are). The cache holds 4 or 16
           samples a class. Tip-Adapter's alpha and beta come from a grid, by the accuracy on 500 validation images, as the paper's do;
           Tip-Adapter-F keeps them. What trains sees the same shots for 100 steps at the better of two learning rates on those images. The
           figure is the error on 797 test images; a seed draws the pair, the shots and the splits
"""

from __future__ import annotations

import copy

import torch
from _harness import Table, descend, main
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import adaptome as ad
from adaptome.methods.bottleneck.tip_adapter import tip_adapter, zero_shot_head

SHOTS, D, SCALE = (4, 16), 32, 20.0
ALPHAS, BETAS, RATES = (0.3, 1.0, 3.0, 10.0), (1.0, 3.0, 5.5, 10.0), (1e-3, 1e-2)


class Pair(nn.Module):
    """An image encoder and the names of the classes; both give features of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, D))
        self.text = nn.Embedding(10, D)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.image(x), dim=-1)


class Classifier(nn.Module):
    """The image encoder's last map, and the zero-shot head on features of length 1."""

    def __init__(self, pair: Pair):
        super().__init__()
        self.pair, self.head = pair, zero_shot_head(pair.text.weight.detach(), SCALE)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pair(x))


def other_domain(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images [n, 64] moved a pixel to the right, with noise."""
    return x.view(-1, 8, 8).roll(1, 2).flatten(1) + 0.3 * torch.randn(x.shape, generator=generator)


def pretrained(x: Tensor, y: Tensor, seed: int) -> Pair:
    """The pair after contrastive training on the other domain."""
    torch.manual_seed(seed)
    pair = Pair()

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        pick = torch.randint(len(x), (64,), generator=generator)
        names = F.normalize(pair.text(y[pick]), dim=-1)
        scores = SCALE * model(other_domain(x[pick], generator)) @ names.T
        same = (y[pick][:, None] == y[pick]).float()
        same = same / same.sum(1, keepdim=True)
        return -(same * scores.log_softmax(1) + same * scores.T.log_softmax(1)).sum(1).mean()  # type: ignore[no-any-return]

    descend(pair, loss, 300, 3e-3, seed, adapted=False)
    return pair


def measure(seed: int, table: Table) -> None:
    digits = load_digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(digits.target), generator=generator)
    x = torch.tensor(digits.data / 16, dtype=torch.float32)[order]
    y = torch.tensor(digits.target)[order]
    pool, validation, test = slice(0, 500), slice(500, 1000), slice(1000, None)
    base = Classifier(pretrained(x[pool], y[pool], seed))

    def error(model: nn.Module, part: slice) -> float:
        with torch.no_grad():
            return 100 * float((model.eval()(x[part]).argmax(-1) != y[part]).float().mean())

    def trained(models: list[nn.Module], shots: Tensor) -> nn.Module:
        def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
            return F.cross_entropy(model(x[shots]), y[shots])

        for model, rate in zip(models, RATES, strict=True):
            descend(model, loss, 100, rate, seed)
        return min(models, key=lambda model: error(model, validation))

    table.add("zero-shot", error(base, test))
    for k in SHOTS:
        shots = torch.cat([(y[pool] == c).nonzero()[:k, 0] for c in range(10)])
        with torch.no_grad():
            features = base.pair(x[shots])

        def cached(alpha: float, beta: float, train_keys: bool = False) -> nn.Module:
            model = copy.deepcopy(base)
            tip_adapter(model, features, y[shots], alpha=alpha, beta=beta, train_keys=train_keys)  # noqa: B023
            return model

        best = min(((a, b) for a in ALPHAS for b in BETAS), key=lambda pair: error(cached(*pair), validation))
        table.add(f"tip-adapter, {k} shots", error(cached(*best), test))
        keys = trained([cached(*best, True) for _ in RATES], shots)
        table.add(f"tip-adapter-f, {k} shots", error(keys, test), ad.trainable(keys).count)
        mixed = [copy.deepcopy(base) for _ in RATES]
        for model in mixed:
            ad.attach(model, "clip-adapter", targets="pair.image.2", seed=seed)
        table.add(
            f"clip-adapter, {k} shots", error(trained(mixed, shots), test), ad.trainable(mixed[0]).count
        )


def judge(table: Table) -> dict[str, bool]:
    parts = {}
    for k in SHOTS:
        tip, keys, mixed = (f"{name}, {k} shots" for name in ("tip-adapter", "tip-adapter-f", "clip-adapter"))
        parts[f"{k} shots: tip-adapter below zero-shot, every seed"] = table.below(tip, "zero-shot")
        parts[f"{k} shots: tip-adapter-f below tip-adapter on average"] = table.mean(keys) < table.mean(tip)
        parts[f"{k} shots: clip-adapter below zero-shot, every seed"] = table.below(mixed, "zero-shot")
    return parts


if __name__ == "__main__":
    main(__doc__, "error in percent", measure, judge)
