"""TRL's SFTTrainer with the adapters' checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Adapted
from adaptome.core.errors import DataError, MissingExtraError, TrainingError
from adaptome.objectives.chunked import chunked_loss
from adaptome.training.trainer import AdapterCheckpoints

try:
    from trl import SFTConfig, SFTTrainer
except ImportError as error:
    raise MissingExtraError("trl", "sft") from error

__all__ = ["AdaptomeSFTTrainer", "SFTConfig"]


class OwnForward(SFTTrainer):
    """TRL's SFTTrainer whose loss comes from the model's own forward, without logits that are kept (`objectives.deferred`).

    TRL's forward multiplies by the head's weight itself: it passes over an adapter there, makes the logits a second time for the backward,
    and on a CPU scores the positions that count for nothing. It still makes the losses that need more: of experts' routers, and 'dft'.
    """

    deferring: Any
    args: Any
    model: Any

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As TRL's, with its metrics.

        Raises:
            TrainingError: a loss that TRL makes itself, and an adapter on the head.
        """
        if self._is_theirs():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels, smoothing = inputs["labels"], self.args.label_smoothing_factor
        counted = labels[:, 1:] != -100
        items = counted.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        told = {"num_items_in_batch": items} if self.model_accepts_loss_kwargs else {}
        with self.deferring(smoothing) as seen:
            outputs = model(**inputs, use_cache=False, **told)
        loss: Tensor = outputs.loss
        sums: tuple[Any, ...]
        if seen is not None and seen.unread:
            sums = seen.tokens, seen.correct, seen.entropy
            loss = loss if seen.items is items else loss * (seen.items / items)  # not every model hands it on
        else:
            rows, targets = outputs.logits[:, :-1][counted], labels[:, 1:][counted]
            total, *rest = chunked_loss(rows, targets, lambda z: z, nn.Identity(), smoothing)
            loss, sums = total / items, (len(targets), *rest)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # gradients are averaged over processes
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        self._measure(inputs, sums)
        return (loss, outputs) if return_outputs else loss

    def _is_theirs(self) -> bool:
        """Whether TRL makes the loss."""
        split = self.accelerator.parallelism_config
        if split is not None and (split.cp_enabled or split.sp_enabled):
            return True
        if self.args.loss_type == "nll" and not self.aux_loss_enabled and self.compute_loss_func is None:
            return False
        if isinstance(self.model.get_output_embeddings(), Adapted):
            raise TrainingError(
                "this loss is made from the head's weight alone, and an adapter on the head would be passed over.\n"
                "  Leave the head out of the adapter's targets, or train with loss_type='nll' and without a router's loss."
            )
        return True

    def _measure(self, inputs: Any, sums: tuple[Any, ...]) -> None:
        """Note what TRL logs: tokens so far, their accuracy and entropy."""
        mode = "train" if self.model.training else "eval"
        here = torch.tensor([float(value) for value in sums], dtype=torch.float64, device=self.args.device)
        tokens, correct, entropy = self.accelerator.gather_for_metrics(here[None]).sum(0).tolist()
        for name, total in (("entropy", entropy), ("mean_token_accuracy", correct)):
            self._metrics[mode][name].append(total / tokens if tokens else 0.0)
        if mode == "train":
            mask = inputs.get("attention_mask")
            count = inputs["input_ids"].numel() if mask is None else int(mask.sum())
            shown = torch.tensor([count], device=self.args.device)
            self._total_train_tokens += (
                int(self.accelerator.gather_for_metrics(shown).sum()) // self.get_tp_size()
            )
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]


class AdaptomeSFTTrainer(AdapterCheckpoints, OwnForward):
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
