"""Video question answering: a question about a video, its sound, its depth and whatever else is known of it, answered by a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.errors import DataError, RecipeError, did_you_mean
from adaptome.data.splits import Split, Splits
from adaptome.report.shown import Ranked, Shown
from adaptome.tasks.base import ModelSpec, Prepared, Task, TaskOptions, register_task
from adaptome.tasks.inference import chunks, evaluating, moved
from adaptome.tasks.showing import Given, path_of
from adaptome.tasks.video_inputs import Modality, QuestionProcessor, is_raw, is_sound, read_features
from adaptome.tasks.video_models import load_modular, load_question_processor
from adaptome.tasks.video_questions import LETTERS, QuestionCollator, Questions
from adaptome.tasks.video_rows import options_of, questions_taken

PROMPTS = {
    "letters": "Question: {question} {options} Considering the information presented in the frame, select the correct answer from the options.",
    "text": "Question: {question} Answer:",
}


class VideoQAOptions(TaskOptions):
    answers: Literal["text", "letters"] = Field(
        default="text", description="what is learned and scored of a row with options: their texts, or the letters before them"
    )  # fmt: skip
    prompt: str | None = Field(
        default=None, description="with {question} and perhaps {options}; default: by `answers`"
    )
    prefix: str = Field(default="Frame {n}: ", description="the words before each frame, numbered from 1")
    frames: int = Field(default=4, ge=1, description="frames of a video, evenly taken")
    features: dict[str, str] = Field(
        default_factory=dict,
        description="modality -> pattern of its files, with columns in it: {audio: features/audio/{video}.npz}; default: the column of its name",
    )
    missing: Literal["without", "skip", "error"] = Field(
        default="without",
        description="rows without one of the modalities but the first: run without it, are left out, or are refused",
    )
    sets: list[list[str]] | Literal["none", "each"] = Field(
        default="none",
        description="sets of modalities that are scored beside all; each: the first, then one more at a time",
    )
    max_length: int = Field(default=256, ge=8, description="tokens of a question; the authors' code has 77")
    beams: int = Field(default=5, ge=1, description="of generated answers, in `predict`")
    max_new_tokens: int = Field(default=10, ge=1, description="of generated answers")
    length_penalty: float = Field(default=-1.0, description="of beam search")


@register_task("video-qa")
class VideoQA(Task):
    """Columns: question, answer, and perhaps options and type; and one for each modality (files, or arrays of features).

    Files of NExT-QA, MUSIC-AVQA and SQA3D are read as they are, see `video_rows`. `accuracy` is of the likeliest option, or where rows have no
    options of the answer that greedy decoding gives; `accuracy@a+b` is that with these modalities alone, `accuracy of x` that of one type.
    `predict` takes {"question", "options", and a source for each modality}.
    """

    Options = VideoQAOptions
    options: VideoQAOptions
    primary_metric = "accuracy"
    texts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: TaskOptions, labels: Sequence[str] | None = None):
        super().__init__(options, labels)
        self.modalities: list[Modality] = []
        self.types: list[str] = []

    # -- data ----------------------------------------------------------------------------------------------------------

    def load_processor(self, model: ModelSpec) -> QuestionProcessor:
        processor, self.modalities = load_question_processor(model)
        return processor

    def shaped(self, splits: Splits) -> Splits:
        return Splits({name: questions_taken(split) for name, split in splits.items()}, splits.notes)

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        splits.require("question", "answer")
        unknown = [n for n in self.options.features if n not in self.names]
        if unknown:
            raise RecipeError(
                f"task.features names {unknown[0]!r}, which is no modality of the model.{did_you_mean(unknown[0], self.names)} It has {', '.join(self.names)}."
            )
        self.types = sorted({str(v) for split in splits.values() for v in _column(split, "type") if v})
        notes: list[str] = []
        made = {name: Questions(self, split, name, processor, notes) for name, split in splits.items()}
        kinds = {name: rows.chosen for name, rows in made.items() if len(rows)}
        if len(set(kinds.values())) > 1:
            told = ", ".join(f"{n} {'options' if k else 'none'}" for n, k in kinds.items())
            raise DataError(f"rows of some splits have options, those of others none: {told}.")
        collator = QuestionCollator(processor, self.modalities, self.options.prefix, self.options.frames)
        return Prepared(
            made,
            collator,
            remove_unused_columns=False,
            notes=notes,
            aside=("answers",),
            label_names=("answers",),
        )

    @property
    def names(self) -> list[str]:
        """Of the modalities, in the model's order."""
        return [one.name for one in self.modalities]

    def sets(self) -> list[list[str]]:
        """The sets of modalities that are scored beside all of them.

        Raises:
            RecipeError: one names what the model has not.
        """
        asked = self.options.sets
        if asked == "none" or len(self.names) == 1:
            return []
        if asked == "each":
            return [self.names[: i + 1] for i in range(len(self.names) - 1)]
        for one in asked:
            unknown = [n for n in one if n not in self.names]
            if unknown or not one:
                raise RecipeError(
                    f"task.sets: {one} is no set of the modalities {', '.join(self.names)}.{did_you_mean(unknown[0], self.names) if unknown else ''}"
                )
        return [list(one) for one in asked]

    def prompt(self, question: str, options: Sequence[str] | None) -> str:
        """What the language model reads of a row."""
        kind = "letters" if options and self.options.answers == "letters" else "text"
        lettered = " ".join(
            f"Option {letter}: {text}" for letter, text in zip(LETTERS, options or (), strict=False)
        )
        return (self.options.prompt or PROMPTS[kind]).format(question=question, options=lettered)

    def wordings(self, options: Sequence[str]) -> list[str]:
        """What is scored of each option."""
        return list(LETTERS[: len(options)]) if self.options.answers == "letters" else list(options)

    def sources(self, row: Mapping[str, Any], where: str, asked: bool = False) -> dict[str, Any]:
        """What a row has of each modality: a path or an array; without those it has not.

        Args:
            asked: a question on its own, which need not have the columns of the patterns.

        Raises:
            DataError: a pattern that names a column which is not there.
        """
        found: dict[str, Any] = {}
        for name in self.names:
            value = row.get(name)
            if value is None and name in self.options.features:
                pattern = self.options.features[name]
                try:
                    value = pattern.format_map(row)
                except KeyError as error:
                    if asked:
                        continue
                    raise DataError(
                        f"{where}: task.features.{name} is {pattern!r}, and there is no column {error}. Columns: {', '.join(row)}."
                    ) from error
                value = value if Path(value).exists() else None
            if isinstance(value, str) and not value.strip():
                value = None
            if value is not None:
                found[name] = value
        return found

    def read(self, sources: Mapping[str, Any], where: str, processor: Any) -> dict[str, dict[str, Tensor]]:
        """Features and raw inputs of each modality of a row."""
        made: dict[str, dict[str, Tensor]] = {"features": {}, "raw": {}}
        for one in self.modalities:
            source = sources.get(one.name)
            if source is None:
                continue
            if not is_raw(source):
                made["features"][one.name] = read_features(source, one, where, self.options.frames)
            elif one.kind == "segments":
                made["raw"][one.name] = processor.sound(Path(source))
            elif one.kind == "frames":
                made["raw"][one.name] = processor.frames(Path(source), self.options.frames)
            else:
                raise DataError(
                    f"{source}: {one.name} is read as features alone: a file .npz, .npy or .safetensors."
                )
        return made

    # -- model ---------------------------------------------------------------------------------------------------------

    def load_model(self, model: ModelSpec, processor: Any = None) -> nn.Module:
        """A `modular-qa`: as the recipe names it, or that of a folder with the modalities that the recipe adds."""
        found = load_modular(model)
        found.sets = self.sets()
        return found

    def save_base(self, model: nn.Module, processor: Any, folder: Path) -> None:
        whole: Any = model
        whole.save_pretrained(folder)
        processor.save_pretrained(folder)

    # -- scores --------------------------------------------------------------------------------------------------------

    def reduce(self, logits: Any, labels: Any) -> Tensor:
        """The number of the likeliest option with all modalities, then with each set: [batch, 1 + sets]."""
        found: Tensor = (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)
        return found

    def metrics(self, result: Any) -> dict[str, float]:
        given = result.predictions
        chosen = np.asarray(given[0] if isinstance(given, tuple) else given)
        truth = np.asarray(result.label_ids[0] if isinstance(result.label_ids, tuple) else result.label_ids)
        right = chosen == truth[:, :1]
        found = {"accuracy": float(right[:, 0].mean())}
        for number, one in enumerate(self.sets(), 1):
            found[f"accuracy@{'+'.join(one)}"] = float(right[:, number].mean())
        for number, name in enumerate(self.types):
            rows = truth[:, 1] == number
            if len(self.types) > 1 and rows.any():
                found[f"accuracy of {name}"] = float(right[rows, 0].mean())
                for place, one in enumerate(self.sets(), 1):
                    found[f"accuracy of {name}@{'+'.join(one)}"] = float(right[rows, place].mean())
        return found

    # -- use -----------------------------------------------------------------------------------------------------------

    def inputs(self, rows: Any) -> list[Any]:
        return [{n: row[n] for n in ("question", "options", *self.names, *self._used(row)) if n in row} for row in rows.with_format("numpy", columns=[n for n in self.names if n in rows.column_names], output_all_columns=True)]  # fmt: skip

    def _used(self, row: Mapping[str, Any]) -> list[str]:
        return [n for n in row if any(f"{{{n}" in pattern for pattern in self.options.features.values())]

    def truths(self, rows: Any) -> list[Any] | None:
        return [str(one) for one in rows["answer"]] if "answer" in rows.column_names else None

    def given(self, words: Sequence[str]) -> list[Given]:
        """A question, its options with | between them, and files: of the first modality, sounds, and others as name=file."""
        found: dict[str, Any] = {}
        for word in words:
            name, _, value = word.partition("=")
            path = path_of(word)
            if name in self.names and value:
                _put(found, name, value)
            elif path is not None and path.exists():
                _put(found, self._of_file(word), word)
            elif "|" in word:
                found["options"] = options_of(word)
            else:
                _put(found, "question", word)
        if "question" not in found:
            raise DataError(
                f'no question is given. Write e.g. video.mp4 "What is moved?", or {self.names[0]}=features.npz "What is moved?" "a cup|a book".'
            )
        return [Given(str(found["question"]), found)]

    def _of_file(self, word: str) -> str:
        """The modality that a file without a name is of."""
        hearing = [one.name for one in self.modalities if one.kind == "segments"]
        return hearing[0] if hearing and is_sound(word) else self.names[0]

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """An answer to each question: the likeliest of its options, with their scores, or where it has none the generated one.

        Returns a list of {"label", "scores" (of options), "modalities" (which it was answered with)}.

        Raises:
            DataError: the first modality is missing, or a file cannot be read.
        """
        whole: Any = model
        collate = QuestionCollator(processor, self.modalities, self.options.prefix, self.options.frames)
        made: list[Any] = []
        sets, whole.sets = whole.sets, ()
        try:
            with evaluating(model) as device:
                for part in chunks(list(inputs), batch_size):
                    for one in part:  # questions differ in whether they have options
                        row = self._asked(one, processor)
                        batch = moved(collate([row]), device)
                        made.append(self._answered(whole, processor, batch, row))
        finally:
            whole.sets = sets
        return made

    def _asked(self, one: Mapping[str, Any], processor: Any) -> dict[str, Any]:
        question = str(one["question"])
        sources, options = self.sources(one, question, asked=True), options_of(one.get("options"))
        self.require_first(sources, f"the question {question!r}")
        read = self.read(sources, question, processor)
        ids = processor.ids(self.prompt(question, options))[: self.options.max_length]
        wordings = [[*processor.ids(text), processor.end] for text in self.wordings(options or [])]
        return {**read, "question": ids, "options": wordings, "texts": options}

    def require_first(self, sources: Mapping[str, Any], where: str) -> None:
        """Raise DataError where there is nothing of the first modality, beside which the others are read."""
        if self.names[0] in sources:
            return
        others = [name for name in self.names[1:] if name in sources]
        raise DataError(
            f"{where}: there is no {self.names[0]}, without which nothing can be answered"
            + (
                f"; {' and '.join(others)} alone {'are' if len(others) > 1 else 'is'} not enough"
                if others
                else ""
            )
            + f".\n  Give its features or file: {self.names[0]}=..., the column {self.names[0]!r}, or task.features.{self.names[0]}."
        )

    def _answered(self, model: Any, processor: Any, batch: Any, row: Mapping[str, Any]) -> dict[str, Any]:
        used = [name for name in self.names if name in row["features"] or name in row["raw"]]
        texts = row["texts"]
        if not texts:
            own = self.options
            penalty = {"length_penalty": own.length_penalty} if own.beams > 1 else {}
            ids = model.answers(
                batch, num_beams=own.beams, max_new_tokens=own.max_new_tokens, do_sample=False, eos_token_id=processor.end,
                pad_token_id=processor.tokenizer.pad_token_id, **penalty,
            )  # fmt: skip
            return {"label": processor.text(ids[0].tolist()), "modalities": used}
        scores = model(**batch)["logits"][0, 0].double().softmax(-1).tolist()
        best = max(range(len(texts)), key=scores.__getitem__)
        table = {text: round(score, 6) for text, score in zip(texts, scores, strict=True)}
        return {"label": texts[best], "score": table[texts[best]], "scores": table, "modalities": used}

    def shown(self, one: Any, prediction: Any) -> Shown:
        lacking = [name for name in self.names if name not in prediction["modalities"]]
        without = f" (without {' and '.join(lacking)})" if lacking else ""
        ranked = sorted(prediction.get("scores", {}).items(), key=lambda pair: -pair[1])
        return Shown(
            f"{prediction['label']}{without}",
            str(one["question"]),
            ranked=tuple(Ranked(*pair) for pair in ranked),
        )


def _put(found: dict[str, Any], name: str, value: Any) -> None:
    if name in found:
        raise DataError(f"two inputs for {name}: {found[name]} and {value}. Give one question at a time.")
    found[name] = value


def _column(split: Split, name: str) -> list[Any]:
    return list(split.rows[name]) if name in split.rows.column_names else []
