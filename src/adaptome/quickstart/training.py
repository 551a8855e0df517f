"""One method, from the pretrained encoder to a trained adapter: a plain PyTorch loop, to be read from the top."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import adaptome as ad
from adaptome.data.stdlib_docstrings import DocstringTask
from adaptome.quickstart.model import Batches, logits_of
from adaptome.quickstart.settings import WARM_UP, WEIGHT_DECAY, Settings
from adaptome.tasks.pooling import MeanPooledClassifier

Progress = Callable[[str, int, int], None]  # what is done, steps done, steps in all


@dataclass
class Run:
    """A trained model and how it got there: (step, loss), and (epoch, validation accuracy)."""

    model: MeanPooledClassifier
    trainable_parameters: int
    loss: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)


def train_adapter(
    method: str,
    model: MeanPooledClassifier,
    tokenizer: Any,
    task: DocstringTask,
    settings: Settings,
    progress: Progress,
) -> Run:
    """Attaches `method` to the encoder and trains it together with the head."""
    plan = ad.attach(
        model, method, train=["classifier"], seed=settings.seed, **settings.options.get(method, {})
    )
    parameters = ad.parameters_of(model)
    head = [p for name, p in parameters.items() if name.startswith("classifier.")]
    adapter = [p for name, p in parameters.items() if not name.startswith("classifier.")]
    optimizer = torch.optim.AdamW(
        [
            {"params": adapter, "lr": settings.learning_rate},
            {"params": head, "lr": settings.head_learning_rate},
        ],
        weight_decay=WEIGHT_DECAY,
    )

    train = Batches(task.train, tokenizer, settings.batch_size, settings.max_tokens)
    validation = Batches(task.validation, tokenizer, settings.batch_size, settings.max_tokens)
    total = settings.epochs * len(train)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_up_then_fall(step, total))

    run = Run(model, plan.trainable)
    torch.manual_seed(settings.seed)  # dropout
    order, step = random.Random(settings.seed), 0
    for epoch in range(1, settings.epochs + 1):
        model.train()
        for batch, labels in train.shuffled(order):
            loss = model(**batch, labels=labels).loss
            loss.backward()
            if step == 0:
                ad.check_gradients(model)  # an adapter that no gradient reaches is an error, not a bad result
            nn.utils.clip_grad_norm_([*adapter, *head], 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            run.loss.append((step, loss.item()))
            progress(f"epoch {epoch} of {settings.epochs}, loss {loss.item():.2f}", step, total)
        accuracy = (logits_of(model, validation).argmax(-1) == validation.labels).float().mean().item()
        run.validation.append((epoch, accuracy))
    return run


def train_probe(
    model: MeanPooledClassifier, tokenizer: Any, task: DocstringTask, settings: Settings, progress: Progress
) -> Run:
    """Trains the head alone. The encoder does not change, so every text passes through it once."""
    model.requires_grad_(False).eval()
    splits = {"train": task.train, "validation": task.validation}
    batches = {
        name: Batches(split, tokenizer, settings.batch_size, settings.max_tokens)
        for name, split in splits.items()
    }
    x, y = {}, {name: b.labels for name, b in batches.items()}
    total, done = sum(len(b.tokens) for b in batches.values()), 0
    for name, split in batches.items():
        x[name] = torch.empty(len(split.tokens), model.classifier.in_features)
        for batch, places in split.in_order():
            with torch.inference_mode():
                x[name][places] = model.features(**batch)
            done += len(places)
            progress("features of the frozen encoder", done, total)

    # The features' scale is taken out, so that one range of penalties fits any encoder.
    mean, scale = x["train"].mean(0), x["train"].std()
    z = {name: (features - mean) / scale for name, features in x.items()}
    best = -1.0
    for penalty in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3):
        weight, bias = _logistic_regression(z["train"], y["train"], len(task.labels), penalty)
        accuracy = ((z["validation"] @ weight.T + bias).argmax(-1) == y["validation"]).float().mean().item()
        if accuracy > best:
            best, chosen, head = accuracy, penalty, (weight / scale, bias - weight @ mean / scale)
    with torch.no_grad():
        model.classifier.weight.copy_(head[0])
        model.classifier.bias.copy_(head[1])
    return Run(
        model, sum(p.numel() for p in model.classifier.parameters()), [], [(1, best)], {"penalty": chosen}
    )


def _logistic_regression(x: Tensor, y: Tensor, labels: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Weight [labels, features] and bias [labels] of the least cross-entropy + penalty |weight|^2 (convex)."""
    weight = torch.zeros(labels, x.shape[1], requires_grad=True)
    bias = torch.zeros(labels, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, y) + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def _warm_up_then_fall(step: int, total: int) -> float:
    """Share of the learning rate: up over the first steps, then down to zero in a line."""
    warm = max(1, round(WARM_UP * total))
    return min((step + 1) / warm, (total - step) / max(1, total - warm))
