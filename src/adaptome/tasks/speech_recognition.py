"""Speech recognition: what is said, from sound, from lips or from both, at a rate that is chosen when it is used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import DataError, RecipeError, did_you_mean
from adaptome.data.readers.sounds import ENDINGS as SOUNDS
from adaptome.data.readers.speech import is_part
from adaptome.data.speech.clips import FEATURES
from adaptome.data.splits import Split, Splits
from adaptome.data.video import ENDINGS as VIDEOS
from adaptome.models import is_composite, load_composite
from adaptome.models.speech_recogniser import STREAMS, TASKS, Asked, SpeechRecogniser, streams_of
from adaptome.report.shown import Shown
from adaptome.tasks.base import ModelSpec, Prepared, Task, TaskOptions, register_task
from adaptome.tasks.inference import chunks, evaluating, to_device
from adaptome.tasks.language import end_tokens
from adaptome.tasks.models import check_vocabulary
from adaptome.tasks.showing import Given, gathered
from adaptome.tasks.speech_features import (
    Clip,
    SpeechCollator,
    SpeechProcessor,
    clip_of_input,
    column,
    cropped,
    heard,
    load_speech_processor,
    seen,
)
from adaptome.tasks.speech_rows import Examples, checked_rows, noisy, resolved_paths
from adaptome.tasks.speech_scores import Condition, error_rates

MODEL = "speech-recogniser"
Modality = Literal["audio", "video", "audiovisual"]
PROMPTS: dict[Modality, str] = {
    "audio": "Transcribe speech to text.",
    "video": "Transcribe video to text.",
    "audiovisual": "Transcribe speech and video to text.",
}


class SpeechRecognitionOptions(TaskOptions):
    modalities: list[Modality] | None = Field(
        default=None, min_length=1, description="that are learned and scored; default: all that the model can"
    )
    prompts: dict[Modality, str] = Field(default=PROMPTS, description="what is asked, by modality")
    mouth: int = Field(default=96, ge=8, description="pictures become squares of this side")
    crop: int = Field(default=88, ge=8, description="of which the middle is seen; in training any part")
    lowercase: bool = Field(default=True, description="transcripts are learned in lower case")
    tolerance: float = Field(
        default=0.3, ge=0, description="seconds by which a clip's sound and pictures may differ in length"
    )
    augment: bool = Field(
        default=False,
        description="training clips: parts of pictures, mirrored or not, and stretches of up to 0.4 s of each second hidden, of sound and of pictures",
    )
    noise: Literal["babble", "white"] = Field(
        default="babble", description="other speakers of the data, or white noise"
    )
    train_snrs: list[float] = Field(
        default=[], description="dB: training clips have noise at one of these, or none, all alike often"
    )
    augment_seed: int = Field(
        default=0, ge=0, description="of what is drawn for both, and for noise in tests"
    )
    snrs: list[float] = Field(default=[], description="dB: noise on the sounds that are scored, beside none")
    max_new_tokens: int = Field(default=32, ge=1, description="written at most")
    num_beams: int = Field(default=1, ge=1, description="1: the likeliest token each time")
    recognise: Literal["auto", "audio", "video", "audiovisual"] = Field(
        default="auto", description="predict: from what; auto: from all that a file has"
    )
    audio_rate: int | None = Field(default=None, ge=1, description="predict: default: the finest learned")
    video_rate: int | None = Field(default=None, ge=1, description="predict: likewise")


@register_task("speech-recognition")
class SpeechRecognition(Task):
    """Columns: audio and video, or one of them (files, or as `data.speech.clips` reads them), text, and mouth where boxes or landmarks are known.

    Figures, of what is written for every row: `wer` and `cer`, the mean over all modalities and rates, and `wer@audio-4`, `wer@video-2`,
    `wer@audiovisual-4-2`, ...; with noise of `snrs` also `wer@audio-4/0dB`. Of the right words read before: `token_accuracy`.
    `predict` takes paths, pairs (sound, video), or mappings with audio, video and mouth.
    """

    Options = SpeechRecognitionOptions
    options: SpeechRecognitionOptions
    prefer: ClassVar[Mapping[str, str]] = {"text": "speech", "folder": "speech"}
    texts = ("text",)
    judges = True
    greater_is_better = False
    takes = SOUNDS | VIDEOS | FEATURES
    later_options = (
        "max_new_tokens", "num_beams", "snrs", "recognise", "audio_rate", "video_rate", "tolerance",
    )  # fmt: skip
    primary_metric = "loss"
    headline = "wer"

    def __init__(self, options: SpeechRecognitionOptions, labels: Sequence[str] | None = None):
        super().__init__(options, labels)
        if options.crop > options.mouth:
            raise RecipeError(f"task.crop={options.crop} is larger than the pictures, task.mouth={options.mouth}.")  # fmt: skip

    # -- data ----------------------------------------------------------------------------------------------------------

    def load_processor(self, model: ModelSpec) -> SpeechProcessor:
        return load_speech_processor(model)

    def shaped(self, splits: Splits) -> Splits:
        """Paths of tables are relative to the table that names them."""
        return Splits({name: resolved_paths(split) for name, split in splits.items()}, splits.notes)

    def wanted(self, processor: SpeechProcessor) -> list[str]:
        """The streams that the learned modalities read."""
        own: Sequence[str] = self.options.modalities or ()
        tasks = list(own) or [t for t in TASKS if set(streams_of(t)) <= set(processor.streams)]
        found = [name for name in STREAMS if any(name in streams_of(task) for task in tasks)]
        if lost := [name for name in found if name not in processor.streams]:
            raise RecipeError(f"task.modalities={tasks} needs {lost[0]}, and the model reads {' and '.join(processor.streams)}.")  # fmt: skip
        return found

    def prepare(self, splits: Splits, processor: SpeechProcessor) -> Prepared:
        streams, made, notes = self.wanted(processor), {}, list[str]()
        splits.require("text", *streams)
        own: Sequence[str] = self.options.modalities or ()
        self.labels = list(own) or [t for t in TASKS if set(streams_of(t)) <= set(streams)]
        for name, split in splits.items():
            kept, told = checked_rows(split, streams, processor, self.options.tolerance, name == "train")
            notes += [f"{name}: {note}" for note in told]
            if len(kept) < len(split):
                splits[name] = split = split.select(kept)
            made[name] = Examples(self.options, split, streams, processor, name == "train")
        return Prepared(
            made, SpeechCollator(processor, self.prompts()), self.labels,
            remove_unused_columns=False, notes=notes,
        )  # fmt: skip

    def prompts(self) -> dict[str, str]:
        """What is asked, by modality."""
        return {str(task): text for task, text in {**PROMPTS, **self.options.prompts}.items()}

    def clips(self, split_rows: Any, streams: Iterable[str] = STREAMS, where: Any = str) -> list[Clip]:
        """The clips of a split's rows, none of them read."""
        found = {name: column(split_rows, name) for name in (*streams, "mouth")}
        made = []
        for row in range(len(split_rows)):
            parts: dict[str, Any] = {k: None if one is None else one[row] for k, one in found.items()}
            made.append(Clip(**parts, where=where(row)))
        return made

    def inputs(self, rows: Any) -> list[Any]:
        """The rows' clips, to be recognised from all that was learned, and in noise."""
        asked = tuple(self.labels or TASKS)
        streams = [name for name in STREAMS if any(name in streams_of(task) for task in asked)]
        return [
            Clip(one.audio, one.video, one.mouth, f"clip {row}", asked)
            for row, one in enumerate(self.clips(rows, streams))
        ]

    def truths(self, rows: Any) -> list[Any] | None:
        return list(rows["text"]) if "text" in rows.column_names else None

    # -- model ---------------------------------------------------------------------------------------------------------

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        """A `speech-recogniser`: as the recipe names it, or of a folder, which may be given other rates."""
        own = {"tasks": self.options.modalities} if self.options.modalities else {}
        if model.name is not None and is_composite(model.name):
            settings: dict[str, Any] = {"tasks": None, **getattr(model, "settings", {}), **own}
            made = SpeechRecogniser.from_pretrained(model.name, **settings)
        else:
            made = load_composite(model, MODEL, **own)  # type: ignore[assignment]
        if processor is not None:
            check_vocabulary(made.llm, processor.tokenizer)
        return made

    def head_patterns(self, model: nn.Module) -> list[str]:
        found: Any = model
        return ["projectors", *(["marks"] if found.settings.train_marks else [])]

    # -- scores --------------------------------------------------------------------------------------------------------

    def counted(self, logits: Any, labels: Any) -> Tensor:
        counts: Tensor = logits[0] if isinstance(logits, tuple) else logits
        return counts

    def metrics(self, result: Any) -> dict[str, float]:
        _, right, tokens = np.asarray(result.predictions).sum((0, 1))
        return {"token_accuracy": float(right / tokens)}

    def judge(self, split: Split, predictions: list[Any]) -> dict[str, float]:
        """Error rates over the split, by what was asked, and their means without noise."""
        truths = list(split.rows["text"])
        by = {
            label: error_rates(truths, [one["by"][label] for one in predictions])
            for label in predictions[0]["by"]
        }
        plain = [rates for label, rates in by.items() if "/" not in label]
        means = {name: float(np.mean([rates[name] for rates in plain])) for name in ("wer", "cer")}
        return means | {
            f"{name}@{label}": rate for label, rates in by.items() for name, rate in rates.items()
        }

    # -- use -----------------------------------------------------------------------------------------------------------

    def given(self, words: Sequence[str]) -> list[Given]:
        """Files of sound or video, or folders of clips, in which the sound of a video is no clip of its own."""
        found = gathered(words, self.takes)
        return [one for one in found if one.value in words or not is_part(Path(one.value))]

    def predict(
        self, model: nn.Module, processor: SpeechProcessor, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """What is said in each clip.

        Returns a list of {"text", "from" (such as audiovisual-4-2), "by" (the text by what it was recognised from)}.

        Raises:
            DataError: a clip that cannot be read, or lacks what is asked for. RecipeError: a rate that was not learned.
        """
        recogniser: Any = model
        clips = [clip_of_input(one) for one in inputs]
        asked = [self._conditions(recogniser, clip, processor) for clip in clips]
        made: list[dict[str, str]] = [{} for _ in clips]
        collator = SpeechCollator(processor, self.prompts())
        with evaluating(model) as device:
            for kind in dict.fromkeys(map(tuple, asked)):
                rows = [row for row, conditions in enumerate(asked) if tuple(conditions) == kind]
                for part in chunks(rows, batch_size):
                    for label, texts in self._written(recogniser, processor, collator, clips, part, kind, device).items():  # fmt: skip
                        for row, text in zip(part, texts, strict=True):
                            made[row][label] = text
        return [{"text": next(iter(by.values())), "from": next(iter(by)), "by": by} for by in made]

    def _conditions(self, model: Any, clip: Clip, processor: SpeechProcessor) -> list[Condition]:
        """What is asked of a clip: all that is learned of a split's row; of a user's file what the options say."""
        if clip.asked:
            plain = [one for task in reversed(clip.asked) for one in model.asked(task)]
            noisy = [Condition(one, snr) for snr in self.options.snrs for one in plain if one.audio_rate]
            return [*map(Condition, plain), *noisy]
        own = self.options
        there = {"audio": clip.audio is not None, "video": clip.video is not None}
        able = [t for t in reversed(TASKS) if all(there[s] for s in streams_of(t)) and t in (self.labels or TASKS)]  # fmt: skip
        task = own.recognise if own.recognise != "auto" else next(iter(able), None)
        if task is None or task not in able:
            has = " and ".join(name for name, is_there in there.items() if is_there) or "nothing"
            what = (
                f"task.recognise={task}" if task else f"what was learned, {', '.join(self.labels or TASKS)},"
            )
            raise DataError(f"{clip.where}: it has {has}, and {what} needs more or was not learned.")
        rates = []
        for stream in STREAMS:
            known, told = model.rates(stream), getattr(own, f"{stream}_rate")
            if told is not None and told not in known:
                raise RecipeError(f"task.{stream}_rate={told} was not learned.{did_you_mean(str(told), map(str, known))} There are: {known}.")  # fmt: skip
            rates.append((told or min(known)) if stream in streams_of(task) else 0)
        return [Condition(Asked(task, *rates))]

    def _written(
        self, model: Any, processor: SpeechProcessor, collator: SpeechCollator, clips: Sequence[Clip],
        part: Sequence[int], conditions: Sequence[Condition], device: Any,
    ) -> dict[str, list[str]]:  # fmt: skip
        """Texts of some clips, by condition; each stream is encoded once, a noisy sound once for each noise."""
        streams = {s for one in conditions for s in streams_of(one.asked.task)}
        rows: list[dict[str, Any]] = [{} for _ in part]
        for row, number in zip(rows, part, strict=True):
            if "audio" in streams:
                row["audio"] = heard(clips[number], processor)
            if "video" in streams:
                pictures = seen(clips[number], processor, self.options.mouth)
                row["video"] = pictures if pictures.ndim == 2 else cropped(pictures, self.options.crop)
        batch = to_device(collator(rows), device)
        begin, prompts = batch.pop("begin"), batch.pop("prompts")
        plain, made = model.encode(**batch), {}
        for snr in dict.fromkeys(one.snr for one in conditions):
            encoded = plain
            if snr is not None:
                loud = [{"audio": noisy(row["audio"], snr, number, clips, processor, self.options)} for row, number in zip(rows, part, strict=True)]  # fmt: skip
                audio = to_device(collator(loud), device)
                encoded = {**plain, **model.encode(audio["audio"], audio["audio_lengths"])}
            for one in (c for c in conditions if c.snr == snr):
                made[one.label] = self._texts(model, processor, encoded, begin, prompts, one.asked)
        return made

    def _texts(self, model: Any, processor: SpeechProcessor, encoded: Any, begin: Tensor, prompts: Tensor, asked: Asked) -> list[str]:  # fmt: skip
        tokenizer, own = processor.tokenizer, self.options
        found = model.write(
            encoded, begin, prompts, asked, max_new_tokens=own.max_new_tokens, num_beams=own.num_beams, do_sample=False,
            eos_token_id=end_tokens(model.llm, tokenizer), pad_token_id=tokenizer.pad_token_id, use_cache=True,
        )  # fmt: skip
        return [text.strip() for text in tokenizer.batch_decode(found, skip_special_tokens=True)]

    def shown(self, one: Any, prediction: Any) -> Shown:
        return Shown(prediction["text"] or "-", prediction["from"])
