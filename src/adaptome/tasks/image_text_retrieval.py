"""Image-text retrieval: pictures and texts as vectors that are near when they belong together, by a vision-language model or a pair of encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import DataError, RecipeError
from adaptome.data.readers.images import ENDINGS
from adaptome.data.splits import Splits
from adaptome.report.shown import Shown
from adaptome.tasks.base import ModelSpec, Prepared, Task, TaskOptions, register_task
from adaptome.tasks.captioned_rows import (
    Asked,
    CaptionedRows,
    asked_of,
    is_composed,
    require_alike,
    shaped,
    sorted_captions,
)
from adaptome.tasks.composites import load_around
from adaptome.tasks.inference import chunks, evaluating, to_device
from adaptome.tasks.picture_inputs import Text, is_picture, picture_of
from adaptome.tasks.picture_processors import PARTS, PictureProcessor, load_picture_processor, source_of
from adaptome.tasks.retrieval_scores import composed, recalls, unit
from adaptome.tasks.showing import Given, path_of
from adaptome.tasks.summaries import Collator, DualRows, LvlmRows


class ImageTextRetrievalOptions(TaskOptions):
    image_prompt: str = Field(
        default="Summarize the image above in one word:",
        description="after a picture; the state of its last token is the picture's vector",
    )
    text_prompt: str = Field(
        default="Summarize the sentence above in one word:", description="after a text, likewise"
    )
    chat: bool = Field(
        default=True, description="lay the model's chat template around both, where it has one"
    )
    short: int = Field(default=30, ge=1, description="captions of fewer tokens are short: compared with pictures")  # fmt: skip
    long: int = Field(default=500, ge=1, description="tokens of a long caption, which is told after the picture, that are read")  # fmt: skip
    draw_seed: int = Field(default=0, ge=0, description="of the captions that are drawn")
    answer_tokens: int = Field(default=32, ge=1, description="tokens of an answer to a question, at most")


@register_task("image-text-retrieval")
class ImageTextRetrieval(Task):
    """Columns: image, text (one or a list) and perhaps long; negative for wrong texts; question and answer; or a pair as Winoground has them.

    `predict` takes a picture and texts, and gives their similarities; `embed` takes pictures and texts, and gives their vectors.
    """

    Options = ImageTextRetrievalOptions
    options: ImageTextRetrievalOptions
    prefer: ClassVar[Mapping[str, str]] = {"folder": "captioned"}
    files = "image"
    takes = ENDINGS
    judges = True
    measures_before = True
    later_options = ("answer_tokens",)

    def __init__(self, options: TaskOptions, labels: Sequence[str] | None = None):
        super().__init__(options, labels)
        self._rows: Any = None

    @property
    def primary_metric(self) -> str:
        return "recall_1"

    # -- data ----------------------------------------------------------------------------------------------------------

    def load_processor(self, model: ModelSpec) -> PictureProcessor:
        source = source_of(model)
        processor = load_picture_processor(source)
        self._rows = self._reader(source.config, processor)
        return processor

    def _reader(self, config: Any, processor: PictureProcessor) -> Any:
        o = self.options
        if processor.inner is None and processor.marks is None:
            text = getattr(config, "text_config", config)
            return DualRows(processor, text.max_position_embeddings, config.model_type.startswith("siglip"))
        return LvlmRows(processor, o.image_prompt, o.text_prompt, o.chat, o.long)

    def shaped(self, splits: Any) -> Any:
        return shaped(splits)

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        asked = {name for name, split in splits.items() if is_composed(split)}
        if "train" in asked:
            raise DataError(
                "pairs of pictures and texts are a test: give data.train rows with image and text."
            )
        made: dict[str, Any] = {}
        notes: list[str] = []
        for name, split in splits.items():
            if name in asked:
                made[name] = split.rows
                continue
            Splits({name: split}).require("image")
            short, most = self.options.short if name == "train" else None, self._rows.longest
            captions, told = sorted_captions(split, self._rows.length, short, most)
            notes += told
            if name != "train":
                require_alike(name, split, captions)
            made[name] = CaptionedRows(
                split, self._rows, captions, picture_of, name == "train", self.options.draw_seed
            )
        return Prepared(
            made, Collator(self._rows), remove_unused_columns=False, notes=notes, aside=("captions",),
            label_names=("captions",), only_asked=frozenset(asked),
        )  # fmt: skip

    def inputs(self, rows: Any) -> list[Any]:
        plain = hasattr(rows.features.get("image"), "shape")
        pictures = rows.with_format("numpy") if plain else rows
        return [asked_of({**rows[i], **({"image": pictures[i]["image"]} if plain else {})}) for i in range(len(rows))]  # fmt: skip

    def truths(self, rows: Any) -> list[Any] | None:
        column = next((name for name in ("answer", "text") if name in rows.column_names), None)
        return [None] * len(rows) if column is None else list(rows[column])

    # -- model ---------------------------------------------------------------------------------------------------------

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        source = source_of(model)
        own: dict[str, Any] = {}
        if source.kind == "lvlm-embedder":
            rows = self._rows or self._reader(source.config, processor)
            own = {"image_prompt": list(rows.image_prompt), "text_prompt": list(rows.text_prompt)}
        made = load_around(model, source.kind, PARTS[source.kind], **own)
        if own and {name: getattr(made.settings, name) for name in own} != own:
            made.change_prompts(**own)  # type: ignore[operator]
        table = made.parts()[PARTS[source.kind]].get_input_embeddings() if own else None  # type: ignore[operator]
        if table is not None and len(processor.tokenizer) > table.num_embeddings:
            raise RecipeError(
                f"the tokenizer has {len(processor.tokenizer)} tokens, but the model has embeddings for {table.num_embeddings}. "
                "Name the tokenizer that belongs to the model: model.tokenizer."
            )
        return made

    def save_base(self, model: nn.Module, processor: Any, folder: Path) -> None:
        model.save_pretrained(folder)  # type: ignore[operator]
        processor.save_pretrained(folder)

    # -- scores --------------------------------------------------------------------------------------------------------

    def reduce(self, logits: Any, labels: Any) -> Tensor:
        """Of each example the picture's vector and those of its texts [batch, 1 + C, d]."""
        images, texts = logits[0], logits[1]
        return torch.cat([images[:, None], texts], 1).float() if texts.dim() == 3 else images[:, None].float()

    def metrics(self, result: Any) -> dict[str, float]:
        vectors, counts = np.asarray(result.predictions), np.asarray(result.label_ids).reshape(-1)
        if not counts.any():
            return {}
        texts = np.concatenate([row[1 : 1 + count] for row, count in zip(vectors, counts, strict=True)])
        return recalls(vectors[:, 0], texts, np.repeat(np.arange(len(counts)), counts))

    def judge(self, split: Any, predictions: list[Any]) -> dict[str, float]:
        told = composed(one for one in predictions if "similarity" in one)
        if "answer" not in split.rows.column_names:
            return told
        pairs = zip(predictions, split.rows["answer"], strict=True)
        right = [
            _same(one["answer"], answer) for one, answer in pairs if "answer" in one and answer is not None
        ]
        return {**told, "answered": float(np.mean(right))} if right else told

    # -- use -----------------------------------------------------------------------------------------------------------

    def embed(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> np.ndarray:
        """Vectors of length 1 [n, d] of pictures (paths with a picture's ending, PIL images, arrays) and texts.

        Raises:
            DataError: a picture that cannot be read.
        """
        picture = [is_picture(one) for one in inputs]
        made: dict[int, np.ndarray] = {}
        with evaluating(model) as device:
            for kind in (True, False):
                chosen = [i for i, own in enumerate(picture) if own == kind]
                for group in chunks(chosen, batch_size):
                    given = [inputs[i] for i in group]
                    vectors = self._vectors(model, device, given, kind)
                    made.update(zip(group, vectors, strict=True))
        return unit(np.stack([made[i] for i in range(len(inputs))]))

    def _vectors(self, model: nn.Module, device: torch.device, given: Sequence[Any], pictures: bool) -> np.ndarray:  # fmt: skip
        rows = self._rows
        if pictures:
            batch = rows.pictures([rows.going_on(rows.picture(picture_of(one)), None) for one in given])
            batch.pop("targets", None)
            found = model(**to_device(batch, device))["image_embeds"]
        else:
            batch = rows.captions([[rows.caption(str(one))] for one in given])
            found = model(**to_device(batch, device))["text_embeds"]
        vectors: np.ndarray = found.float().cpu().numpy()
        return vectors

    def answers(self, model: nn.Module, images: Sequence[Any], questions: Sequence[str], batch_size: int = 32) -> list[str]:  # fmt: skip
        """What a vision-language model says to a question about each picture, greedily and without the soft prompts.

        Raises:
            DataError: the model is a pair of encoders, which writes nothing.
        """
        if not hasattr(model, "answer"):
            raise DataError("this run's model is a pair of encoders, which answers no questions.")
        rows, made = self._rows, list[str]()
        with evaluating(model) as device:
            for group in chunks(list(zip(images, questions, strict=True)), batch_size):
                asked = [rows.asked(rows.picture(picture_of(image)), question) for image, question in group]
                batch = rows.pictures(asked, left=True)
                ids, mask = batch.pop("input_ids").to(device), batch.pop("attention_mask").to(device)
                pixels = {
                    k: v.to(device) for k, v in batch.items() if k not in ("slots", "targets", "summary")
                }
                found = model.answer(ids, mask, self.options.answer_tokens, **pixels)  # type: ignore[operator]
                made += [
                    text.strip() for text in rows.tokenizer.batch_decode(found, skip_special_tokens=True)
                ]
        return made

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """For each `Asked` {"similarity" [images, texts], "texts", "right"} where it has texts, {"answer"} where it has a question."""
        made: list[dict[str, Any]] = [{} for _ in inputs]
        compared = [i for i, one in enumerate(inputs) if one.texts]
        if compared:
            flat = [each for i in compared for each in (*inputs[i].images, *map(Text, inputs[i].texts))]
            vectors, start = self.embed(model, processor, flat, batch_size), 0
            for i in compared:
                n, m = len(inputs[i].images), len(inputs[i].texts)
                own, start = vectors[start : start + n + m], start + n + m
                s = (own[:n] @ own[n:].T).round(6).tolist()
                made[i] |= {"similarity": s, "texts": list(inputs[i].texts), "right": inputs[i].right}
        wanted = [i for i, one in enumerate(inputs) if one.question] if hasattr(model, "answer") else []
        if wanted:
            found = self.answers(model, [inputs[i].images[0] for i in wanted], [inputs[i].question for i in wanted], batch_size)  # fmt: skip
            for i, answer in zip(wanted, found, strict=True):
                made[i]["answer"] = answer
        return made

    def given(self, words: Sequence[str]) -> list[Given]:
        """Pictures, or folders of them, and texts: every picture is compared with all the texts; a text that ends in `?` is asked instead, where it is the only one."""
        pictures: list[str] = []
        texts: list[str] = []
        for word in words:
            path = path_of(word)
            if path is not None and path.is_dir():
                pictures += sorted(str(f) for f in path.rglob("*") if f.suffix.lower() in ENDINGS)
            elif is_picture(word):
                if path is None or not path.is_file():
                    raise DataError(f"no such picture: {word}.")
                pictures.append(word)
            else:
                texts.append(word)
        if not pictures or not texts:
            raise DataError(
                f'this run compares pictures with texts, and was given {len(pictures)} pictures and {len(texts)} texts: picture.jpg "a dog in the snow".\n'
                "  For vectors of either alone: adaptome embed."
            )
        if len(texts) == 1 and texts[0].rstrip().endswith("?"):
            return [Given(one, Asked([one], [], texts[0], 0)) for one in pictures]
        return [Given(one, Asked([one], texts, None, 0)) for one in pictures]

    def shown(self, one: Any, prediction: Any) -> Shown:
        picture = picture_of(one.images[0])
        lines = [prediction["answer"]] if "answer" in prediction else []
        for text, value in zip(
            prediction.get("texts", []), prediction.get("similarity", [[]])[0], strict=True
        ):
            lines.append(f"{value:.3f} {text}")
        return Shown("; ".join(lines), one.question or "", picture=picture)


def _same(said: str, right: str) -> bool:
    return " ".join(said.lower().split()) == " ".join(right.lower().split())
