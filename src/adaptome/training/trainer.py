"""transformers' Trainer with checkpoints that hold the adapters, are whole, and resume exactly.

    trainer = AdaptomeTrainer(model, args, train_dataset=data)     # adapters attached before
    trainer.train(resume_from_checkpoint=True)                     # from the last good checkpoint, or from the start

What differs from `transformers.Trainer`:

- a checkpoint holds adapters, optimizer, scheduler and random states, never the base and never a pickle; see
  `training.checkpoint` for the folder;
- resuming gives the bits of the run that was not interrupted (on a CPU, or with deterministic kernels): the
  random state at the epoch's start is stored too, so that every sampler draws its order again; evaluation
  leaves the random state as it found it; early stopping's count is restored. Transforms that draw random
  numbers while loading data must seed themselves per example;
- an incomplete or altered checkpoint is never resumed from: the last good one before it is, with a warning;
- a language model's loss keeps no logits (`objectives.deferred`);
- a NaN or infinite loss stops the run with the step and the last good checkpoint (`training.finite`);
- `save_model()` writes the adapter alone, to `<output_dir>/adapter` unless told where.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, Trainer, TrainerState
from transformers.trainer_optimizer import is_optimizer_factory

import adaptome as ad
from adaptome.callbacks import AdaptomeCallback
from adaptome.core.errors import CheckpointError, TrainingError
from adaptome.core.files import sweep_staging
from adaptome.optim import PowerCourse, parameter_groups
from adaptome.training.arguments import CHECKPOINTING
from adaptome.training.bound import Pace
from adaptome.training.checkpoint import checkpoints, last_good, verify
from adaptome.training.finite import FiniteLoss
from adaptome.training.frozen import hold_base
from adaptome.training.quantized import accepted_quantized, kept_dtypes
from adaptome.training.rng import set_random_state
from adaptome.training.stored import TRAINER_STATE
from adaptome.training.turns import TurnTaking

logger = logging.getLogger(__name__)


class AdapterCheckpoints(TurnTaking):
    """Mixin over `Trainer` and its subclasses; put it first among the bases.

    Args:
        loraplus_ratio: learning rate of LoRA's `B` over that of `A`; None for 1.
        base_eval: keep the frozen base in evaluation mode while training, see `training.frozen`.
        course: of the learning rate, in place of the arguments' scheduler.
        terms, aside, facts: see `training.termed`; turns: see `training.turns`.
        *args, **kwargs: those of the Trainer. `model` has its adapters attached.

    Raises:
        TrainingError: nothing of the model trains, or a setting that these checkpoints do not admit.
    """

    def __init__(
        self,
        *args: Any,
        loraplus_ratio: float | None = None,
        base_eval: bool = False,
        course: PowerCourse | None = None,
        **kwargs: Any,
    ):
        self.loraplus_ratio, self.base_eval, self.course = loraplus_ratio, base_eval, course
        model = kwargs.get("model", args[0] if args else None)
        if isinstance(model, str):
            raise TrainingError(
                f"model={model!r} is a name: load the model and attach an adapter to it first."
            )
        if model is not None:
            _require_trainable(model, idle=_idle(kwargs.get("args", args[1] if len(args) > 1 else None)))
        with accepted_quantized(model), kept_dtypes(model):
            super().__init__(*args, **kwargs)
        _refuse_settings(self)
        # the filter hides NaN from the log, and makes every step wait for the device
        self.args.logging_nan_inf_filter = False
        self.args.restore_callback_states_from_checkpoint = True
        if not any(isinstance(callback, AdaptomeCallback) for callback in self.callback_handler.callbacks):
            self.add_callback(AdaptomeCallback())
        #: tokens and seconds of the steps done
        self.pace = Pace()
        #: what preparing the data changed, for the user to read
        self.notes: list[str] = []
        self._loss_probed = False
        self._own_checkpoints = False
        self._resumed: Path | None = None
        self._stopped_before = False

    # -- the run -------------------------------------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: Any = None,
    ) -> Any:
        """Train; with `resume_from_checkpoint=True` from the last good checkpoint, or from the start if none is.

        Raises:
            TrainingError: the loss became NaN or infinite, or the folder holds another run's checkpoints.
            CheckpointError: the named checkpoint and all before it are unusable, or the disk is full.
        """
        if _idle(self.args):
            return None
        folder = Path(self._get_output_dir(trial))
        if self.args.should_save:
            sweep_staging(folder)
        self.accelerator.wait_for_everyone()
        self._resumed = self._chosen(resume_from_checkpoint, folder)
        self._own_checkpoints = True
        self._finite, self._stopped_before = FiniteLoss(), False
        self._let_gradients_in()
        resume = None if self._resumed is None else str(self._resumed)
        return super().train(resume, trial, ignore_keys_for_eval)

    def _chosen(self, asked: str | bool | None, folder: Path) -> Path | None:
        """The checkpoint to resume from, verified."""
        if asked is None or asked is False:
            stale = [] if self._own_checkpoints else checkpoints(folder)
            if stale:
                raise TrainingError(
                    f"{folder} holds checkpoints of an earlier run, up to step {stale[-1][0]}.\n"
                    f"  Resume it with resume_from_checkpoint=True, or choose another output folder."
                )
            return None
        if asked is True:
            found = last_good(folder)
            if found is None:
                logger.warning("No complete checkpoint in %s: training starts from the beginning.", folder)
            return found
        named = Path(asked)
        try:
            if verify(named)["resumable"]:
                return named
            raise CheckpointError(f"{named} holds the adapters only: it cannot be resumed from.")
        except CheckpointError as error:
            step = {path.name: step for step, path in checkpoints(named.parent)}.get(named.name)
            found = None if step is None else last_good(named.parent, up_to=step - 1)
            if found is None:
                raise
            logger.warning("%s\n  Resuming from %s, the last good checkpoint before it.", error, found)
            return found

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer's, or the course that was given."""
        if self.course is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup = self.args.get_warmup_steps(num_training_steps)
        made: Any = self.course.scheduler(optimizer or self.optimizer, warmup, num_training_steps)
        self.lr_scheduler, self._created_lr_scheduler = made, True
        return made

    def _let_gradients_in(self) -> None:
        """Reentrant checkpointing passes gradients only through inputs that require them; nothing frozen does.

        Newer versions of transformers see to it for models that read `input_ids`.
        """
        settings: Any = getattr(self.args, f"{CHECKPOINTING}_kwargs") or {}
        if not (getattr(self.args, CHECKPOINTING) and settings.get("use_reentrant")):
            return
        model: Any = self.model
        if hasattr(model, "enable_input_require_grads") and not getattr(model, "_require_grads_hooks", None):
            model.enable_input_require_grads()

    def _init_training_state(self, max_steps: Any, *args: Any, **kwargs: Any) -> tuple[int, int]:
        asked = {type(callback): callback for callback in self.callback_handler.callbacks}
        result = super()._init_training_state(max_steps, *args, **kwargs)
        if self._resumed is not None:
            self.state.compute_steps(
                self.args, max_steps
            )  # what is asked for now, not what the checkpoint says
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, EarlyStoppingCallback):
                    given: Any = asked[type(callback)]
                    callback.early_stopping_patience = given.early_stopping_patience
                    callback.early_stopping_threshold = given.early_stopping_threshold
            stored = TrainerState.load_from_json(str(self._resumed / TRAINER_STATE))
            control = dict(stored.stateful_callbacks or {}).get("TrainerControl", {}).get("args", {})
            early = bool(control.get("should_training_stop")) and stored.global_step < stored.max_steps
            self._stopped_before = early or self.state.global_step >= max_steps
            best = self._resumed.with_name(f"checkpoint-{self.state.best_global_step}")
            if self.state.best_global_step and best.is_dir():  # the run's folder may have moved
                self.state.best_model_checkpoint = str(best)
        return result

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:  # type: ignore[override]  # called by names
        if self._stopped_before:  # killed between its last checkpoint and its end: nothing is left to train
            self.control.should_training_stop = True
            return
        if self._resumed is not None and epoch == kwargs["epochs_trained"]:
            if kwargs["steps_trained_in_current_epoch"] > 0:
                # the data's order is drawn again from here; then the Trainer sets the state of the stored step
                self._set_random(self._resumed, "epoch")
            else:
                self._set_random(self._resumed, "step")
        self._epoch_random = self._random_state()
        drawn: Any = self.train_dataset
        if hasattr(drawn, "set_epoch"):  # it draws anew for each example and epoch
            drawn.set_epoch(epoch)
        super()._run_epoch(epoch=epoch, **kwargs)

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not any(parameter.is_meta for parameter in model.parameters()):  # shapes alone stay where they are
            super()._move_model_to_device(model, device)

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward of the Trainer, whose loss must be finite."""
        began = time.perf_counter()
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.pace.see(inputs, time.perf_counter() - began)
        self._finite.see(loss, self.state.global_step + 1)
        if self._stops_at_once(loss):
            self._stop_if_not_finite()
        return loss

    def _stops_at_once(self, loss: Tensor) -> bool:
        return loss.device.type == "cpu" and self.args.world_size == 1

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's loss; while training, the methods' own terms are added to it."""
        if model.training and not self._loss_probed:
            self._probe_loss(model, inputs, num_items_in_batch)
        if model.training and self.base_eval:
            hold_base(self.model)
        result: Any = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        penalty = ad.penalty(self.model) if model.training else None
        if penalty is None:
            return result
        if self.is_scaled(num_items_in_batch):  # otherwise training_step divides the sum
            penalty = penalty / self.current_gradient_accumulation_steps
        return (result[0] + penalty, *result[1:]) if return_outputs else result + penalty

    def _probe_loss(self, model: nn.Module, inputs: Any, items: Any) -> None:
        """Find out whether the model divides its loss by the accumulated batch's number of items.

        The Trainer takes every model whose forward has **kwargs for one that does, so that for the others
        (most classifiers) accumulated gradients come out as many times too large as batches were accumulated.
        """
        self._loss_probed = True
        alone = self.args.gradient_accumulation_steps == 1 and self.args.world_size == 1
        own = self.terms is None or any(term.objective.name == "model" for term in self.terms.terms)
        if (
            alone
            or not own
            or items is None
            or not self.model_accepts_loss_kwargs
            or self.compute_loss_func is not None
        ):
            return
        state = self._random_state()
        with torch.no_grad(), self.compute_loss_context_manager(), self.deferring():
            model.eval()
            losses: list[Any] = [
                Trainer.compute_loss(self, model, dict(inputs), num_items_in_batch=n)
                for n in (items, items * 2)
            ]
            model.train()
        set_random_state(state, self._devices())
        self.model_accepts_loss_kwargs = not torch.equal(losses[0], losses[1])

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that `args.optim` names, over `optim.parameter_groups`."""
        chosen: Any = model if model is not None else self.model
        if self.optimizer is None:
            kind, settings = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(
                self.args, chosen
            )
            own = {"params", "model", "optimizer_dict"} & set(settings)
            if own or is_optimizer_factory(kind):
                return super().create_optimizer(model)
            lr = settings.get("lr", self.args.learning_rate)
            groups = parameter_groups(chosen, lr, self.args.weight_decay, self.loraplus_ratio)
            self.optimizer = kind(groups, **settings)
        return self.optimizer

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The Trainer's evaluation; the random state is afterwards as before, so that it changes no training."""
        self._stop_if_not_finite()
        before = self._random_state()
        metrics = super().evaluate(*args, **kwargs)
        set_random_state(before, self._devices())
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's log, unless the loss is no number any more."""
        self._stop_if_not_finite()
        super().log(logs, start_time)


