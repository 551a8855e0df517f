r"""conpet-dynamic: a module (adapter and head) for each task, and a selector of the modules that answer for a row.

    S(x)    the `active` tasks with the greatest selector logits; in training the last gives way to x's own task where it is missing
    z_c(x)  the logit of task(c)'s module, where task(c) is in S(x);  null, where it is not
    answer  argmax_c z_c(x) over the labels seen

selector    adapter and linear layer over the tasks' numbers, trained before the task's module by cross-entropy on mixed batches; it begins as
            that of the task before, with one row more
module k    trained on mixed batches by -log softmax z over the labels seen; earlier modules give their logits and no gradient
cost        a forward for the selector and one for each active module, however many tasks there are; training two runs of equal length

Song et al. 2023, arXiv:2309.14763. A module begins afresh, where the released code for LLaMA goes on with the selector's: `from_selector`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from transformers import TrainerCallback

from adaptome.continual.loop import ROW, Loop, Values, as_of, subset
from adaptome.continual.losses import SelectedCrossEntropy, TaskCrossEntropy
from adaptome.continual.modules import Cache, cut, whole
from adaptome.continual.sampling import Sampling, SamplingSettings
from adaptome.continual.strategy import Again, register_strategy
from adaptome.continual.stream import Stream
from adaptome.core.errors import RecipeError
from adaptome.objectives import Term

SELECTOR, MODULE = "selector", "module"


class DynamicSettings(SamplingSettings):
    active: int = Field(default=1, ge=1, description="modules that answer for a row; as many as tasks: all, and no selector")  # fmt: skip
    null: float = Field(default=-100.0, description="logit of labels whose module is not active")
    from_selector: bool = Field(
        default=False, description="a module's adapter begins as the selector's, not afresh"
    )


@register_strategy("conpet-dynamic")
class ConPETDynamic(Sampling):
    """A module for each task, chosen by a selector."""

    Settings = DynamicSettings
    routed = True
    numbered = True

    def __init__(self, settings: DynamicSettings):
        super().__init__(settings)
        #: what trains as it was before the first task
        self.start: Values = {}
        #: of each task: adapters, and the head's rows of its labels
        self.modules: list[Values] = []
        #: adapters, and the head's first rows, which stand for tasks
        self.selector: Values = {}
        self.cache = Cache()
        #: row -> tasks by the present selector, greatest first; of training alone
        self.order: dict[int, list[int]] = {}

    @property
    def several(self) -> bool:
        return len(self.modules) > 1

    def check(self, stream: Stream, training: Any) -> None:
        super().check(stream, training)
        brought = [c for part in stream.parts for c in part.classes]
        if stream.kind != "class" or len(set(brought)) < len(brought):
            raise RecipeError(
                "continual.strategy: conpet-dynamic needs tasks with labels that no other has.\n"
                "  Give continual.stream.by=labels without overlap, or labels=disjoint or own."
            )

    # -- training ------------------------------------------------------------------------------------------------------

    def phases(self, loop: Loop) -> tuple[str, ...]:
        selects = loop.at > 0 and self.settings.active < len(loop.stream.parts)
        return (SELECTOR, MODULE) if selects else (MODULE,)

    def begin(self, loop: Loop) -> None:
        if not loop.outputs:
            raise RecipeError("continual.strategy: conpet-dynamic needs a head with a row for each label.")
        if not self.start:
            self.start = loop.values()
        if loop.phase == SELECTOR:
            loop.put(self._selector(loop, loop.at) if self.selector else self.start)
        elif self.settings.from_selector and self.selector:
            heads = {k: self.start[k] for k in loop.heads}
            loop.put({**self.selector, **heads})
        else:
            loop.put(self.start)

    def main(self, loop: Loop) -> Term | None:
        if loop.phase == SELECTOR:
            return Term(TaskCrossEntropy([p.classes for p in loop.stream.parts[: loop.at + 1]]))
        if loop.at == 0:
            return super().main(loop)
        return Term(
            SelectedCrossEntropy(loop.seen, lambda outputs, batch: self.composed(loop, outputs, batch))
        )

    def callbacks(self, loop: Loop) -> list[Any]:
        return [_Kept(self)] if loop.phase == MODULE and loop.at else []

    def end(self, loop: Loop) -> None:
        if loop.phase == SELECTOR:
            self.selector, self.order = cut(loop, range(loop.at + 1)), {}
            return
        del self.modules[loop.at :]
        self.modules.append(cut(loop, loop.present))
        self.cache.forget(loop.at)

    def composed(self, loop: Loop, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """z of a training batch [rows, labels]: frozen modules from the cache, the present one's with its gradient."""
        live: Tensor = outputs["logits"]
        labels, rows = batch["labels"], [int(row) for row in batch[ROW]]
        made = torch.full_like(live, self.settings.null)
        own = torch.tensor([self._task_of(loop)[int(c)] for c in labels])
        chosen = self._chosen(loop, batch, rows, own)
        for task in sorted(set(chosen.flatten().tolist())):
            places = (chosen == task).any(1).nonzero().flatten()
            classes = torch.tensor(loop.stream.parts[task].classes, device=live.device)
            if task == loop.at:
                part = live[places.to(live.device)][:, classes]
            else:
                part = self._frozen(loop, task, batch, rows, places).to(live)
            made = made.index_put((places.to(live.device)[:, None], classes[None]), part)
        return made

    def _chosen(self, loop: Loop, batch: Mapping[str, Any], rows: list[int], own: Tensor) -> Tensor:
        """The active tasks of each row [rows, active], its own among them."""
        active = min(self.settings.active, loop.at + 1)
        if active == 1:
            return own[:, None]
        if active == loop.at + 1:
            return torch.arange(active).expand(len(rows), active)
        missing = [place for place, row in enumerate(rows) if row not in self.order]
        if missing:
            found = self._logits_of(loop, self._selector(loop, loop.at + 1), batch, torch.tensor(missing))
            for place, logits in zip(missing, found[:, : loop.at + 1].cpu(), strict=True):
                self.order[rows[place]] = logits.argsort(descending=True, stable=True).tolist()
        best = torch.tensor([self.order[row][:active] for row in rows])
        absent = ~(best == own[:, None]).any(1)
        best[absent, -1] = own[absent]
        return best

    def _frozen(self, loop: Loop, task: int, batch: Mapping[str, Any], rows: list[int], places: Tensor) -> Tensor:  # fmt: skip
        classes = list(loop.stream.parts[task].classes)

        def compute(missing: Tensor) -> Tensor:
            return self._logits_of(loop, self._module(loop, task), batch, places[missing])[:, classes]

        return self.cache.get(task, [rows[int(p)] for p in places], compute)

    def _logits_of(self, loop: Loop, values: Values, batch: Mapping[str, Any], places: Tensor) -> Tensor:
        inputs = {k: v for k, v in batch.items() if k not in ("labels", ROW)}
        found: Tensor = as_of(loop.model, values, **subset(inputs, places, len(batch[ROW])))["logits"]
        return found

    # -- prediction ----------------------------------------------------------------------------------------------------

    def place(self, loop: Loop, part: int) -> None:
        if self.selector:
            loop.put(self._selector(loop, loop.at + 1))

    def logits(self, loop: Loop, outputs: Any, again: Again, part: int | None = None) -> Tensor:
        out: Tensor = outputs["logits"]
        seen = loop.at + 1
        active = min(self.settings.active, seen)
        if part is not None:
            chosen = torch.full((len(out), 1), part)
        elif active == seen:
            chosen = torch.arange(seen).expand(len(out), seen)
        else:
            chosen = out[:, :seen].topk(active, dim=1).indices.cpu()
        made = torch.full_like(out, self.settings.null)
        for task in sorted(set(chosen.flatten().tolist())):
            places = (chosen == task).any(1).nonzero().flatten()
            classes = list(loop.stream.parts[task].classes)
            found = again(self._module(loop, task), None if len(places) == len(out) else places)["logits"]
            made[places.to(made.device)[:, None], torch.tensor(classes, device=made.device)] = found[
                :, classes
            ]
        return made

    # -- values --------------------------------------------------------------------------------------------------------

    def _module(self, loop: Loop, task: int) -> Values:
        return whole(loop, self.modules[task], loop.stream.parts[task].classes, self.start)

    def _selector(self, loop: Loop, tasks: int) -> Values:
        """The selector of so many tasks as values of what trains."""
        return whole(loop, self.selector, range(tasks), self.start)

    def _task_of(self, loop: Loop) -> dict[int, int]:
        return {c: n for n, part in enumerate(loop.stream.parts) for c in part.classes}

    def state(self) -> dict[str, Any]:
        return {
            "start": self.start,
            "modules": self.modules,
            "selector": self.selector,
            "cache": self.cache.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.start, self.modules = dict(state["start"]), list(state["modules"])
        self.selector, self.order = dict(state["selector"]), {}
        self.cache.restore(state["cache"])


class _Kept(TrainerCallback):
    """What was looked up so far goes into checkpoints: computed again in other batches it would round otherwise."""

    def __init__(self, strategy: ConPETDynamic):
        self.strategy = strategy

    def kept(self) -> dict[str, Any]:
        return {
            "cache": self.strategy.cache.state(),
            "order": {str(row): tasks for row, tasks in self.strategy.order.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.strategy.cache.restore(state["cache"])
        self.strategy.order = {int(row): list(tasks) for row, tasks in state["order"].items()}
