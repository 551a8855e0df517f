"""TRL's SFTTrainer with the adapters' checkpoints."""

from __future__ import annotations

from typing import Any

from adaptome.core.errors import DataError, MissingExtraError
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
        self.notes = [note for name in ("train", "eval") for note in self._dropped(name, kwargs)]
        self._loss_probed = True  # TRL's loss is divided by the accumulated batch's tokens

    def _dropped(self, name: str, given: dict[str, Any]) -> list[str]:
        """The note on examples that TRL has left out, as nothing of them is learned once they are cut.

        Raises:
            DataError: none is left.
        """
        args: Any = self.args
        before: Any = given.get(f"{name}_dataset")
        after: Any = getattr(self, f"{name}_dataset")
        packed = args.packing if args.eval_packing is None or name == "train" else args.eval_packing
        if not all(hasattr(rows, "__len__") and not isinstance(rows, dict) for rows in (before, after)):
            return []
        split, limit = {"train": "train", "eval": "the evaluation split"}[name], args.max_length
        dropped = 0 if packed else len(before) - len(after)
        if len(before) and not (len(after) and (not packed or _learned(after))):
            raise DataError(
                f"every example of {split} is longer than {limit} tokens before what it learns begins: nothing is left to train on.\n"
                "  Raise task.max_length (max_length of SFTConfig), or shorten the prompts."
            )
        return (
            [
                f"{dropped} of {len(before)} examples of {split} were left out: their prompts fill all {limit} tokens (task.max_length)."
            ]
            if dropped
            else []
        )

    def _send_telemetry(self) -> None:
        """Send nothing: TRL reports each run to its makers."""


def _learned(rows: Any) -> bool:
    """Whether a token of packed rows counts towards the loss."""
    for name, ignored in (("labels", -100), ("completion_mask", 0)):
        if name in (rows.column_names or ()):
            return any(value != ignored for row in rows[name] for value in row)
    return True
