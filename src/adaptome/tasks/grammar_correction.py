"""Grammar correction: a language model writes a sentence anew without its errors, scored by edits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import nn

from adaptome.core.errors import DataError, did_you_mean
from adaptome.data.splits import Split, Splits
from adaptome.grammar import Substitution, edits, tokens
from adaptome.grammar.scores import Annotator, Pair, annotated, total
from adaptome.report.shown import Shown, Span
from adaptome.tasks.base import Prepared, register_task
from adaptome.tasks.instructed import Instructed, InstructedOptions

#: what other data sets call the corrections, and their text where one word stands for all
_OTHER_NAMES = ("references", "targets", "target", "correction", "corrections")


class GrammarCorrectionOptions(InstructedOptions):
    instruction: str = Field(
        default="改正这句话的语法错误，只写出改正后的句子；没有错误就照抄。",
        description="what the model is told to do; may be empty with template: plain",
    )
    train_on_inputs: bool = Field(default=False, description="the loss is over the prompt too")
    learn: Literal["first", "all"] = Field(
        default="first", description="train on each sentence's first correction, or on all of them"
    )
    ties: Literal["pooled", "first", "best"] = Field(
        default="pooled",
        description="alignments that cost the same: pooled as ChERRANT does by default, the first alone, or the one that scores best",
    )
    latin: Literal["characters", "words"] = Field(
        default="characters", description="scoring: Latin words as characters, or whole"
    )
    thesaurus: Path | None = Field(default=None, description="ChERRANT's cilin.txt, for its costs in full")
    confusions: Path | None = Field(default=None, description="ChERRANT's confusion_dict.txt")
    readings: bool = Field(default=False, description="scoring: readings of characters from pypinyin")
    longest: float = Field(
        default=2.0,
        gt=1,
        description="a text longer than this many times its sentence is no correction: the sentence stays",
    )


@register_task("grammar-correction")
class GrammarCorrection(Instructed):
    """Columns: source, and references (or targets): one correction or a list; a right sentence is its own.

    Metrics: the loss of the corrections, and precision, recall and F0.5 of the edits at character level, as ChERRANT counts them
    (`adaptome.grammar`); with a column category also f0.5_<category>.
    """

    Options = GrammarCorrectionOptions
    options: GrammarCorrectionOptions
    later_options = (
        *Instructed.later_options,
        "ties",
        "latin",
        "thesaurus",
        "confusions",
        "readings",
        "longest",
    )
    texts = ("source", "category")
    judges = True

    @property
    def headline(self) -> str:
        return "f0.5"

    # -- data ------------------------------------------------------------------------------------------------------

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        made, notes = {}, []
        for name, split in splits.items():
            several = self.options.learn == "all" and name == "train"
            records = [
                {**self._asked(source), "output": text}
                for source, texts in read_corrections(split, name)
                for text in (texts if several else texts[:1])
            ]
            made[name], told = self.dataset(records, split, name, processor)
            notes += told
        return Prepared(made, self.collator(processor), length_column="length", notes=notes)

    def _asked(self, source: str) -> dict[str, str]:
        return {"instruction": self.options.instruction, "input": source}

    # -- predictions and scores ------------------------------------------------------------------------------------

    def inputs(self, rows: Any) -> list[Any]:
        return [row["source"] for row in rows]

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 16
    ) -> list[Any]:
        """Each sentence corrected: {"source", "correction", "edits"}.

        The first line that is written counts; a sentence stays as it is where nothing is written, or something much longer.
        """
        texts = self.written(
            model, processor, [self._asked(one) for one in inputs], batch_size, do_sample=False
        )
        return [self._told(one, text) for one, text in zip(inputs, texts, strict=True)]

    def _told(self, source: str, text: str) -> dict[str, Any]:
        line = next((line.strip() for line in text.splitlines() if line.strip()), "")
        kept = line if line and len(line) <= self.options.longest * len(source) + 4 else source
        before, after = (tokens(one, self.options.latin) for one in (source, kept))
        found = edits(before, after, first=True)[0]
        told = [
            {"start": e.start, "end": e.end, "was": "".join(before[e.start : e.end]), "becomes": e.text}
            for e in found
        ]
        return {"source": source, "correction": kept, "edits": told}

    def shown(self, one: Any, prediction: Any) -> Shown:
        """The correction, with what was changed marked."""
        text, spans, moved = prediction["correction"], [], 0
        for edit in prediction["edits"]:
            start = edit["start"] + moved
            moved += len(edit["becomes"]) - (edit["end"] - edit["start"])
            spans.append(Span(start, start + len(edit["becomes"]), edit["was"] or "+"))
        whole = "".join(text.split()) == text and self.options.latin == "characters"
        return Shown(text, text, tuple(span for span in spans if span.start < span.end) if whole else ())

    def judge(self, split: Split, predictions: list[Any]) -> dict[str, float]:
        """precision, recall and f0.5 over the split, and f0.5 of every category."""
        rows = read_corrections(split, "evaluated")
        sources, references = [source for source, _ in rows], [texts for _, texts in rows]
        told = [prediction["correction"] for prediction in predictions]
        cost = Substitution.from_files(self.options.thesaurus, self.options.confusions, self.options.readings)
        by = Annotator(self.options.ties, cost, self.options.latin)
        pairs = annotated(sources, told, references, by)
        found = total(pairs).to_dict()
        metrics = {key: float(found[key]) for key in ("precision", "recall", "f0.5")}
        if "category" in split.rows.column_names:
            of: dict[str, list[Pair]] = {}
            for category, pair in zip(split.rows["category"], pairs, strict=True):
                of.setdefault(str(category), []).append(pair)
            metrics |= {f"f0.5_{category}": total(own).f() for category, own in of.items()}
        return metrics


def read_corrections(split: Split, name: str) -> list[tuple[str, list[str]]]:
    """Each row's sentence and its corrections, spaces at their ends cut off.

    Raises:
        DataError: no such columns, or a row without a sentence or correction; names the line.
    """
    there = split.rows.column_names
    Splits({name: split}).require("source")
    column = next((key for key in _OTHER_NAMES if key in there), None)
    if column is None:
        raise DataError(
            f"{split.source}: the {name} split has no column references (the corrections).{did_you_mean('references', there)}\n"
            f"  Columns there: {', '.join(there)}. Map one with data.columns."
        )
    made = []
    for row, record in enumerate(split.rows):
        source, found = record["source"], record[column]
        texts = [found] if isinstance(found, str) else found
        if not isinstance(source, str) or not source.strip():
            raise DataError(f"{split.where(row)}: 'source' is {source!r}; expected a sentence.")
        if (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(t, str) and t.strip() for t in texts)
        ):
            raise DataError(
                f"{split.where(row)}: {column!r} is {found!r}; expected a correction or a list of them."
            )
        made.append((source.strip(), [text.strip() for text in texts]))
    return made
