"""A branch of a model that is run once for a whole batch while it has nothing to say."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from adaptome.core.adapter import Frozen, WeightAdapter
from adaptome.core.errors import StateError
from adaptome.core.hosts import Host


class SkippedBranch(WeightAdapter):
    """A whole branch, run for one row of the batch while what it reads is absent. It changes no weight, so merging leaves it out.

    Args:
        host: the branch.
        method_name, what: the method, and what may be absent, as messages call them.
    """

    fast = True

    def __init__(self, host: Host, method_name: str, what: str):
        super().__init__(host)
        self.method_name, self.what, self.changes = method_name, what, ()

    @abstractmethod
    def absent(self) -> bool:
        """Whether it is absent now, from every row."""

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
        if not self.absent():
            return frozen(*args, **kwargs)
        given = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor) and v.dim()]
        batch = given[0].shape[0] if given else 1
        rows = [v for v in given if v.shape[0] == batch]
        if not torch.compiler.is_compiling() and any(
            v.device.type == "cpu" and (v != v[:1]).any() for v in rows
        ):
            raise StateError(
                f"{self.method_name}: {self.what!r} is absent, but the rows of its input differ.\n"
                "  absent='skip' runs its branch for one row: fill all alike, with zeros after normalisation."
            )
        args, kwargs = tree_map(lambda v: v[:1] if any(v is row for row in rows) else v, (args, kwargs))
        return tree_map(
            lambda v: (
                v.repeat(batch, *[1] * (v.dim() - 1))
                if isinstance(v, Tensor) and v.dim() and len(v) == 1
                else v
            ),
            frozen(*args, **kwargs),
        )
