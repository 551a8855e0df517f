"""Clips of speech as the inputs of a recogniser: what reads sound, pictures and text, and the batches that it makes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptome.core.errors import DataError, RecipeError
from adaptome.data.readers.sounds import ENDINGS as SOUNDS
from adaptome.data.readers.speech import clip_of
from adaptome.data.sound import Sounds, resampled
from adaptome.data.speech.clips import (
    FPS,
    at_rate,
    has_sound,
    mouths,
    read_features,
    read_frames,
    read_mouth,
    read_sound,
)
from adaptome.data.video import ENDINGS as VIDEOS
from adaptome.models import is_composite
from adaptome.models.base import Part, part_config, read_configuration
from adaptome.models.speech_recogniser import IGNORED, TASKS
from adaptome.tasks.base import ModelSpec
from adaptome.tasks.language import language_tokenizer

RATE = 16_000
#: of AV-HuBERT's pictures, as shares of white
MEAN, STD = 0.421, 0.165
EXTRACTOR, TOKENIZER = "extractor", "tokenizer"
#: Whisper's tokens a second
TOKENS = 50


@dataclass(frozen=True)
class Clip:
    """A clip: where its sound, pictures and mouth are, and its name in messages."""

    audio: Any = None
    video: Any = None
    mouth: Any = None
    where: str = "the clip"
    asked: tuple[Any, ...] = ()  # what the rows of a split are recognised from

    def __str__(self) -> str:
        return self.where


@dataclass
class SpeechProcessor:
    """What turns sound, pictures and text into a recogniser's inputs.

    extractor: Whisper's; None without its encoder. features: stream -> width where features take its place.
    pictures: whether the model reads pictures.
    """

    tokenizer: Any
    extractor: Any
    pictures: bool
    features: Mapping[str, int]

    @property
    def streams(self) -> list[str]:
        """What the model reads."""
        own = {"audio": self.extractor is not None, "video": self.pictures}
        return [name for name, there in own.items() if there or name in self.features]

    @property
    def seconds(self) -> float | None:
        """How long a sound the model hears."""
        return None if self.extractor is None else float(self.extractor.chunk_length)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write tokenizer and extractor, each in a folder of its own."""
        self.tokenizer.save_pretrained(str(Path(folder) / TOKENIZER))
        if self.extractor is not None:
            self.extractor.save_pretrained(str(Path(folder) / EXTRACTOR))


def load_speech_processor(model: ModelSpec) -> SpeechProcessor:
    """The processor of a recipe's model section: Whisper's extractor and the language model's tokenizer.

    Raises:
        RecipeError: the model is no speech recogniser, or a part cannot be had.
    """
    from transformers import WhisperFeatureExtractor

    folder = Path(model.name) if model.name is not None and is_composite(model.name) else None
    settings: dict[str, Any] = read_configuration(folder)[1] if folder else dict(getattr(model, "settings", {}))  # fmt: skip
    if "llm" not in settings:
        raise RecipeError("model: speech-recognition works with {composite: speech-recogniser, audio, video, llm}.")  # fmt: skip
    llm, audio = Part.model_validate(settings["llm"]), settings.get("audio")
    own = str(folder / TOKENIZER) if folder and (folder / TOKENIZER).is_dir() else None
    source: Any = SimpleNamespace(name=llm.name, revision=llm.revision, tokenizer=model.tokenizer or own, from_config=llm.from_config)  # fmt: skip
    extractor = None
    if audio is not None:
        part = Part.model_validate(audio)
        if folder and (folder / EXTRACTOR).is_dir():
            extractor = WhisperFeatureExtractor.from_pretrained(str(folder / EXTRACTOR))
        elif part.name is not None:
            extractor = WhisperFeatureExtractor.from_pretrained(part.name, revision=part.revision or "main")
        else:
            config = part_config(part)
            seconds, left = divmod(config.max_source_positions, TOKENS)
            if left:
                raise RecipeError(f"model.audio: max_source_positions={config.max_source_positions} must be {TOKENS} for each second.")  # fmt: skip
            extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=seconds)
    widths = {name: settings.get(f"{name}_features") for name in ("audio", "video")}
    features = {name: int(width) for name, width in widths.items() if width}
    return SpeechProcessor(language_tokenizer(source), extractor, settings.get("video") is not None, features)


def column(rows: Any, name: str) -> Sequence[Any] | None:
    """A column of sources: paths, or sounds and pictures as `data.sound` has them; None where there is none."""
    if name not in rows.column_names:
        return None
    kind = rows.features[name]
    return rows[name] if type(kind).__name__ == "Value" else Sounds(rows, name)


