"""Stories continued: from a picture and the captions of what comes next, the pictures of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import DataError, ModelError, RecipeError
from adaptome.data.pictures import fitted
from adaptome.data.splits import Split, Splits
from adaptome.models import load_composite
from adaptome.models.story_decoder import StoryDecoder
from adaptome.report.shown import Shown
from adaptome.tasks.base import ModelSpec, Prepared, Task, TaskOptions, register_task
from adaptome.tasks.image_classification import to_rgb
from adaptome.tasks.image_generation import grid, to_pictures, to_pixels
from adaptome.tasks.inference import chunks, evaluating
from adaptome.tasks.models import resolve
from adaptome.tasks.picture_scores import Asked, get_score
from adaptome.tasks.showing import Given, path_of

MODEL = "story-decoder"
#: where a base's folder has the sentence encoder's tokenizer, beside the decoder's
SENTENCES = "sentence_tokenizer"


class StoryContinuationOptions(TaskOptions):
    retrofit: bool = Field(default=True, description="false: the text-to-image model alone, each frame by its caption")  # fmt: skip
    sentence_length: int = Field(
        default=32, ge=1, description="tokens of a caption, as the sentence encoder takes it"
    )
    new_words: list[str] = Field(
        default_factory=list, description="added to the text's vocabulary: names of characters"
    )
    top_k: int = Field(
        default=256, ge=1, description="codes among which each is drawn; 1 takes the likeliest"
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="share of the probability among which each is drawn"
    )
    temperature: float = Field(default=1.0, gt=0, description="of the draw")
    seed: int = Field(
        default=0, ge=0, description="of the first story that is drawn; the next have the next numbers"
    )
    scores: list[str | dict[str, Any]] = Field(
        default_factory=list, description="of the frames drawn for a split: fid and characters by a model that you name, pixel-stories"
    )  # fmt: skip


class Words:
    """The decoder's tokenizer and the sentence encoder's."""

    def __init__(self, tokenizer: Any, sentences: Any, length: int):
        self.tokenizer, self.sentences, self.length = tokenizer, sentences, length
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token

    def __call__(self, captions: Sequence[str], text_length: int) -> dict[str, Tensor]:
        """input_ids [L, T], and sentence_ids and sentence_mask [L, S] where there is a sentence encoder."""
        how = dict(padding="max_length", truncation=True, return_tensors="pt")
        made = {"input_ids": self.tokenizer(list(captions), max_length=text_length, **how)["input_ids"]}
        if self.sentences is not None:
            seen = self.sentences(list(captions), max_length=self.length, **how)
            made |= {"sentence_ids": seen["input_ids"], "sentence_mask": seen["attention_mask"]}
        return made

    def save_pretrained(self, folder: str | Path) -> None:
        self.tokenizer.save_pretrained(folder)
        if self.sentences is not None:
            self.sentences.save_pretrained(Path(folder) / SENTENCES)


class Stories:
    """Stories as items for the collator: frames, the source first, and captions."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[int(index)]
        return {"frames": frames_of(row["frames"]), "captions": list(row["captions"])}


def frames_of(told: Any) -> list[Any]:
    """A story's frames: of paths, or of one array of frames below each other."""
    if isinstance(told, list | tuple) and told and isinstance(told[0], str):
        return [_frame(Path(path)) for path in told]
    strip = np.asarray(told, dtype=np.uint8)
    if strip.ndim != 3 or strip.shape[0] % strip.shape[1]:
        raise DataError(
            f"frames: an array of {list(strip.shape)}; expected square frames below each other [n w, w, 3]."
        )
    return list(strip.reshape(-1, strip.shape[1], strip.shape[1], 3))


