"""Pictures and the texts that go with them: a dual encoder trained to bring each picture near its own text, away from the others'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from adaptome.core.errors import DataError
from adaptome.data.readers.images import ENDINGS
from adaptome.data.splits import Splits
from adaptome.report.shown import Ranked, Shown
from adaptome.tasks.base import ModelSpec, Prepared, Task, TaskOptions, register_task
from adaptome.tasks.class_prompts import pictures_and_texts
from adaptome.tasks.composites import load_around
from adaptome.tasks.dual_processor import load_dual_processor
from adaptome.tasks.image_classification import to_rgb
from adaptome.tasks.image_text_classification import MODEL
from adaptome.tasks.inference import chunks, evaluating
from adaptome.tasks.showing import Given


class ImageTextPairsOptions(TaskOptions):
    pass


@register_task("image-text-pairs")
class ImageTextPairs(Task):
    """Columns: image and text.

    The loss is CLIP's, symmetric over the batch (arXiv:2103.00020, figure 3); objectives such as info-nce read `image_embeds` and
    `text_embeds`. `predict` takes {"image", "texts"} and ranks the texts.
    """

    Options = ImageTextPairsOptions
    prefer: ClassVar[Mapping[str, str]] = {"folder": "captioned"}
    takes = ENDINGS

    @property
    def primary_metric(self) -> str:
        return "recall"

    def load_processor(self, model: ModelSpec) -> Any:
        return load_dual_processor(model)

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        splits.require("image", "text")
        made = {}
        for name, split in splits.items():
            rows = split.rows.select_columns(["image", "text"])
            made[name] = rows.with_format("numpy") if hasattr(rows.features["image"], "shape") else rows
            texts = list(dict.fromkeys(split.rows["text"]))
            processor(texts)  # one that is too long is told now
            order = {text: i for i, text in enumerate(texts)}
            made[name] = made[name].add_column("which", [order[text] for text in split.rows["text"]])
        return Prepared(made, PairCollator(processor), remove_unused_columns=False, aside=("which",), label_names=("which",))  # fmt: skip

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        made: nn.Module = load_around(model, MODEL)
        return made

    def metrics(self, result: Any) -> dict[str, float]:
        """The share of pictures whose nearest text, of all of the split's, is their own."""
        images, texts = (np.asarray(one) for one in result.predictions[:2])
        which = np.asarray(result.label_ids[0] if isinstance(result.label_ids, tuple) else result.label_ids)
        _, first = np.unique(which, return_index=True)
        nearest = which[first][(images @ texts[first].T).argmax(1)]
        return {"recall": float((nearest == which).mean())}

    def reduce(self, logits: Any, labels: Any) -> Any:
        """The embeddings of both."""
        return logits

    def inputs(self, rows: Any) -> list[Any] | None:
        texts = list(dict.fromkeys(rows["text"]))[:8]
        return [{"image": rows[i]["image"], "texts": texts} for i in range(len(rows))]

    def truths(self, rows: Any) -> list[Any] | None:
        return list(rows["text"])

    def given(self, words: Sequence[str]) -> list[Given]:
        """Pictures, and the texts that are ranked for each.

        Raises:
            DataError: there is no picture, or no text.
        """
        pictures, texts = pictures_and_texts(words, self.takes)
        if not texts:
            raise DataError("give texts beside the pictures, for them to be ranked.")
        return [Given(one.name, {"image": one.value, "texts": texts}) for one in pictures]

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """The nearest text of each picture: {"label", "score", "scores"}, scores being cosines."""
        own: Any = model
        made = list[Any]()
        texts: Any = None
        t: Any = None
        with evaluating(model) as device:
            for part in chunks(list(inputs), batch_size):
                pixels = processor.images([to_rgb(one["image"]) for one in part]).to(device)
                for f, one in zip(own.image_features(pixels), part, strict=True):
                    if texts != one["texts"]:  # most often all pictures have the same
                        texts = one["texts"]
                        told = {k: v.to(device) for k, v in processor(texts).items()}
                        t = own.text_features(told["ids"], told.get("mask"))
                    cosines = (t @ f).tolist()
                    scores = {t: round(c, 6) for t, c in zip(one["texts"], cosines, strict=True)}
                    best = max(scores, key=lambda text: scores[text])
                    made.append({"label": best, "score": scores[best], "scores": scores})
        return made

    def shown(self, one: Any, prediction: Any) -> Shown:
        best = sorted(prediction["scores"].items(), key=lambda pair: -pair[1])[:5]
        return Shown(prediction["label"], "", picture=to_rgb(one["image"]), ranked=tuple(Ranked(*each) for each in best), bounded=False)  # fmt: skip


class PairCollator:
    """Rows of image and text -> pixels, ids and mask."""

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        told = self.processor([str(row["text"]) for row in rows])
        batch = {
            "pixel_values": self.processor.images([to_rgb(row["image"]) for row in rows]),
            "input_ids": told["ids"],
        }
        batch["which"] = torch.tensor([int(row["which"]) for row in rows])
        return batch | ({"attention_mask": told["mask"]} if "mask" in told else {})
