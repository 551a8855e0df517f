"""DoRA moves magnitudes and directions of the weights more like full fine-tuning does, and beats LoRA at low rank.

claim      Liu et al. 2024, arXiv:2402.09353: LoRA changes magnitude and direction of a weight in proportion (correlation 0.83), full
           fine-tuning does not (-0.62), DoRA does less (-0.31); and DoRA scores better, above all at low rank
miniature  a tiny Llama of letters, pretrained here on the standard library's docstrings, is adapted to Python sources (all linear
           layers, the better of two learning rates) and tested on modules it has not seen. For each layer of the trained models:
           dM, the mean change of its rows' norms, and dD, the mean of 1 - cosine between its rows before and after. The pattern is
           the correlation of dM with dD over the layers of one projection after 25, 50, 75 and 100 % of the steps, averaged over the
           projections, as in the paper's section 3.2. Ranks 1 and 4; full fine-tuning has its own list of rates
"""

from __future__ import annotations

import copy
import statistics

import torch
from _harness import Loss, Measure, Table, adapt, main, tune
from _letters import TEST, code, held_out, language_model, next_letter
from torch import nn

import adaptome as ad

STEPS, RANKS, RATES, FULL = 100, (1, 4), (5e-3, 1e-2), (1e-3, 3e-3)
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every projection's weight, its adapter merged."""
    model = copy.deepcopy(model)
    if ad.adapters(model):
        ad.merge(model, keep=False)
    return {n: m.weight.detach() for n, m in model.named_modules() if isinstance(m, nn.Linear)}


def changes(base: nn.Module, model: nn.Module) -> dict[str, tuple[float, float]]:
    """dM and dD of every layer."""
    before, after = weights(base), weights(model)
    found = {}
    for name, W in before.items():
        dM = (after[name].norm(dim=1) - W.norm(dim=1)).abs().mean()
        dD = (1 - nn.functional.cosine_similarity(after[name], W, dim=1)).mean()
        found[name] = (float(dM), float(dD))
    return found


def pattern(seen: list[dict[str, tuple[float, float]]]) -> float:
    """The correlation of dM and dD over layers and steps, averaged over the projections."""
    each = []
    for projection in PROJECTIONS:
        points = [pair for step in seen for name, pair in step.items() if name.endswith(projection)]
        each.append(statistics.correlation(*zip(*points, strict=True)))
    return statistics.fmean(each)


class Watched:
    """A loss that notes what training changed after each quarter of the steps; the models are kept apart by id, so must live."""

    def __init__(self, base: nn.Module, loss: Loss):
        self.base, self.loss = base, loss
        self.calls: dict[int, int] = {}
        self.seen: dict[int, list[dict[str, tuple[float, float]]]] = {}

    def __call__(self, model: nn.Module, generator: torch.Generator) -> torch.Tensor:
        done = self.calls.get(id(model), 0)
        if done and done % (STEPS // 4) == 0:
            self.note(model)
        self.calls[id(model)] = done + 1
        return self.loss(model, generator)

    def note(self, model: nn.Module) -> None:
        """Note it now."""
        self.seen.setdefault(id(model), []).append(changes(self.base, model))

    def pattern(self, model: nn.Module) -> float:
        """Of a model whose training has ended."""
        self.note(model)
        return pattern(self.seen[id(model)])


def measurement() -> Measure:
    """The function that measures a seed; the base is pretrained once."""
    base, loss, score = language_model(300), next_letter(code()), held_out(code(TEST), 8)

    def measure(seed: int, table: Table) -> None:
        patterns = {}
        for r in RANKS:
            for method in ("lora", "dora"):
                watched = Watched(base, loss)
                runs = [adapt(base, method, watched, score, steps=STEPS, rates=(rate,), seed=seed, r=r) for rate in RATES]  # fmt: skip
                best = min(runs, key=lambda seen: seen.value)
                table.add(f"{method} r={r}", best.value, best.parameters)
                patterns[f"(pattern of {method} r={r})"] = watched.pattern(best.model)
        watched = Watched(base, loss)
        runs = [tune(base, watched, score, steps=STEPS, rates=(rate,), seed=seed) for rate in FULL]
        best = min(runs, key=lambda seen: seen.value)
        table.add("full", best.value, best.parameters)
        patterns["(pattern of full)"] = watched.pattern(best.model)
        for label, value in patterns.items():
            table.add(label, value)

    return measure


def judge(table: Table) -> dict[str, bool]:
    lora, dora, full = (table.mean(f"(pattern of {m})") for m in (f"lora r={RANKS[-1]}", f"dora r={RANKS[-1]}", "full"))  # fmt: skip
    return {
        **{f"dora below lora at r = {r}, every seed": table.below(f"dora r={r}", f"lora r={r}") for r in RANKS},
        f"dora's pattern is nearer to full fine-tuning's ({dora:.2f} and {full:.2f}) than lora's ({lora:.2f})": abs(dora - full) < abs(lora - full),
    }  # fmt: skip


if __name__ == "__main__":
    main(__doc__, "nats a letter; (pattern): correlation", measurement(), judge)
