"""Spectrogram transformers (AST): other lengths than the checkpoint's, and masks on the input while training."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.errors import RecipeError

Positions = Literal["cut", "interpolate", "new", "fresh"]


def set_frames(model: nn.Module, frames: int, how: Positions) -> None:
    """Fit a model's table of positions [1, special + bands x times, hidden] to spectrograms of this many frames.

    'cut' keeps the middle of the table along time where it is long enough, so that neighbouring patches stay as far apart
    as they were (Gong et al. 2021, arXiv:2104.01778); 'interpolate', and 'cut' where the table is too short, stretch it
    linearly. Bands of frequency and the special tokens' positions stay. 'new' and 'fresh' draw the whole table anew, from
    N(0, initializer_range^2) by torch's generator: Cappellazzo et al. 2024, arXiv:2312.03694, re-create it for another length.
    Of the two, the task trains the 'new' one beside its head.

    Raises:
        RecipeError: fewer frames than one patch.
    """
    embeddings = _embeddings(model)
    config: Any = embeddings.config
    if frames < config.patch_size:
        raise RecipeError(
            f"task.max_length={frames}: the model's patches are {config.patch_size} frames wide. Give as many at least."
        )
    table: Tensor = embeddings.position_embeddings
    bands, before = embeddings.get_shape(config)
    config.max_length = frames
    after = embeddings.get_shape(config)[1]
    special = table.shape[1] - bands * before
    if how in ("new", "fresh"):
        drawn = torch.randn(1, special + bands * after, table.shape[2]) * config.initializer_range
        embeddings.position_embeddings = nn.Parameter(drawn.to(table), requires_grad=table.requires_grad)
        return
    grid = table.detach()[:, special:].unflatten(1, (bands, before)).permute(0, 3, 1, 2)
    if how == "cut" and after <= before:
        first = (before - after) // 2
        grid = grid[..., first : first + after]
    else:
        grid = F.interpolate(grid.float(), size=(bands, after), mode="bilinear").to(table.dtype)
    fitted = torch.cat([table.detach()[:, :special], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    embeddings.position_embeddings = nn.Parameter(fitted.contiguous(), requires_grad=table.requires_grad)


def positions_of(model: nn.Module) -> str:
    """The name of the parameter that is the table of positions.

    Raises:
        RecipeError: there is none.
    """
    found = _embeddings(model)
    return next(f"{path}.position_embeddings" for path, module in model.named_modules() if module is found)


def _embeddings(model: nn.Module) -> Any:
    """The module that holds the table of positions of a spectrogram's patches."""
    for module in model.modules():
        if isinstance(getattr(module, "position_embeddings", None), nn.Parameter) and hasattr(
            module, "get_shape"
        ):
            return module
    raise RecipeError(
        f"task.max_length: {type(model).__name__} has no table of positions over frames. Leave it out."
    )


class SpecAugment:
    """A hook before the model's forward: while training, hides a band of frequencies and a stretch of time of each clip.

        x[:, t0:t0 + t] = x[:, :, f0:f0 + f] = 0,    t ~ U{0..T}, f ~ U{0..F}, t0 and f0 uniform where they fit

    Park et al. 2019, arXiv:1904.08779, with one mask of each kind; 0 is the mean of normalised features. What it draws comes
    from torch's generator, whose state a checkpoint holds, so that a resumed run draws the same.

    Args:
        frequency: F, at most so many mel bands. time: T, at most so many frames.
    """

    def __init__(self, frequency: int, time: int):
        self.frequency, self.time = frequency, time

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if not module.training:
            return args, kwargs
        return args, {**kwargs, "input_values": self.masked(kwargs["input_values"])}

    def masked(self, x: Tensor) -> Tensor:
        """x [batch, frames, mels] with its masks."""
        hidden = _stretch(x, 1, self.time)[:, :, None] | _stretch(x, 2, self.frequency)[:, None, :]
        return x.masked_fill(hidden, 0.0)


def _stretch(x: Tensor, dim: int, most: int) -> Tensor:
    """[batch, x.shape[dim]] true on one stretch of at most `most` places a row."""
    size, place = x.shape[dim], torch.arange(x.shape[dim])
    length = torch.randint(min(most, size) + 1, (len(x), 1))
    first = (torch.rand(len(x), 1) * (size - length + 1)).long()
    return ((place >= first) & (place < first + length)).to(x.device)
