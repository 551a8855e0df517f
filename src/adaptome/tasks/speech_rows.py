"""The rows of a split of speech: checked before training, and read, with noise and masks, while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaptome.core.errors import DataError, RecipeError
from adaptome.data.speech.clips import FPS, sound_seconds, video_seconds
from adaptome.data.speech.noise import SPEAKERS, babble, masked_times, mixed, white
from adaptome.data.splits import Split
from adaptome.models.speech_recogniser import STREAMS
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


def resolved_paths(split: Split) -> Split:
    """The split with relative paths of its columns made relative to the tables that name them, where such files are there."""
    rows = split.rows
    for name in (*STREAMS, "mouth"):
        if name not in rows.column_names or type(rows.features[name]).__name__ != "Value":
            continue
        folders = [Path(table.file).parent for table in split.tables]
        paths = []
        for value, (table, _) in zip(rows[name], split.origin, strict=True):
            beside = None if value is None else folders[int(table)] / value
            paths.append(str(beside) if beside is not None and beside.is_file() else value)
        rows = rows.remove_columns(name).add_column(name, paths)
    return Split(rows, split.tables, split.origin)


def noisy(
    sound: np.ndarray,
    snr: float,
    number: int,
    clips: Sequence[Clip],
    processor: SpeechProcessor,
    options: Any,
) -> np.ndarray:
    """A clip's sound with the options' noise, the same at every ratio.

    Args:
        number: of the clip among all, of which a babble is made.

    Raises:
        RecipeError: the sound is features. DataError: there is no other clip.
    """
    if sound.ndim != 1:
        raise RecipeError(
            "task.snrs: noise is mixed into sounds, and the data brings features. Leave it out."
        )
    rng = np.random.default_rng((options.augment_seed, number))
    return with_noise(
        rng, sound, snr, number, len(clips), lambda row: heard(clips[row], processor), options.noise
    )


def with_noise(
    rng: np.random.Generator,
    sound: np.ndarray,
    snr: float,
    number: int,
    count: int,
    other: Callable[[int], np.ndarray],
    kind: str,
) -> np.ndarray:
    """A sound with white noise, or with a babble of some of the other clips."""
    if kind == "white":
        return mixed(sound, white(rng, len(sound)), snr)
    if count < 2:
        raise DataError(
            "task.noise=babble is made of the other clips, and there is one alone. Take task.noise=white."
        )
    picked = rng.choice(count - 1, min(SPEAKERS, count - 1), replace=False)
    others = [other(int(k) + int(k >= number)) for k in picked]
    return mixed(sound, babble(rng, len(sound), others), snr)


class Examples:
    """Rows as {"audio", "video", "ids"}, where the streams are learned; those of training are changed anew in every epoch.

    Args:
        options: the task's.
    """

    def __init__(self, options: Any, split: Split, streams: Sequence[str], processor: SpeechProcessor, training: bool):  # fmt: skip
        self.options, self.processor, self.training, self.epoch = options, processor, training, 0
        self.split, self.streams = split, list(streams)
        self.sources = {name: column(split.rows, name) for name in (*streams, "mouth")}
        texts = [str(text).strip() for text in split.rows["text"]]
        texts = [text.lower() for text in texts] if options.lowercase else texts
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
        parts: dict[str, Any] = {
            name: None if one is None else one[row] for name, one in self.sources.items()
        }
        return Clip(**parts, where=self.split.where(row))

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, own = int(index), self.options
        clip = self.clip(row)
        made: dict[str, Any] = {"ids": self.ids[row]}
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
        own = self.options
        if not self.training or sound.ndim != 1:
            return sound
        if own.augment:
            sound = masked_times(sound, RATE, HIDDEN, rng)
        drawn = int(rng.integers(len(own.train_snrs) + 1))
        if drawn == len(own.train_snrs):
            return sound
        snr = own.train_snrs[drawn]
        return with_noise(
            rng, sound, snr, row, len(self), lambda k: heard(self.clip(k), self.processor), own.noise
        )
