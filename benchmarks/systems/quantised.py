"""The recipes `l4q-demo`, `qwha-demo`, `sketchtune-demo` and `paca-demo` in full: a small model of few bits learns to read source code.

    python benchmarks/systems/quantised.py l4q|qwha|sketchtune|paca [--seeds 3]

The share of the next bytes that the model names, and nats a byte, on modules that it has not seen. Beside the recipe stand the frozen base as it is
stored (of L4Q the base in full precision, which it starts from), LoRA of rank 8 on that base, and what needs no model: the most frequent byte of the
sources trained on, and their frequencies. LoRA is told and asserted of nothing but that the recipe recovers most of what it gains.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from _demo import Demo, Seen, arguments, carry_out

from adaptome.recipe import Recipe, load_recipe, stages_of
from adaptome.tasks import get_task
from adaptome.training import run
from adaptome.training.building import read

SYSTEMS = {"l4q": "Jeon et al. 2024, arXiv:2402.04902", "qwha": "Jeon et al. 2025, arXiv:2509.17428", "sketchtune": "Zhang et al. 2024, arXiv:2410.06364", "paca": "Woo et al. 2025, arXiv:2503.01905"}  # fmt: skip
BASE, BYTE, LORA = "frozen base", "most frequent byte", "LoRA, r = 8"
#: the share of LoRA's gain in nats that a recipe is to have
SHARE = 0.5


def nats(label: str) -> str:
    return f"nats a byte: {label}"


def of_bytes(recipe: Recipe) -> tuple[float, float]:
    """Share of bytes that the most frequent one of the training rows is, and nats a byte of their frequencies, on the test rows."""
    task = get_task(recipe.task.name, **recipe.task.settings)
    splits, limit = read(recipe, task), recipe.task.settings["max_length"]
    # a text's end is a symbol too; the first byte is not foretold
    rows = {name: [(*text.encode(), 256)[:limit][1:] for text in splits[name].rows["text"]] for name in ("train", "test")}  # fmt: skip
    seen = Counter(byte for row in rows["train"] for byte in row)
    wanted = [byte for row in rows["test"] for byte in row]
    total, best = sum(seen.values()) + 257, seen.most_common(1)[0][0]
    loss = sum(-math.log((seen[byte] + 1) / total) for byte in wanted) / len(wanted)
    return sum(byte == best for byte in wanted) / len(wanted), loss


def measure(system: str, seed: int, folder: Path) -> Seen:
    demo = f"{system}-demo"
    changes = [f"training.seed={seed}", "training.device=cpu", f"output={folder}/{demo}"]
    recipe = load_recipe(demo, changes)
    (_, base), (_, adapter) = stages_of(recipe)
    run(base, callbacks=[])
    found = run(adapter, callbacks=[]).metrics
    content = adapter.model_dump(mode="json", exclude_defaults=True)
    lora = {**content, "methods": [{"name": "lora", "r": 8}], "output": f"{folder}/lora"}
    other = run(load_recipe(lora), callbacks=[]).metrics
    share, loss = of_bytes(adapter)
    values = {demo: found["token_accuracy"], BASE: found["token_accuracy_before"], BYTE: share, LORA: other["token_accuracy"]}  # fmt: skip
    losses = {demo: found["loss"], BASE: found["loss_before"], BYTE: loss, LORA: other["loss"]}
    return values | {nats(label): value for label, value in losses.items()}


def also(system: str, seen: Sequence[Seen]) -> dict[str, bool]:
    own, base, byte, lora = (nats(label) for label in (f"{system}-demo", BASE, BYTE, LORA))
    return {
        "half a nat a byte below the frozen base in every seed": all(one[own] <= one[base] - 0.5 for one in seen),
        "half a nat a byte below the bytes' frequencies in every seed": all(one[own] <= one[byte] - 0.5 for one in seen),
        f"at least {SHARE:g} of what LoRA gains in every seed": all(one[base] - one[own] >= SHARE * (one[base] - one[lora]) for one in seen),
    }  # fmt: skip


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("system", choices=SYSTEMS)
    asked = parser.parse_args()
    name = asked.system
    demo = Demo(f"{name}-demo", "share of the next bytes named", BASE, BYTE, {BASE: 0.05, BYTE: 0.05}, partial(measure, name), partial(also, name))  # fmt: skip
    sys.exit(carry_out(demo, asked.seeds, f"python benchmarks/systems/quantised.py {name}"))
