"""What a strategy sees of training, and how it looks at the model as it was: never a loop of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.continual.stream import Stream

Values = dict[str, Tensor]
#: the batch's column of its rows' numbers, for strategies that ask for it
ROW = "row"


@dataclass
class Loop:
    """One stream being learned.

    Args:
        model: with its adapters; the same in every round.
        stream: the tasks.
        names: of the parameters that train, in a fixed order.
        heads: those of them that are the task's head.
        labels: how many the head has.
        seed: of the recipe.
        at: the round that is being trained, or was last.
        rounds: the tasks of every round.
        phase: the run of training within the round; '' where there is one.
        batch_size, epochs: of the recipe's training.
        ahead: positions that a logit stands before its label, 1 in a causal language model.
        gradient: rows of train, and what to differentiate, -> the mean gradient over `names`, one flat vector: 'loss', or
            'logit' for the logit of the right label. In evaluation mode; the loss is the strategy's own without what it adds.
    """

    model: nn.Module
    stream: Stream
    names: tuple[str, ...]
    heads: tuple[str, ...]
    labels: int
    seed: int
    rounds: Sequence[Sequence[int]]
    at: int = 0
    phase: str = ""
    batch_size: int = 1
    epochs: float = 1.0
    ahead: int = 0
    gradient: Callable[[Sequence[int], str], Tensor] = field(default=lambda rows, what: torch.zeros(0))

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What trains, by name."""
        found = dict(self.model.named_parameters())
        return {name: found[name] for name in self.names}

    @property
    def present(self) -> list[int]:
        """Label numbers of this round's tasks."""
        return self.stream.classes(self.rounds[self.at])

    @property
    def seen(self) -> list[int]:
        """Label numbers of this round and those before it."""
        return list(dict.fromkeys(self.stream.classes([n for r in self.rounds[: self.at + 1] for n in r])))

    @property
    def before(self) -> list[int]:
        """Label numbers of earlier rounds."""
        return list(dict.fromkeys(self.stream.classes([n for r in self.rounds[: self.at] for n in r])))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Those of the head whose rows are the labels: the last of its layers that has one for each."""
        found = self.parameters
        fitting = [name for name in self.heads if found[name].shape[0] == self.labels]
        last = fitting[-1].rpartition(".")[0] if fitting else ""
        return tuple(name for name in fitting if name.rpartition(".")[0] == last)

    def rows(self) -> list[int]:
        """The training rows of this round's tasks."""
        return [row for n in self.rounds[self.at] for row in self.stream.parts[n].train]

    def values(self) -> Values:
        """A copy of what trains."""
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def put(self, values: Mapping[str, Tensor]) -> None:
        """Set what trains to a copy."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(values[name])


def subset(inputs: Any, rows: Tensor | None, size: int) -> Any:
    """Arguments of a forward with some of the batch's rows; None for all. What is not one of `size` rows stays."""
    if rows is None:
        return inputs
    if isinstance(inputs, dict):
        return {k: subset(v, rows, size) for k, v in inputs.items()}
    if isinstance(inputs, tuple | list):
        return type(inputs)(subset(v, rows, size) for v in inputs)
    if isinstance(inputs, Tensor) and inputs.dim() and len(inputs) == size:
        return inputs[rows.to(inputs.device)]
    return inputs


def as_of(model: nn.Module, values: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """The model's outputs with other values of what trains: in evaluation mode, without gradient; the model stays as it is."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            there = {k: v.to(next(model.parameters()).device) for k, v in values.items()}
            return torch.func.functional_call(model, there, args, kwargs)
    finally:
        for module, mode in modes:
            module.training = mode


class Past(nn.Module):
    """A model as it was: a teacher that costs the memory of its adapters alone."""

    def __init__(self, model: nn.Module, values: Values):
        super().__init__()
        self._of = [model]  # in a list: no module of this one
        self.values = values

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return as_of(self._of[0], self.values, *args, **kwargs)


def masked(logits: Tensor, classes: Sequence[int]) -> Tensor:
    """Logits [..., labels] with those of all other labels at the lowest number there is."""
    kept = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    kept[list(classes)] = True
    return logits.masked_fill(~kept, torch.finfo(logits.dtype).min)


def flat_gradient(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The gradients that are there as one vector; zeros where there is none."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def put_gradient(parameters: Sequence[nn.Parameter], flat: Tensor) -> None:
    """Undo `flat_gradient`; a parameter without a gradient keeps none."""
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        if p.grad is not None:
            p.grad.copy_(part.view_as(p))
