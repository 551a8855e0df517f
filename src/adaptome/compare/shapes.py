"""A recipe on shapes alone: its model on the meta device under the recipe's own trainer, and batches of its data."""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import adaptome as ad
from adaptome.architectures import hyperparameters
from adaptome.architectures import names as architectures
from adaptome.compare.devices import Device
from adaptome.compare.packed import pack
from adaptome.compare.work import Counted, Work
from adaptome.core.errors import ModelError, RecipeError
from adaptome.core.example_inputs import example_inputs
from adaptome.core.state import is_ours
from adaptome.inspection import set_up
from adaptome.memory import OPTIMIZERS, footprint, imagined, optimizer_bytes, scalar, shadow
from adaptome.recipe import MethodSection, Recipe
from adaptome.tasks import Prepared, Task, get_task
from adaptome.tasks.models import shapes_alone
from adaptome.training.building import attach, base_model, prepared
from adaptome.training.objectives import assembled
from adaptome.training.trainers import trainer_of

#: batches of the training data that are looked at, and the seconds that may take
LOOKED_AT, PATIENCE = 64, 5.0
#: what glibc's heap holds beyond a step's tensors, as a share of them: seen in small steps, whose tensors it does not map one by one
PIECES = 0.3
#: name of a transformers optimizer begins with -> of one whose state is known
_OPTIMIZERS = {
    "adamw_bnb_8bit": "adamw-8bit", "adamw_8bit": "adamw-8bit", "paged_adamw_8bit": "adamw-8bit", "adafactor": "adafactor",
    "lion": "lion", "paged_lion": "lion", "sgd": "sgd", "adamw": "adamw", "paged_adamw": "adamw",
}  # fmt: skip


