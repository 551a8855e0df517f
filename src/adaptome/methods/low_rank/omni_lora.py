"""Omni-LoRA: one LoRA for all tasks, one for each, or both."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from adaptome.core.errors import MethodError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.core.steer import require
from adaptome.forms.branches import SHARED, Branches, Start, check_tasks, known_task


@register(
    "omni-lora",
    subcategory="low-rank, shared and task-specific",
    export="low-rank",
    default_targets=("q", "v"),
    source="Cappellazzo et al. 2025, arXiv:2511.07253",
)
class OmniLoRA(Method):
    r"""Omni-LoRA: one LoRA for all tasks, one for each, or both.

        S    y = W x + s B A x
        T    y = W x + s B_t A_t x
        ST   y = W x + s (B_t A_t + B_shared A_shared) x

    when        one model for tasks that share and differ, as of sound, of sight and of both
    shapes      W [out, in] frozen; A [b, in], B [out, b], b = r, or round(in / reduction)
    scale       s = alpha / r, or alpha / reduction: r = 64, alpha = 8 is the paper's reduction = 32, alpha = 4 at width 2048
    init        'down-zero': A = 0, B Kaiming-uniform(a = sqrt 5), as the authors' code; 'kaiming', 'gaussian': B = 0; all start as the base
    use         `ad.steer(task="audio")` for T and ST; S needs no task
    parameters  b (in + out) per branch: 6,815,744 (S), 20,447,232 (T), 27,262,976 (ST) for Llama-3.2-1B, q and v, three tasks
    merge       exact, for the steered task; export: peft-lora, exact (rank 2 b for ST)
    source      Cappellazzo et al. 2025, arXiv:2511.07253
    """

    layout: Literal["S", "T", "ST"] = option("ST", help="branches: shared, per task, or both")
    tasks: tuple[str, ...] = option(("audio", "video", "audiovisual"), help="names of the tasks")
    r: int = option(64, at_least=1, help="rank b of each branch")
    reduction: int | None = option(None, at_least=1, help="b = round(in / reduction) instead")
    alpha: float = option(8.0, help="the update is scaled by alpha / r, or alpha / reduction")
    dropout: float = option(0.0, at_least=0, below=1, help="on the adapter's input")
    init: Start = option("down-zero", help="which of A and B starts at zero")

    def validate(self) -> None:
        check_tasks("omni-lora", self.tasks)
        if self.layout != "S" and not self.tasks:
            raise MethodError(f"omni-lora: layout {self.layout!r} needs tasks.")

    def sized(self, value: int) -> Method:
        return self.replace(r=value, reduction=None)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the branches."""
        own = self.tasks if self.layout != "S" else ()
        return (*own, SHARED) if "S" in self.layout else own

    def rank(self, host: Host) -> int:
        """b."""
        return self.r if self.reduction is None else max(1, round(host.fan_in / self.reduction))

    def example_facts(self) -> tuple[dict[str, Any], ...]:
        return ({},) if self.layout == "S" else tuple({"task": task} for task in self.tasks)

    def parameters(self, host: Host) -> int:
        return len(self.names) * self.rank(host) * (host.fan_in + host.fan_out) * host.copies

    def adapter(self, host: Host, shared: nn.Module | None = None) -> OmniLoRAAdapter:
        return OmniLoRAAdapter(self, host)


class OmniLoRAAdapter(Branches):
    """The branches of one layer."""

    def __init__(self, method: OmniLoRA, host: Host):
        scale = method.alpha / (method.reduction or method.r)
        super().__init__(
            host, dict.fromkeys(method.names, method.rank(host)), scale, method.dropout, method.init
        )
        self.layout, self.tasks = method.layout, method.tasks

    def factors(self) -> tuple[Tensor, Tensor]:
        if self.layout == "S":
            return self.joined(SHARED)
        task = known_task("omni-lora", require("task", "omni-lora"), self.tasks)
        return self.joined(task) if self.layout == "T" else self.joined(task, SHARED)
