"""Several low-rank pairs on one layer, by name: what a forward uses of them depends on what is steered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from adaptome.core.errors import MethodError, StateError, did_you_mean
from adaptome.core.hosts import Host
from adaptome.forms.low_rank import LowRank, kaiming

Start = Literal["down-zero", "kaiming", "gaussian"]
#: the branch of no task in particular
SHARED = "shared"


class Branches(LowRank):
    """Base of adapters with pairs `A_k [*, r_k, in]`, `B_k [*, out, r_k]`; subclasses say by `factors` which of them run.

    Args:
        host: where it sits.
        ranks: name -> r_k.
        scale: of the update.
        dropout: as LowRank's.
        init: 'down-zero': A = 0, B Kaiming-uniform(a = sqrt 5); 'kaiming': A so, B = 0; 'gaussian': A ~ N(0, 1/r_k^2), B = 0.
    """

    def __init__(self, host: Host, ranks: Mapping[str, int], scale: float, dropout: float, init: Start):
        super().__init__(host, scale, dropout)
        self.A, self.B = nn.ParameterDict(), nn.ParameterDict()
        for name, r in ranks.items():
            A, B = torch.zeros(*host.lead, r, host.fan_in), torch.zeros(*host.lead, host.fan_out, r)
            if init == "down-zero":
                kaiming(B)
            elif init == "kaiming":
                kaiming(A)
            else:
                A.normal_(std=1 / r)
            self.A[name], self.B[name] = nn.Parameter(A), nn.Parameter(B)

    def joined(self, *names: str) -> tuple[Tensor, Tensor]:
        """The named pairs as one: `sum_k B_k A_k = B A`."""
        if len(names) == 1:
            return self.A[names[0]], self.B[names[0]]
        return torch.cat([self.A[k] for k in names], -2), torch.cat([self.B[k] for k in names], -1)


def check_tasks(method: str, tasks: Iterable[str]) -> None:
    """Raise MethodError unless the tasks are different names that can name a tensor."""
    names = list(tasks)
    bad = [t for t in names if not t or "." in t or t == SHARED]
    if bad or len(set(names)) != len(names):
        raise MethodError(
            f"{method}: tasks = {names} must be different names, without '.' and none of them {SHARED!r}."
        )


def known_task(method: str, task: object, tasks: tuple[str, ...]) -> str:
    """The steered task, when it is one of the method's.

    Raises:
        StateError: naming those there are.
    """
    if isinstance(task, str) and task in tasks:
        return task
    raise StateError(f"{method} has no task {task!r}.{did_you_mean(str(task), tasks)} It has {list(tasks)}.")
