"""The half of the Trainer that makes the loss: a recipe's terms, what steers the adapters, and what is logged of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

import adaptome as ad
from adaptome.objectives.deferred import Seen, deferred_logits
from adaptome.objectives.terms import SECOND, Terms
from adaptome.training.caching import in_parts, require_cacheable
from adaptome.training.state import read_state
from adaptome.training.stored import StoredAdapters

STATE = "objective"
#: outputs that terms may ask for and that no evaluation is to keep
_LARGE = ("hidden_states", "attentions")


class Told(TrainerCallback):
    """Tells the terms of the optimizer's steps, before a checkpoint is written, and of the end of training."""

    def __init__(self, terms: Terms):
        self.terms = terms

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.terms.stepped(state.global_step / max(state.max_steps, 1))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.terms.end()


class TermedTrainer(StoredAdapters):
    """A Trainer whose loss is made of terms.

    Args:
        terms: of the loss; None for the model's own.
        aside: columns of the batch that the model does not take: terms and `facts` read them.
        facts: the batch -> what its forward and backward are steered by (see `ad.steer`).
        counted: logits and labels of an evaluation batch -> what is kept of both (see `Task.counted`).
        gradient_cache: rows that are run at a time in training, see `training.caching`; None for all of a batch.
        lossless: the rows that are evaluated have no loss, and none is told.
    """

    _signature_columns: Any  # None to the type checker, where transformers fills it later
    captures_outputs = False  # whether asking compute_loss for the outputs costs a forward of its own

    def __init__(
        self,
        *args: Any,
        terms: Terms | None = None,
        aside: Sequence[str] = (),
        facts: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None,
        counted: Callable[[Any, Any], Tensor] | None = None,
        gradient_cache: int | None = None,
        lossless: bool = False,
        **kwargs: Any,
    ):
        if gradient_cache is not None:
            require_cacheable(terms)
        self.gradient_cache = gradient_cache
        self.terms, self.aside, self.facts, self.counted = terms, tuple(aside), facts, counted
        self.lossless = lossless
        self._extras: dict[str, Any] = {}
        self._given: dict[str, Any] = {}
        self._sums: dict[str, list[Any]] = {}
        #: names of what the terms measured in the last evaluation
        self.measures: list[str] = []
        super().__init__(*args, **kwargs)
        if terms is not None:
            self.add_callback(Told(terms))

    # -- a batch, its facts, and what the model takes of it ----------------------------------------------------------

    @contextmanager
    def given(self, inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """What the model takes of a batch; within the block the adapters are steered by its facts."""
        aside = {k for k in inputs if k in self.aside or k.startswith(SECOND)}
        self._extras = self._prepare_inputs({k: inputs[k] for k in aside}) if aside else {}
        self._given = {**inputs, **self._extras}
        facts = {} if self.facts is None else self.facts(self._given)
        try:
            with ad.steer(**facts) if facts else nullcontext():
                yield {k: v for k, v in inputs.items() if k not in aside}
        finally:
            self._extras, self._given = {}, {}

    def _set_signature_columns_if_needed(self) -> None:
        """The Trainer's, with the columns that stand aside, which it would take for unused."""
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*(self._signature_columns or ()), *self.aside]))

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The Trainer's, on what the model takes of the batch."""
        watching = self.terms.watching() if self.terms is not None else nullcontext()
        with self.given(inputs) as own, watching:  # the backward may run the forward again
            return super().training_step(model, own, *args, **kwargs)

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, on what the model takes of the batch; it keeps labels that stand aside."""
        with self.given(inputs) as own:
            labels = {k: v for k, v in self._extras.items() if k in self.label_names}
            loss, logits, truth = super().prediction_step(model, {**own, **labels}, *args, **kwargs)
        if self.counted is None or logits is None or truth is None:
            return loss, logits, truth
        counts = self.counted(logits, truth)
        return loss, counts, counts.new_zeros(len(counts))

    def collated(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of examples, as training makes it, on the model's device."""
        if self.args.remove_unused_columns:
            self._set_signature_columns_if_needed()
            kept: set[str] = set(self._signature_columns or ())
            rows = [{k: v for k, v in row.items() if k in kept} for row in rows]
        return dict(self._prepare_inputs(self.data_collator(rows)))

    # -- the loss ----------------------------------------------------------------------------------------------------

    def is_scaled(self, items: Any) -> bool:
        """Whether the Trainer takes the loss for one that is divided by the accumulated batch's items already."""
        told: bool | None = getattr(self, "loss_is_scaled_for_ga", None)  # not in transformers 5.17
        if told is not None:
            return told
        return (self.model_accepts_loss_kwargs and items is not None) or self.compute_loss_func is not None

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The sum of the terms, or the Trainer's loss where there are none."""
        inputs = {k: v for k, v in inputs.items() if k not in self.aside}
        if self.lossless and not self.model.training:
            made: Any = model(**{k: v for k, v in inputs.items() if k != "labels"})
            none = torch.zeros((), device=self.args.device)
            return (none, made) if return_outputs else none
        if self.terms is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        training = self.model.training
        scaled = training and self.is_scaled(num_items_in_batch)
        items = num_items_in_batch if scaled or not training else None
        if items is not None and self.args.average_tokens_across_devices:
            items = items / self.accelerator.num_processes  # gradients are averaged over processes
        with self.terms.watching():
            own, outputs = self._forward(model, inputs, num_items_in_batch)
            loss, values = self.terms.loss(
                outputs,
                {**inputs, **self._extras},
                self.state.global_step / max(self.state.max_steps, 1),
                items,
                1 / self.current_gradient_accumulation_steps if scaled else 1.0,
                own,
            )
        self._note("train" if training else "eval", values, inputs)
        self._note("measure", self.terms.measured, inputs)
        self.terms.measured.clear()
        if not return_outputs:
            return loss
        if isinstance(outputs, Mapping):
            outputs = {k: v for k, v in outputs.items() if k not in _LARGE}
        return loss, outputs

    def deferring(self, smoothing: float = 0.0) -> AbstractContextManager[Seen | None]:
        """Within it a language model keeps no logits for its loss; replicas, which run the head of one device, keep theirs."""
        return nullcontext() if self.args.n_gpu > 1 else deferred_logits(self.model, smoothing)

    def _forward(self, model: nn.Module, inputs: Any, items: Any) -> tuple[Tensor | None, Any]:
        """The model's own loss, where it is one of the terms, and its outputs."""
        assert self.terms is not None
        asked = {**inputs, **self.terms.asks()}
        if not any(term.objective.name == "model" for term in self.terms.terms):
            # a decoder's input is made from the labels
            keep = getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
            taken = {k: v for k, v in asked.items() if keep or k != "labels"}
            if self.gradient_cache is None or not self.model.training:
                return None, model(**taken)
            return None, in_parts(model, taken, self.gradient_cache, self._steered)
        if not self.captures_outputs:
            found: Any = super().compute_loss(model, asked, True, items)
            return found
        made: list[Any] = []
        hook = self.model.register_forward_hook(lambda module, args, outputs: made.append(outputs))
        try:
            own: Any = super().compute_loss(model, asked, False, items)
        finally:
            hook.remove()
        return own, made[0]

    def _steered(self, start: int, stop: int) -> AbstractContextManager[Any]:
        """Steers the adapters by the facts of some rows of the batch, as `given` does by those of all."""
        if self.facts is None:
            return nullcontext()
        rows = {k: v[start:stop] if isinstance(v, Tensor) and v.dim() else v for k, v in self._given.items()}
        facts = self.facts(rows)
        return ad.steer(**facts) if facts else nullcontext()

    # -- what is told of it --------------------------------------------------------------------------------------------

    def _note(self, kind: str, values: Mapping[str, Tensor], inputs: Mapping[str, Any]) -> None:
        rows = next((len(v) for v in inputs.values() if isinstance(v, Tensor) and v.dim()), 1)
        for name, value in values.items():
            total, count = self._sums.get(f"{kind}/{name}", [0.0, 0])
            self._sums[f"{kind}/{name}"] = [total + value.float() * rows, count + rows]

    def _means(self, kind: str) -> dict[str, float]:
        """The terms' means since they were last asked for, over all processes."""
        own = [key for key in self._sums if key.startswith(f"{kind}/")]
        found = {key.partition("/")[2]: self._sums.pop(key) for key in own}
        means = {name: torch.as_tensor(total / count) for name, (total, count) in found.items()}
        if self.args.world_size > 1:
            means = {name: self.accelerator.reduce(mean, "mean") for name, mean in means.items()}
        return {name: float(mean) for name, mean in means.items()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's log, with each term's value as `loss/<name>`."""
        if self.terms is not None and "loss" in logs:
            logs = {**logs, **{f"loss/{name}": mean for name, mean in self._means("train").items()}}
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, with each term's value as `eval_loss/<name>` and what it measures as `eval_<name>`."""
        prefix = kwargs.get("metric_key_prefix", "eval")
        self._means("eval")
        self._means("measure")
        result = super().evaluation_loop(*args, **kwargs)
        if self.terms is not None and result.metrics is not None:
            values, measured = self._means("eval"), self._means("measure")
            self.measures = list(measured)
            result.metrics.update({f"{prefix}_loss/{name}": mean for name, mean in values.items()})
            result.metrics.update({f"{prefix}_{name}": mean for name, mean in measured.items()})
        if self.lossless and result.metrics is not None:
            for name in [n for n in result.metrics if n.startswith(f"{prefix}_loss")]:
                del result.metrics[name]
        return result

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def _states(self) -> dict[str, Any]:
        buffers = {} if self.terms is None else self.terms.state()
        return super()._states() | ({STATE: buffers} if buffers else {})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.terms is not None and self.terms.state():
            self.terms.restore(read_state(Path(checkpoint), STATE))
