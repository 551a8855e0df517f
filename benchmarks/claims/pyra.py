"""LoRA with PYRA is better than LoRA on a model that merges tokens as ToMe does, at a high rate and no more parameters.

claim      Xiong et al. 2024, arXiv:2403.09192: token merging at high rates hurts an adapted model; two vectors a layer that weigh the tokens
           about to disappear, trained with LoRA on the task alone, win some of it back, at the inference cost of plain merging
miniature  a ViT of 4 blocks and 50 tokens, pretrained here to name the directions of a red and a green grating among grey ones, is adapted to
           name a blue one's (LoRA on q, k, v and the head, 800 steps, one learning rate for all). All gratings have any phase, so that a
           token must pass a block before its direction can be read, and the first merge comes before that. The rate is the highest there is: every
           block merges half of its tokens, and 5 of 50 are left. LoRA beside ToMe has rank 5, LoRA beside PYRA rank 4, so that PYRA has no more parameters. Run it with
           five seeds: they draw the task's pictures, the batches and the adapters; the pretrained model is one for all.
           Times: CPU time of a forward and of a training step (LoRA r = 4) of a ViT with ViT-B's depth and high schedule, 384 wide
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from _harness import Measure, Table, adapt, main
from _pictures import pretrained, task
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

import adaptome as ad

HIGH = (24, 12, 6, 3)
UNMERGED, TOME, PYRA = "lora r=4, nothing merged", "lora r=5, tome", "lora r=4, pyra"
FORWARD, STEP = "time of a forward, {}, over the unmerged one's", "time of a training step, {}, over the unmerged one's"  # fmt: skip


def measurement() -> Measure:
    """The function that measures a seed; the base is pretrained once."""
    base = pretrained()

    def measure(seed: int, table: Table) -> None:
        loss, score = task(seed)

        def beside(r: int) -> Callable[[nn.Module], None]:
            def attach(model: nn.Module) -> None:
                ad.attach(model, "lora", "lora", targets="qkv", r=r, seed=seed)

            return attach

        how = {"steps": 800, "rates": (5e-3,), "seed": seed, "train": "classifier"}
        for label, seen in (
            (UNMERGED, adapt(base, "lora", loss, score, targets="qkv", r=4, **how)),
            (TOME, adapt(base, "pyra", loss, score, targets=None, r=HIGH, modulate=False, prepare=beside(5), **how)),
            (PYRA, adapt(base, "pyra", loss, score, targets=None, r=HIGH, prepare=beside(4), **how)),
        ):  # fmt: skip
            table.add(label, seen.value, ad.trainable(seen.model).count)
        times(table)

    return measure


def times(table: Table) -> None:
    """CPU time of one forward and one training step, over that of the model that merges nothing."""
    config = ViTConfig(hidden_size=384, intermediate_size=1536, num_attention_heads=6, num_labels=10)
    models: dict[str, nn.Module] = {}
    for name, modulate in (("unmerged", None), ("tome", False), ("pyra", True)):
        models[name] = ViTForImageClassification(config).eval()
        if modulate is not None:
            ad.attach(models[name], "pyra", r="vit-b-high", modulate=modulate)
        ad.attach(models[name], "lora", "lora", targets="qkv", r=4)
    x = torch.randn(2, 3, 224, 224)
    forward, step = {}, {}
    for name, model in models.items():
        with torch.no_grad():
            model(x)  # the first one is slower
            start = time.process_time()
            model(x)
        middle = time.process_time()
        model(x).logits.sum().backward()
        forward[name], step[name] = middle - start, time.process_time() - middle
    for text, seen in ((FORWARD, forward), (STEP, step)):
        for name in ("tome", "pyra"):
            table.add(text.format(name), seen[name] / seen["unmerged"])


def judge(table: Table) -> dict[str, bool]:
    return {
        "pyra has no more parameters than tome": table.parameters[PYRA] <= table.parameters[TOME],
        "merging hurts: tome's mean error above the unmerged model's": table.mean(TOME) > table.mean(UNMERGED),
        "pyra's mean error below tome's": table.mean(PYRA) < table.mean(TOME),
        "a forward takes at most half of the unmerged one's time": table.mean(FORWARD.format("pyra")) < 0.5,
        "so does a training step": table.mean(STEP.format("pyra")) < 0.5,
    }  # fmt: skip


if __name__ == "__main__":
    main(__doc__, "error (or share of time)", measurement(), judge)