def _frame(path: Path) -> Any:
    """One picture of a clip: the middle of an array [n, h, w, 3], or of a strip."""
    if path.suffix == ".npy":
        try:
            clip = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is no array that can be read: {error}") from error
        return clip[len(clip) // 2]
    picture = to_rgb(path)
    wide, high = picture.size
    if high > wide and high % wide == 0:
        first = high // wide // 2 * wide
        return picture.crop((0, first, wide, first + wide))
    return picture


@register_task("story-continuation")
class StoryContinuation(Task):
    """Columns: frames (paths, or one array of frames below each other) and captions, one for each frame after the first.

    `predict` takes (picture, captions) and gives the frames; on a command line a picture's file, then the captions of what comes next.
    """

    Options: ClassVar[type[TaskOptions]] = StoryContinuationOptions
    options: Any
    prefer: ClassVar[Mapping[str, str]] = {"json": "stories", "folder": "stories"}
    greater_is_better = False
    later_options = ("top_k", "top_p", "temperature", "seed", "scores")

    def __init__(self, options: TaskOptions, labels: Sequence[str] | None = None):
        super().__init__(options, labels)
        self._processor: Any = None
        #: side of the pictures in pixels and tokens of a caption: the model's, once it is loaded
        self._known = (0, 0)

    @property
    def judges(self) -> bool:  # type: ignore[override]
        return bool(self.options.scores)

    @property
    def primary_metric(self) -> str:
        return "loss"

    @property
    def headline(self) -> str:
        return get_score(self.options.scores[0]).headline if self.options.scores else "loss"

    # -- data ----------------------------------------------------------------------------------------------------------

    def load_processor(self, model: ModelSpec) -> Words:
        from transformers import AutoTokenizer

        settings = dict(getattr(model, "settings", {}) or {})
        encoder = settings.get("sentences")
        encoder = encoder.get("name") if isinstance(encoder, Mapping) else encoder
        folder = None if getattr(model, "composite", None) else model.name
        name = model.tokenizer or settings.get("tokenizer") or folder or encoder
        if name is None:
            raise RecipeError("model.tokenizer: name one for the captions, as a folder or hub id.")
        inner = (
            str(Path(str(folder)) / SENTENCES)
            if folder and (Path(str(folder)) / SENTENCES).is_dir()
            else encoder
        )
        try:
            tokenizer = AutoTokenizer.from_pretrained(resolve(str(name)))
            sentences = None if inner is None else AutoTokenizer.from_pretrained(resolve(str(inner)))
        except (OSError, ValueError) as error:
            raise ModelError(f"the tokenizer {name} cannot be had: {error}") from error
        tokenizer.add_tokens([word for word in self.options.new_words if word not in tokenizer.get_vocab()])
        return Words(tokenizer, sentences, self.options.sentence_length)

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        splits.require("frames", "captions")
        for split in splits.values():
            self._check(split)
        self._processor = processor
        made = {name: Stories(split.rows) for name, split in splits.items()}
        return Prepared(made, self._collate, remove_unused_columns=False, label_names=("input_ids",))

    def _check(self, split: Split) -> None:
        first = None
        for row, captions in enumerate(split.rows["captions"]):
            if not captions or not all(str(caption).strip() for caption in captions):
                raise DataError(f"{split.where(row)}: a caption is missing.")
            first = len(captions) if first is None else first
            if len(captions) != first:
                raise DataError(f"{split.where(row)}: {len(captions)} captions, where the stories before have {first}. A batch is of stories of one length.")  # fmt: skip

    def _collate(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        side, words = self._known
        frames = [np.asarray(fitted(to_rgb(f), (side, side), "centre", np.random.default_rng(0))[0]) for item in items for f in item["frames"]]  # fmt: skip
        pixels = to_pixels(frames).unflatten(0, (len(items), -1))
        read = [self._processor(item["captions"], words) for item in items]
        return {
            "pixel_values": pixels,
            **{name: torch.stack([one[name] for one in read]) for name in read[0]},
        }

    # -- model ---------------------------------------------------------------------------------------------------------

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        settings: dict[str, Any] = dict(getattr(model, "settings", {}) or {})
        if isinstance(settings.get("sentences"), str):
            settings["sentences"] = {"name": resolve(settings["sentences"])}
        name = None if model.name is None else resolve(str(model.name))
        spec: Any = SimpleNamespace(composite=getattr(model, "composite", None), settings=settings, name=name)
        found = load_composite(spec, MODEL)
        assert isinstance(found, StoryDecoder)
        if found.picture_codes is None:
            raise ModelError("model: say how pictures become codes: cells, or pictures (a VQGAN).")
        if processor is not None and len(processor.tokenizer) > found.settings.words:
            raise ModelError(
                f"the tokenizer has {len(processor.tokenizer)} words and the model {found.settings.words} embeddings. Set model.words to at least as many."
            )
        found.retrofit = self.options.retrofit
        self._known = (found.picture_codes.side, found.settings.text_length)
        return found

    def head_patterns(self, model: nn.Module) -> list[str]:
        """What retro-fits the model, all of which learns."""
        if not self.options.retrofit:
            return []
        return [name for name in ("sources", "story", "prompt") if model._modules.get(name) is not None]

    def reduce(self, logits: Any, labels: Any) -> Tensor:
        """Nothing but the number of stories: the loss is the figure."""
        first: Tensor = logits[0] if isinstance(logits, tuple) else logits
        return torch.zeros(len(labels), device=first.device)

    def metrics(self, result: Any) -> dict[str, float]:
        return {}

    # -- use -----------------------------------------------------------------------------------------------------------

    def inputs(self, rows: Any) -> list[Any] | None:
        return [(frames_of(row["frames"])[0], list(row["captions"])) for row in rows]

    def truths(self, rows: Any) -> list[Any] | None:
        """None: the captions, which are told anyway, are all that there is in words."""
        return [None] * len(rows)

    def given(self, words: Sequence[str]) -> list[Given]:
        """A picture's file and the captions after it; and so on for further files."""
        found: list[tuple[str, list[str]]] = []
        for word in words:
            path = path_of(word)
            if path is not None and path.is_file():
                found.append((word, []))
            elif not found:
                raise DataError(f"{word!r} is no file. Give the picture that the story goes on from, then the captions of what comes next.")  # fmt: skip
            else:
                found[-1][1].append(word)
        for file, captions in found:
            if not captions:
                raise DataError(f"{file}: no captions after it of what comes next.")
        return [Given(f"{file}: {' / '.join(captions)}", (file, captions)) for file, captions in found]

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """Of each (picture, captions): {"frames": the PIL pictures, "captions", "seed"}."""
        assert isinstance(model, StoryDecoder)
        self._known, o = (model.picture_codes.side, model.settings.text_length), self.options
        side, words = self._known
        answers: list[Any] = []
        with evaluating(model) as device:
            for part in chunks(list(inputs), batch_size):
                for picture, captions in part:
                    seed = o.seed + len(answers)
                    read = {
                        name: value[None].to(device) for name, value in processor(captions, words).items()
                    }
                    source, _ = fitted(to_rgb(picture), (side, side), "centre", np.random.default_rng(0))
                    codes = model.picture_codes.encode(to_pixels([source], device))
                    found = model.draw(
                        read["input_ids"], codes, read.get("sentence_ids"), read.get("sentence_mask"), top_k=o.top_k, top_p=o.top_p,
                        temperature=o.temperature, generators=[torch.Generator().manual_seed(seed)],
                    )  # fmt: skip
                    frames = to_pictures(model.picture_codes.decode(found[0]))
                    answers.append(
                        {"frames": frames, "source": source, "captions": list(captions), "seed": seed}
                    )
        return answers

    def judge(self, split: Any, predictions: list[Any]) -> dict[str, float]:
        rows, pictures = split.rows, [frame for one in predictions for frame in one["frames"]]
        texts = [text for one in predictions for text in one["captions"]]
        columns = {
            name: [part for parts in rows[name] for part in parts]
            for name in ("parts", "characters")
            if name in rows.column_names
        }
        real = [to_rgb(frame) for told in rows["frames"] for frame in frames_of(told)[1:]]
        found: dict[str, float] = {}
        for named in self.options.scores:
            found |= get_score(named).score(pictures, Asked(texts, columns, real))
        return found

    def shown(self, one: Any, prediction: Any) -> Shown:
        pictures = [prediction["source"], *prediction["frames"]]
        return Shown("", " / ".join(prediction["captions"]), made={"story": grid(pictures, len(pictures))})
