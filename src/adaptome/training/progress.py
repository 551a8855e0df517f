"""How a run tells how it goes: a bar on a terminal, else lines of the log; never on standard output."""

from __future__ import annotations

import logging
import sys
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

logger = logging.getLogger(__name__)

_TIMES = ("_runtime", "_per_second", "_time")


class Progress(TrainerCallback):
    """A bar over the optimizer steps with the last loss and score."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and sys.stderr.isatty():
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, file=sys.stderr, unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        shown = {
            k: v
            for k, v in logs.items()
            if isinstance(v, float) and ("loss" in k or k.startswith("eval_")) and not k.endswith(_TIMES)
        }
        if self._bar is not None:
            self._bar.set_postfix({key: f"{value:.4g}" for key, value in list(shown.items())[:4]})
        elif shown:
            told = ", ".join(f"{key} {value:.4g}" for key, value in shown.items())
            logger.info("step %d of %d: %s", state.global_step, state.max_steps, told)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
