r"""The terms that strategies add to a loss: cross-entropy over some of the labels, a pull to earlier weights, a former self as teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.continual.loop import Loop
from adaptome.objectives import Needs, Objective, Seen, Term, TermSettings, column, output

PREVIOUS = "previous"


class ClassCrossEntropy(Objective):
    """The negative log probability of the label among `classes`; logits of all others have no part in it.

    A row whose label is not among them is left out.
    """

    name = "class-cross-entropy"

    def __init__(self, classes: Sequence[int]):
        super().__init__(TermSettings())
        self.classes = list(classes)

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        logits = output(outputs, "logits", f"the objective {self.name!r}")
        labels = column(batch, "labels", f"the objective {self.name!r}").to(logits.device)
        place = torch.full((logits.shape[-1],), -100, device=logits.device)
        place[self.classes] = torch.arange(len(self.classes), device=logits.device)
        chosen, targets = logits[:, self.classes].float(), place[labels]
        total = nn.functional.cross_entropy(chosen, targets, reduction="sum")
        return total / (targets != -100).sum().clamp(min=1)


class Anchor(Objective):
    """1/2 sum_k sum_i F_k,i (theta_i - theta_k,i)^2 over the tasks k before this one."""

    name = "ewc"

    def __init__(self, loop: Loop, kept: Sequence[Mapping[str, Any]]):
        super().__init__(TermSettings())
        self.loop, self.kept = loop, kept

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        parameters = self.loop.parameters
        total = torch.zeros((), device=next(iter(parameters.values())).device)
        for task in self.kept:
            for name, p in parameters.items():
                fisher, was = task["fisher"][name].to(p), task["values"][name].to(p)
                total = total + (fisher * (p - was).square()).sum() / 2
        return total


class Former(Objective):
    """T^2 KL(softmax(o'/T) || softmax(o/T)) over the labels of earlier tasks, o' of the model as it was before this one.

    Where every token has a label, at those that count. `ahead` as in `Loop`.
    """

    name = "lwf"

    def __init__(self, classes: Sequence[int], temperature: float, ahead: int = 0):
        super().__init__(TermSettings())
        self.classes, self.temperature, self.ahead = list(classes), temperature, ahead

    def needs(self) -> Needs:
        return Needs(teacher=PREVIOUS)

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        T = self.temperature
        own, led = (output(of, "logits", "the objective 'lwf'").float() for of in (outputs, seen.teacher))
        if self.classes:
            own, led = own[..., self.classes], led[..., self.classes]
        labels = batch.get("labels")
        if own.dim() == 3 and labels is not None and labels.shape == own.shape[:2]:
            own, led = (counting(logits, labels, self.ahead)[0] for logits in (own, led))
        own, led = (logits.flatten(0, -2) for logits in (own, led))
        p, q = (led / T).log_softmax(-1), (own / T).log_softmax(-1)
        return T * T * nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")


def counting(logits: Tensor, labels: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
    """The logits [n, labels] of the tokens that count, and their labels [n].

    Args:
        logits: [rows, tokens, labels]. labels: [rows, tokens], -100 where none counts.
        ahead: as in `Loop`.
    """
    if ahead:
        logits, labels = logits[:, :-ahead], labels[:, ahead:]
    there = labels.to(logits.device) != -100
    return logits[there], labels.to(logits.device)[there]


def right_logits(logits: Tensor, labels: Tensor, ahead: int = 0) -> Tensor:
    """The logits of the right labels [n]: of the rows, or of the tokens that count."""
    if labels.dim() == 2:
        logits, labels = counting(logits, labels, ahead)
    return logits.gather(1, labels[:, None])[:, 0]


class TaskCrossEntropy(Objective):
    """The negative log probability of the task that a row's label belongs to; the first outputs stand for the tasks.

    Args:
        tasks: the labels of each.
    """

    name = "task-cross-entropy"

    def __init__(self, tasks: Sequence[Sequence[int]]):
        super().__init__(TermSettings())
        self.task_of = {c: number for number, classes in enumerate(tasks) for c in classes}
        self.count = len(tasks)

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        logits = output(outputs, "logits", f"the objective {self.name!r}")[:, : self.count]
        labels = column(batch, "labels", f"the objective {self.name!r}")
        targets = torch.tensor([self.task_of[int(c)] for c in labels], device=logits.device)
        return nn.functional.cross_entropy(logits.float(), targets)


class SelectedCrossEntropy(ClassCrossEntropy):
    """The same over logits that several modules give.

    Args:
        compose: outputs and batch -> logits [rows, labels].
    """

    name = "selected-cross-entropy"

    def __init__(self, classes: Sequence[int], compose: Callable[[Any, Mapping[str, Any]], Tensor]):
        super().__init__(classes)
        self.compose = compose

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        return super().value({"logits": self.compose(outputs, batch)}, batch, seen)


def class_term(classes: Sequence[int]) -> Term:
    """The term over some of the labels."""
    return Term(ClassCrossEntropy(classes))
