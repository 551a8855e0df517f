"""QWHA repairs a 2-bit model before it is trained, and ends below adapters of its size that begin at zero; one transform is cheaper than two.

claim      Jeon et al. 2025, arXiv:2509.17428: a sparse Walsh-Hadamard adapter that begins where quantisation lost most leaves less of the
           output error than a low-rank pair of its size, fine-tunes to a lower loss than one that begins at zero or than LoRA, and its
           single transform costs less than the two of a cosine adapter
miniature  a tiny Llama of letters, pretrained here on the standard library's docstrings, is stored in 2 bits (GPTQ with MagR, groups of 16)
           and adapted to Python sources (all linear layers, 60 steps, the better of two learning rates), tested on modules it has not
           seen. All adapters train r (in + out) numbers with r = 4. `left` is the start's output error over the quantised model's, a mean
           over layers. The times are of one forward of an adapted layer, 32 tokens, in = out = 4096, r = 8: with QWHA's fast path over with LoCA's two
           cosine transforms of as many coefficients; medians of three
"""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any

import torch
from _harness import Measure, Table, adapt, main
from _letters import LENGTH, TEST, code, held_out, language_model, next_letter, prose
from torch import nn

import adaptome as ad

R = 4


def calibration() -> list[dict[str, torch.Tensor]]:
    """Pieces of what the base was trained on."""
    text = prose()
    first = torch.randint(len(text) - LENGTH, (64, 1), generator=torch.Generator().manual_seed(7))
    return [{"input_ids": rows} for rows in text[first + torch.arange(LENGTH)].split(32)]


def left(report: Any) -> float:
    """Share of the output error that a start leaves."""
    return statistics.fmean(x.after / x.before for x in report.layers)


def forward_seconds(name: str, **settings: Any) -> float:
    """Median time of a wide layer's forward with the adapter on it."""
    layer, x = nn.Sequential(nn.Linear(4096, 4096, bias=False)), torch.randn(32, 4096)
    ad.attach(layer, name, targets="0", seed=0, **settings)
    seen = []
    with torch.no_grad():
        for _ in range(4):
            begin = time.perf_counter()
            layer(x)
            seen.append(time.perf_counter() - begin)
    return statistics.median(seen[1:])  # the first warms up


def measurement() -> Measure:
    """The function that measures a seed; the base is pretrained and quantised once."""
    full, batches = language_model(300), calibration()
    base = copy.deepcopy(full)
    ad.quantize(base, "gptq", bits=2, group=16, magr=True, batches=batches)
    loss, score = next_letter(code()), held_out(code(TEST))
    starts: dict[str, list[float]] = {"qwha": [], "cloq": []}

    def begun(report: Any, label: str) -> Any:
        starts[label].append(left(report))
        return report.plan

    labels = {
        "lora r=4": lambda m, t, s: ad.attach(m, "lora", targets=t, seed=s, r=R),
        "cloq r=4": lambda m, t, s: begun(ad.cloq(m, full, batches, ad.LoRA(r=R), t, seed=s), "cloq"),
        "qwha, zero": lambda m, t, s: ad.attach(m, "qwha", targets=t, seed=s, r=R),
        "qwha": lambda m, t, s: begun(ad.qwha(m, full, ad.QWHA(r=R), t, batches=batches, seed=s), "qwha"),
    }

    def measure(seed: int, table: Table) -> None:
        table.add("full precision", score(full))
        table.add("2 bits", score(base))
        for label, attach in labels.items():
            seen = adapt(base, attach, loss, score, steps=60, rates=(3e-3, 1e-2), seed=seed)
            table.add(label, seen.value, seen.parameters)
        for label, values in starts.items():
            table.add(f"left, {label}", values[-1])
        two = forward_seconds("loca", n=R * 4 * 4096)
        table.add("time over LoCA's", forward_seconds("qwha", r=8) / two)

    return measure


def judge(table: Table) -> dict[str, bool]:
    return {
        "the start leaves less of the output error than cloq's": table.below("left, qwha", "left, cloq"),
        "qwha ends below qwha from zero": table.below("qwha", "qwha, zero"),
        "qwha ends below lora": table.below("qwha", "lora r=4"),
        "qwha ends below cloq": table.below("qwha", "cloq r=4"),
        "the forward takes less than half of LoCA's": max(table.values["time over LoCA's"]) < 0.5,
    }


if __name__ == "__main__":
    main(__doc__, "nats a letter", measurement(), judge)
