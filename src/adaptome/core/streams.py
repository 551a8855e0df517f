"""Streams of several tasks through one encoder: stacked along the batch, the shared one first.

A layer that has an update for each task runs its frozen part on the shared rows alone; to any other layer the rows are a larger batch.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from adaptome.core.errors import StateError, TargetError, did_you_mean
from adaptome.core.steer import steer


def fork(x: Tensor, tasks: Sequence[str]) -> Tensor:
    """`[batch, ...]` for the shared stream and once more for every task, stacked along the batch."""
    return x.repeat(len(tasks) + 1, *[1] * (x.dim() - 1))


def split(x: Tensor, tasks: int) -> tuple[Tensor, ...]:
    """The shared stream and those of the tasks, each `[batch, ...]`, of rows stacked by `fork`.

    Raises:
        StateError: the rows are no multiple of the number of streams.
    """
    if x.shape[0] % (tasks + 1):
        raise StateError(
            f"{x.shape[0]} rows are not {tasks + 1} equal streams (the shared one and {tasks} tasks'); stack them with `fork`."
        )
    return x.chunk(tasks + 1)


class TaskStreams(nn.Module):
    """Run an encoder once for several tasks: shared as far as it can be, and every task's features where its stream ends.

    From the first of `stages`' modules on (a block: the last one of its stage) each task has a stream of its own, up to the end of the
    other (the stage). There its features are taken, and the encoder goes on with the shared stream alone, so that what one task does
    in a stage reaches no later one.

        encoder = ad.TaskStreams(swin, tasks, {"encoder.layers.0.blocks.1": "encoder.layers.0", ...})
        features = encoder(images)       # a list, one entry a stage: {"shared": [batch, ...], "semseg": [batch, ...], ...}

    Args:
        encoder: with adapters that have updates for tasks, such as MTLoRA's; it stays as it is.
        tasks: names of the streams.
        stages: path of the module where streams begin -> path of the module where they end (it may be the same), in the order that they run.
    """

    def __init__(self, encoder: nn.Module, tasks: Sequence[str], stages: Mapping[str, str]):
        super().__init__()
        known = {path for path, _ in encoder.named_modules()}
        for path in {**stages, **dict.fromkeys(stages.values())}:
            if path not in known:
                raise TargetError(
                    f"{path!r} is no module of this {type(encoder).__name__}.{did_you_mean(path, known)}"
                )
        self.encoder, self.tasks, self.stages = encoder, tuple(tasks), dict(stages)

    def forward(self, *args: Any, **kwargs: Any) -> list[dict[str, Tensor]]:
        """Every stage's features, of what the encoder makes of these arguments."""
        found: list[dict[str, Tensor]] = []
        inside: list[Any] = []  # the contexts of streams that have begun
        here = threading.get_ident()  # the hooks are called in every thread that runs the encoder

        def begin(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if threading.get_ident() != here:
                return None
            if inside:
                raise StateError("a stream begins inside another; every begin must end before the next.")
            context = steer(streams=self.tasks)
            context.__enter__()
            inside.append(context)
            rows = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)).shape[0]
            return _each(args, lambda x: fork(x, self.tasks), rows), _each(
                kwargs, lambda x: fork(x, self.tasks), rows
            )

        def end(module: nn.Module, args: Any, output: Any) -> Any:
            if threading.get_ident() != here:
                return None
            inside.pop().__exit__(None, None, None)
            first = output if isinstance(output, Tensor) else next(v for v in output if isinstance(v, Tensor))
            streams = split(first, len(self.tasks))
            found.append(dict(zip(("shared", *self.tasks), streams, strict=True)))
            return _each(output, lambda x: split(x, len(self.tasks))[0], first.shape[0])

        modules = [
            (self.encoder.get_submodule(a), self.encoder.get_submodule(b)) for a, b in self.stages.items()
        ]
        if any(getattr(m, "gradient_checkpointing", False) and m.training for pair in modules for m in pair):
            raise StateError(
                "gradient checkpointing runs the stages again without their streams; turn it off for this encoder."
            )
        hooks = [a.register_forward_pre_hook(begin, with_kwargs=True) for a, _ in modules]
        hooks += [b.register_forward_hook(end) for _, b in modules]
        try:
            self.encoder(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
            while inside:
                inside.pop().__exit__(None, None, None)
        return found


def _each(values: Any, change: Any, rows: int) -> Any:
    """`change` of every tensor with this many rows, inside tuples, lists and mappings too."""
    if isinstance(values, Tensor):
        return change(values) if values.dim() and values.shape[0] == rows else values
    if isinstance(values, (tuple, list)):
        return type(values)(_each(v, change, rows) for v in values)
    if isinstance(values, Mapping):
        return {k: _each(v, change, rows) for k, v in values.items()}
    return values
