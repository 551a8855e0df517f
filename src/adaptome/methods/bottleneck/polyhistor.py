"""Polyhistor: the adapters of every task and layer, generated from the task's embedding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Adapter, Frozen
from adaptome.core.errors import MethodError, StateError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.core.steer import require
from adaptome.forms.bottleneck import ACTIVATIONS, Activation
from adaptome.forms.branches import check_tasks, known_task
from adaptome.forms.generated import Generator, product
from adaptome.forms.insertion import hidden, with_hidden
from adaptome.forms.per_sample import by_sample

ABOUT: dict[str, Any] = dict(
    category="additive", subcategory="bottleneck adapter, generated", merge="none", export="none", inference_overhead="extra modules",
    hosts=("linear", "module"), default_targets=("o", "down"), budget_setting="r", source="Liu et al. 2022, arXiv:2210.03265",
)  # fmt: skip


@register("polyhistor", **ABOUT)
class Polyhistor(Method):
    r"""Polyhistor: the adapters of every task and layer, generated from the task's embedding.

        y = z + U f(D z + d) + u,    z = layer(x),    D = K (x) P Q,    P = reshape(H_P v_t),    Q = reshape(H_Q v_t);    U likewise

    when        several dense tasks on one hierarchical encoder, their adapters made by shared hypernetworks
    shapes      D [n, w], U [w, n], w = out, n = w / rho; v_t [k] for each task t, shared by all layers; for each layer and matrix its
                own H_P, H_Q and, with `scale_kernels`, K [s, s], s = w / w0, w0 the widths' greatest common divisor: P Q is then a
                template of the size of width w0. Without: K = 1, and P Q has the matrix's size
    settings    decompose=False, scale_kernels=False is HyperFormer: vec(D) = H v_t. The paper leaves open whether polyhistor has K
    init        U's H_P = 0, d = u = 0: starts as the base, for every task; v_t ~ N(0, 1 / k), the other H uniform, so that P Q has the
                variance of a Kaiming-uniform(a = sqrt 5) matrix, K = I + N(0, 0.02^2). The paper gives none of these; with entries of v_t
                about 1, a step of Adam on H would move the matrices by k times its learning rate
    use         `ad.steer(task="normals")`, or a tensor [batch] of the tasks' numbers: every sample then has its own matrices. Targets
                'o' and 'down' are two adapters a block; LayerNorms train too by `train='norms'`. `polyhistor_plain.plain` keeps one task's
    forward     K (X Q^T) P^T with x seen as X [s, w0]: neither K (x) P Q nor P Q is formed
    parameters  T k + k r (n + w) for each matrix of a layer, n + w for its biases: 6,394,976 for Swin-T, norms trained (paper: 6.41M)
    merge       none: it is not linear
    source      Liu et al. 2022, arXiv:2210.03265; its k and r are not published: k r = 288 here gives its number of parameters
    """

    tasks: tuple[str, ...] = option(("semseg", "human_parts", "sal", "normals"), help="names of the tasks")
    k: int = option(32, at_least=1, help="size of a task's embedding")
    r: int = option(9, at_least=1, help="inner rank of the generated matrices, with decompose")
    rho: int = option(4, at_least=1, help="width over bottleneck; divides the width")
    decompose: bool = option(True, help="generate two thin factors instead of each matrix")
    scale_kernels: bool = option(False, help="generate templates of the smallest width, scaled by kernels K")
    activation: Activation = option("gelu", help="f")
    bias: bool = option(True, help="biases d and u, which all tasks share")

    def validate(self) -> None:
        check_tasks(self.name, self.tasks)
        if not self.tasks:
            raise MethodError(f"{self.name} needs tasks.")

    def example_facts(self) -> tuple[dict[str, Any], ...]:
        return tuple({"task": task} for task in self.tasks)

    def admits(self, host: Host) -> str | None:
        reason = super().admits(host)
        if reason is None and host.fan_out % self.rho:
            reason = f"its width {host.fan_out} does not divide by rho = {self.rho}"
        return reason

    def unit(self, hosts: Sequence[Host]) -> int:
        """w0, the width that templates are made for; 0 where every layer is its own."""
        return math.gcd(*(host.fan_out for host in hosts)) if self.scale_kernels else 0

    def parameters(self, host: Host) -> int:
        return self.bias * (host.fan_out + host.fan_out // self.rho)

    def shared_parameters(self, hosts: Sequence[Host]) -> int:
        unit, total = self.unit(hosts), len(self.tasks) * self.k
        for host in hosts:
            width = unit or host.fan_out
            n = width // self.rho
            total += 2 * self.k * (self.r * (n + width) if self.decompose else n * width)
            total += 2 * (host.fan_out // unit) ** 2 if unit else 0
        return total

    def shared(self, hosts: Sequence[Host]) -> Hypernetworks:
        return Hypernetworks(self, hosts)

    def adapter(self, host: Host, shared: nn.Module | None = None) -> PolyhistorAdapter:
        assert isinstance(shared, Hypernetworks)
        if self != shared.method:
            raise MethodError(
                f"{self.name} on {host.name}: its settings are the hypernetworks' and cannot differ between layers."
            )
        return PolyhistorAdapter(self, host, shared)


@register("polyhistor-lite", **ABOUT)
class PolyhistorLite(Polyhistor):
    r"""Polyhistor-Lite: generated adapters whose hypernetworks have one size, whatever a layer's width.

        y = z + U f(D z + d) + u,    z = layer(x),    D = K (x) P Q,    P = reshape(H_P v_t),    Q = reshape(H_Q v_t);    U likewise

    when        as `polyhistor`, at a few percent of its size
    shapes      D [n, w], U [w, n], w = out, n = w / rho; P [n0, r], Q [r, w0] of the smallest layer's size; K [s, s] of each layer and
                matrix, s = w / w0, the same for all tasks. w0 is the widths' greatest common divisor, n0 = w0 / rho
    init        as polyhistor: starts as the base, for every task
    use         as polyhistor, of which it is the setting `scale_kernels=True`, r = 2
    forward     K (X Q^T) P^T with x seen as X [s, w0]: neither K (x) P Q nor P Q is formed
    parameters  T k + k r (n0 + w0) + s^2 for each matrix of a layer, n + w for its biases: 405,512 for Swin-T, norms trained
                (paper: 0.41M), 394,344 of them without embeddings and biases
    merge       none: it is not linear
    source      Liu et al. 2022, arXiv:2210.03265; its k and r are not published: k r = 64 here gives its number of parameters
    """

    r: int = option(2, at_least=1, help="inner rank of the generated matrices, with decompose")
    scale_kernels: bool = option(True, help="generate templates of the smallest width, scaled by kernels K")


class Hypernetworks(nn.Module):
    """The embeddings of the tasks, and the generators of every layer's D and U."""

    def __init__(self, method: Polyhistor, hosts: Sequence[Host]):
        super().__init__()
        self.method, unit = method, method.unit(hosts)
        self.v = nn.ParameterDict(
            {task: nn.Parameter(torch.randn(method.k) / method.k**0.5) for task in method.tasks}
        )
        self.layers = nn.ModuleDict()
        for host in hosts:
            width, scale = host.fan_out, host.fan_out // unit if unit else None
            n = width // method.rho
            r = method.r if method.decompose else None
            down = Generator(method.k, r, n, width, scale, zero=False)
            up = Generator(method.k, r, width, n, scale, zero=True)
            self.layers[_key(host)] = nn.ModuleList([down, up])

    def matrices(self, host: Host, task: Any) -> list[tuple[Tensor | None, list[Tensor]]]:
        """K and the template's factors, of a layer's D and U; for a tensor of tasks' numbers one template for each."""
        pair: Any = self.layers[_key(host)]
        if isinstance(task, Tensor) and task.dim():
            v = torch.stack([self.v[name] for name in self.method.tasks])  # a ParameterDict orders by name
            rows = self.numbers(task).to(v.device)
            return [(make.K, [f.index_select(0, rows) for f in make(v)]) for make in pair]
        v = self.v[known_task(self.method.name, task, self.method.tasks)]
        return [(make.K, make(v)) for make in pair]

    def numbers(self, task: Tensor) -> Tensor:
        """The tasks' numbers of a batch, checked where that waits for no device."""
        count, name = len(self.method.tasks), self.method.name
        if task.is_floating_point() or task.dtype == torch.bool:
            raise StateError(f"{name}: task is steered as {task.dtype}; give the tasks' numbers as integers.")
        if task.device.type == "cpu" and not torch.compiler.is_compiling():
            wrong = sorted({t for t in task.tolist() if not 0 <= t < count})
            if wrong:
                raise StateError(
                    f"{name}: there is no task number {wrong[0]}; the {count} tasks are numbered from 0: {', '.join(self.method.tasks)}."
                )
        return task


class PolyhistorAdapter(Adapter):
    """The biases of one layer; its matrices are generated."""

    own_strength = True

    def __init__(self, method: Polyhistor, host: Host, shared: Hypernetworks):
        super().__init__(host, shared)
        self.activation, width = ACTIVATIONS[method.activation], host.fan_out
        self.d = nn.Parameter(torch.zeros(width // method.rho)) if method.bias else None
        self.u = nn.Parameter(torch.zeros(width)) if method.bias else None

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
        output = frozen(*args, **kwargs)
        h, task = hidden(output), require("task", self.shared.method.name)
        D, U = self.shared.matrices(self.host, task)
        x = by_sample(h, len(task), "task") if isinstance(task, Tensor) and task.dim() else h.flatten(0, -2)
        z = product(x, *D)
        z = product(self.activation(z if self.d is None else z + self.d.to(z.dtype)), *U)
        z = z if self.u is None else z + self.u.to(z.dtype)
        return with_hidden(output, h + self.share(z).view(h.shape))


def _key(host: Host) -> str:
    """The host's name, as a module's can be."""
    return host.name.replace(".", "/") or "root"
