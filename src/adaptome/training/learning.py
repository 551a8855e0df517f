"""A stream while it is being learned: its model, and the runs of transformers' Trainer that each round is made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from adaptome.continual import Strategy
from adaptome.continual.loop import Loop
from adaptome.continual.losses import class_term, right_logits
from adaptome.core.files import atomic_folder, remove_folder
from adaptome.objectives import Seen, Term, Terms, get_objective
from adaptome.objectives.cross_entropy import CrossEntropy
from adaptome.recipe import Recipe
from adaptome.tasks import get_task
from adaptome.training.adapters import gathered_adapters, restore_adapters, write_adapters
from adaptome.training.building import attach, base_model, spec
from adaptome.training.folder import CHECKPOINTS
from adaptome.training.matrix import Scorer
from adaptome.training.predicting import AFTER, SCORES, STRATEGY
from adaptome.training.state import read_state, write_state
from adaptome.training.stream_data import only, stream_of, stream_splits
from adaptome.training.trainers import trainer_of


class Learning:
    """A stream, its model and its strategy, while they are being put to work."""

    def __init__(self, recipe: Recipe, strategy: Strategy, callbacks: list[TrainerCallback]):
        # what is best is not chosen on a task's own validation rows: that would be another thing for every strategy
        self.recipe = _with_training(recipe, keep_best=False)
        self.strategy, self.callbacks = strategy, callbacks
        self.task = get_task(recipe.task.name, **recipe.task.settings)
        self.processor = self.task.load_processor(spec(recipe))
        splits, self.split, cut = stream_splits(recipe, self.task)
        self.data = self.task.prepare(splits, self.processor)
        stream = stream_of(recipe, self.task, splits, self.data, self.split, cut)
        strategy.check(stream, recipe.training)
        model, self.terms, also = base_model(recipe, self.task, self.processor)
        heads = tuple(self.task.head_patterns(model))
        self.notes = [*self.data.notes, *attach(recipe, self.task, model, also)]
        rounds = strategy.rounds(stream)
        names = tuple(n for n, p in model.named_parameters() if p.requires_grad)
        self.loop = Loop(
            model, stream, names, tuple(n for n in names if n.startswith(heads)) if heads else (),
            len(self.task.labels or ()), recipe.training.seed, rounds,
            batch_size=recipe.training.batch_size, epochs=recipe.training.epochs, ahead=self.task.ahead,
        )  # fmt: skip
        self.loop.gradient = self._gradient
        self.rounds = [
            (f"{i}-{stream.parts[r[0]].name if len(r) == 1 else 'joint'}", r) for i, r in enumerate(rounds, 1)
        ]
        self.scorer = Scorer(
            self.recipe, self.task, self.processor, splits, self.data, self.split, self.loop, strategy
        )

    # -- a round -------------------------------------------------------------------------------------------------------

    def learned(self, folder: Path) -> dict[str, Any]:
        """Train a round, phase by phase, score what was seen, and write what comes after it."""
        loop, done = self.loop, {"steps": 0, "history": []}
        phases = self.strategy.phases(loop)
        for loop.phase in phases:
            place = folder / loop.phase
            if (place / AFTER).is_dir():
                done = self.restored(place / AFTER)
                continue
            self.strategy.begin(loop)
            self._train(place, done)
            self.strategy.end(loop)
            if loop.phase != phases[-1]:
                self._write(place / AFTER, done)
        self._write(folder / AFTER, scores := self.scorer.row() | done)
        for name in (CHECKPOINTS, *(phase for phase in phases if phase)):
            if (folder / name).is_dir():
                remove_folder(folder / name)
        return scores

    def restored(self, folder: Path) -> dict[str, Any]:
        """Go to what came after a finished round, or a phase of one."""
        restore_adapters(self.loop.model, folder / "adapters")
        self.strategy.restore(read_state(folder, STRATEGY))
        found: dict[str, Any] = json.loads((folder / SCORES).read_text(encoding="utf-8"))
        return found

    def _write(self, folder: Path, told: dict[str, Any]) -> None:
        with atomic_folder(folder) as staging:
            write_adapters(staging / "adapters", gathered_adapters(self.loop.model), always_named=True)
            write_state(staging, STRATEGY, self.strategy.state())
            (staging / SCORES).write_text(json.dumps(told, indent=1), encoding="utf-8")

    def _train(self, folder: Path, done: dict[str, Any]) -> None:
        """One run of the Trainer; its steps and its log are added to what the round did before."""
        self.trainer = self._trainer(folder)
        going_on = bool(self.recipe.training.resume) and (folder / CHECKPOINTS).is_dir()
        self.trainer.train(resume_from_checkpoint=going_on)
        before = done["steps"]
        log = [{**entry, "step": entry["step"] + before} for entry in self.trainer.state.log_history]
        done["history"] = [*done["history"], *log]
        done["steps"] = before + self.trainer.state.global_step

    def _trainer(self, folder: Path) -> Any:
        loop, strategy = self.loop, self.strategy
        rows, in_order = strategy.rows(loop), strategy.in_order(loop)
        recipe = self.recipe.model_copy(
            update={"output": self.recipe.output.model_copy(update={"folder": str(folder)})}
        )
        if in_order:  # all epochs are one, and a checkpoint comes after each
            training = recipe.training
            batches = len(rows) / training.batch_size / training.epochs / training.gradient_accumulation
            recipe = _with_training(recipe, epochs=1, save_steps=training.save_steps or max(int(batches), 1))
        data = only(self.data, "train", rows, in_order, strategy.numbered)
        callbacks = [*self.callbacks, *strategy.callbacks(loop)]
        return trainer_of(recipe, self.task, self.processor, data, loop.model, callbacks, self._loss())

    def _loss(self) -> Terms | None:
        """The recipe's terms, the strategy's own in place of the model's loss, and what it adds."""
        loop, strategy = self.loop, self.strategy
        main, added, terms = strategy.main(loop), strategy.added(loop), self.terms
        if main is not None:
            others = (
                t for t in terms if t.objective.name != "model" and not isinstance(t.objective, CrossEntropy)
            )
            terms = [main, *others]
        elif added and not terms:
            terms = [Term(get_objective("model"))]
        terms = [*terms, *added]
        return Terms(loop.model, terms, strategy.teachers(loop)) if terms else None

    # -- what a strategy asks for --------------------------------------------------------------------------------------

    def _gradient(self, rows: Sequence[int], what: str) -> Tensor:
        """See `Loop.gradient`."""
        trainer, loop = self.trainer, self.loop
        model, parameters = loop.model, list(loop.parameters.values())
        batch = trainer.collated([self.data["train"][int(row)] for row in rows])
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with torch.enable_grad(), trainer.given(batch) as own:
                outputs = model(**own)
                if what == "logit":
                    value = right_logits(outputs["logits"], own["labels"], loop.ahead).mean()
                elif loop.stream.kind == "class":
                    value = class_term(loop.seen).objective.value(outputs, own, Seen(model))
                else:
                    value = outputs["loss"]
                found = torch.autograd.grad(value, parameters, allow_unused=True)
        finally:
            for module, mode in modes:
                module.training = mode
        given = zip(found, parameters, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in given])


def _with_training(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=changes)})