@dataclass(frozen=True)
class Memory:
    """Bytes of training at its worst moment and what they are made of.

    Attributes:
        weights: of the base and its head. adapter: parameters and buffers of the method.
        gradients, optimizer: of what trains. activations: kept from the forward to the backward; `logits` of the output among them.
        step: most at once in forward and backward, or in the optimizer's step, beyond what is there between steps.
        libraries: what the process or the driver holds without any of it.
        pieces: what the allocator holds beyond the tensors: measured where steps were, else a share of the step on a CPU.
        total: weights, adapter, optimizer, step, libraries and pieces.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    step: int
    libraries: int
    pieces: int
    total: int


@dataclass(frozen=True)
class Counts:
    """A step of one batch, counted: its memory and its work."""

    trainable: int
    memory: Memory
    work: Work


class Data:
    """A recipe's task and data, read once for all variants of it; or a length in place of the data.

    Args:
        recipe: whose `data`, `task` and tokenizer are read.
        length: tokens of a sample that is made up; None reads the data.

    Raises:
        RecipeError, DataError: they cannot be read.
    """

    def __init__(self, recipe: Recipe, length: int | None = None) -> None:
        self.length, self.processor = length, None
        self.prepared: Prepared | None = None
        self.task: Task
        if length is None:
            self.task, self.processor, _, self.prepared = prepared(recipe)
            if self.prepared.get("train") is None:
                raise RecipeError("the data has no train split: give data.train, or --length for made-up samples.")  # fmt: skip
        else:
            labels = recipe.task.settings.get("labels") or ["no", "yes"]
            self.task = get_task(recipe.task.name, labels, **recipe.task.settings)

    def rows(self, split: str) -> int:
        """Examples in a split; 0 where there is none."""
        found = None if self.prepared is None else self.prepared.get(split)
        return 0 if found is None else len(found)


class Shapes:
    """A recipe's model with its adapters on shapes alone, and batches for it.

    Args:
        recipe: with what is varied (precision, batch, checkpointing) put into it already.
        data: of it. methods: that are attached, together.
    """

    def __init__(self, recipe: Recipe, data: Data, methods: Sequence[MethodSection]) -> None:
        self.recipe, self.data = recipe.model_copy(update={"methods": list(methods)}), data
        with shapes_alone():
            self.model, terms, also = base_model(_built_from_shapes(recipe), data.task, data.processor)
        if not all(p.is_meta for p in self.model.parameters()):  # a composite reads its parts itself
            self.model = shadow(self.model)
        if _nf4(recipe):
            pack(self.model, recipe.model.quantization)  # type: ignore[arg-type]
        attach(self.recipe, data.task, self.model, also)
        set_up(self.model, recipe.training.gradient_checkpointing)
        self.trainer: Any = None
        if data.prepared is not None:
            loss = assembled(recipe, data.task, data.processor, self.model, terms)
            with tempfile.TemporaryDirectory() as folder:
                output = recipe.output.model_copy(update={"folder": folder})
                one = self.recipe.model_copy(update={"output": output})
                self.trainer = trainer_of(one, data.task, data.processor, data.prepared, self.model, [], loss, only="train")  # fmt: skip
            self.trainer._loss_probed = True  # it would ask for values

    def batches(self) -> list[dict[str, Any]]:
        """Batches as training takes them, the largest first; without data one that is made up."""
        if self.trainer is None:
            assert self.data.length is not None
            return [example_inputs(self.model, self.recipe.training.batch_size, self.data.length)]
        torch.manual_seed(self.recipe.training.seed)
        began, found = time.monotonic(), []
        for batch in self.trainer.get_train_dataloader():
            found.append(dict(batch))
            if len(found) == LOOKED_AT or time.monotonic() - began > PATIENCE:
                break
        longest = self._longest()
        return sorted([*found, *([longest] if longest else [])], key=size, reverse=True)

    def _longest(self) -> dict[str, Any] | None:
        """The batch of the longest rows, where rows tell their length."""
        rows = self.trainer.train_dataset
        names = getattr(rows, "column_names", None) or ()
        column = next((name for name in ("length", "input_ids") if name in names), None)
        if column is None:
            return None
        lengths = [n if isinstance(n, int) else len(n) for n in rows[column]]
        count = self.recipe.training.batch_size
        chosen = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)[:count]
        if column == "length":
            return dict(self.trainer.collated([rows[i] for i in chosen]))
        loader = self.trainer.get_eval_dataloader(rows.select(chosen))
        return dict(next(iter(loader)))

    def counted(self, batch: Mapping[str, Any], device: Device, libraries: int) -> Counts:
        """One step on a batch of this shape.

        Raises:
            ModelError: the step asks for values, which shapes do not have.
        """
        training = self.recipe.training
        fused, padded = device.kernels == "gpu", _padded(batch)
        counted, logits = Counted(), [0]
        with ExitStack() as stack:
            stack.enter_context(_steered(self.model))
            model, inputs = self.model, _on(batch, "meta")
            if training.bf16:  # the meta device knows no autocast
                mode = FakeTensorMode(allow_non_fake_inputs=True)
                model = imagined(shadow(model), mode)
                stack.enter_context(mode)
                inputs = _on(batch, "cpu")
                stack.enter_context(torch.autocast("cpu", torch.bfloat16))
            hook = model.register_forward_hook(lambda m, args, out: logits.__setitem__(0, _logits(out)))
            stack.callback(hook.remove)
            stack.enter_context(counted)
            step = _Step(model, self.trainer)
            try:
                found = footprint(step, inputs, lambda out: _turned(counted, out), fused=fused, padded=padded)
            except (RuntimeError, NotImplementedError) as error:
                if "meta" not in str(error).lower() and "data-dependent" not in str(error).lower():
                    raise
                raise ModelError(f"the step asks for values, which shapes alone do not have: {error}") from None  # fmt: skip
            finally:
                gc.collect()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        state = optimizer_bytes(trained, known_optimizer(training.optimizer))
        weights, adapter = _parts(self.model)
        kept = found.gradients if training.gradient_accumulation > 1 else 0  # those of the batch before
        # the optimizer's own step: a GPU's makes one temporary the size of the gradients, a CPU's goes tensor by tensor
        largest = max((p.numel() * p.element_size() for p in trained), default=0)
        moment = max(found.peak + kept, found.gradients + (found.gradients if fused else 2 * largest))
        pieces = 0 if fused else int(PIECES * moment)
        total = weights + adapter + state + moment + libraries + pieces
        memory = Memory(weights, adapter, found.gradients, state, found.saved, logits[0], moment, libraries, pieces, total)  # fmt: skip
        return Counts(sum(p.numel() for p in trained), memory, counted.work())

    def steps(self) -> int | None:
        """Optimizer steps of the recipe; None where made-up samples do not tell."""
        training = self.recipe.training
        if training.max_steps is not None:
            return training.max_steps
        if self.trainer is None:
            return None
        batches = len(self.trainer.get_train_dataloader())
        return math.ceil(math.ceil(batches / training.gradient_accumulation) * training.epochs)


class _Step(nn.Module):
    """The trainer's loss as a forward, so that a step is what training does."""

    def __init__(self, model: nn.Module, trainer: Any) -> None:
        super().__init__()
        self.model, self.trainer = model, trainer

    def forward(self, **inputs: Any) -> Any:
        if self.trainer is None:
            return scalar(self.model(**inputs))
        before, self.trainer.model = self.trainer.model, self.model
        try:
            with self.trainer.given(inputs) as own:
                return self.trainer.compute_loss(self.model, own)
        finally:
            self.trainer.model = before


