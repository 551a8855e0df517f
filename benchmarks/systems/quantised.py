"""The recipes `l4q-demo`, `qwha-demo`, `sketchtune-demo` and `paca-demo` in full: a small model of few bits learns to read source code.

    python benchmarks/systems/quantised.py [l4q qwha sketchtune paca] [--seeds 3]

The share of the next bytes that the model names, and nats a byte, on modules that it has not seen. Beside the recipe stand the frozen base as it is
stored (of L4Q the base in full precision, which it starts from), and what needs no model: the most frequent byte of the sources trained on, and
their frequencies. The four begin at the same base, which is trained once for each seed.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from _demo import Demo, Seen, arguments, carry_out

from adaptome.recipe import Recipe, load_recipe, stages_of
from adaptome.tasks import get_task
from adaptome.training import run
from adaptome.training.building import read
from adaptome.training.stages import finished

SYSTEMS = ("l4q", "qwha", "sketchtune", "paca")
BASE, BYTE = "frozen base", "most frequent byte"


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


def measure(system: str, bases: Path, seed: int, folder: Path) -> Seen:
    """Token accuracy and loss by row.

    Args:
        bases: where the base of every seed is kept for the next system.
    """
    demo = f"{system}-demo"
    recipe = load_recipe(demo, [f"training.seed={seed}", "training.device=cpu", f"output={folder}/{demo}"])
    (_, base), (_, adapter) = stages_of(recipe)
    place = bases / str(seed)
    if finished(place) is None:
        run(base.model_copy(update={"output": base.output.model_copy(update={"folder": str(place)})}), callbacks=[])  # fmt: skip
    assert adapter.start is not None
    found = run(adapter.model_copy(update={"start": adapter.start.model_copy(update={"run": str(place)})}), callbacks=[]).metrics  # fmt: skip
    share, loss = of_bytes(adapter)
    values = {demo: found["token_accuracy"], BASE: found["token_accuracy_before"], BYTE: share}
    losses = {demo: found["loss"], BASE: found["loss_before"], BYTE: loss}
    return values | {nats(label): value for label, value in losses.items()}


def also(system: str, seen: Sequence[Seen]) -> dict[str, bool]:
    own, base, byte = (nats(label) for label in (f"{system}-demo", BASE, BYTE))
    return {
        "half a nat a byte below the frozen base in every seed": all(one[own] <= one[base] - 0.5 for one in seen),
        "half a nat a byte below the bytes' frequencies in every seed": all(one[own] <= one[byte] - 0.5 for one in seen),
    }  # fmt: skip


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("systems", nargs="*", default=SYSTEMS, metavar="|".join(SYSTEMS))
    asked = parser.parse_args()
    if unknown := [name for name in asked.systems if name not in SYSTEMS]:
        parser.error(f"{unknown[0]}: known are {', '.join(SYSTEMS)}")
    codes = []
    with tempfile.TemporaryDirectory() as bases:
        for name in asked.systems:
            print(f"{name}-demo", flush=True)
            demo = Demo(f"{name}-demo", "share of the next bytes named", BASE, BYTE, {BASE: 0.05, BYTE: 0.05}, partial(measure, name, Path(bases)), partial(also, name))  # fmt: skip
            codes.append(
                carry_out(demo, asked.seeds, f"python benchmarks/systems/quantised.py {name} --seeds 3")
            )
    sys.exit(max(codes))
