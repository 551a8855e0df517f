"""What an adapted model needs from a training loop: for transformers, for Lightning, and for a loop of your own.

    before_training(model, step, total)    own loop, before its first step
    after_backward(model, step)            own loop, between backward and the optimizer's step
    after_step(model, step, total)         own loop, after the optimizer's step
    AdaptomeCallback()                     transformers.Trainer(callbacks=[...]); `AdaptomeTrainer` has it already
    LightningCallback()                    lightning.Trainer(callbacks=[...])

Both do two things: after the first backwards they check that a gradient reached every adapter, and they drive the methods'
schedules, before the first step (of a resumed run, the step it goes on from) and after every optimizer step.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from torch import nn

import adaptome as ad
from adaptome.core.errors import MissingExtraError
from adaptome.core.gradients import PATIENCE
from adaptome.core.state import state_of

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

# the callbacks are made when asked for
__all__ = ["AdaptomeCallback", "LightningCallback", "after_backward", "after_step", "before_training"]  # noqa: F822


def before_training(model: nn.Module, step: int, total: int) -> None:
    """Let the methods' schedules begin.

    Args:
        model: with its adapters; may be wrapped.
        step: optimizer steps made already: 0, or more in a resumed run.
        total: optimizer steps planned.
    """
    ad.on_step(model, step, total)


def after_backward(model: nn.Module, step: int, total: int | None = None) -> bool:
    """Check the gradients of step 1; in training mode, where layers may be skipped at random, of up to eight steps.

    Args:
        model: with its adapters; may be wrapped.
        step: the optimizer step about to be made, from 1.
        total: optimizer steps planned; None for more than eight.

    Returns:
        Whether every adapter was seen with a gradient by now, or judged before.

    Raises:
        GradientError: no gradient reached some adapters.
    """
    if step > 1 and not state_of(model).unsettled:
        return True
    return ad.check_gradients(model, left=PATIENCE if total is None else total - step)


def after_step(model: nn.Module, step: int, total: int) -> None:
    """Drive the methods' schedules.

    Args:
        model: with its adapters; may be wrapped.
        step: optimizer steps made, from 1.
        total: optimizer steps planned.
    """
    ad.on_step(model, step, total)


def _transformers_callback() -> type:
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise MissingExtraError("transformers", "train") from error

    class AdaptomeCallback(TrainerCallback):
        """Drives an adapted model in transformers' Trainer."""

        def __init__(self) -> None:
            self._checked = False

        def on_train_begin(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
        ) -> None:
            before_training(kwargs["model"], state.global_step, state.max_steps)

        def on_pre_optimizer_step(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
        ) -> None:
            if not self._checked:  # a resumed run does not begin at step 1
                self._checked = after_backward(kwargs["model"], 1, state.max_steps - state.global_step)

        def on_step_end(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
        ) -> None:
            after_step(kwargs["model"], state.global_step, state.max_steps)

    return AdaptomeCallback


def _lightning_base() -> Any:
    """The base class of callbacks, under either of the names that Lightning is installed by."""
    for package in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return importlib.import_module(package).Callback
        except ModuleNotFoundError:
            continue
    raise MissingExtraError("lightning", "lightning")


def _lightning_callback() -> type:
    Callback: Any = _lightning_base()

    class LightningCallback(Callback):
        """Drives an adapted model in Lightning's Trainer, with automatic or manual optimization."""

        def __init__(self) -> None:
            super().__init__()
            self._checked = False
            self._driven = 0

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self._driven = int(trainer.global_step)
            before_training(pl_module, self._driven, int(trainer.estimated_stepping_batches))

        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            if not self._checked:
                left = int(trainer.estimated_stepping_batches) - int(trainer.global_step)
                self._checked = after_backward(pl_module, 1, left)

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            step = int(trainer.global_step)
            if step > self._driven:  # a batch that was only accumulated is no step
                after_step(pl_module, step, int(trainer.estimated_stepping_batches))
                self._driven = step

    return LightningCallback


_LAZY = {"AdaptomeCallback": _transformers_callback, "LightningCallback": _lightning_callback}


def __getattr__(name: str) -> Any:
    """The framework's callback class, made when first asked for, so that this module needs neither framework."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = made = _LAZY[name]()
    made.__qualname__, made.__module__ = name, __name__
    return made
