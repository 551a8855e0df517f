"""MTLoRA: a low-rank update for all tasks, and where features leave for the decoders one more for each."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Frozen
from adaptome.core.errors import MergeError, MethodError, did_you_mean
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.core.steer import steered
from adaptome.core.streams import split
from adaptome.forms.branches import SHARED, Branches, Start, check_tasks, known_task

ATTENTION_IN = ("q", "k", "v", "kv", "qkv")


@register(
    "mtlora",
    subcategory="low-rank, shared and task-specific",
    export="low-rank",
    hosts=("linear", "conv"),
    source="Agiza et al. 2024, arXiv:2403.20320",
)
class MTLoRA(Method):
    r"""MTLoRA: a low-rank update for all tasks, and where features leave for the decoders one more for each.

        y   = W x + b + s B A x                               the shared stream
        y_t = W x + b + s_t B_t A_t x_t                       the stream of task t, in layers named by `specific`

    when        several dense tasks on one encoder, in one pass
    mode        'matrix': so. 'matrixv2': y_t has the shared update too, + s B A x. 'addition': layers with streams have no A, B, and their
                shared stream is y = W x + b + LayerNorm(sum_t y_t), with a trained LayerNorm. 'lora_only': no streams, A, B alone
    shapes      W [out, in] frozen; A [r, in], B [out, r]; A_t [task_r, in], B_t [out, task_r] per task; `task_ranks`, `task_scales`
                for ranks and s by task
    init        'kaiming': A Kaiming-uniform(a = sqrt 5), B = 0: every stream starts as the frozen layer; 'addition' does not,
                for its LayerNorm (1 and 0) of T times the frozen output is added to the shared stream
    use         nothing steered: the shared stream. `ad.steer(task="depth")`: the task's, with x_t = x, where a layer has one.
                `ad.steer(streams=("depth", "normals"))`: all at once, stacked along the batch, the shared one first: W acts on
                the shared rows alone. `ad.TaskStreams(encoder, tasks, stages)` stacks and takes them apart, stage by stage
    specific    patterns of paths; maps into attentions (q, k, v) stay shared. In Swin: the last block of every stage
    dropout     on x; task rows of stacked streams are not dropped
    parameters  r (in + out) per layer, task_r (in + out) per task more: 70,656 r + 69,120 task_r on Swin-T's fused blocks, 4 tasks;
                'addition': 2 out instead of r (in + out) on layers with streams
    merge       exact for the stream that is steered (a layer that runs several has no one weight, nor has the shared stream of
                'addition' beside streams); export: peft-lora, exact
    source      Agiza et al. 2024, arXiv:2403.20320
    """

    tasks: tuple[str, ...] = option(("semseg", "human_parts", "sal", "normals"), help="names of the tasks")
    specific: tuple[str, ...] = option(("*",), help="patterns of the layers with a branch for each task")
    r: int = option(64, at_least=1, help="rank of the shared update")
    task_r: int = option(4, at_least=1, help="rank of each task's update")
    task_ranks: dict[str, int] | None = option(
        None, help="task -> rank of its update, where it is not task_r"
    )
    scale: float = option(4.0, help="s, whatever the rank")
    task_scales: dict[str, float] | None = option(
        None, help="task -> s of its update, where it is not scale; 'shared' names the shared one"
    )
    mode: Literal["matrix", "matrixv2", "addition", "lora_only"] = option(
        "matrix", help="how the shared stream and those of tasks go together"
    )
    dropout: float = option(
        0.0, at_least=0, below=1, help="on the adapter's input; the paper trains with 0.05"
    )
    train_scale: bool = option(False, help="train s, a number for each branch")
    init: Start = option("kaiming", help="how A and B start")

    def validate(self) -> None:
        check_tasks("mtlora", self.tasks)
        for setting, others in (("task_ranks", ()), ("task_scales", (SHARED,))):
            for task, value in (getattr(self, setting) or {}).items():
                known = (*self.tasks, *others)
                if task not in known:
                    raise MethodError(
                        f"mtlora: {setting} names {task!r}, which is none of {list(known)}.{did_you_mean(task, known)}"
                    )
                if not _number(value) or (
                    setting == "task_ranks" and (not isinstance(value, int) or value < 1)
                ):
                    wanted = "a whole number from 1" if setting == "task_ranks" else "a finite number"
                    raise MethodError(f"mtlora: {setting}[{task!r}] = {value!r} must be {wanted}.")

    def tasks_on(self, host: Host) -> tuple[str, ...]:
        """The tasks that have a branch on this layer."""
        named = any(fnmatch.fnmatchcase(host.path, pattern) for pattern in self.specific)
        return self.tasks if named and host.role not in ATTENTION_IN and self.mode != "lora_only" else ()

    def ranks(self, host: Host) -> dict[str, int]:
        """The pairs on this layer by name."""
        tasks = {task: (self.task_ranks or {}).get(task, self.task_r) for task in self.tasks_on(host)}
        return tasks if tasks and self.mode == "addition" else {SHARED: self.r, **tasks}

    def admits(self, host: Host) -> str | None:
        normed = host.kind == "conv" and self.mode == "addition" and self.tasks_on(host)
        return super().admits(host) or (
            "mode='addition' normalises the outputs of linear layers; choose another, or leave it out of `specific`"
            if normed
            else None
        )

    def example_facts(self) -> tuple[dict[str, Any], ...]:
        return ({}, *({"task": task} for task in self.tasks))

    def parameters(self, host: Host) -> int:
        ranks = self.ranks(host)
        norm = 0 if SHARED in ranks else 2 * host.fan_out
        return sum(ranks.values()) * (host.fan_in + host.fan_out) + norm + self.train_scale * len(ranks)

    def adapter(self, host: Host, shared: nn.Module | None = None) -> MTLoRAAdapter:
        return MTLoRAAdapter(self, host)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


class MTLoRAAdapter(Branches):
    """The shared pair of one layer, and those of its tasks; in mode 'addition' the tasks' alone, and a LayerNorm."""

    def __init__(self, method: MTLoRA, host: Host):
        ranks = method.ranks(host)
        own = method.task_scales or {}
        # branches of different s have it inside their B
        scale = 1.0 if method.train_scale or own else method.scale
        super().__init__(host, ranks, scale, method.dropout, method.init)
        self.method, self.here = method, method.tasks_on(host)
        self.scales = (
            {name: own.get(name, method.scale) for name in ranks} if method.train_scale or own else {}
        )
        self.s = nn.ParameterDict()
        if method.train_scale:
            self.s.update(
                {name: nn.Parameter(torch.tensor(s, dtype=torch.float64)) for name, s in self.scales.items()}
            )
        self.norm = None if SHARED in ranks else nn.LayerNorm(host.fan_out)

    def pair(self, *names: str) -> tuple[Tensor, Tensor]:
        """A and B of one branch, or of several as one."""
        A, B = self.joined(*names)
        if not self.scales:
            return A, B
        s = [self.s[name] if name in self.s else B.new_tensor(self.scales[name]) for name in names]
        return A, B * torch.cat(
            [each.expand(self.A[name].shape[-2]) for each, name in zip(s, names, strict=True)]
        )

    def factors(self) -> tuple[Tensor, Tensor]:
        """Those of the stream that is steered, with x_t = x."""
        self.check_merge()
        task = steered("task")
        if task is None or known_task("mtlora", task, self.method.tasks) not in self.here:
            return self.pair(SHARED)
        return self.pair(SHARED, task) if self.method.mode == "matrixv2" else self.pair(task)

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        streams = steered("streams")
        if streams is not None and self.here:
            shared, *rows = split(x, len(streams))
            own = {known_task("mtlora", t, self.here): row for t, row in zip(streams, rows, strict=True)}
            y: Tensor = frozen(shared, *args, **kwargs)
            return torch.cat(self.streams(y, shared, own))
        if self.norm is not None and steered("task") is None:
            y = frozen(x, *args, **kwargs)
            return self.normed(y, len(self.here), [(x, self.pair(*self.here), self.dropout)])
        return super().forward(frozen, x, *args, **kwargs)

    def streams(self, y: Tensor, x: Tensor, own: Mapping[str, Tensor]) -> list[Tensor]:
        """The shared stream and each task's, from the frozen output, the shared input and the tasks' own."""
        if self.norm is not None:
            first = self.normed(y, len(own), [(rows, self.pair(task), 0.0) for task, rows in own.items()])
        else:
            first = self.add_pair(y, x, *self.pair(SHARED), self.dropout)
        base = first if self.method.mode == "matrixv2" else y
        return [first, *(self.add_pair(base, rows, *self.pair(task)) for task, rows in own.items())]

    def normed(
        self, y: Tensor, count: int, branches: Sequence[tuple[Tensor, tuple[Tensor, Tensor], float]]
    ) -> Tensor:
        """`y + LayerNorm(count y + s sum B A x)`; of every branch x, the pair and its dropout."""
        assert self.norm is not None
        total = count * y
        for x, (A, B), dropout in branches:
            total = self.host.add_expanded(total, self.reduced(x.to(y.dtype), A, dropout), B, self.scale)
        weight, bias = (p.to(y.dtype) for p in (self.norm.weight, self.norm.bias))
        return torch.add(y, F.layer_norm(total, weight.shape, weight, bias), alpha=self.strength)

    def check_merge(self) -> None:
        several = steered("streams")
        if self.here and several is not None:
            raise MergeError(
                f"mtlora on {self.host.name}: the streams {list(several)} have no one weight.\n"
                "  Merge inside `with ad.steer(task=...)`, or the shared stream with nothing steered."
            )
        if self.norm is not None and steered("task") is None:
            raise MergeError(
                f"mtlora on {self.host.name}: with mode='addition' its shared stream is normalised, which no weight does.\n"
                "  Merge a task's stream, inside `with ad.steer(task=...)`."
            )
