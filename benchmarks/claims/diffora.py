"""DiffoRA finds the modules that need an adapter, and training those alone is about as good as training all.

claim      Jiang et al. 2025, arXiv:2502.08905: learned selection of modules beats giving every module, or others, an adapter.
           No code is published; what runs here is our reading of it
miniature  a tiny RoBERTa encoder (2 blocks of six modules) learns a teacher that differs from it in two modules of each block, drawn
           by the seed, by updates of rank 4. The search takes half of 400 steps (first-order bilevel, by the method's schedule; its
           default, 15 %, is meant for runs in which that is an epoch), then the 2 modules of each block that it keeps get new adapters
           and train for 400 steps (r = 4, nothing shared). Compared: LoRA r = 4 on all six modules, and on two modules of each block
           drawn at random. Found are the planted modules among the four selected; chance is a third. Told too: how many are found or
           have their twin found, which can stand in for them (query and key, value and output, the two maps of the MLP; chance 60 %).
           The better of two learning rates for each
"""

from __future__ import annotations

import copy
import random

import torch
from _harness import Loss, Score, Table, adapt, main
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.methods.low_rank.diffora import final

BLOCKS, WIDTH, R, PLANTED, STEPS, SEARCH = 2, 32, 4, 2, 400, 0.5
RATES = (3e-3, 1e-2)
MODULES = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense", "intermediate.dense", "output.dense")  # fmt: skip
TWINS = dict(zip(MODULES, (MODULES[i ^ 1] for i in range(len(MODULES))), strict=True))


def encoder() -> nn.Module:
    """A RoBERTa without dropout, of random weights."""
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(vocab_size=64, hidden_size=WIDTH, num_hidden_layers=BLOCKS, num_attention_heads=4, intermediate_size=2 * WIDTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=40, initializer_range=0.15)  # fmt: skip
    return RobertaModel(config, add_pooling_layer=False).eval()


def task(seed: int) -> tuple[nn.Module, Loss, Score, list[str], list[str]]:
    """The base, loss and relative error of imitating the teacher, all modules and the planted ones."""
    base, drawn = encoder(), random.Random(seed)
    names = [[f"encoder.layer.{i}.{m}" for m in MODULES] for i in range(BLOCKS)]
    planted = [n for row in names for n in drawn.sample(row, PLANTED)]
    teacher = copy.deepcopy(base).requires_grad_(False)
    for name in planted:
        layer = teacher.get_submodule(name)
        update = torch.randn(layer.weight.shape[0], R) @ torch.randn(R, layer.weight.shape[1])
        layer.weight += layer.weight.norm() * update / update.norm()

    def draw(count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(3, 64, (count, 12), generator=generator)

    fixed = draw(128, torch.Generator().manual_seed(12345))
    with torch.no_grad():
        goal = teacher(fixed).last_hidden_state
        size = float(F.mse_loss(base(fixed).last_hidden_state, goal))

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        ids = draw(16, generator)
        with torch.no_grad():
            y = teacher(ids).last_hidden_state
        return F.mse_loss(model(ids).last_hidden_state, y) / size

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            return float(F.mse_loss(model(fixed).last_hidden_state, goal)) / size

    return base, loss, score, [n for row in names for n in row], planted


def twin(name: str) -> str:
    """The module beside it through which the same function can be changed."""
    block, own = name.split(".", 3)[:3], name.split(".", 3)[3]
    return ".".join([*block, TWINS[own]])


def measure(seed: int, table: Table) -> None:
    base, loss, score, names, planted = task(seed)
    everything = adapt(base, "lora", loss, score, steps=STEPS, rates=RATES, seed=seed, targets=names, r=R)
    drawn = random.Random(1000 + seed)
    six = len(MODULES)
    others = [n for i in range(BLOCKS) for n in drawn.sample(names[i * six : (i + 1) * six], PLANTED)]
    random_k = adapt(base, "lora", loss, score, steps=STEPS, rates=RATES, seed=seed, targets=others, r=R)
    searched = adapt(base, "diffora", loss, score, steps=STEPS, rates=RATES, seed=seed, targets=names, r=R, ratio=PLANTED / six, search=SEARCH)  # fmt: skip
    method = final(searched.model)
    settings = {**method.settings(), "sharing": "none"}
    found = adapt(
        base, "diffora", loss, score, steps=STEPS, rates=RATES, seed=seed, targets=names, **settings
    )
    for label, seen in (
        ("lora, all modules", everything),
        ("lora, random modules", random_k),
        ("diffora", found),
    ):
        table.add(label, seen.value, seen.parameters)
    chosen = set(method.selected or ())
    table.add("(share of the planted modules found)", len(chosen & set(planted)) / len(planted))
    table.add(
        "(share found, or their twin)", sum(bool({n, twin(n)} & chosen) for n in planted) / len(planted)
    )


def judge(table: Table) -> dict[str, bool]:
    share = table.mean("(share of the planted modules found)")
    whole, chance, found = (
        table.mean("lora, all modules"),
        table.mean("lora, random modules"),
        table.mean("diffora"),
    )
    return {
        f"at least 80 % of the planted modules are found ({share:.0%})": share >= 0.8,
        "diffora below random modules, every seed": table.below("diffora", "lora, random modules"),
        f"diffora within a tenth of the base's error of lora on all ({found:.3f}, {whole:.3f}; random {chance:.3f})": found <= whole + 0.1,
        "at about a third of its parameters": table.parameters["diffora"] <= 0.4 * table.parameters["lora, all modules"],
    }  # fmt: skip


if __name__ == "__main__":
    main(__doc__, "relative squared error", measure, judge)