def _turned(counted: Counted, loss: Tensor) -> Tensor:
    counted.turn()
    return loss


def _steered(model: nn.Module) -> Any:
    """What methods want to know of a batch, made up, where the task does not tell them."""
    facts: dict[str, Any] = {}
    for attachment in ad.adapters(model).values():
        facts |= attachment.method.example_facts()[0]
    device = next(model.parameters()).device
    return ad.steer(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in facts.items()})


def _built_from_shapes(recipe: Recipe) -> Recipe:
    """The recipe whose base can be built without its weights: of a name that is known here, without its files."""
    model = recipe.model
    update: dict[str, Any] = {}
    if model.name in architectures() and not Path(model.name).is_dir():
        update = {"name": None, "from_config": hyperparameters(model.name)}
    if _nf4(recipe):
        update["quantization"] = None
    return recipe.model_copy(update={"model": model.model_copy(update=update)})


def _nf4(recipe: Recipe) -> bool:
    return recipe.model.quantization is not None and recipe.model.quantization.scheme == "nf4"


def known_optimizer(name: str) -> str:
    """The optimizer whose state is counted for one of transformers' names.

    Raises:
        RecipeError: it is none whose state is known here.
    """
    for start, known in _OPTIMIZERS.items():
        if name.startswith(start) and known in OPTIMIZERS:
            return known
    raise RecipeError(
        f"training.optimizer={name!r}: what it keeps is not known here. Known: {', '.join(_OPTIMIZERS)} and what begins so."
    )


def size(batch: Mapping[str, Any]) -> int:
    """Numbers in a batch: what a step's work grows with."""
    return sum(value.numel() for value in batch.values() if isinstance(value, Tensor))


def _on(batch: Mapping[str, Any], device: str) -> dict[str, Any]:
    """The same shapes on another device, without values."""
    return {k: torch.empty_like(v, device=device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def _padded(batch: Mapping[str, Any]) -> bool:
    mask = batch.get("attention_mask")
    return isinstance(mask, Tensor) and not mask.is_meta and not bool(mask.all())


def _logits(output: Any) -> int:
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return found.numel() * found.element_size() if isinstance(found, Tensor) else 0


def _parts(model: nn.Module) -> tuple[int, int]:
    """Bytes of the base, and of the adapters with what else is theirs; tied tensors once."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    sizes = {id(t): (is_ours(name), t.numel() * t.element_size()) for name, t in tensors}
    base = sum(size for ours, size in sizes.values() if not ours)
    return base, sum(size for ours, size in sizes.values() if ours)
