"""MTLoRA: a low-rank update for all tasks, and where features leave for the decoders one more for each."""

from __future__ import annotations

import fnmatch
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Frozen
from adaptome.core.errors import MergeError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.core.steer import steered
from adaptome.forms.branches import SHARED, Branches, Start, check_tasks, known_task
from adaptome.forms.streams import split

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
        y_t = W x + b + s B_t A_t x_t   (+ s B A x_t with 'matrixv2')   the stream of task t, in layers named by `specific`

    shapes      W [out, in] frozen; A [r, in], B [out, r]; A_t [task_r, in], B_t [out, task_r] per task
    init        'kaiming': A Kaiming-uniform(a = sqrt 5), B = 0: every stream starts as the frozen layer
    use         nothing steered: the shared stream. `ad.steer(task="depth")`: the task's, with x_t = x, where a layer has one.
                `ad.steer(streams=("depth", "normals"))`: all at once, stacked along the batch, the shared one first: W acts on
                the shared rows alone. `ad.TaskStreams(encoder, tasks, stages)` stacks and takes them apart, stage by stage
    specific    patterns of paths; maps into attentions (q, k, v) stay shared. In Swin: the last block of every stage
    dropout     on x; task rows of stacked streams are not dropped
    parameters  r (in + out) per layer, task_r (in + out) per task more: 70,656 r + 69,120 task_r on Swin-T's fused blocks, 4 tasks
    merge       exact for the stream that is steered (a layer that runs several has no one weight); export: peft-lora, exact
    source      Agiza et al. 2024, arXiv:2403.20320
    """

    tasks: tuple[str, ...] = option(("semseg", "human_parts", "sal", "normals"), help="names of the tasks")
    specific: tuple[str, ...] = option(("*",), help="patterns of the layers with a branch for each task")
    r: int = option(64, at_least=1, help="rank of the shared update")
    task_r: int = option(4, at_least=1, help="rank of each task's update")
    scale: float = option(4.0, help="s, whatever the rank")
    mode: Literal["matrix", "matrixv2"] = option(
        "matrix", help="'matrixv2' adds the shared update to task streams"
    )
    dropout: float = option(
        0.0, at_least=0, below=1, help="on the adapter's input; the paper trains with 0.05"
    )
    train_scale: bool = option(False, help="train s, a number for each branch")
    init: Start = option("kaiming", help="how A and B start")

    def validate(self) -> None:
        check_tasks("mtlora", self.tasks)

    def tasks_on(self, host: Host) -> tuple[str, ...]:
        """The tasks that have a branch on this layer."""
        named = any(fnmatch.fnmatchcase(host.path, pattern) for pattern in self.specific)
        return self.tasks if named and host.role not in ATTENTION_IN else ()

    def example_facts(self) -> tuple[dict[str, Any], ...]:
        return ({}, *({"task": task} for task in self.tasks))

    def parameters(self, host: Host) -> int:
        tasks = len(self.tasks_on(host))
        return (self.r + tasks * self.task_r) * (host.fan_in + host.fan_out) + self.train_scale * (1 + tasks)

    def adapter(self, host: Host, shared: nn.Module | None = None) -> MTLoRAAdapter:
        return MTLoRAAdapter(self, host)


class MTLoRAAdapter(Branches):
    """The shared pair of one layer, and those of its tasks."""

    def __init__(self, method: MTLoRA, host: Host):
        here = method.tasks_on(host)
        ranks = {SHARED: method.r, **dict.fromkeys(here, method.task_r)}
        scale = 1.0 if method.train_scale else method.scale
        super().__init__(host, ranks, scale, method.dropout, method.init)
        self.method, self.here = method, here
        self.s = nn.ParameterDict()
        if method.train_scale:
            self.s.update({name: nn.Parameter(torch.tensor(method.scale)) for name in ranks})

    def pair(self, task: str | None) -> tuple[Tensor, Tensor]:
        """A and B of one stream; None for the shared one."""
        names: tuple[str, ...] = (SHARED,)
        if task is not None and known_task("mtlora", task, self.method.tasks) in self.here:
            names = (task,) if self.method.mode == "matrix" else (SHARED, task)
        A, B = self.joined(*names)
        if not self.method.train_scale:
            return A, B
        return A, B * torch.cat([self.s[name].expand(self.A[name].shape[-2]) for name in names])

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.pair(steered("task"))

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        streams = steered("streams")
        if streams is None or not self.here:
            return super().forward(frozen, x, *args, **kwargs)
        shared, *rows = split(x, len(streams))
        y: Tensor = frozen(shared, *args, **kwargs)
        made = [self.add_pair(y, shared, *self.pair(None), self.dropout)]
        made += [self.add_pair(y, own, *self.pair(task)) for task, own in zip(streams, rows, strict=True)]
        return torch.cat(made)

    def check_merge(self) -> None:
        if steered("streams") is not None and self.here:
            raise MergeError(
                f"mtlora on {self.host.name}: the streams {list(steered('streams'))} have no one weight.\n"
                "  Merge inside `with ad.steer(task=...)`, or the shared stream with nothing steered."
            )
