"""What an adaptation would train and what training would take, told before a weight is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adaptome.architectures import build
from adaptome.core.attaching import attach
from adaptome.core.budget import Fit
from adaptome.core.errors import ModelError, did_you_mean
from adaptome.core.example_inputs import example_inputs
from adaptome.core.method import Method
from adaptome.core.plan import Plan, count
from adaptome.core.state import adapters, is_ours
from adaptome.core.steer import steer, steered
from adaptome.core.targets import roles_of
from adaptome.memory import OPTIMIZERS, footprint, optimizer_bytes, shadow

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["DTYPES", "Inspection", "Memory", "Row", "inspect"]

DTYPES = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Trainable layers that are alike: their role, last name, number, base shape and trainable numbers in all."""

    role: str
    module: str
    layers: int
    shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class Memory:
    """Bytes of training, as tensors: the allocator's rounding and the libraries' workspaces come on top.

    Attributes:
        weights: the base model's parameters and buffers.
        adapter: the method's parameters and buffers.
        gradients: of everything that trains.
        optimizer: its state.
        activations: kept from the forward to the backward.
        peak: the most at once: weights, adapter and optimizer state beside the worst moment of the step.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


@dataclass(frozen=True)
class Inspection:
    """What a method would train on a model, and the memory a step would take. Prints as tables.

    Attributes:
        model: the name it was built from, or its class.
        method: the method's name; None for the model as it stands.
        settings: of the method.
        trainable, total: numbers, tied ones once.
        rows: trainable numbers by role.
        memory: the estimate; None where the step cannot be run without values, and `note` says why.
        setup: batch, length, dtype, optimizer and gradient_checkpointing of the estimate.
        note: what the estimate leaves out.
        budget: how close the method came to a budget, where one was asked for.
    """

    model: str
    method: str | None
    settings: dict[str, Any]
    trainable: int
    total: int
    rows: tuple[Row, ...]
    memory: Memory | None
    setup: dict[str, Any]
    note: str = ""
    budget: Fit | None = None

    @property
    def percent(self) -> float:
        """100 * trainable / total."""
        return 100 * self.trainable / max(self.total, 1)

    def to_dict(self) -> dict[str, Any]:
        """The inspection as JSON can hold it."""
        keys = ("model", "method", "settings", "trainable", "total", "percent", "setup", "note")
        rows = [vars(row) | {"shape": list(row.shape)} for row in self.rows]
        memory = dict(vars(self.memory)) if self.memory else None
        budget = dict(vars(self.budget)) if self.budget else None
        return {key: getattr(self, key) for key in keys} | {"rows": rows, "memory": memory, "budget": budget}

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=110)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table

        title = f"{self.model}, {self.method or 'as it stands'}"
        table = Table("role", "module", "layers", "shape", "trainable", title=title, title_justify="left")
        for row in self.rows:
            shape = " x ".join(map(str, row.shape))
            table.add_row(row.role, row.module, str(row.layers), shape, f"{row.parameters:,}")
        for column in table.columns[2:]:
            column.justify = "right"
        yield table
        yield f"trainable {self.trainable:,} of {self.total:,} ({self.percent:.4f} %)"
        if self.budget is not None:
            yield str(self.budget)
        if self.memory is not None:
            wanted = ", ".join(f"{key} {value}" for key, value in self.setup.items())
            table = Table(
                "memory", "GiB", "bytes", title=f"one training step: {wanted}", title_justify="left"
            )
            for key, size in vars(self.memory).items():
                table.add_row(key, f"{size / 2**30:.3f}", f"{size:,}", end_section=key == "activations")
            for column in table.columns[1:]:
                column.justify = "right"
            yield table
        if self.note:
            yield self.note


def inspect(
    model: nn.Module | str | Path,
    method: str | Method | type[Method] | None = None,
    *,
    targets: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    layers: Any = None,
    train: str | Sequence[str] = (),
    per_layer: Mapping[str, Mapping[str, Any]] | None = None,
    budget: str | int | None = None,
    task: str | None = None,
    batch: int = 1,
    length: int = 512,
    dtype: str | torch.dtype | None = None,
    adapter_dtype: torch.dtype | None = None,
    optimizer: str = "adamw",
    gradient_checkpointing: bool = False,
    inputs: Mapping[str, Any] | None = None,
    loss: Callable[[Any], Tensor] | None = None,
    **settings: Any,
) -> Inspection:
    """Tell what `method` would train on `model` and what a training step would take; reads no weights.

        print(inspect("llama-2-7b", "lora", r=64, targets=["q", "v"], batch=4, dtype="bf16"))
        inspect(model)                                 # the model as it stands: full fine-tuning, or what is attached

    The step is run on the meta device, so the figures are counts of what autograd keeps, for a full batch without
    padding and with the fused attention and dropout of a GPU.

    Args:
        model: a module (on any device; it is not changed), or what `adaptome.architectures.build` takes.
        method, targets, exclude, layers, train, per_layer, budget, settings: as in `attach`.
        task: the head to build, one of `adaptome.architectures.TASKS`.
        batch, length: samples, and tokens of each.
        dtype: of the base's weights ('bf16', 'fp16', 'fp32'); by default the model's own.
        adapter_dtype: of the adapters, as `dtype` of `attach`.
        optimizer: 'adamw', 'adamw-8bit', 'adafactor', 'lion', 'sgd' or 'sgd-momentum'.
        gradient_checkpointing: keep only the blocks' inputs, and run each block again in the backward.
        inputs: of the forward, on the meta device; by default made from the model's config.
        loss: makes a scalar of the output; by default the output's loss, else the sum of its first tensor.

    Raises:
        ModelError: the model, its inputs, the dtype, the optimizer or the checkpointing is not known.
        TargetError, MethodError, HostError: as `attach`.
    """
    if optimizer not in OPTIMIZERS:
        raise ModelError(_unknown("optimizer", optimizer, OPTIMIZERS))
    if batch < 1 or length < 1:
        raise ModelError(f"batch={batch}, length={length}: both must be at least 1.")
    wanted = _dtype(dtype)
    name = type(model).__name__ if isinstance(model, nn.Module) else str(model)
    base = model if isinstance(model, nn.Module) else build(model, task=task)
    copy = shadow(base, wanted)
    set_up(copy, gradient_checkpointing)
    plan = None
    if method is not None:
        plan = attach(
            copy, method, "inspected", targets=targets, exclude=exclude, layers=layers, train=train,
            per_layer=per_layer, budget=budget, dtype=adapter_dtype, seed=0, **settings,
        )  # fmt: skip
    elif settings or targets or train or budget is not None:
        raise ModelError(
            "targets, train, budget and settings belong to a method.\n  Name one: inspect(model, 'lora', ...)."
        )
    memory, note = _memory(copy, inputs, loss, batch, length, optimizer)
    return Inspection(
        model=name,
        method=plan.method if plan else None,
        settings=plan.settings if plan else {},
        budget=plan.budget if plan else None,
        trainable=sum(p.numel() for p in copy.parameters() if p.requires_grad),
        total=count(copy),
        rows=_rows(copy, plan),
        memory=memory,
        setup={
            "batch": batch, "length": length, "dtype": _name(copy), "optimizer": optimizer,
            "gradient_checkpointing": gradient_checkpointing,
        },
        note=note,
    )  # fmt: skip


def _unknown(what: str, word: str, known: Mapping[str, Any]) -> str:
    return f"there is no {what} {word!r}.{did_you_mean(word, known)}\n  Known: {', '.join(known)}."


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ModelError(_unknown("dtype", dtype, DTYPES))
        return DTYPES[dtype]
    return dtype


def _name(model: nn.Module) -> str:
    own = (p.dtype for n, p in model.named_parameters() if p.is_floating_point() and not is_ours(n))
    dtype = next(own, None)
    return next((short for short, known in DTYPES.items() if known is dtype), str(dtype))


def set_up(model: Any, gradient_checkpointing: bool) -> None:
    """Set the copy up as a training run does: training mode, no cache of keys and values, every layer run."""
    model.train()
    config = getattr(model, "config", None)
    if config is not None and getattr(config, "use_cache", False):
        config.use_cache = False
    for module in model.modules():
        if hasattr(module, "layerdrop"):
            module.layerdrop = 0.0  # else layers drop out of the count at random
    if not gradient_checkpointing:
        return
    if hasattr(model, "gradient_checkpointing_enable"):  # transformers
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    elif hasattr(model, "enable_gradient_checkpointing"):  # diffusers
        model.enable_gradient_checkpointing()
    else:
        raise ModelError(
            f"{type(model).__name__} has no gradient checkpointing to switch on.\n"
            "  Checkpoint its blocks in its forward (torch.utils.checkpoint); inspect counts that as it stands."
        )


def _rows(model: nn.Module, plan: Plan | None) -> tuple[Row, ...]:
    """Layers alike in role, name and shape as one row, in module order."""
    found: list[tuple[str, str, tuple[int, ...], int]] = []
    if plan is not None:
        found += [(e.role, _leaf(e.path), e.shape, e.parameters) for e in plan.entries]
        found += [("head", path, (), size) for path, size in plan.heads.items()]
        if plan.shared:
            found.append(("shared", "", (), plan.shared))
    else:
        role = roles_of(model)
        for name, p in model.named_parameters():
            if p.requires_grad:
                path, _, tensor = name.rpartition(".")
                found.append(
                    (role(path) or "other", f"{_leaf(path)}.{tensor}".lstrip("."), tuple(p.shape), p.numel())
                )
    groups: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}
    for kind, module, shape, size in found:
        groups.setdefault((kind, module, shape), []).append(size)
    return tuple(Row(*key[:2], len(sizes), key[2], sum(sizes)) for key, sizes in groups.items())


def _leaf(path: str) -> str:
    """The last name of a path that is no number: 'to_out.0' for 'blocks.3.to_out.0'."""
    parts = path.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() and len(parts) > 1 else parts[-1]


def _memory(
    model: nn.Module,
    inputs: Mapping[str, Any] | None,
    loss: Callable[[Any], Tensor] | None,
    batch: int,
    length: int,
    optimizer: str,
) -> tuple[Memory | None, str]:
    """The estimate for a model on the meta device, or None and the reason."""
    packed = [n for n, p in model.named_parameters() if not p.is_floating_point() and not p.is_complex()]
    if packed:
        return (
            None,
            f"No memory estimate: {packed[0]} and {len(packed) - 1} more are quantised, which no step on shapes alone can run.",
        )
    if inputs is None:
        inputs = example_inputs(model, batch, length)
    facts: dict[str, Any] = {}
    for attachment in adapters(model).values():
        facts |= attachment.method.example_facts()[0]
    device = next(model.parameters()).device
    unknown = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in facts.items()
        if steered(name) is None
    }
    try:
        with steer(**unknown):
            step = footprint(model, inputs, loss)
    except (
        RuntimeError,
        NotImplementedError,
    ) as error:  # what torch raises for an operation without a meta form
        if "meta" not in str(error).lower() and "data-dependent" not in str(error).lower():
            raise
        return (
            None,
            f"No memory estimate: the forward asks for values, which shapes alone do not have ({error}).",
        )
    tensors = [*model.named_parameters(), *model.named_buffers()]
    sizes = {id(t): (is_ours(name), t.numel() * t.element_size()) for name, t in tensors}
    weights = sum(size for ours, size in sizes.values() if not ours)
    adapter = sum(size for ours, size in sizes.values() if ours)
    trained = [p for p in model.parameters() if p.requires_grad]
    state = optimizer_bytes(trained, optimizer)
    # In the optimizer's step the activations are gone; AdamW's foreach form makes one temporary the size of the gradients.
    worst = max(step.peak, 2 * step.gradients)
    return Memory(weights, adapter, step.gradients, state, step.saved, weights + adapter + state + worst), ""
