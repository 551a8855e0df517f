"""Reasoning: instructions that a language model answers in its own words, scored by the answer read out of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator
from torch import nn

from adaptome.core.errors import RecipeError
from adaptome.data.splits import Split, Splits
from adaptome.report.shown import Shown, Span
from adaptome.tasks.answers import Choice, Letter, Number, Rule, Text, guessed, rules_of
from adaptome.tasks.answers_math import Math, without_a_verifier
from adaptome.tasks.base import Prepared, TaskOptions, register_task
from adaptome.tasks.instructed import Instructed, InstructedOptions
from adaptome.tasks.reasoning_rows import asked_by, contamination, masked_numbers, read_rows, sets_of
from adaptome.tasks.showing import given_text

logger = logging.getLogger(__name__)


class ReasoningOptions(InstructedOptions):
    read: Literal["auto", "number", "letter", "choice", "text", "math"] = Field(
        default="auto",
        description="how an answer is read out of the text; auto: as the data set's paper, else by its answers; math: equal as mathematics",
    )
    choices: list[str] | None = Field(
        default=None, min_length=2, description="read: choice: the answers there are"
    )
    sample: bool = Field(default=False, description="draw the tokens instead of taking the likeliest")
    temperature: float | None = Field(default=None, gt=0, description="with sample only")
    top_p: float | None = Field(default=None, gt=0, le=1, description="with sample only")
    top_k: int | None = Field(default=None, ge=1, description="with sample only")
    allow_contamination: bool = Field(
        default=False, description="test on sets whose questions the training set is known to hold"
    )

    @field_validator("choices", mode="before")
    @classmethod
    def _quoted(cls, choices: Any) -> Any:
        if isinstance(choices, list) and any(isinstance(choice, bool) for choice in choices):
            raise ValueError(
                "without quotes, YAML takes yes, no, true and false for truth values. Put the words in quotes, e.g. choices: ['yes', 'no']"
            )
        return choices


@register_task("reasoning")
class Reasoning(Instructed):
    """Columns: instruction or question, input and options (may be absent), output (the text to learn), answer (what it is scored by).

    The options of a multiple-choice question are shown after it, lettered as in LLM-Adapters' AQuA files. Without an output
    the answer is learned; without an answer it is read out of the output (GSM8K has both in one). Every file of a split is
    a data set, named after the file, or its folder where the file is `test.json`; a column `dataset` names it row by row.
    Metrics: the loss of the written output, the exact accuracy of every set with its unweighted mean (and, of several
    sets, the share of all rows), and the share of rows whose text holds no answer.
    """

    Options = ReasoningOptions
    options: ReasoningOptions
    texts: ClassVar[tuple[str, ...]] = (
        "instruction",
        "question",
        "options",
        "input",
        "output",
        "answer",
        "dataset",
    )
    judges = True

    def __init__(self, options: TaskOptions, labels: Sequence[str] | None = None):
        super().__init__(options, labels)
        given = [key for key in ("temperature", "top_p", "top_k") if getattr(options, key) is not None]
        if given and not self.options.sample:
            raise RecipeError(
                f"task.{given[0]} has no effect without sampling, with beams neither. Leave it out, or set task.sample=true."
            )
        if (self.options.read == "choice") != (self.options.choices is not None):
            raise RecipeError("task.read: choice and task.choices, the answers there are, go together.")

    @property
    def headline(self) -> str:
        return "accuracy"

    # -- data ------------------------------------------------------------------------------------------------------

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        texts, notes = {}, contamination(splits, self.options.allow_contamination)
        for name, split in splits.items():
            texts[name], told = self.records(split, name)
            notes += told
        made = {}
        for name, records in texts.items():
            made[name], told = self.dataset(records, splits[name], name, processor)
            notes += [*masked_numbers(records, name), *told]
        for name in sorted(set(splits) - {"train"}):
            # an answer that cannot be read is found before anything is trained
            answers_of = [record["answer"] for record in texts[name]]
            rules = rules_of(sets_of(splits[name]), answers_of, splits[name].where, self._rule())
            notes += [] if self._rule() else guessed(rules)
        notes += without_a_verifier() if self.options.read == "math" else []
        return Prepared(made, self.collator(processor), length_column="length", notes=[*dict.fromkeys(notes)])

    def records(self, split: Split, name: str) -> tuple[list[dict[str, str]], list[str]]:
        """instruction, input, output and answer of every row that is taken, and notes on those that are not.

        Raises:
            DataError: as `read_rows`.
        """
        return read_rows(split, name), []

    # -- scores ----------------------------------------------------------------------------------------------------

    def inputs(self, rows: Any) -> list[Any]:
        return [{"instruction": asked_by(row), "input": row.get("input")} for row in rows]

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 8
    ) -> list[Any]:
        """What the model writes to each instruction: a text, or {"instruction", "input"}.

        Returns a list of {"completion"}; where the recipe says how answers are read, with "answer".
        """
        records = [{"instruction": one} if isinstance(one, str) else one for one in inputs]
        records = [
            {"instruction": r["instruction"], "input": r.get("input") or "", "system": r.get("system") or ""}
            for r in records
        ]
        options = self.options
        drawn = {key: getattr(options, key) for key in ("temperature", "top_p", "top_k")}
        given = {key: value for key, value in drawn.items() if value is not None}
        texts = self.written(model, processor, records, batch_size, do_sample=options.sample, **given)
        rule = self._rule()
        if rule is None:
            return [{"completion": text} for text in texts]
        return [{"completion": text, "answer": _written(rule.read(text))} for text in texts]

    def shown(self, one: Any, prediction: Any) -> Shown:
        """The text that was written, with the answer that is read from it marked."""
        text, found = prediction["completion"], prediction.get("answer")
        if found is None:
            return Shown(text, given_text(one))
        told = f"{found:g}" if isinstance(found, float) else str(found)
        before = f"{given_text(one)}\n\n"
        at = (before + text).rfind(told)
        spans = (Span(at, at + len(told), "answer"),) if told and at >= len(before) else ()
        return Shown(told, before + text, spans)

    def judge(self, split: Split, predictions: list[Any]) -> dict[str, float]:
        """accuracy_<set> of every set of the split, and accuracy, their mean; adds answer and right to each prediction.

        Of several sets, micro_accuracy is over all rows. unread is the share of texts that no answer can be read from:
        where it is high, the form of the answers is wrong, or `task.max_new_tokens` too small.
        """
        verdicts: dict[str, list[bool]] = {}
        unread: dict[str, list[str]] = {}
        rights = 0
        truths, sets = [record["answer"] for record in read_rows(split, "evaluated")], sets_of(split)
        rules = rules_of(sets, truths, split.where, self._rule())
        for name, truth, prediction in zip(sets, truths, predictions, strict=True):
            rule, text = rules[name], prediction["completion"]
            right = rule.right(text, truth)
            if rule.unread(text):
                unread.setdefault(name, []).append(text)
            rights += right
            prediction |= {"dataset": name, "answer": _written(rule.read(text)), "right": right}
            for key, verdict in {"": right, **rule.also(text, truth)}.items():
                verdicts.setdefault(f"accuracy_{name}{'_' * bool(key)}{key}", []).append(verdict)
        scores = {key: sum(found) / len(found) for key, found in verdicts.items()}
        found = {"accuracy": sum(scores[f"accuracy_{name}"] for name in rules) / len(rules)}
        if len(rules) > 1:
            found["micro_accuracy"] = rights / len(predictions)
        for name, texts in unread.items():
            if 2 * len(texts) > sets.count(name):
                logger.warning(
                    "%s: no answer (%s) can be read from %d of %d texts, such as %r. Is task.max_new_tokens=%d enough, and "
                    "has the model learned to write answers? task.read says how they are read.",
                    name, rules[name], len(texts), sets.count(name), texts[0][:80], self.options.max_new_tokens,
                )  # fmt: skip
        return {**found, "unread": sum(map(len, unread.values())) / len(predictions), **scores}

    def _rule(self) -> Rule | None:
        """The rule that the recipe names; None for auto."""
        if self.options.choices is not None:
            return Choice(tuple(self.options.choices), whole=True)
        named: dict[str, Rule] = {"number": Number(), "letter": Letter(), "text": Text(), "math": Math()}
        return named.get(self.options.read)


def _written(answer: Any) -> Any:
    """An answer as JSON can hold it."""
    return None if isinstance(answer, float) and not math.isfinite(answer) else answer