def heard(clip: Clip, processor: SpeechProcessor) -> np.ndarray:
    """A clip's sound: samples at 16 kHz, or its features [time, width].

    Raises:
        DataError: it cannot be read, is empty, or longer than the model hears.
    """
    if "audio" in processor.features:
        return read_features(clip.audio, processor.features["audio"], clip.where)
    samples, rate = read_sound(clip.audio, clip.where)
    samples = resampled(samples, rate, RATE)
    if not len(samples):
        raise DataError(f"{clip.where}: the sound holds no samples.")
    if processor.seconds is not None and len(samples) > processor.seconds * RATE:
        raise DataError(
            f"{clip.where}: the sound lasts {len(samples) / RATE:.1f} s, and the model hears {processor.seconds:g} s. Cut it up."
        )
    return samples


def seen(clip: Clip, processor: SpeechProcessor, side: int) -> np.ndarray:
    """A clip's mouth: pictures [time, side, side] of uint8, 25 a second, or its features [time, width].

    Raises:
        DataError: it cannot be read.
    """
    if "video" in processor.features:
        return read_features(clip.video, processor.features["video"], clip.where)
    frames = read_frames(clip.video, clip.where)
    boxes = None if clip.mouth is None else read_mouth(clip.mouth, len(frames.pictures), clip.where)
    return at_rate(mouths(frames, boxes, side), FPS)


def cropped(pictures: np.ndarray, side: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """The middle square of this side of pictures [time, h, w]; with `rng` one drawn anywhere, mirrored or not."""
    room = pictures.shape[1] - side
    top, left = (room // 2, room // 2) if rng is None else (int(v) for v in rng.integers(room + 1, size=2))
    made = pictures[:, top : top + side, left : left + side]
    return made[:, :, ::-1] if rng is not None and rng.random() < 0.5 else made


def clip_of_input(one: Any) -> Clip:
    """An input of the task's `predict` as a clip.

    Raises:
        DataError: it is none.
    """
    if isinstance(one, Clip):
        return one
    if isinstance(one, Mapping) and {"audio", "video"} & set(one):
        told = one.get("where") or next(str(v) for v in (one.get("audio"), one.get("video")) if v is not None)
        return Clip(one.get("audio"), one.get("video"), one.get("mouth"), str(told)[:200])
    if isinstance(one, tuple) and len(one) == 2:
        return Clip(*one, where=str(one[0])[:200])
    if not isinstance(one, str | Path):
        raise DataError(f"a clip is a path, a pair (sound, video) or a mapping with audio and video; found {type(one).__name__}.")  # fmt: skip
    path = Path(one)
    if path.suffix.lower() not in SOUNDS | VIDEOS:
        return Clip(video=str(path), where=str(path))
    parts = clip_of(path, "", str(path))
    alone = parts.audio == parts.video and path.is_file() and not has_sound(path)
    return Clip(None if alone else parts.audio, parts.video, parts.mouth, str(path))


class SpeechCollator:
    """Rows with `audio`, `video` and `ids`, where they have these -> what a speech recogniser takes.

    Args:
        prompts: what is asked, by task.
    """

    def __init__(self, processor: SpeechProcessor, prompts: Mapping[str, str]):
        self.processor = processor
        tokenizer = processor.tokenizer
        rows = [tokenizer(prompts[task], add_special_tokens=False)["input_ids"] for task in TASKS]
        width = max(map(len, rows))
        self.prompts = torch.tensor([[-1] * (width - len(row)) + row for row in rows], dtype=torch.long)
        begin = tokenizer.bos_token_id
        self.begin = torch.tensor([] if begin is None else [begin], dtype=torch.long)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        made = {"begin": self.begin.expand(len(rows), -1), "prompts": self.prompts.expand(len(rows), -1, -1)}
        if "ids" in rows[0]:
            made["labels"] = _padded([np.asarray(row["ids"]) for row in rows], IGNORED).long()
        if "audio" in rows[0]:
            made |= self._audio([row["audio"] for row in rows])
        if "video" in rows[0]:
            made |= self._video([row["video"] for row in rows])
        return made

    def _audio(self, sounds: Sequence[np.ndarray]) -> dict[str, Tensor]:
        if "audio" in self.processor.features:
            return {"audio": _padded(sounds, 0.0), "audio_lengths": _lengths(sounds)}
        made = self.processor.extractor(list(sounds), sampling_rate=RATE, return_tensors="pt")
        lengths = (_lengths(sounds) * TOKENS // RATE).clamp_min(1)
        return {"audio": made["input_features"], "audio_lengths": lengths}

    def _video(self, clips: Sequence[np.ndarray]) -> dict[str, Tensor]:
        x = _padded(clips, 0.0)
        if "video" not in self.processor.features:
            x = (x / 255 - MEAN) / STD
        return {"video": x, "video_lengths": _lengths(clips)}


def _lengths(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.tensor([len(one) for one in arrays])


def _padded(arrays: Sequence[np.ndarray], filler: float) -> Tensor:
    """Arrays [time, ...] as one, float, `filler` behind the shorter ones."""
    made = torch.full((len(arrays), max(map(len, arrays)), *arrays[0].shape[1:]), float(filler))
    for row, one in zip(made, arrays, strict=True):
        row[: len(one)] = torch.from_numpy(np.ascontiguousarray(one))
    return made
