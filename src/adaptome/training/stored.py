"""The half of the Trainer that writes and reads checkpoints, and that says when writing must not go on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer_callback import ExportableState
from transformers.training_args import ParallelMode

from adaptome.core.errors import TrainingError
from adaptome.training.adapters import gathered_adapters, restore_adapters, write_adapters
from adaptome.training.checkpoint import last_good, new_checkpoint, rotate, verify
from adaptome.training.finite import FiniteLoss
from adaptome.training.optimizer import keep_settings, optimizer_state, restore_optimizer
from adaptome.training.rng import random_state, set_random_state
from adaptome.training.state import read_state, write_state

logger = logging.getLogger(__name__)

TRAINER_STATE = "trainer_state.json"


class StoredAdapters(Trainer):
    """A Trainer whose checkpoints are those of `training.checkpoint`."""

    model: Any
    optimizer: Any
    lr_scheduler: Any
    state: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._finite = FiniteLoss()
        self._epoch_random: dict[str, Any] | None = None

    # -- when nothing may be written any more -------------------------------------------------------------------

    def _stop_if_not_finite(self) -> None:
        step = self._finite.first()
        if self.args.world_size > 1:  # one process must not leave the others waiting
            highest = self.accelerator.reduce(torch.tensor(step, device=self.args.device), "sum")
            step = step or int(highest > 0) * self.state.global_step
        if step:
            self._stop(
                f"the loss became NaN or infinite at step {step}",
                "Lower the learning rate or max_grad_norm, train in bf16 or fp32 rather than fp16, or look at that step's data.",
            )

    def _stop(self, what: str, advice: str) -> None:
        good = last_good(Path(str(self.args.output_dir)))
        resume = f"The last good checkpoint is {good}." if good else "There is no checkpoint before it."
        raise TrainingError(f"{what}; nothing was saved after it.\n  {resume}\n  {advice}")

    # -- saving --------------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter (one folder per adapter when there are several) to `output_dir`."""
        adapters = gathered_adapters(self.model)
        if self.args.should_save:
            write_adapters(Path(output_dir or Path(str(self.args.output_dir)) / "adapter"), adapters)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        self.save_model(output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._stop_if_not_finite()
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        adapters = gathered_adapters(self.model)
        bad = [
            f"{name}: {k}"
            for name, a in adapters.items()
            for k, t in a.tensors.items()
            if not torch.isfinite(t).all()
        ]
        if bad:
            self._stop(
                f"{bad[0]} became NaN or infinite by step {self.state.global_step}",
                "Lower the learning rate or max_grad_norm.",
            )
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        best = folder.with_name(f"checkpoint-{self.state.best_global_step}")
        if self.state.best_global_step and (best == folder or best.is_dir()):
            self.state.best_model_checkpoint = str(best)
        states = {} if self.args.save_only_model else self._states()
        if self.args.should_save:
            with new_checkpoint(folder, self.state.global_step, resumable=bool(states)) as staging:
                write_adapters(staging / "adapters", adapters, always_named=True)
                for name, value in states.items():
                    write_state(staging, name, value)
                self._write_trainer_state(staging)
            rotate(folder, self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

    def _states(self) -> dict[str, Any]:
        """Everything beside the adapters that the next step depends on; every process must call it."""
        random = {"step": self._random_state(), "epoch": self._epoch_random}
        if self.args.world_size > 1:
            from accelerate.utils import gather_object

            ranks = gather_object([random])
        else:
            ranks = [random]
        scaler = getattr(self.accelerator, "scaler", None)
        kept = {type(c).__name__: c.kept() for c in self._keeping()}
        return {
            "optimizer": optimizer_state(self.optimizer, self.model),
            "scheduler": self.lr_scheduler.state_dict(),
            "random": ranks,
            **({} if scaler is None else {"scaler": scaler.state_dict()}),
            **({"callbacks": kept} if kept else {}),
        }

    def _keeping(self) -> list[Any]:
        """Callbacks with a state of tensors (`kept`, `restore`); transformers' own way, `state`, holds numbers only."""
        return [c for c in self.callback_handler.callbacks if hasattr(c, "kept") and hasattr(c, "restore")]

    def _write_trainer_state(self, folder: Path) -> None:
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                name, value = type(callback).__name__, callback.state()
                known = self.state.stateful_callbacks.get(name)
                if isinstance(known, list):
                    known.append(value)
                else:
                    self.state.stateful_callbacks[name] = value
        self.state.save_to_json(str(folder / TRAINER_STATE))

    # -- loading -------------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        restore_adapters(
            model if model is not None else self.model, Path(resume_from_checkpoint) / "adapters"
        )

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        verify(best)
        restore_adapters(self.model, best / "adapters")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            given = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
            restore_optimizer(self.optimizer, self.model, read_state(Path(checkpoint), "optimizer"))
            self.lr_scheduler.load_state_dict(read_state(Path(checkpoint), "scheduler"))
            for told in keep_settings(self.optimizer, self.lr_scheduler, given):
                logger.warning("Resumed with %s.", told)
            if keeping := self._keeping():
                kept = read_state(Path(checkpoint), "callbacks")
                for callback in keeping:
                    callback.restore(kept[type(callback).__name__])

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if checkpoint is not None and scaler is not None and (Path(checkpoint) / "scaler.json").exists():
            scaler.load_state_dict(read_state(Path(checkpoint), "scaler"))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._set_random(Path(checkpoint), "step")

    def _set_random(self, checkpoint: Path, moment: str) -> None:
        ranks = read_state(checkpoint, "random")
        if len(ranks) != self.args.world_size:
            logger.warning(
                "%s was written by %d processes and is resumed by %d: the data's order and dropout will differ.",
                checkpoint, len(ranks), self.args.world_size,
            )  # fmt: skip
            return
        set_random_state(ranks[self.args.process_index][moment], self._devices())

    def _random_state(self) -> dict[str, Any]:
        return random_state(self._devices())

    def _devices(self) -> list[torch.device]:
        if self.args.device.type != "cuda":
            return []
        if self.args.parallel_mode == ParallelMode.DISTRIBUTED:
            return [self.args.device]
        return [torch.device("cuda", index) for index in range(max(self.args.n_gpu, 1))]
