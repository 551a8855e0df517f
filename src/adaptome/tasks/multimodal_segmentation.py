"""Segmentation by pictures of several modalities (RGB with depth, thermal, ...), some of which may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from adaptome.core.steer import steer
from adaptome.data.masks import IGNORED
from adaptome.data.rasters import header_of, mask_bytes, require_alike
from adaptome.data.readers.images import ENDINGS
from adaptome.data.splits import Splits
from adaptome.report.shown import Shown, overlaid
from adaptome.tasks.base import ModelSpec, Prepared, register_task
from adaptome.tasks.inference import evaluating
from adaptome.tasks.modality_pictures import (
    MultimodalSegmentationOptions,
    PictureCollator,
    Pictures,
    is_there,
    picture,
    plain,
    read_classes,
)
from adaptome.tasks.modality_sets import (
    AVAILABLE,
    by_set,
    facts_of,
    key,
    numbered,
)
from adaptome.tasks.modality_task import ModalityTask
from adaptome.tasks.pixel_scores import confusion, mean_iou
from adaptome.tasks.pixels import PixelProcessor, load_pixel_processor
from adaptome.tasks.showing import covered

MODEL = "modality-segmenter"


@register_task("multimodal-segmentation")
class MultimodalSegmentation(ModalityTask):
    """Columns: mask and one for each modality: files, or arrays [h, w] and [h, w(, bands)]; None where a row lacks it.

    `predict` takes mappings modality -> path, PIL image or array, of all modalities or some; on a command line `rgb=a.png depth=b.png`.
    """

    Options = MultimodalSegmentationOptions
    options: MultimodalSegmentationOptions
    prefer: ClassVar[Mapping[str, str]] = {"text": "modalities"}
    takes = ENDINGS

    @property
    def primary_metric(self) -> str:
        return "miou"

    # -- data ----------------------------------------------------------------------------------------------------------

    def load_processor(self, model: ModelSpec) -> PixelProcessor:
        return load_pixel_processor(first_encoder(model))

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        splits.require("mask")
        self.labels = self.options.names
        return self.with_sets(splits, processor, lambda name, split: Pictures(split, self.options))

    def collator(self, processor: Any) -> PictureCollator:
        return PictureCollator(processor, self.options)

    def inputs(self, rows: Any) -> list[Any]:
        names = self.options.modalities
        return [{n: plain(row[n]) for n in names if is_there(row[n])} for row in rows.with_format("numpy")]

    def truths(self, rows: Any) -> list[Any] | None:
        if "mask" not in rows.column_names:
            return None
        made = []
        for row in rows.with_format("numpy"):
            mask, _ = read_classes(plain(row["mask"]), self.options)
            made.append(
                covered(np.where(mask == IGNORED, 0, mask), self.options.names)
            )  # class 0 is not told of
        return made

    # -- model ---------------------------------------------------------------------------------------------------------

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        """A `modality-segmenter` with an encoder for each of the task's modalities."""
        return self.matching(model, MODEL, "encoders", len(self.options.names))

    # -- scores --------------------------------------------------------------------------------------------------------

    def counted(self, logits: Any, labels: Any) -> Tensor:
        maps = logits[0] if isinstance(logits, tuple) else logits
        counts = confusion(maps.argmax(1), labels[0], len(self.options.names)).flatten(1)
        return torch.cat([numbered(labels[1])[:, None], counts], 1)

    def metrics(self, result: Any) -> dict[str, float]:
        found, count = np.asarray(result.predictions), len(self.options.names)

        def figures(places: np.ndarray) -> dict[str, float]:
            counts = found[places, 1:].sum(0).reshape(count, count)
            return mean_iou(counts) | {"accuracy": float(np.trace(counts) / max(counts.sum(), 1))}

        return by_set(found[:, 0], self.options, figures)

    # -- use -----------------------------------------------------------------------------------------------------------

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """What is where, by the modalities that are given.

        Returns a list of {"available" (the set's name), "mask" [h, w] of class numbers, "place" (see `data.rasters`, or None)}.

        Raises:
            DataError: a picture that cannot be read, two that do not lie pixel by pixel, or a required modality that is missing.
        """
        made, own = list[Any](), self.options
        with evaluating(model) as device:
            for number, one in enumerate(inputs, 1):
                members = own.check_given(one, f"input {number}")
                read = {name: picture(one[name], name, own) for name in own.modalities if name in members}
                sizes = [header_of(raster) for raster in read.values()]
                for other in sizes[1:]:
                    require_alike(sizes[0], other)
                rows = [{**{n: r.pixels for n, r in read.items()}, "present": members, AVAILABLE: members}]
                batch = PictureCollator(processor, own)(rows)
                pixels = {name: values.to(device) for name, values in batch["pixels"].items()}
                with steer(**facts_of(batch[AVAILABLE], own.modalities)):
                    mask = model(pixels=pixels)["logits"].argmax(1)[0].byte().cpu().numpy()
                place = next(iter(read.values())).place
                made.append({AVAILABLE: key(members), "mask": mask, "place": place})
        return made

    def shown(self, one: Any, prediction: Any) -> Shown:
        from PIL import Image

        own, mask = self.options, prediction["mask"]
        pictures = {n: Image.fromarray(picture(one[n], n, own).pixels) for n in own.modalities if n in one}
        first = next(iter(pictures.values()))
        made = {"segments": overlaid(first, mask), "mask": Image.fromarray(mask)}
        files = {} if prediction["place"] is None else {"mask.tif": mask_bytes(mask, prediction["place"])}
        return Shown(covered(mask, own.names), picture=first, made=made, files=files)


def first_encoder(model: ModelSpec) -> Any:
    """Where the first modality's encoder comes from: its processor is that of all."""
    encoders: Mapping[str, Any] = getattr(model, "settings", {}).get("encoders", {})
    if model.name is not None or not encoders:
        return model
    given = next(iter(encoders.values()))
    part = {"name": given} if isinstance(given, str) else dict(given)
    return SimpleNamespace(
        tokenizer=model.tokenizer, name=part.get("name"), revision=part.get("revision"), from_config=None
    )
