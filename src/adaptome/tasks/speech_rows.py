"""The rows of a split of speech: checked before training, and read, with noise and masks, while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from adaptome.core.errors import DataError
from adaptome.data.speech.clips import FPS, sound_seconds, video_seconds
from adaptome.data.speech.noise import masked_times, mixed
from adaptome.data.splits import Split
from adaptome.tasks.speech_features import RATE, Clip, SpeechProcessor, column, cropped, heard, seen

#: seconds of each second that are hidden at most: 6,400 samples, and 10 of 25 pictures
HIDDEN = 0.4


def checked_rows(
    split: Split, streams: Sequence[str], processor: SpeechProcessor, tolerance: float, training: bool
) -> tuple[list[int], list[str]]:
    """The rows that can be used, and what is to be said of the others: those without words, and those too long to train on.

    Raises:
        DataError: a clip that cannot be read, whose sound and pictures differ in length, or that is too long to be scored.
    """
    sources = {name: column(split.rows, name) for name in streams}
    kept, empty, long = list[int](), list[str](), list[str]()
    for row, text in enumerate(split.rows["text"]):
        where = split.where(row)
        if not str(text).strip():
            empty.append(where)
            continue
        lengths = {
            name: (sound_seconds if name == "audio" else video_seconds)(one[row], where)
            for name, one in sources.items()
            if one is not None and name not in processor.features
        }
        if len(lengths) == 2 and abs(lengths["audio"] - lengths["video"]) > tolerance:
            raise DataError(
                f"{where}: its sound lasts {lengths['audio']:.2f} s, its pictures {lengths['video']:.2f} s. Cut both alike, "
                f"or allow more: task.tolerance (now {tolerance:g} s)."
            )
        limit = processor.seconds
        if limit is not None and lengths.get("audio", 0.0) > limit:
            if not training:
                raise DataError(f"{where}: the sound lasts {lengths['audio']:.1f} s, and the model hears {limit:g} s. Cut it up.")  # fmt: skip
            long.append(where)
            continue
        kept.append(row)
    notes = [f"{len(empty)} clips are left out, for their transcripts are empty (the first: {empty[0]})."] if empty else []  # fmt: skip
    notes += [f"{len(long)} clips are left out, for they last longer than {processor.seconds:g} s (the first: {long[0]})."] if long else []  # fmt: skip
    if not kept:
        raise DataError(f"{split.source}: no clip is left; {' '.join(notes)}")
    return kept, notes


class Examples:
    """Rows as {"audio", "video", "ids"}, where the streams are learned; those of training are changed anew in every epoch.

    Args:
        task: whose options say how, and which makes noise.
    """

    def __init__(self, task: Any, split: Split, streams: Sequence[str], processor: SpeechProcessor, training: bool):  # fmt: skip
        self.task, self.processor, self.training, self.epoch = task, processor, training, 0
        self.split, self.streams = split, list(streams)
        self.sources = {name: column(split.rows, name) for name in (*streams, "mouth")}
        texts = [str(text).strip() for text in split.rows["text"]]
        texts = [text.lower() for text in texts] if task.options.lowercase else texts
        tokenizer = processor.tokenizer
        read = tokenizer(texts, add_special_tokens=False)["input_ids"]
        self.ids = [[*ids, tokenizer.eos_token_id] for ids in read]

    def set_epoch(self, epoch: int) -> None:
        """Draw anew."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return len(self.ids)

    def clip(self, row: int) -> Clip:
        """Where a row's parts are."""
        parts = {name: None if one is None else one[row] for name, one in self.sources.items()}
        return Clip(**parts, where=self.split.where(row))

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, own = int(index), self.task.options
        clip, made = self.clip(row), {"ids": self.ids[row]}
        rng = np.random.default_rng((own.augment_seed, self.epoch, row))
        if "audio" in self.streams:
            made["audio"] = self._sound(heard(clip, self.processor), row, rng)
        if "video" in self.streams:
            pictures = seen(clip, self.processor, own.mouth)
            changed = self.training and own.augment
            if pictures.ndim == 3:
                pictures = cropped(pictures, own.crop, rng if changed else None)
            made["video"] = masked_times(pictures, FPS, HIDDEN, rng) if changed else pictures
        return made

    def _sound(self, sound: np.ndarray, row: int, rng: np.random.Generator) -> np.ndarray:
        own = self.task.options
        if not self.training or sound.ndim != 1:
            return sound
        if own.augment:
            sound = masked_times(sound, RATE, HIDDEN, rng)
        drawn = int(rng.integers(len(own.train_snrs) + 1))
        if drawn == len(own.train_snrs):
            return sound
        others = [heard(self.clip(k), self.processor) for k in self.task.drawn(rng, row, len(self))]
        return mixed(sound, self.task.noise(rng, len(sound), others), own.train_snrs[drawn])
