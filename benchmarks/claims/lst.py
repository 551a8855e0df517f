"""A side network learns about as much as LoRA while the step keeps far less for its backward, for no gradient enters the base.

claim      Sung et al. 2022, arXiv:2206.06522: LST saves 69 % of the memory of full fine-tuning where other parameter-efficient methods save
           26 %, so it needs 0.42 times theirs, at about equal accuracy
miniature  letters: a tiny Llama pretrained here on the standard library's docstrings is adapted to Python sources (100 steps, the better of two
           learning rates) and tested on unseen modules, by LoRA r = 4 on all linear maps and by LST of about as many parameters.
           "About equal" is three quarters of LoRA's gain over the base. Step: a random Llama (hidden 256, 6 blocks) on 4 x 128 tokens;
           counted are the bytes that autograd keeps, parameters apart, and the time of a forward and backward, the middle of seven, taken in
           turn. The floor is a forward of the base without gradient. A seed draws the batches and the adapters
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import torch
from _harness import Measure, Table, adapt, main
from _letters import TEST, code, held_out, language_model, next_letter
from torch import nn
from transformers import LlamaConfig, LlamaModel

import adaptome as ad

SMALL = {"lora r=4": ("lora", {"r": 4}), "lst": ("lst", {"reduction": 4, "targets": "backbones"})}
SMALL["lst, pruned"] = ("lst", {**SMALL["lst"][1], "init": "pruned"})
LARGE = {"lora r=8": ad.LoRA(r=8), "lst": ad.LST(reduction=8)}
TURNS = 7


def kept(model: nn.Module, run: Callable[[], torch.Tensor]) -> int:
    """Bytes that a forward keeps for the backward, parameters apart."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def note(t: torch.Tensor) -> torch.Tensor:
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        run()
    return sum(size for key, size in seen.items() if key not in own)


def step(seed: int, table: Table) -> None:
    """Bytes and seconds of one step at the larger size."""
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=128, hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4, use_cache=False)  # fmt: skip
    base, ids = LlamaModel(config), torch.randint(128, (4, 128))
    models = {name: copy.deepcopy(base) for name in LARGE}
    for name, method in LARGE.items():
        plan = ad.attach(models[name], method, seed=seed)
        bytes_ = kept(models[name], lambda: models[name](input_ids=ids).last_hidden_state.sum())  # noqa: B023
        table.add(f"step, MB kept: {name}", bytes_ / 2**20, plan.trainable)

    def train(model: nn.Module) -> None:
        model(input_ids=ids).last_hidden_state.square().mean().backward()

    def infer() -> None:
        with torch.no_grad():
            base(input_ids=ids)

    runs: dict[str, Callable[[], None]] = {
        "floor": infer,
        **{n: (lambda m=m: train(m)) for n, m in models.items()},
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(TURNS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    for name, seen in seconds.items():
        table.add(f"step, ms: {name}", 1000 * statistics.median(seen))


def measurement() -> Measure:
    """The function that measures a seed; the language model is pretrained once."""
    base, loss, score = language_model(300), next_letter(code()), held_out(code(TEST), 8)

    def measure(seed: int, table: Table) -> None:
        table.add("letters: base", score(base))
        for label, (method, settings) in SMALL.items():
            seen = adapt(base, method, loss, score, steps=100, rates=(3e-3, 1e-2), seed=seed, **settings)
            table.add(f"letters: {label}", seen.value, seen.parameters)
        step(seed, table)

    return measure


def judge(table: Table) -> dict[str, bool]:
    base, lora = table.mean("letters: base"), table.mean("letters: lora r=4")
    size = {label: table.parameters[f"letters: {label}"] for label in SMALL}
    share = {label: (base - table.mean(f"letters: {label}")) / (base - lora) for label in SMALL}
    memory = table.mean("step, MB kept: lst") / table.mean("step, MB kept: lora r=8")
    speed = table.mean("step, ms: lst") / table.mean("step, ms: lora r=8")
    return {
        f"letters: lst has {size['lst'] / size['lora r=4']:.2f} of lora's parameters, at most as many": size[
            "lst"
        ]
        <= size["lora r=4"],
        f"letters: lst gains {share['lst']:.2f} of what lora does, at least 0.75": share["lst"] >= 0.75,
        f"letters: pruned, {share['lst, pruned']:.2f}, at least 0.75": share["lst, pruned"] >= 0.75,
        f"step: lst keeps {memory:.2f} of lora's bytes, at most 0.42": memory <= 0.42,
        f"step: lst takes {speed:.2f} of lora's time, less than 1": speed < 1,
    }


if __name__ == "__main__":
    main(__doc__, "letters: nats a letter", measurement(), judge)
