"""CLIP-SVD adapts a CLIP to a shifted domain from a few pictures and keeps what it knew of other classes.

claim      Koleilat et al. 2025, arXiv:2509.03740: training the singular values alone beats the zero-shot model on the classes it is tuned on and keeps
           more of the classes it is not tuned on than methods that train more
miniature  a tiny CLIP of transformers (two blocks of width 48 in each encoder) is pretrained here contrastively on pictures of a shape in a colour with
           their two words. Then the domain shifts: the pictures are dimmed, their channels mixed by a fixed matrix, noise is added (one
           shift for all classes), and every shape changes in a twelfth of its cells, each in its own way. As between the paper's base and
           novel classes, words differ: half of the eight shapes, in all colours, are tuned on with eight shots a class (120 steps or 15
           epochs, each method at the one of two learning rates that is best on them), the others never. All linear maps of both encoders are
           tuned; told is the error on new pictures of the base classes among themselves, and of the novel ones. Baselines: zero-shot,
           full fine-tuning, LoRA of rank 1; "matched" is a baseline at the first step (of every fifth) at which its base error is no
           higher than that of CLIP-SVD at its end, so that what each lost of the novel classes can be compared. All seeds share the
           pretrained model; they draw the shapes, the shots and the batches
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from _harness import Loss, Measure, Table, descend, main
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel
from transformers.utils import logging

import adaptome as ad

COLOURS, SHAPES, SIDE, SHOTS, STEPS = 8, 8, 12, 8, 120
TURNED = 1 / 12
START, END = 1, 2
MAPS = ["*layers.*_proj", "*layers.*fc1", "*layers.*fc2"]
OURS = "clip-svd"
RATES = {OURS: (1e-2, 3e-2), "lora": (1e-2, 3e-2), "full fine-tuning": (1e-3, 3e-3)}
MIX = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.7, 0.3], [0.3, 0.0, 0.7]])


def tiny() -> nn.Module:
    """The model, as it is drawn."""
    logging.set_verbosity_error()
    sizes = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_factor": 3.0,
    }
    config = CLIPConfig(
        vision_config={**sizes, "image_size": SIDE, "patch_size": 3},
        text_config={**sizes, "vocab_size": 3 + COLOURS + SHAPES, "max_position_embeddings": 4, "bos_token_id": START, "eos_token_id": END},
        projection_dim=32,
    )  # fmt: skip
    return CLIPModel(config)


def drawn(shifted: bool) -> tuple[Tensor, Tensor]:
    """The colours `[8, 3]` and the shapes `[8, 6, 6]`, the same for all; in the shifted domain some cells of each shape are turned."""
    generator = torch.Generator().manual_seed(5)
    corners = torch.cartesian_prod(*[torch.tensor([0.1, 1.0])] * 3)
    shapes = torch.rand(SHAPES, 6, 6, generator=generator) < 0.5
    turned = torch.rand(SHAPES, 6, 6, generator=generator) < TURNED
    return corners, (shapes ^ turned if shifted else shapes).float()


def pictures(classes: Tensor, generator: torch.Generator, shifted: bool) -> Tensor:
    """One picture of each class: its shape in its colour on a noisy grey ground."""
    colours, shapes = drawn(shifted)
    ground = 0.5 + 0.1 * torch.randn(len(classes), 3, SIDE, SIDE, generator=generator)
    mask = F.pad(shapes[classes % SHAPES], (3, 3, 3, 3))[:, None]
    x = ground + mask * (colours[classes // SHAPES][:, :, None, None] - 0.5)
    if shifted:
        x = 0.8 * torch.einsum("dc,nchw->ndhw", MIX, x) + 0.1 * torch.randn(x.shape, generator=generator)
    return x


def words(classes: Tensor) -> Tensor:
    """The text of each class: start, colour, shape, end."""
    ends = torch.full_like(classes, START), torch.full_like(classes, END)
    return torch.stack([ends[0], 3 + classes // SHAPES, 3 + COLOURS + classes % SHAPES, ends[1]], 1)


def logits(model: Any, x: Tensor, texts: Tensor) -> Tensor:
    """Similarities of pictures and texts."""
    out = model(input_ids=texts, pixel_values=x)
    return out.logits_per_image  # type: ignore[no-any-return]


def contrastive(model: nn.Module, generator: torch.Generator) -> Tensor:
    """The loss on pictures of every class."""
    order = torch.randperm(COLOURS * SHAPES, generator=generator)
    found = logits(model, pictures(order, generator, False), words(order))
    own = torch.arange(len(order))
    return (F.cross_entropy(found, own) + F.cross_entropy(found.T, own)) / 2


def few_shots(classes: Tensor, generator: torch.Generator) -> Loss:
    """The loss of a batch of the shots among these classes."""
    labels = torch.arange(len(classes)).repeat(SHOTS)
    x = pictures(classes.repeat(SHOTS), generator, True)

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        batch = torch.randint(len(x), (32,), generator=generator)
        return F.cross_entropy(logits(model, x[batch], words(classes)), labels[batch])

    return loss


def error(model: nn.Module, classes: Tensor, shifted: bool = True) -> float:
    """The share of new pictures of these classes that are taken for another of them."""
    x = pictures(classes.repeat(16), torch.Generator().manual_seed(77), shifted)
    with torch.no_grad():
        found = logits(model.eval(), x, words(classes)).argmax(1)
    return float((found != torch.arange(len(classes)).repeat(16)).float().mean())


def measurement() -> Measure:
    """The function that measures a seed; the model is pretrained once."""
    torch.manual_seed(0)
    base = tiny()
    descend(base, contrastive, 600, 3e-3, seed=0, adapted=False)

    def tuned(
        method: str, rate: float, loss: Loss, seed: int, seen: Callable[[nn.Module], None]
    ) -> tuple[nn.Module, int]:
        model = copy.deepcopy(base)
        adapted = method != "full fine-tuning"
        if adapted:
            ad.attach(model, method, targets=MAPS, seed=seed, **({"r": 1} if method == "lora" else {}))
        else:
            model.get_parameter("logit_scale").requires_grad_(False)
        steps = iter(range(STEPS))

        def watched(model: nn.Module, generator: torch.Generator) -> Tensor:
            if next(steps) % 5 == 4:
                seen(model)
            return loss(model, generator)

        descend(model, watched, STEPS, rate, seed, adapted)
        return model, sum(p.numel() for p in model.parameters() if p.requires_grad)

    def measure(seed: int, table: Table) -> None:
        generator = torch.Generator().manual_seed(seed)
        colours = SHAPES * torch.arange(COLOURS)[:, None]
        here, new = (
            (colours + half).flatten() for half in torch.randperm(SHAPES, generator=generator).chunk(2)
        )
        loss = few_shots(here, generator)
        table.add("unshifted: zero-shot", error(base, here, shifted=False))
        table.add("base: zero-shot", error(base, here))
        table.add("novel: zero-shot", error(base, new))
        for method, rates in RATES.items():
            runs = []
            for rate in rates:
                path: list[tuple[float, float]] = []
                watch = (lambda m, path=path: path.append((error(m, here), error(m, new)))) if method != OURS else lambda m: None  # fmt: skip
                model, count = tuned(method, rate, loss, seed, watch)
                runs.append((error(model, here), error(model, new), count, path))
            at_base, at_new, count, path = min(runs)
            table.add(f"base: {method}", at_base, count)
            table.add(f"novel: {method}", at_new, count)
            if method != OURS:
                goal = table.values[f"base: {OURS}"][-1]
                matched = next(
                    (point for point in [*path, (at_base, at_new)] if point[0] <= goal), (at_base, at_new)
                )
                table.add(f"base: {method}, matched", matched[0], count)
                table.add(f"novel: {method}, matched", matched[1], count)

    return measure


def judge(table: Table) -> dict[str, bool]:
    full = "full fine-tuning"
    base, novel = (table.mean(f"{side}: {OURS}") for side in ("base", "novel"))
    share = table.parameters[f"base: {OURS}"] / table.parameters[f"base: {full}"]
    return {
        "base: clip-svd below zero-shot in every seed": table.below(f"base: {OURS}", "base: zero-shot"),
        "novel: clip-svd's mean not above zero-shot's": novel <= table.mean("novel: zero-shot"),
        f"base: clip-svd with {share:.1%} of the numbers within 0.05 of {full}": base
        <= table.mean(f"base: {full}") + 0.05,
        f"novel: clip-svd below {full} in every seed": table.below(f"novel: {OURS}", f"novel: {full}"),
        f"novel: clip-svd below {full}, matched, in every seed": table.below(
            f"novel: {OURS}", f"novel: {full}, matched"
        ),
        "novel: clip-svd's mean not above that of lora r=1, nor of lora matched": novel
        <= min(table.mean("novel: lora"), table.mean("novel: lora, matched")),
    }


if __name__ == "__main__":
    main(__doc__, "error", measurement(), judge)
