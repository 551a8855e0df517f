"""Long reasoning: a language model learns to think in steps before it answers (Li et al. 2025, arXiv:2502.07374)."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from adaptome.core.errors import DataError, RecipeError
from adaptome.data.splits import Split, Splits
from adaptome.report.shown import Shown, Span
from adaptome.tasks.base import TaskOptions, register_task
from adaptome.tasks.instructed import Instructed
from adaptome.tasks.reasoning import Reasoning, ReasoningOptions
from adaptome.tasks.reasoning_rows import read_rows
from adaptome.tasks.showing import given_text
from adaptome.tasks.trace_rows import conversations_taken
from adaptome.traces import (
    MARKERS,
    Trace,
    count,
    framed,
    opens_with_keyword,
    pass_at_k,
    perturbed,
    read_trace,
)

How = Literal["wrong", "digits", "keywords", "shuffle", "delete", "insert"]


class PerturbOptions(BaseModel):
    """How training traces are spoiled, to learn what a model takes from them."""

    model_config = ConfigDict(extra="forbid")
    how: How = Field(description="wrong answers, digits, keywords; or steps shuffled, deleted, inserted")
    share: float = Field(
        default=1.0, ge=0, le=1, description="of the digits, sentences with keywords, or steps"
    )
    seed: int = Field(default=0, description="what is drawn")


class LongReasoningOptions(ReasoningOptions):
    max_length: int = Field(
        default=16384, ge=8, description="tokens of an example, prompt and answer, and of a packed row"
    )
    max_new_tokens: int = Field(default=16384, ge=1, description="generated at most")
    template: Literal["alpaca", "alpaca-indented", "chat", "plain"] = Field(
        default="chat", description="chat: the tokenizer's own; the others as in `reasoning`"
    )
    train_on_inputs: bool = Field(default=False, description="the loss is over the prompt too")
    too_long: Literal["cut", "drop"] = Field(
        default="drop", description="what becomes of training traces of more tokens: cut ones have no answer"
    )
    read: Literal["auto", "number", "letter", "choice", "text", "math"] = Field(
        default="math", description="how an answer is read out of the text; math: equal as mathematics"
    )
    system: str | None = Field(
        default=None,
        description="told before every question in place of the rows' own (template: chat); unset: the rows', and later what all of train had",
    )
    markers: Literal["sky", "think"] = Field(
        default="sky", description="sky: <|begin_of_thought|> and its kin; think: <think> and </think>"
    )
    malformed: Literal["error", "drop", "frame"] = Field(
        default="error",
        description="outputs without the marks: refused, left out, or framed (their last line the solution, each before it a step)",
    )
    keep: Literal["all", "right", "wrong"] = Field(
        default="all",
        description="train on the traces whose answer is the record's, or on those where it is not",
    )
    perturb: PerturbOptions | None = Field(default=None, description="spoil the training traces")
    samples: int = Field(
        default=1, ge=1, description="answers to each question when scoring; more than one need sample: true"
    )
    measure_before: bool = Field(
        default=False, description="score the base without the adapters too, as accuracy_before"
    )


@register_task("long-reasoning")
class LongReasoning(Reasoning):
    """Reasoning whose outputs are a thought in steps and a solution, between marks. Columns: as of `reasoning`, or `conversations`.

    Rows of SkyThought and Bespoke-Stratos (system, conversations of from and value) and of chats (messages) need no change; a
    column `steps` says the thought's steps where the rule of `adaptome.traces.segment` is not to, and a column `wrong` traces that
    end in a wrong answer, for `perturb`; without it the answer alone is changed. Training alone reads traces:
    what is scored needs a question and an answer. Metrics beside those of `reasoning`: tokens and keywords of a text, the share
    that has thought and solution, the share that opens with a keyword, and with `samples` pass@k.
    """

    Options = LongReasoningOptions
    options: LongReasoningOptions
    texts = (*Reasoning.texts, "system", "wrong")
    later_options = (*Instructed.later_options, "samples", "measure_before")

    def __init__(self, options: TaskOptions, labels: Sequence[str] | None = None):
        super().__init__(options, labels)
        if self.options.samples > 1 and not self.options.sample:
            raise RecipeError(
                "task.samples: answers that are not drawn are all the same. Set task.sample=true."
            )

    @property
    def measures_before(self) -> bool:  # type: ignore[override]  # a fixed choice of most tasks, an option here
        return self.options.measure_before

    # -- data ------------------------------------------------------------------------------------------------------

    def shaped(self, splits: Splits) -> Splits:
        """Conversations as instruction, output and system."""
        return Splits({name: conversations_taken(split) for name, split in splits.items()}, splits.notes)

    def records(self, split: Split, name: str) -> tuple[list[dict[str, str]], list[str]]:
        """Those of `reasoning`, with the system's text; of train the traces that are well formed and kept, spoiled as asked.

        Raises:
            DataError: a trace that is malformed, where malformed: error; none is left.
        """
        made = read_rows(split, name)
        there = split.rows.column_names
        told_by = list(split.rows["system"]) if "system" in there else [None] * len(made)
        if name == "train" and self.options.system is None and len(set(told_by)) == 1 and told_by[0]:
            # so that a question that comes alone is asked as the model learned it
            self.options = self.options.model_copy(update={"system": told_by[0]})
        for record, own in zip(made, told_by, strict=True):
            record["system"] = (own if self.options.system is None else self.options.system) or ""
        if name != "train":
            return made, []
        if "wrong" in there:
            for record, wrong in zip(made, split.rows["wrong"], strict=True):
                record["wrong"] = wrong or ""
        if self.options.keep != "all" and "answer" not in there:
            raise DataError(f"{split.source}: task.keep compares with the column answer, and there is none.")
        steps = split.rows["steps"] if "steps" in there else [None] * len(made)
        read: list[tuple[dict[str, str], Trace]] = []
        reasons: Counter[str] = Counter()
        for row, (record, own) in enumerate(zip(made, steps, strict=True)):
            try:
                trace = self._trace(record["output"], own)
            except DataError as error:
                if self.options.malformed == "error":
                    raise DataError(
                        f"{split.where(row)}: {error}, so this is no trace in the marks of {self.options.markers!r}.\n"
                        "  task.markers names other marks; task.malformed=drop leaves such rows out, frame puts marks around their lines."
                    ) from None
                reasons[str(error)] += 1
                continue
            read.append((record, trace))
        notes = [f"{n} of {len(made)} traces of train were left out: {why}." for why, n in reasons.items()]
        read, told = self._kept(read)
        if not read:
            raise DataError(f"{split.source}: no trace is left to train on. {' '.join([*notes, *told])}")
        return self._spoiled(read), [*notes, *told]

    def _trace(self, text: str, steps: Sequence[str] | None) -> Trace:
        markers = MARKERS[self.options.markers]
        if self.options.malformed != "frame" or markers.begin_thought in text:
            return read_trace(text, markers, steps)
        *before, last = [line.strip() for line in text.splitlines() if line.strip()] or [""]
        if not before:
            raise DataError("there is one line, so no thought before the solution")
        return framed(before, last, markers)

    def _kept(
        self, read: list[tuple[dict[str, str], Trace]]
    ) -> tuple[list[tuple[dict[str, str], Trace]], list[str]]:
        """The traces whose answers are right, or wrong, as `keep` asks: rejection sampling."""
        if self.options.keep == "all":
            return read, []
        rule, wanted = self.rule(), self.options.keep == "right"
        found = [(r, t) for r, t in read if rule.right(t.solution, r["answer"]) == wanted]
        told = f"{len(found)} of {len(read)} traces of train were kept: their answers are {self.options.keep} (task.keep)."
        return found, [told]

    def _spoiled(self, read: Sequence[tuple[Mapping[str, str], Trace]]) -> list[dict[str, str]]:
        asked = self.options.perturb
        traces = [trace for _, trace in read]
        if asked is not None and asked.how == "wrong" and all(record.get("wrong") for record, _ in read):
            traces = [
                self._trace(r["wrong"], None)
                if random.Random(f"{asked.seed} wrong {at}").random() < asked.share
                else t
                for at, (r, t) in enumerate(read)
            ]
        elif asked is not None:
            pool = (
                [(at, step) for at, t in enumerate(traces) for step in t.steps]
                if asked.how == "insert"
                else []
            )
            made = []
            for at, trace in enumerate(traces):
                draw = random.Random(f"{asked.seed} {asked.how} {at}")
                others = _foreign(pool, at, len(trace.steps), draw) if pool else []
                made.append(perturbed(trace, asked.how, asked.share, draw, others))
            traces = made
        return [{**record, "output": t.text} for (record, _), t in zip(read, traces, strict=True)]

    # -- predictions and scores ------------------------------------------------------------------------------------

    def inputs(self, rows: Any) -> list[Any]:
        systems = list(rows["system"]) if "system" in rows.column_names else [None] * len(rows)
        asked = super().inputs(rows)
        return [{**one, "system": system or ""} for one, system in zip(asked, systems, strict=True)]

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 8
    ) -> list[Any]:
        """What the model writes to each question: {"completion", "answer", "thought", "solution", "tokens", "keywords"}.

        thought and solution are None where the text has not both; of several `samples` the texts stand in "samples".
        """
        times = self.options.samples
        asked = [{"instruction": one} if isinstance(one, str) else dict(one) for one in inputs]
        if self.options.system is not None:
            asked = [{**one, "system": self.options.system} for one in asked]
        several = [one for one in asked for _ in range(times)]
        made = super().predict(model, processor, several, batch_size)
        lengths = [len(processor(one["completion"], add_special_tokens=False)["input_ids"]) for one in made]
        for one, length in zip(made, lengths, strict=True):
            one |= {"tokens": length, "keywords": count(one["completion"]), **self._parts(one["completion"])}
        firsts = made[::times]
        if times > 1:
            for at, one in enumerate(firsts):
                one["samples"] = [other["completion"] for other in made[at * times : (at + 1) * times]]
        return firsts

    def _parts(self, text: str) -> dict[str, str | None]:
        try:
            trace = read_trace(text, MARKERS[self.options.markers])
        except DataError:
            return {"thought": None, "solution": None}
        return {"thought": trace.thought, "solution": trace.solution}

    def shown(self, one: Any, prediction: Any) -> Shown:
        """The solution, below what was thought."""
        if prediction["solution"] is None:
            return super().shown(one, prediction)
        asked, thought, solution = given_text(one), prediction["thought"], prediction["solution"]
        text = f"{asked}\n\n{thought}\n\n{solution}"
        start = len(asked) + 2
        spans = (
            Span(start, start + len(thought), "thought"),
            Span(len(text) - len(solution), len(text), "solution"),
        )
        return Shown(str(prediction.get("answer") or solution), text, spans)

    def judge(self, split: Split, predictions: list[Any]) -> dict[str, float]:
        """Those of `reasoning`; tokens and keywords (means), well_formed and opens_with_keyword (shares), and pass@k of several samples."""
        metrics = super().judge(split, predictions)
        said = [one["completion"] for one in predictions]
        thoughts = [
            one["thought"] if one["thought"] is not None else one["completion"] for one in predictions
        ]
        metrics |= {
            "tokens": statistics.fmean(one["tokens"] for one in predictions),
            "keywords": statistics.fmean(count(text) for text in said),
            "well_formed": statistics.fmean(one["solution"] is not None for one in predictions),
            "opens_with_keyword": statistics.fmean(opens_with_keyword(text) for text in thoughts),
        }
        n = self.options.samples
        if n > 1:
            rule, truths = self.rule(), [record["answer"] for record in read_rows(split, "evaluated")]
            rights = [
                sum(rule.right(text, truth) for text in one["samples"])
                for one, truth in zip(predictions, truths, strict=True)
            ]
            for k in sorted({1, *(2**p for p in range(1, n.bit_length())), n} & set(range(1, n + 1))):
                metrics[f"pass@{k}"] = statistics.fmean(pass_at_k(n, c, k) for c in rights)
        return metrics

    def rule(self) -> Any:
        """How answers are read: for traces, `task.read` has to say it.

        Raises:
            RecipeError: task.read is auto.
        """
        rule = self._rule()
        if rule is None:
            raise RecipeError(
                "task.keep and task.samples compare answers by task.read: math, number, letter, choice or text."
            )
        return rule


def _foreign(pool: Sequence[tuple[int, str]], own: int, wanted: int, draw: random.Random) -> list[str]:
    """Steps of other traces: as many as the trace has, drawn from all of them."""
    found: list[str] = []
    if all(at == own for at, _ in pool):
        return found
    while len(found) < max(wanted, 1):
        at, step = draw.choice(pool)
        if at != own:
            found.append(step)
    return found
