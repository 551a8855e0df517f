"""What self-distillation is made of: a head of prototypes, a teacher that follows what trains, and how its scores are spread over prototypes.

head       z = normalise(MLP(x)),  logits_k = z . w_k / |w_k|              Caron et al. 2021, arXiv:2104.14294
teacher    t <- m t + (1 - m) w after every step, for every tensor that trains; what is frozen is the model's own
centring   p = softmax((t - c) / T),  c <- 0.9 c + 0.1 mean(t)             ibid., equation 4
sinkhorn   p = exp(t / T) with rows and columns scaled in turn until each prototype has its share, three times
                                                                           Caron et al. 2020, arXiv:2006.09882
koleo      -mean_i log min_j |x_i - x_j|,  x of length 1                   Sablayrolles et al. 2019, arXiv:1806.03198
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.errors import TrainingError

#: how much of the centre is kept in a step
KEPT = 0.9


class Prototypes(nn.Module):
    """Cosines to prototypes: z [n, d] of length 1 -> [n, K]."""

    def __init__(self, width: int, count: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, z: Tensor, held: bool = False) -> Tensor:
        """With `held` the prototypes get a gradient of zero, so that every process still has one."""
        weight = self.weight.detach() + 0 * self.weight if held else self.weight
        return F.linear(z, F.normalize(weight, dim=-1))


class Head(nn.Module):
    """Three layers, the unit sphere, and prototypes: x [n, D] -> [n, K]."""

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int):
        super().__init__()
        sizes = (width, hidden, hidden, bottleneck)
        self.layers: Any = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        for layer in list[Any](self.layers):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.prototypes = Prototypes(bottleneck, prototypes)

    def forward(self, x: Tensor, held: bool = False) -> Tensor:
        x = x.to(self.layers[0].weight.dtype)
        for number, layer in enumerate(self.layers):
            x = layer(x if number == 0 else F.gelu(x))
        made: Tensor = self.prototypes(F.normalize(x, dim=-1, eps=1e-6), held)
        return made


class Distilled(nn.Module):
    """What the objective trains and keeps: heads for pictures and patches, centres, and the teacher's tensors.

    Args:
        apart: a second head for patches; else both share one.
    """

    centre: Tensor
    patch_centre: Tensor

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int, apart: bool):
        super().__init__()
        self.head = Head(width, hidden, bottleneck, prototypes)
        self.patch_head = Head(width, hidden, bottleneck, prototypes) if apart else None
        self.register_buffer("centre", torch.zeros(1, prototypes))
        self.register_buffer("patch_centre", torch.zeros(1, prototypes))
        self.teacher = nn.Module()  # one buffer for each tensor that trains
        self._names: dict[str, str] = {}

    def forward(self, x: Tensor, patches: bool = False, held: bool = False) -> Tensor:
        """Logits [n, K] of the features [n, D] of pictures, or of patches."""
        head = self.patch_head if patches and self.patch_head is not None else self.head
        made: Tensor = head(x, held)
        return made

    # -- the teacher ---------------------------------------------------------------------------------------------------

    def begin(self, model: nn.Module) -> None:
        """The teacher starts as the model.

        Raises:
            TrainingError: the model is sharded.
        """
        self._names = {}
        for number, (name, value) in enumerate(trained(model).items()):
            if hasattr(value, "full_tensor"):
                raise TrainingError(
                    "the teacher follows whole tensors, which a sharded run has not: leave fsdp out."
                )
            self._names[name] = f"t{number}"
            # steps of a mean are too small for half precision
            wide = torch.promote_types(value.dtype, torch.float32)
            self.teacher.register_buffer(f"t{number}", value.detach().to(wide, copy=True))

    def values(self) -> dict[str, Tensor]:
        """The teacher's tensors by the names of those that they follow."""
        return {name: self.teacher.get_buffer(short) for name, short in self._names.items()}

    @torch.no_grad()
    def follow(self, model: nn.Module, momentum: float) -> None:
        """One step towards the model."""
        for name, value in trained(model).items():
            mean = self.teacher.get_buffer(self._names[name])
            mean.lerp_(value.detach().to(mean.dtype), 1 - momentum)

    @torch.no_grad()
    def take_over(self, model: nn.Module) -> None:
        """The model becomes the teacher."""
        for name, value in trained(model).items():
            value.copy_(self.teacher.get_buffer(self._names[name]))

    @torch.no_grad()
    def recentre(self, logits: Tensor, patches: bool) -> None:
        """Move a centre towards the mean of these rows [n, K] of all processes."""
        total, count = (
            summed(logits.float().sum(0, keepdim=True)),
            summed(logits.new_tensor(float(len(logits)))),
        )
        if count > 0:
            (self.patch_centre if patches else self.centre).lerp_(total / count, 1 - KEPT)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """What trains of a model, by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


@contextmanager
def taught(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it the model has the teacher's tensors in place of those that train, runs in evaluation mode and makes no graph.

    The frozen tensors are the model's own: no second trunk is held. Autocast keeps copies of weights in half precision by parameter: within it
    they are made anew, for those of the model would stand for the teacher's.
    """
    own = trained(model)
    kept = {name: value.data for name, value in own.items()}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        for name, value in own.items():
            value.data = values[name].to(value.dtype)
        with torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)
        for name, value in own.items():
            value.data = kept[name]
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, rounds: int = 3, together: bool = True) -> Tensor:
    """Shares [n, K] of rows that sum to 1, each prototype having about as much as every other over the rows of all processes.

    Args:
        logits: the teacher's, [n, K]; a process may have none.
        together: over all processes; each must then call it.
    """
    total = summed if together else (lambda value: value)
    scaled = logits.float() / temperature
    most = scaled.max() if len(scaled) else scaled.new_tensor(-torch.inf)
    shares = (scaled - (greatest(most) if together else most)).exp()
    for _ in range(rounds):
        columns = total(shares.sum(0, keepdim=True))
        shares = shares / columns.clamp_min(1e-30) / shares.shape[1]
        shares = shares / shares.sum(1, keepdim=True).clamp_min(1e-30)
    return shares


def koleo(x: Tensor) -> Tensor:
    """The mean over rows [n, d] of -log of the distance to the nearest other, on the unit sphere; 0 of a single row."""
    if len(x) < 2:
        return x.sum() * 0.0
    x = F.normalize(x.float(), dim=-1, eps=1e-8)
    with torch.no_grad():
        near = (x @ x.T).fill_diagonal_(-2).argmax(1)
    return -(F.pairwise_distance(x, x[near], eps=1e-8) + 1e-8).log().mean()


def _many() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def summed(value: Tensor) -> Tensor:
    """The sum over processes."""
    if not _many():
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value


def greatest(value: Tensor) -> Tensor:
    """The largest over processes."""
    if not _many():
        return value
    value = value.clone()
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value
