"""Audio classification: one label per clip, from files, arrays or the hub."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from adaptome.core.errors import DataError, RecipeError
from adaptome.data.readers.sounds import ENDINGS
from adaptome.data.sound import Sounds, decode, header, resampled
from adaptome.data.splits import Split
from adaptome.tasks.base import ModelSpec, register_task
from adaptome.tasks.models import (
    head_modules,
    load_feature_extractor,
    load_labelled_config,
    load_pretrained,
)
from adaptome.tasks.pooling import SpectrogramClassifier
from adaptome.tasks.signal_classification import SignalClassification, SignalOptions
from adaptome.tasks.spectrograms import Positions, SpecAugment, positions_of, set_frames

#: no extractor makes a frame of less, in seconds; and how many frames a second AST's makes
SHORTEST, FRAMES = 0.025, 100
#: samples and their rate
Length = tuple[int, int]


class AudioClassificationOptions(SignalOptions):
    max_length: int | None = Field(
        default=None,
        ge=1,
        description="spectrogram models: frames kept of a clip; default: the extractor's own",
    )
    positions: Positions = Field(
        default="cut",
        description="how a checkpoint's positions fit another max_length: cut: their middle; interpolate: stretched (as by cut where they are too few); new: drawn anew and trained with the head; fresh: drawn anew and left so",
    )
    max_seconds: float | None = Field(
        default=None, gt=0, description="waveform models: seconds kept of a clip; default: all of it"
    )
    pooling: Literal["auto", "mean", "cls"] = Field(
        default="auto",
        description="auto: the model's own head; spectrogram models: a linear head on the mean over all tokens, or on the first",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="before the head (pooling: mean or cls)")
    frequency_mask: int = Field(
        default=0, ge=0, description="SpecAugment: at most so many mel bands hidden of a clip in training"
    )
    time_mask: int = Field(
        default=0, ge=0, description="SpecAugment: at most so many frames hidden of a clip in training"
    )
    cache: int = Field(
        default=1024, ge=0, description="MiB of prepared clips kept in memory (by each loading process)"
    )


@register_task("audio-classification")
class AudioClassification(SignalClassification):
    """Columns: audio (files, arrays with their rate, or clips of the hub) and label.

    `predict` takes paths, {"path", "bytes"} and {"array", "sampling_rate"}.
    """

    Options = AudioClassificationOptions
    options: AudioClassificationOptions
    files: ClassVar[str | None] = "audio"
    column, classifier = "audio", "AutoModelForAudioClassification"
    takes = ENDINGS

    def load_processor(self, model: ModelSpec) -> Any:
        extractor = load_feature_extractor(model, self.options.max_length)
        if hasattr(extractor, "max_length"):
            self._refuse("a model of spectrograms", "max_seconds")
        else:
            frames = ("max_length", "positions", "pooling", "frequency_mask", "time_mask")
            self._refuse("this kind of model", *frames, *(["max_seconds"] if _is_fixed(extractor) else []))
        return extractor

    def _refuse(self, what: str, *options: str) -> None:
        """Refuse options that have no meaning for the model."""
        hints = {"max_length": " Give task.max_seconds.", "max_seconds": " Give task.max_length, in frames."}
        for name in options:
            if getattr(self.options, name) != type(self.options).model_fields[name].default:
                raise RecipeError(
                    f"task.{name} has no meaning for {what}.{hints.get(name, ' Leave it out.')}"
                )

    def dataset(self, split: Split, labels: list[int], processor: Any) -> Clips:
        lengths = _checked(split)
        return Clips(split, labels, self.reader(processor), lengths, self.options.cache * 2**20)

    def collator(self, processor: Any) -> ClipCollator:
        return ClipCollator(processor)

    def told_of(self, made: Mapping[str, Clips], processor: Any) -> list[str]:
        lengths = {name: clips.lengths for name, clips in made.items()}
        return [*_rate_notes(lengths, processor.sampling_rate), *_length_notes(lengths, processor)]

    def reader(self, processor: Any) -> ClipFeatures:
        return ClipFeatures(processor, self.options.max_seconds)

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        """transformers' own audio classifier, or a SpectrogramClassifier, as `pooling` says."""
        config = load_labelled_config(model, self.labels)
        if self.options.pooling == "auto":
            built = self.pretrained(model, config)
        else:
            from transformers import AutoModel

            encoder, _ = load_pretrained(AutoModel, model, config)
            built = SpectrogramClassifier(
                encoder, config.num_labels, self.options.dropout, self.options.pooling
            )
            self.new_modules = ["classifier"]
        frames = self.options.max_length
        if frames is None and self.options.positions in ("new", "fresh"):
            frames = getattr(config, "max_length", None)
        if frames is not None:
            set_frames(built, frames, self.options.positions)
        dtype = next(built.parameters()).dtype
        if dtype != torch.float32:
            built.register_forward_pre_hook(InDtype(dtype), with_kwargs=True)
        if self.options.frequency_mask or self.options.time_mask:
            augment = SpecAugment(self.options.frequency_mask, self.options.time_mask)
            built.register_forward_pre_hook(augment, with_kwargs=True)
        if processor is not None:
            _check_inputs(built, processor)
        return built

    def head_patterns(self, model: nn.Module) -> list[str]:
        new = [positions_of(model)] if self.options.positions == "new" else []
        return [*head_modules(model), *new]


