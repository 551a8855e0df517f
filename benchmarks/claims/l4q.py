"""L4Q ends as a quantised model that is better than LoRA merged into one, and its start of the steps clips least.

claim      Jeon et al. 2024, arXiv:2402.04902: training LoRA inside the quantiser ends, wholly quantised, below LoRA on the rounded model
           whose update is merged and rounded again, and about as low as quantisation-aware LoRA that keeps its adapter beside; of the ways to
           begin the steps theirs clips least
miniature  a tiny Llama of letters, pretrained here on the standard library's docstrings, is adapted to Python sources (all linear layers,
           groups of 16, r = 4, 100 steps, the better of two learning rates), tested on modules it has not seen, at 4 and 3 bits. The packed
           model is what is scored. "About as low" is a twentieth of what QAT-LoRA gains over the rounded base. The ablation is at 4 bits on
           a base with outliers (one weight in 200 four times as large, the outputs of the base as they then are); `clipped` is the norm of
           what lies outside the grid after training, over the weight's, a mean over layers
"""

from __future__ import annotations

import copy
import statistics

import torch
from _harness import Measure, Table, adapt, main
from _letters import TEST, code, held_out, language_model, next_letter
from torch import nn

import adaptome as ad
from adaptome.core.plan import Plan
from adaptome.quantization.formats import grouped

GROUP, R, STEPS, RATES = 16, 4, 100, (5e-4, 2e-3)
INITS = ("l4q", "asymmetric", "symmetric", "lsq+")


def rounded(full: nn.Module, bits: int) -> nn.Module:
    """The base rounded to the nearest value of a symmetric grid, as L4Q's start is."""
    base = copy.deepcopy(full)
    ad.quantize(base, "uniform", bits=bits, group=GROUP, zero="none")
    return base


def beside(bits: int):
    """QAT-LoRA: the steps of the rounded weight train, and LoRA beside it."""

    def attach(model: nn.Module, targets: object, seed: int) -> Plan:
        ad.attach(model, "l4q", "steps", targets=targets, r=1, bits=bits, group=GROUP, seed=seed)
        for name, value in ad.parameters_of(model, "steps").items():
            value.requires_grad_(name.rpartition(".")[2] in ("d", "b"))
        plan = ad.attach(model, "lora", "beside", targets=targets, r=R, seed=seed)
        ad.activate(model, ["steps", "beside"])
        return plan

    return attach


def with_outliers(full: nn.Module) -> nn.Module:
    """A copy whose linear layers have some weights four times as large."""
    made, generator = copy.deepcopy(full), torch.Generator().manual_seed(5)
    for name, layer in made.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head":
            drawn = torch.rand(layer.weight.shape, generator=generator) < 1 / 200
            layer.weight.data[drawn] *= 4
    return made


@torch.no_grad()
def clipped(model: nn.Module) -> float:
    """What lies outside the grid, over the weight: a mean over layers."""
    shares = []
    for layer in model.modules():
        if "adaptome" not in layer._modules:
            continue
        a = layer.adaptome["default"]
        W = grouped(layer.weight + a.scale * a.B @ a.A, a.group)
        half, w = 2 ** (a.bits - 1), (W - a.b[..., None]) / a.d[..., None]
        shares.append(float(((w - w.clamp(-half, half - 1)) * a.d[..., None]).norm() / W.norm()))
    return statistics.fmean(shares)


def measurement() -> Measure:
    """The function that measures a seed; the base is pretrained once."""
    full = language_model(300)
    loss, score = next_letter(code()), held_out(code(TEST))
    odd = with_outliers(full)

    def packed(model: nn.Module) -> float:
        """Score of the model as it would be served."""
        served = copy.deepcopy(model)
        ad.pack(served)
        return score(served)

    def requantised(model: nn.Module) -> float:
        served = copy.deepcopy(model)
        ad.merge(served, requantise=True, tolerance=100.0)
        return score(served)

    def measure(seed: int, table: Table) -> None:
        table.add("full precision", score(full))
        for bits in (4, 3):
            base = rounded(full, bits)
            how = {"steps": STEPS, "rates": RATES, "seed": seed}
            table.add(f"{bits} bits, rounded", score(base))
            seen = adapt(base, "lora", loss, requantised, r=R, **how)
            table.add(f"{bits} bits, lora merged", seen.value, seen.parameters)
            seen = adapt(full, beside(bits), loss, score, **how)
            table.add(f"{bits} bits, qat-lora beside", seen.value, seen.parameters)
            seen = adapt(full, "l4q", loss, packed, r=R, bits=bits, group=GROUP, **how)
            table.add(f"{bits} bits, l4q", seen.value, seen.parameters)
        for init in INITS:
            seen = adapt(odd, "l4q", loss, packed, r=R, bits=4, group=GROUP, init=init, steps=STEPS, rates=RATES[:1], seed=seed)  # fmt: skip
            table.add(f"outliers, {init}", seen.value, seen.parameters)
            table.add(f"clipped, {init}", clipped(seen.model))

    return measure


def judge(table: Table) -> dict[str, bool]:
    parts = {}
    for bits in (4, 3):
        margin = 0.05 * (table.mean(f"{bits} bits, rounded") - table.mean(f"{bits} bits, qat-lora beside"))
        parts[f"{bits} bits: l4q below lora merged and rounded again"] = table.below(
            f"{bits} bits, l4q", f"{bits} bits, lora merged"
        )
        parts[f"{bits} bits: l4q within {margin:.3f} of qat-lora"] = table.as_good(
            f"{bits} bits, l4q", f"{bits} bits, qat-lora beside", margin
        )
    for a, b in (("l4q", "asymmetric"), ("asymmetric", "lsq+"), ("l4q", "symmetric")):
        parts[f"{a}'s steps clip less than {b}'s"] = table.below(f"clipped, {a}", f"clipped, {b}")
    best = all(table.mean("outliers, l4q") <= table.mean(f"outliers, {init}") for init in INITS)
    parts["l4q's start ends lowest on average"] = best
    return parts


if __name__ == "__main__":
    main(__doc__, "nats a letter", measurement(), judge)
