"""Self-supervised learning: features of pictures learned from pictures alone, by views of them and by patches that are hidden."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import RecipeError
from adaptome.data.readers.images import ENDINGS
from adaptome.data.splits import Split, Splits
from adaptome.data.views import Crops, Hidden
from adaptome.report.shown import Shown
from adaptome.tasks.bands import BandOptions
from adaptome.tasks.base import ModelSpec, Prepared, Task, TaskOptions, register_task
from adaptome.tasks.composites import load_around
from adaptome.tasks.image_classification import to_rgb
from adaptome.tasks.inference import chunks, evaluating
from adaptome.tasks.probes import probed
from adaptome.tasks.view_processor import ViewProcessor, load_view_processor

MODEL = "view-encoder"


class SelfSupervisedOptions(TaskOptions):
    views: int = Field(default=2, ge=1, description="large crops of a picture; 1 for masked-autoencoding")
    local_views: int = Field(default=8, ge=0, description="small crops of it; 0 for masked-autoencoding")
    image_size: int | None = Field(
        default=None, ge=1, description="side of the large crops in pixels; default: the model's"
    )
    local_size: int | None = Field(
        default=None,
        ge=1,
        description="side of the small ones; default: 7 of 16 of the large ones', in whole patches",
    )
    scale: tuple[float, float] = Field(
        default=(0.32, 1.0), description="share of the area that a large crop shows"
    )
    local_scale: tuple[float, float] = Field(default=(0.05, 0.32), description="and a small one")
    colour: float = Field(
        default=1.0, ge=0, description="strength of the changes in colour, blur included; 0 for none"
    )
    blur: tuple[float, ...] = Field(
        default=(1.0, 0.1),
        description="chance of a blur in each large view; small ones have 0.5 where any of these is above 0",
    )
    solarise: tuple[float, ...] = Field(
        default=(0.0, 0.2), description="chance of solarising each large view"
    )
    dihedral: bool = Field(default=False, description="turn by quarters too, for pictures from above")
    hidden: tuple[float, float] = Field(
        default=(0.1, 0.5), description="share of a large view's patches that are hidden"
    )
    hidden_chance: float = Field(default=0.5, ge=0, le=1, description="of a large view to have any hidden")
    hidden_blocks: bool = Field(
        default=True, description="hide rectangles; false: patch by patch, as masked-autoencoding does"
    )
    bands: BandOptions | None = Field(
        default=None, description="for pictures other than RGB: see `tasks.bands`"
    )
    seed: int = Field(default=0, ge=0, description="of crops, colours and hidden patches")


@register_task("self-supervised")
class SelfSupervised(Task):
    """Column image: files, or arrays [height, width(, bands)]; with a column label, features are scored by nearest neighbours and a linear probe.

    Labels are never trained on. `predict` takes pictures and gives their features and a picture of their patches' leading components.
    """

    Options = SelfSupervisedOptions
    options: SelfSupervisedOptions
    takes = ENDINGS
    greater_is_better = False
    judges = True
    measures_before = True

    @property
    def primary_metric(self) -> str:
        return "loss"

    # -- data ----------------------------------------------------------------------------------------------------------

    def load_processor(self, model: ModelSpec) -> ViewProcessor:
        return load_view_processor(model, self.options.image_size, self.options.bands)

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        splits.require("image")
        own = self.options
        small = self._local_size(processor)
        for name, side in (("image_size", processor.side), ("local_size", small)):
            if side % processor.patch:
                raise RecipeError(
                    f"task.{name}={side}: patches of {processor.patch} pixels do not fill it. Take {max(round(side / processor.patch), 1) * processor.patch}."
                )
        large = Crops(own.views, processor.side, own.scale, own.colour, own.blur, own.solarise, own.dihedral)
        soft = 0.5 if any(own.blur) else 0.0
        crops = Crops(own.local_views, small, own.local_scale, own.colour, (soft,), (0.0,), own.dihedral)
        hidden = Hidden(own.hidden, own.hidden_chance, own.hidden_blocks)
        made = {
            name: Views(split, processor, large, crops if own.local_views else None, hidden, own.seed)
            for name, split in splits.items()
        }
        return Prepared(made, stacked, remove_unused_columns=False, label_names=("masks",))

    def _local_size(self, processor: Any) -> int:
        given = self.options.local_size
        return given or max(round(processor.side * 7 / 16 / processor.patch), 1) * processor.patch

    def inputs(self, rows: Any) -> list[Any]:
        return [plain(row["image"]) for row in arrays(rows)]

    def truths(self, rows: Any) -> list[Any]:
        return names_of(rows) or [None] * len(rows)

    # -- model ---------------------------------------------------------------------------------------------------------

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        """A `view-encoder`: as the recipe names it, or around the encoder that it names."""
        return load_around(model, MODEL)

    def head_patterns(self, model: nn.Module) -> list[str]:
        """The decoder, or of a released one what is not adapted like the encoder; patches of new bands; a mask token that is new."""
        found: Any = model
        made = ["mask_token"] if found.mask_token is not None else []
        if found.decoder is not None:
            released = found.settings.decoder.source is not None
            parts = ["mask_token", "decoder_embed", "decoder_pred", "norms"]
            parts += ["group_embed"] if found.decoder.group_embed is not None else []
            made += [f"decoder.{part}" for part in parts] if released else ["decoder"]
        if found.settings.bands is not None:
            made += ["encoder.embeddings.patch_embeddings", "encoder.embeddings.group_embeddings"]
        return made

    def save_base(self, model: nn.Module, processor: Any, folder: Path) -> None:
        """The encoder alone: a plain model of transformers."""
        encoder: Any = model.encoder
        encoder.save_pretrained(folder)
        processor.save_pretrained(folder)

    # -- scores --------------------------------------------------------------------------------------------------------

    def counted(self, logits: Any, labels: Any) -> Tensor:
        """Nothing is kept of a batch but its loss."""
        return torch.zeros(len(labels), 1, device=labels.device)

    def metrics(self, result: Any) -> dict[str, float]:
        return {}

    def judge(self, split: Any, predictions: list[Any]) -> dict[str, float]:
        labels = names_of(split.rows)
        if labels is None:
            return {}
        return probed(np.stack([one["embedding"] for one in predictions]), labels)

    # -- use -----------------------------------------------------------------------------------------------------------

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """Features of each picture.

        Returns a list of {"embedding" [D], "patches" [h, w, 3] of uint8: the three leading components of the patches' features, and of the
        other pictures given "nearest" (its number, from 1) and "cosine", None where there are none}.
        """
        vectors: list[np.ndarray] = []
        maps: list[np.ndarray] = []
        components: Components | None = None
        with evaluating(model) as device:
            for part in chunks(list(inputs), batch_size):
                pixels = processor(part)["pixel_values"].to(device)
                found: Any = model(pixel_values=pixels[:, None])
                patches = found["patches"][:, 0].float().cpu()
                components = components or Components(patches)
                maps += components.pictures(patches, processor.groups)
                vectors += list(found["embeddings"].float().cpu().numpy())
        near = _nearest(np.stack(vectors)) if len(vectors) > 1 else [(None, None)] * len(vectors)
        return [
            {
                "embedding": [round(float(v), 6) for v in vector],
                "patches": picture,
                "nearest": number,
                "cosine": cosine,
            }
            for vector, picture, (number, cosine) in zip(vectors, maps, near, strict=True)
        ]

    def shown(self, one: Any, prediction: Any) -> Shown:
        from PIL import Image

        small = Image.fromarray(prediction["patches"])
        side = 224 // small.width * small.width or small.width
        made = {"patches": small.resize((side, side), Image.Resampling.NEAREST)}
        told = f"{len(prediction['embedding'])} features"
        if prediction["nearest"] is not None:
            told += f"; nearest: picture {prediction['nearest']} (cosine {prediction['cosine']:.3f})"
        return Shown(told, picture=to_rgb(one) if self.options.bands is None else None, made=made)


class Views:
    """Rows as views, drawn anew in every epoch: pixel_values [V, C, H, W], masks [V, N] and perhaps local_pixels [L, C, h, w]."""

    def __init__(
        self, split: Split, processor: Any, large: Crops, small: Crops | None, hidden: Hidden, seed: int
    ):
        self.rows = arrays(split.rows)
        self.processor, self.large, self.small, self.hidden, self.seed = processor, large, small, hidden, seed
        self.split, self.epoch = split, 0

    def set_epoch(self, epoch: int) -> None:
        """Draw anew."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        own = self.processor
        picture = own.read(plain(self.rows[int(index)]["image"]))
        rng = np.random.default_rng((self.seed, self.epoch, int(index)))
        made = {"pixel_values": own.normalised(self.large.draw(picture, rng))}
        if self.small is not None:
            made["local_pixels"] = own.normalised(self.small.draw(picture, rng))
        side = own.side // own.patch
        masks = [self.hidden.draw(side, own.groups, rng) for _ in range(self.large.count)]
        return {**made, "masks": torch.from_numpy(np.stack(masks))}


