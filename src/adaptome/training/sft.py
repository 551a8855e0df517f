"""TRL's SFTTrainer with the adapters' checkpoints."""

from __future__ import annotations

from typing import Any

from adaptome.core.errors import MissingExtraError
from adaptome.training.trainer import AdapterCheckpoints

try:
    from trl import SFTConfig, SFTTrainer
except ImportError as error:
    raise MissingExtraError("trl", "sft") from error

__all__ = ["AdaptomeSFTTrainer", "SFTConfig"]


class AdaptomeSFTTrainer(AdapterCheckpoints, SFTTrainer):
    """TRL's SFTTrainer for a model with adapters attached; its `peft_config` stays unused."""

    captures_outputs = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._loss_probed = True  # TRL's loss is divided by the accumulated batch's tokens

    def _send_telemetry(self) -> None:
        """Send nothing: TRL reports each run to its makers."""
