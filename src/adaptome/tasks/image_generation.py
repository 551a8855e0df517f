"""Pictures of texts by a text-to-image model, with what they were made with; and several of them as one grid."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adaptome.core.version import __version__
from adaptome.decoding.diffusion import denoised, scheduler_named
from adaptome.models.text_to_image import TextToImage
from adaptome.tasks.inference import chunks, evaluating

#: the conditions of a picture: PIL pictures with the words that name their kind
By = Sequence[tuple[Any, str]]


@dataclass(frozen=True)
class Making:
    """How a picture is made.

    Attributes:
        text, negative: what it is to show, and what guidance leads away from.
        seed: of its noise.
        steps: of the sampler. guidance: above 1 the text counts more.
        sampler: a scheduler of diffusers; None for the model's.
        width, height: in pixels.
        strength: with a picture to begin from, the share of the steps that are taken.
    """

    text: str
    seed: int = 0
    negative: str = ""
    steps: int = 30
    guidance: float = 5.0
    sampler: str | None = None
    width: int = 512
    height: int = 512
    strength: float = 1.0

    def together(self, other: Making) -> bool:
        """Whether two pictures can be made in one batch."""
        return replace(self, text="", seed=0, negative="") == replace(other, text="", seed=0, negative="")


def made(
    model: nn.Module,
    asked: Sequence[Making],
    batch_size: int = 8,
    start: Any = None,
    step: Callable[[], None] = lambda: None,
    by: Sequence[By] | None = None,
) -> list[Any]:
    """A PIL picture for each; the same whatever it is made together with, up to rounding.

    Args:
        model: a `TextToImage`.
        start: a PIL picture that all begin from.
        by: for each the conditions that it is made by; several act as their mean. None of them for a model as it is.
        step: called after every step of every batch.

    Raises:
        ModelError: a size or sampler that the model does not have.
    """
    assert isinstance(model, TextToImage)
    pictures: list[Any] = []
    with evaluating(model) as device:
        for group in groups(asked, batch_size):
            how = group[0]
            size = (how.height, how.width)
            seeds = [one.seed for one in group]
            noise = model.noise(seeds, size)
            begun = None
            if start is not None:
                pixels = to_pixels([start.convert("RGB").resize((how.width, how.height))], device)
                draws = torch.tensor(seeds)
                begun = model.latents(pixels.expand(len(group), -1, -1, -1).to(model.dtype), draws)
            texts, negative = [one.text for one in group], [one.negative for one in group]
            conditions, facts = None, dict[str, Any]()
            if by is not None:
                conditions, facts = controls(model, by[len(pictures) : len(pictures) + len(group)], (how.width, how.height))  # fmt: skip
            found = denoised(
                model.predictor(texts, negative, how.guidance, size, conditions, facts), scheduler_named(model.scheduler, how.sampler), noise, how.steps,
                how.guidance, start=begun, strength=how.strength, tokens=model.tokens(size), even=model.kind == "FluxPipeline",
                generators=[torch.Generator(device).manual_seed(seed) for seed in seeds], step=step,
            )  # fmt: skip
            pictures += to_pictures(model.pixels(found))
    return pictures


def controls(model: TextToImage, by: Sequence[By], size: tuple[int, int]) -> tuple[Tensor, dict[str, Any]]:
    """Latents [B, C, h, w] of the conditions of each picture and what gates read of their instructions; of several the mean."""
    latents, read = [], []
    for one in by:
        pixels = to_pixels([picture.convert("RGB").resize(size) for picture, _ in one], model.device)
        latents.append(model.plain_latents(pixels.to(model.dtype)).mean(0))
        read.append(torch.stack([model.instruction([words]) for _, words in one]).mean(0))
    same = all(torch.equal(read[0], other) for other in read)
    return torch.stack(latents), {"instruction": read[0] if same else torch.stack(read)}


def groups(asked: Sequence[Making], batch_size: int) -> list[list[Making]]:
    """Batches of those that can be made together, in order."""
    found: list[list[Making]] = []
    for part in chunks(asked, batch_size):
        for one in part:
            last = found[-1] if found else []
            if not last or len(last) == batch_size or not last[0].together(one):
                found.append(last := [])
            last.append(one)
    return found


def to_pixels(pictures: Sequence[Any], device: torch.device | str = "cpu") -> Tensor:
    """RGB PIL pictures or bytes [h, w, 3] of one size as [B, 3, h, w] in [-1, 1]."""
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(arrays).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(pixels: Tensor) -> list[Any]:
    """Undo `to_pixels`, as PIL pictures; what lies outside is clipped."""
    from PIL import Image

    arrays = (pixels.float().clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]


def grid(pictures: Sequence[Any], columns: int, least: int = 64) -> Any:
    """PIL pictures side by side, row by row; small ones magnified so that their pixels are seen."""
    from PIL import Image

    wide, high = (max(p.size[i] for p in pictures) for i in (0, 1))
    times = max(1, -(-least // min(wide, high)))
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * wide * times, rows * high * times), "white")
    for place, picture in enumerate(pictures):
        large = picture.resize((picture.size[0] * times, picture.size[1] * times), Image.Resampling.NEAREST)
        whole.paste(large, (place % columns * wide * times, place // columns * high * times))
    return whole


def png(picture: Any, told: Mapping[str, Any]) -> bytes:
    """A picture as PNG with what it was made with, as JSON under the key `adaptome`; `settings_of` reads it."""
    from io import BytesIO

    from PIL.PngImagePlugin import PngInfo

    held, info = BytesIO(), PngInfo()
    info.add_itxt("adaptome", json.dumps({**told, "version": __version__}, ensure_ascii=False))
    picture.save(held, "PNG", pnginfo=info)
    return held.getvalue()


def settings_of(picture: Any) -> dict[str, Any] | None:
    """What a PNG of `png` was made with; None of any other picture."""
    told = getattr(picture, "text", {}).get("adaptome")
    return None if told is None else dict(json.loads(told))


def told(making: Making) -> dict[str, Any]:
    """The settings of a picture as JSON values, without those that say nothing."""
    return {key: value for key, value in asdict(making).items() if value not in (None, "")}