class DeferredLogitsTrainer(Trainer):
    """transformers' Trainer whose language models keep no logits for their loss (`objectives.deferred`)."""

    deferring: Any

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's; where outputs are asked for, the logits are made at once."""
        with nullcontext() if return_outputs else self.deferring():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class AdaptomeTrainer(AdapterCheckpoints, DeferredLogitsTrainer):
    """transformers' Trainer for a model with adapters; see this module's first lines for what differs."""


def _idle(args: Any) -> bool:
    """Whether the run is to train nothing: `max_steps` of 0, where transformers' -1 leaves the end to the epochs."""
    return getattr(args, "max_steps", -1) == 0


def _require_trainable(model: nn.Module, idle: bool) -> None:
    if not idle and not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError(
            f"nothing of this {type(model).__name__} trains.\n  Attach an adapter first: ad.attach(model, 'lora')."
        )
    if not ad.adapters(model):
        raise TrainingError(
            f"this {type(model).__name__} has no adapter, and these checkpoints hold adapters only.\n"
            f"  Attach one first: ad.attach(model, 'lora'); or train all of it with transformers.Trainer."
        )


def _refuse_settings(trainer: AdapterCheckpoints) -> None:
    if trainer.is_deepspeed_enabled:
        raise TrainingError(
            "DeepSpeed keeps its own checkpoints, which hold the base too.\n  Shard with FSDP: fsdp=True."
        )
    if trainer.args.fsdp and not trainer.is_fsdp_enabled:
        raise TrainingError(
            "fsdp=True has no effect here: accelerate shards over accelerators only.\n  Leave it out."
        )
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None and int(getattr(plugin, "fsdp_version", 1)) != 2:
        raise TrainingError(
            "FSDP 1 flattens parameters, and adapters cannot be told from the base.\n  Set fsdp_config={'version': 2}."
        )
    if trainer.args.push_to_hub:
        raise TrainingError(
            "push_to_hub=True uploads checkpoints with their optimizer.\n  Upload the folder of ad.save instead."
        )