class InDtype:
    """A hook before the model's forward: inputs in the dtype of the base, to which audio models do not cast them."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {k: v.to(self.dtype) if _is_floating(v) else v for k, v in kwargs.items()}


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


class ClipFeatures:
    """A sound -> what is kept of it for a model: the spectrogram, or the waveform where batches are padded later."""

    def __init__(self, processor: Any, seconds: float | None):
        self.processor, self.seconds = processor, seconds
        self.fixed = _is_fixed(processor)

    def __call__(self, sound: Any, where: str) -> np.ndarray:
        rate = int(self.processor.sampling_rate)
        samples, own = decode(sound, where)
        _check_length(len(samples), own, where)
        samples = resampled(samples, own, rate)
        if not self.fixed:
            return samples if self.seconds is None else samples[: max(1, round(self.seconds * rate))]
        made: np.ndarray = np.asarray(
            self.processor(samples, sampling_rate=rate, return_tensors="np")[_main(self.processor)][0],
            np.float32,
        )
        return made


class Clips(torch.utils.data.Dataset[dict[str, Any]]):
    """The rows of a split with their labels; a clip is decoded when it is asked for, and kept while there is room.

    Features are the same every time, so keeping them changes nothing but the time: masks are drawn in the model's forward.
    """

    def __init__(
        self, split: Split, labels: list[int], features: ClipFeatures, lengths: list[Length], budget: int
    ):
        self.split, self.labels, self.features = split, labels, features
        self.lengths, self.budget = lengths, budget
        self.sounds = Sounds(split.rows)
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        made = self._kept.get(row)
        if made is None:
            made = self.features(self.sounds[row], self.split.where(row))
            if made.nbytes <= self.budget:
                self.budget -= made.nbytes
                self._kept[row] = made
        return {"audio": made, "labels": self.labels[row]}


class ClipCollator:
    """Rows with `audio` (as ClipFeatures made it) and `labels` -> the model's inputs and labels [batch]."""

    def __init__(self, processor: Any):
        self.processor, self.fixed = processor, _is_fixed(processor)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        clips = [row["audio"] for row in rows]
        if not self.fixed:
            rate = self.processor.sampling_rate
            batch = dict(self.processor(clips, sampling_rate=rate, padding=True, return_tensors="pt"))
        else:
            batch = {_main(self.processor): torch.from_numpy(np.stack(clips))}
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch


def _is_fixed(processor: Any) -> bool:
    """Whether a model reads spectrograms of one length (AST, Whisper), not what a batch is padded to."""
    return hasattr(processor, "max_length") or hasattr(processor, "nb_max_frames")


def _main(processor: Any) -> str:
    return str(processor.model_input_names[0])


def _check_length(samples: int, rate: int, where: str) -> None:
    if samples < SHORTEST * rate:
        held = "holds no samples" if not samples else f"lasts {1000 * samples / rate:.1f} ms"
        raise DataError(f"{where}: the clip {held}; at least 25 ms are needed. Take it out of the data.")


def _checked(split: Split) -> list[Length]:
    """Read every sound's header.

    Raises:
        DataError: names the place of a sound that cannot be read, is cut short or too short.
    """
    feature = split.rows.features["audio"]
    if not isinstance(feature, dict) and type(feature).__name__ != "Audio":
        raise DataError(
            f"{split.source}: the column 'audio' holds {feature}; expected paths of sound files, or arrays with their rate.\n"
            "  Say which column it is, e.g. data.columns: {audio: filename}; or make the paths by data.paths."
        )
    found = []
    for row, sound in enumerate(Sounds(split.rows)):
        samples, rate = header(sound, split.where(row))
        _check_length(samples, rate, split.where(row))
        found.append((samples, rate))
    return found


def _rate_notes(clips: Mapping[str, list[Length]], wanted: int) -> list[str]:
    """A note on what is resampled, for all splits at once."""
    other = sorted({rate for split in clips.values() for _, rate in split if rate != wanted})
    if not other:
        return []
    counts = {name: sum(rate != wanted for _, rate in split) for name, split in clips.items()}
    which = ", ".join(f"{n:,} of {len(clips[name]):,} in {name}" for name, n in counts.items() if n)
    low = " Nothing is there above half the lower rate." if other[0] < wanted else ""
    told = ", ".join(f"{rate:,}" for rate in other)
    return [f"clips are resampled from {told} Hz to {wanted:,} Hz: {which}.{low}"]


def _length_notes(clips: Mapping[str, list[Length]], processor: Any) -> list[str]:
    """A note on clips that are cut off at the frames that a model of spectrograms reads, or are far shorter than those."""
    kept = getattr(processor, "max_length", None)
    if kept is None:
        return []
    lasting = [FRAMES * samples / rate for split in clips.values() for samples, rate in split]
    longer, longest = sum(frames >= kept + FRAMES * SHORTEST for frames in lasting), max(lasting)
    told = f"{kept:,} frames ({kept / FRAMES:g} s, task.max_length)"
    if longer:
        return [
            f"what lies beyond the {told} that are read is cut off: {longer:,} of {len(lasting):,} clips are longer."
        ]
    if 2 * longest < kept:
        return [
            f"the longest clip lasts {longest / FRAMES:.2f} s, and every clip is padded to {told}: {max(16, math.ceil(longest))} would do."
        ]
    return []


def _check_inputs(model: nn.Module, processor: Any) -> None:
    """Raise RecipeError when the extractor does not make what the model reads."""
    if _main(processor) != getattr(model, "main_input_name", _main(processor)):
        raise RecipeError(
            f"the feature extractor makes {_main(processor)}, the model reads {model.main_input_name}. "
            "Name the extractor that belongs to the model: model.tokenizer."
        )
    for key in ("num_mel_bins", "max_length"):
        made, read = getattr(processor, key, None), getattr(model.config, key, None)
        if made is not None and read is not None and made != read:
            raise RecipeError(
                f"the feature extractor makes spectrograms of {key}={made}, the model reads {read}. "
                "Name the extractor that belongs to the model: model.tokenizer; or set task.max_length."
            )
