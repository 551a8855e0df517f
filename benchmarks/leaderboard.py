"""Every method on a tiny language model and a tiny ViT, the same steps for all, sorted by category.

    python benchmarks/leaderboard.py                              # every registered method, under two minutes on a free core
    python benchmarks/leaderboard.py --methods lora dora bitfit
    python benchmarks/leaderboard.py --steps 100 --seconds 600 --json

Both models are trained here, on a random grammar of letters and on the direction of stripes, and adapted to another grammar and to stripes that
are fainter, finer and inverted. Figures are held-out losses after the steps, at the better of two learning rates, relative to the base: 1 is
the model as it was, 0 a perfect one for the images (the grammar's own entropy is a floor for the letters). Sizes are small ones by name (rank
4, bottleneck 8, ...), so parameters differ. It shows that everything trains and roughly how fast, not which method is best for a task of yours.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

import adaptome as ad
from adaptome.core.errors import AdaptomeError

RATES = (3e-3, 2e-2)
#: a method's setting of this name gets this value, so that it fits the tiny shapes
SMALL: dict[str, Any] = {
    "r": 4, "size": 8, "rank": 4, "n": 200, "tasks": ("one", "two"), "tailors": 2, "active": 2, "a1": 4, "a2": 2, "text": 8, "hidden": 8, "block": 8,
}  # fmt: skip
LETTERS, SIDE = 24, 16
Draw = Callable[[int, torch.Generator, bool], tuple[Tensor, Tensor]]


@dataclasses.dataclass
class Trial:
    """A trained base, what it is adapted to, and the held-out loss that it begins with."""

    base: nn.Module
    draw: Draw
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    start: float = 1.0

    def score(self, model: nn.Module) -> float:
        """Held-out loss."""
        inputs, goal = self.draw(256, torch.Generator().manual_seed(99), True)
        with torch.no_grad():
            return float(self.loss(model.eval(), inputs, goal))


def letters() -> Trial:
    """A Llama that continues one grammar and has to learn another."""
    generator = torch.Generator().manual_seed(1)
    grammars = (2.5 * torch.randn(2, LETTERS, LETTERS, generator=generator)).softmax(-1)

    def draw(count: int, generator: torch.Generator, new: bool) -> tuple[Tensor, Tensor]:
        words = [torch.randint(LETTERS, (count,), generator=generator)]
        for _ in range(11):
            words.append(torch.multinomial(grammars[int(new)][words[-1]], 1, generator=generator)[:, 0])
        ids = torch.stack(words, 1)
        return ids, ids

    config = LlamaConfig(vocab_size=LETTERS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, use_cache=False)  # fmt: skip
    return prepared(LlamaForCausalLM(config), draw, lambda model, ids, labels: model(input_ids=ids, labels=labels).loss)  # fmt: skip


def stripes() -> Trial:
    """A ViT that tells the direction of stripes, and has to on images of another look."""
    y, x = (t.float() for t in torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"))

    def draw(count: int, generator: torch.Generator, new: bool) -> tuple[Tensor, Tensor]:
        turn = torch.randint(4, (count,), generator=generator)
        angle = (turn * torch.pi / 4)[:, None, None]
        phase = 6.28 * torch.rand(count, 1, 1, generator=generator)
        waves = torch.sin((x * torch.cos(angle) + y * torch.sin(angle)) * (1.6 if new else 0.9) + phase)
        noise = 0.3 * torch.randn(count, SIDE, SIDE, generator=generator)
        return ((0.6 - 0.4 * waves if new else waves) + noise)[:, None], turn

    config = ViTConfig(image_size=SIDE, patch_size=4, num_channels=1, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_labels=4)  # fmt: skip
    model = ViTForImageClassification(config)
    return prepared(model, draw, lambda model, images, labels: F.cross_entropy(model(pixel_values=images).logits, labels))  # fmt: skip


def prepared(model: nn.Module, draw: Draw, loss: Callable[..., Tensor]) -> Trial:
    """The model after its own training."""
    trial = Trial(model, draw, loss)
    descend(trial, model, 150, 3e-3, new=False)
    trial.start = trial.score(model)
    return trial


def descend(trial: Trial, model: nn.Module, steps: int, rate: float, new: bool = True) -> None:
    """Adam on batches of 32."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    generator = torch.Generator().manual_seed(2)
    model.train()
    adapted = bool(ad.adapters(model))
    if adapted:
        ad.on_step(model, 0, steps)
    for step in range(1, steps + 1):
        value = trial.loss(model, *trial.draw(32, generator, new))
        penalty = ad.penalty(model) if adapted else None
        (value if penalty is None else value + penalty).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if adapted:
            ad.on_step(model, step, steps)


def small(name: str) -> ad.Method:
    """The method at a size for these models."""
    fields = {f.name for f in dataclasses.fields(ad.list_methods()[name])}  # type: ignore[arg-type]
    return ad.get_method(name, **{k: v for k, v in SMALL.items() if k in fields})


def tried(trial: Trial, name: str, steps: int) -> tuple[int, float]:
    """Parameters, and the held-out loss relative to the base's, at the better rate.

    Raises:
        AdaptomeError: the method does not admit this model.
    """
    method, seen = small(name), []
    for rate in RATES:
        model = copy.deepcopy(trial.base)
        plan = ad.attach(model, method, seed=0)
        with ad.steer(**method.example_facts()[0]):
            descend(trial, model, steps, rate)
            seen.append(trial.score(model) / trial.start)
    return plan.trainable, min(seen, key=lambda value: (value != value, value))


def rows(names: Sequence[str], steps: int, seconds: float) -> list[dict[str, Any]]:
    """One row a method; what a model does not admit, or had no time, has its reason instead of a figure."""
    began = time.perf_counter()
    trials = {"letters": letters(), "images": stripes()}
    found = []
    for name in names:
        cls = ad.list_methods()[name]
        row: dict[str, Any] = {"category": cls.category, "method": name, "parameters": 0}
        for key, trial in trials.items():
            if time.perf_counter() - began > seconds:
                row[key] = "time is up"
                continue
            torch.manual_seed(0)
            try:
                count, row[key] = tried(trial, name, steps)
                row["parameters"] = max(count, row["parameters"])
            except AdaptomeError as error:
                row[key] = f"refused: {str(error).splitlines()[0]}"
        found.append(row)
    return sorted(found, key=order)


def order(row: dict[str, Any]) -> tuple[str, float, str]:
    """By category, then by the mean of the figures there are."""
    seen = [row[key] for key in ("letters", "images") if isinstance(row[key], float)]
    return row["category"], sum(seen) / len(seen) if seen else float("inf"), row["method"]


def text(found: list[dict[str, Any]]) -> str:
    """Aligned rows; reasons below."""
    lines = [f"{'category':18} {'method':18} {'parameters':>10} {'letters':>8} {'images':>8}"]
    reasons = []
    for row in found:
        cells = []
        for key in ("letters", "images"):
            value = row[key]
            cells.append(f"{value:8.3f}" if isinstance(value, float) else f"{'-':>8}")
            if not isinstance(value, float):
                reasons.append(f"{row['method']}, {key}: {value}")
        lines.append(f"{row['category']:18} {row['method']:18} {row['parameters']:>10,} {' '.join(cells)}")
    return "\n".join([*lines, *([""] if reasons else []), *reasons])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=list(ad.list_methods()), metavar="METHOD", help="these alone")  # fmt: skip
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=110, help="start no trial after this long")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    found = rows(args.methods or list(ad.list_methods()), args.steps, args.seconds)
    print(json.dumps(found, indent=1) if args.json else text(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