def stacked(rows: list[dict[str, Tensor]]) -> dict[str, Any]:
    """A batch of `Views`."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


class Components:
    """The three leading components of patches' features [n, N, D], as colours."""

    def __init__(self, patches: Tensor):
        rows = patches.flatten(0, 1)
        self.mean = rows.mean(0)
        _, _, self.axes = torch.linalg.svd(rows - self.mean, full_matrices=False)
        found = self._onto(patches).flatten(0, 1)
        self.low, self.high = found.min(0).values, found.max(0).values

    def _onto(self, patches: Tensor) -> Tensor:
        made = (patches - self.mean) @ self.axes[:3].T
        return torch.nn.functional.pad(made, (0, 3 - made.shape[-1]))

    def pictures(self, patches: Tensor, groups: int) -> list[np.ndarray]:
        """[h, w, 3] of uint8 of each picture; of several groups of bands the first."""
        patches = patches[:, : patches.shape[1] // groups]
        side = round(patches.shape[1] ** 0.5)
        shares = (self._onto(patches) - self.low) / (self.high - self.low).clamp_min(1e-12)
        return [one.numpy() for one in (shares.clamp(0, 1) * 255).round().byte().unflatten(1, (side, side))]


def _nearest(vectors: np.ndarray) -> list[tuple[int, float]]:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    near = unit @ unit.T
    np.fill_diagonal(near, -np.inf)
    return [(int(row.argmax()) + 1, round(float(row.max()), 6)) for row in near]


def names_of(rows: Any) -> list[str] | None:
    """The labels of rows, as text; None where they have none."""
    if "label" not in rows.column_names:
        return None
    feature, values = rows.features["label"], list(rows["label"])
    return [str(feature.int2str(v)) if hasattr(feature, "int2str") else str(v) for v in values]


def arrays(rows: Any) -> Any:
    """Rows whose arrays come as arrays; lists of files stay such."""
    return rows.with_format("numpy") if hasattr(rows.features["image"], "shape") else rows


def plain(value: Any) -> Any:
    """numpy's own text as text."""
    return str(value) if isinstance(value, np.str_) else value
