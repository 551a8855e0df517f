"""DivControl's learngenes carry over to a new condition, which then needs few samples and a small tailor.

claim      arXiv:2507.23620: a network whose factors are split into learngenes, used by all conditions, and tailors, mixed by a gate that reads
           the condition, serves related conditions without training and learns new ones from few samples; the same small update on
           a base that was not trained so, or on one trained without diversion, does worse
miniature  three residual layers. A condition is one of four families; each layer's right weight is the base's plus a change of rank 6 that all
           conditions share plus one of rank 3 of the family. An instruction is the family's vector plus noise. Three families train the
           factors (Adam, 600 steps); without diversion: the same layers, dense, trained alike on the same batches. Related
           condition: new instructions of a known family, untrained, against an even gate and the dense model; and how alike gates are. New condition: the
           fourth family, 48 samples, 150 steps of a LoRA r = 3 beside the frozen model, the best of two learning rates
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from _harness import Table, descend, main
from _planted import Stack
from torch import Tensor, nn
from torch.nn import functional as F

import adaptome as ad

DEPTH, WIDTH, FAMILIES, TEXT = 3, 32, 4, 16
SHARED, OWN, SAMPLES = 6, 3, 48
RATES = (3e-3, 1e-2)
SETTINGS = {"tailors": 8, "active": 4, "rescale": True, "text": TEXT, "hidden": 16}


class World:
    """The teachers of all families, and their instructions."""

    def __init__(self) -> None:
        self.base = Stack(DEPTH, WIDTH)
        self.vectors = torch.randn(FAMILIES, TEXT)
        together = [update(SHARED) for _ in range(DEPTH)]
        self.teachers = [copy.deepcopy(self.base).requires_grad_(False) for _ in range(FAMILIES)]
        for teacher in self.teachers:
            for layer, change in zip(teacher.layers, together, strict=True):
                size = layer.weight.norm()  # type: ignore[operator]
                layer.weight += size * (change + 0.7 * update(OWN))  # type: ignore[operator]

    def instruction(self, family: int, generator: torch.Generator) -> Tensor:
        """One wording."""
        return self.vectors[family] + 0.3 * torch.randn(TEXT, generator=generator)

    def data(self, family: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Samples of one family."""
        x = torch.randn(count, WIDTH, generator=generator)
        return x, self.teachers[family](x)

    def error(self, model: nn.Module, family: int, **facts: Any) -> float:
        """Relative to the untrained base's."""
        generator = torch.Generator().manual_seed(54321)
        x, y = self.data(family, 1024, generator)
        with torch.no_grad():
            facts = facts or {"instruction": self.instruction(family, generator)}
            with ad.steer(**facts):
                return float(F.mse_loss(model(x), y) / F.mse_loss(self.base(x), y))


def update(rank: int) -> Tensor:
    """A random matrix of this rank and norm 1."""
    product = torch.randn(WIDTH, rank) @ torch.randn(rank, WIDTH)
    return product / product.norm()


def gates(model: nn.Module, instruction: Tensor) -> Tensor:
    """The weights of all tailors, 0 where one does not run."""
    adapter = next(iter(ad.adapters(model)["default"].adapters.values()))
    with ad.steer(instruction=instruction), torch.no_grad():
        share, chosen = adapter.gate()  # type: ignore[operator]
    return torch.zeros(SETTINGS["tailors"]).index_put((chosen,), share)  # type: ignore[arg-type]


def measure(seed: int, table: Table) -> None:
    world = World()

    def conditions(model: nn.Module, generator: torch.Generator) -> Tensor:
        losses = []
        for family in range(FAMILIES - 1):
            x, y = world.data(family, 32, generator)
            with ad.steer(instruction=world.instruction(family, generator)):
                losses.append(F.mse_loss(model(x), y))
        return torch.stack(losses).sum()

    diverted, dense = copy.deepcopy(world.base), copy.deepcopy(world.base)
    ad.attach(diverted, "divcontrol", targets="layers.*", seed=seed, **SETTINGS)
    descend(diverted, conditions, 600, 3e-3, seed)
    ad.set_trainable(diverted, "default", False)
    descend(dense, conditions, 600, 3e-3, seed, adapted=False)
    even = torch.full((SETTINGS["tailors"],), SETTINGS["active"] / SETTINGS["tailors"])  # type: ignore[operator]
    for label, model, facts in (
        ("gate", diverted, {}),
        ("even gate", diverted, {"gate": even}),
        ("dense", dense, {}),
    ):
        known = [world.error(model, family, **facts) for family in range(FAMILIES - 1)]
        table.add(f"related, untrained: {label}", sum(known) / len(known))

    generator = torch.Generator().manual_seed(7)
    told = [[gates(diverted, world.instruction(f, generator)) for _ in range(8)] for f in range(FAMILIES - 1)]
    for label, pairs in (
        ("one family", [(a, b) for row in told for a, b in itertools.combinations(row, 2)]),
        ("two families", [(a, b) for r, s in itertools.combinations(told, 2) for a in r for b in s]),
    ):
        alike = torch.stack([F.cosine_similarity(a, b, dim=0) for a, b in pairs]).mean()
        table.add(f"(cosine of the gates of {label})", float(alike))

    few = world.data(FAMILIES - 1, SAMPLES, torch.Generator().manual_seed(seed))
    name = world.instruction(FAMILIES - 1, torch.Generator().manual_seed(seed))

    def tailor(model: nn.Module, generator: torch.Generator) -> Tensor:
        return F.mse_loss(model(few[0]), few[1])

    for label, start in (("learngenes", diverted), ("base", world.base), ("dense", dense)):
        runs = []
        for rate in RATES:
            model = copy.deepcopy(start)
            count = ad.attach(model, "lora", "tailor", targets="layers.*", seed=seed, r=OWN, alpha=float(OWN)).trainable  # fmt: skip
            with ad.steer(instruction=name):
                descend(model, tailor, 150, rate, seed)
            runs.append(world.error(model, FAMILIES - 1, instruction=name))
        table.add(f"new, {SAMPLES} samples: {label}", min(runs), count)


def judge(table: Table) -> dict[str, bool]:
    new = {k: f"new, {SAMPLES} samples: {k}" for k in ("learngenes", "base", "dense")}
    return {
        "related: the gate below an even one, every seed": table.below("related, untrained: gate", "related, untrained: even gate"),
        "related: the gate below the dense model, every seed": table.below("related, untrained: gate", "related, untrained: dense"),
        "gates are more alike within a family than between two, every seed": table.below("(cosine of the gates of two families)", "(cosine of the gates of one family)"),
        "new: a tailor beside the learngenes below the same on the base, every seed": table.below(new["learngenes"], new["base"]),
        "new: and at least as good as beside the dense model on average": table.as_good(new["learngenes"], new["dense"], 0.0),
        "equal parameters": len({table.parameters[k] for k in new.values()}) == 1,
    }  # fmt: skip


if __name__ == "__main__":
    main(__doc__, "relative squared error", measure, judge)
