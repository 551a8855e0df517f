"""Protein generation: a language model learns sequences of amino acids as text, and writes them for a property that is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import nn

from adaptome.core.errors import DataError, did_you_mean
from adaptome.data.splits import Split, Splits
from adaptome.proteins import Meter, cleaned, low_complexity
from adaptome.proteins.alphabet import Letters
from adaptome.report.shown import Shown
from adaptome.tasks.base import Prepared, register_task
from adaptome.tasks.instructed import Instructed, InstructedOptions
from adaptome.tasks.language import generate
from adaptome.tasks.protein_scores import Known, by_property, folded, measures
from adaptome.tasks.showing import Given

#: how a property is asked for: the name of the form -> its text
PROMPTS = {
    "bracket": "[Generate {property} protein]",
    "superfamily": "[Generate by superfamily] Superfamily=<{property}>",
}
OPEN, CLOSE = "Seq=<", ">"


class ProteinGenerationOptions(InstructedOptions):
    template: str = Field(  # type: ignore[assignment]  # one form alone
        default="plain", pattern="^plain$", description="plain, the only one: the prompt is task.prompt's"
    )
    train_on_inputs: bool = Field(default=False, description="the loss is over the prompt too")
    max_length: int = Field(
        default=512,
        ge=8,
        description="tokens of an example; longer ones are left out whole, for a cut one would not end",
    )
    max_new_tokens: int = Field(default=400, ge=1, description="written at most")
    controlled: bool = Field(
        default=True, description="ask for the column property; else sequences alone are learned"
    )
    prompt: str = Field(
        default="bracket",
        description=f"how a property is asked for: {', '.join(PROMPTS)}, or a text with {{property}}",
    )
    letters: Letters = Field(
        default="reject",
        description="sequences with letters that are no amino acid: reject, or map B, J, O, U, Z to the nearest residue",
    )
    shortest: int = Field(
        default=1, ge=1, description="residues: shorter sequences are left out, and are no valid answers"
    )
    longest: int = Field(default=1024, ge=1, description="likewise longer ones")
    samples: int = Field(default=1, ge=1, description="written for each input of `predict`")
    temperature: float = Field(
        default=0.2, gt=0, description="of sampling; ProLLaMA's, as the next three are"
    )
    top_k: int = Field(default=40, ge=0, description="likeliest tokens that are drawn from; 0: all")
    top_p: float = Field(default=0.9, gt=0, le=1, description="share of probability that is drawn from")
    repetition_penalty: float = Field(default=1.2, gt=0, description="of ProLLaMA; 1: none")
    sample_seed: int = Field(default=0, ge=0, description="of what is drawn in writing")
    complexity: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="share of low-complexity residues above which an answer is left out",
    )
    folds: str | None = Field(
        default=None,
        description="evaluation: a folder of PDB files or a table of pLDDT and TM-scores by an outside tool, by sequence",
    )

    @model_validator(mode="after")
    def _prompt(self) -> ProteinGenerationOptions:
        if self.prompt not in PROMPTS and "{property}" not in self.prompt:
            raise ValueError(
                f"prompt={self.prompt!r} is none of {', '.join(PROMPTS)}, and has no {{property}}.{did_you_mean(self.prompt, PROMPTS)}"
            )
        if self.shortest > self.longest:
            raise ValueError("shortest is above longest")
        return self


@register_task("protein-generation")
class ProteinGeneration(Instructed):
    """Columns: sequence, and property where `controlled`. The text is `Seq=<MKV...>` behind the prompt; the property is not in the loss.

    Metrics: loss and perplexity; of what is written, one sequence for each row of the split: valid (ends, canonical letters, length), kept (valid, not
    a repetition, not of low complexity), their shares; composition_divergence from the split in bits; low_complexity; nearest_identity to the training
    sequences; and property_accuracy, how often a classifier of k-mers that is trained on the training rows finds the property that was asked for, beside
    classifier_accuracy, the same for the split's own sequences.
    """

    Options = ProteinGenerationOptions
    options: ProteinGenerationOptions
    later_options = (
        *Instructed.later_options,
        "samples",
        "temperature",
        "top_k",
        "top_p",
        "repetition_penalty",
        "sample_seed",
        "complexity",
        "folds",
    )
    texts = ("sequence", "property")
    judges = True

    def __init__(self, options: ProteinGenerationOptions, labels: Sequence[str] | None = None):
        super().__init__(options, labels)
        self._known: Known = []  # of the training rows

    @property
    def headline(self) -> str:
        return "property_accuracy" if self.options.controlled else "loss"

    # -- data ------------------------------------------------------------------------------------------------------

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        controlled, made, notes = self.options.controlled, {}, list[str]()
        splits.require("sequence", *(["property"] if controlled else []))
        for name, split in splits.items():
            rows, told = self._clean(split, name)
            records = [{**self._asked(of), "output": f"{OPEN}{sequence}{CLOSE}"} for sequence, of in rows]
            records, long = self._short(records, processor)
            if not records:
                raise DataError(
                    f"{split.source}: no sequence of the {name} split is left; {' '.join([*told, *long])}"
                )
            if name == "train":
                self._known = rows
                self.labels = sorted({of for _, of in rows}) if controlled else None
            elif (
                controlled
                and (new := sorted({of for _, of in rows} - {*(self.labels or [])}))
                and self.labels
            ):
                raise DataError(
                    f"{split.source}: the property {new[0]!r} of the {name} split is none of train's.{did_you_mean(new[0], self.labels)} "
                    f"There are: {', '.join(self.labels)}."
                )
            made[name], cut = self.dataset(records, split, name, processor)
            notes += [f"{name}: {note}" for note in [*told, *long]] + cut
        return Prepared(made, self.collator(processor), self.labels, length_column="length", notes=notes)

    def _clean(self, split: Split, name: str) -> tuple[list[tuple[str, str]], list[str]]:
        """Sequences with their properties, and what was left out."""
        rows, why, first = list[tuple[str, str]](), Counter[str](), dict[str, str]()
        properties = split.rows["property"] if self.options.controlled else [""] * len(split)
        for row, (text, of) in enumerate(zip(split.rows["sequence"], properties, strict=True)):
            sequence, reason = cleaned(text, self.options.letters)
            if reason is None and not self.options.shortest <= len(sequence) <= self.options.longest:
                reason = "length"
            if reason is not None:
                why[reason] += 1
                first.setdefault(reason, split.where(row))
                continue
            rows.append((sequence, _bare(of)))
        return rows, [
            f"{n} sequences are left out: {reason} (the first: {first[reason]})."
            for reason, n in sorted(why.items())
        ]

    def _short(self, records: list[dict[str, str]], processor: Any) -> tuple[list[dict[str, str]], list[str]]:
        limit = self.options.max_length
        lengths = [
            len(ids)
            for start in range(0, len(records), 1000)
            for ids in processor(
                [f"{r['instruction']}\n{r['output']}" for r in records[start : start + 1000]]
            )["input_ids"]
        ]
        kept = [record for record, length in zip(records, lengths, strict=True) if length + 1 <= limit]
        out = len(records) - len(kept)
        return kept, [
            f"{out} sequences are left out: with their prompts they exceed {limit} tokens (task.max_length)."
        ] if out else []

    def _asked(self, of: str) -> dict[str, str]:
        told = PROMPTS.get(self.options.prompt, self.options.prompt)
        return {"instruction": told.replace("{property}", of) if of else "", "input": ""}

    # -- writing ---------------------------------------------------------------------------------------------------

    def inputs(self, rows: Any) -> list[Any]:
        return list(rows["property"]) if self.options.controlled else [""] * len(rows)

    def given(self, words: Sequence[str]) -> list[Given]:
        """Properties, with first residues after a colon where these are given; 'any' for none."""
        return [Given(word, word) for word in words]

    def truths(self, rows: Any) -> list[Any]:
        return list(rows["sequence"])

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 16
    ) -> list[Any]:
        """Sequences for each property: "CheY", "CheY: MKR" to begin with these residues, or "any" ("" in Python) for no property.

        Returns a list of {"property", "sequences" (those that are kept), "written" (all), "left_out" (reason -> how many)}.

        Raises:
            DataError: a property that training did not have, or first residues that are none.
        """
        options, asked = self.options, [self._wish(one) for one in inputs]
        prompts = [
            "".join(f"{line}\n" for line in [self._asked(of)["instruction"]] if line) + OPEN + begin
            for of, begin in asked
            for _ in range(options.samples)
        ]
        drawn: dict[str, Any] = {
            "top_k": options.top_k,
            "top_p": options.top_p,
            "repetition_penalty": options.repetition_penalty,
        }
        with torch.random.fork_rng(
            devices=[d for d in [next(model.parameters()).device] if d.type == "cuda"]
        ):
            torch.manual_seed(options.sample_seed)
            texts = generate(
                model, processor, prompts, batch_size, max_new_tokens=options.max_new_tokens, do_sample=True,
                temperature=options.temperature, **drawn,
            )  # fmt: skip
        made, seen = [], set[str]()
        for number, (of, begin) in enumerate(asked):
            own = [begin + text for text in texts[number * options.samples : (number + 1) * options.samples]]
            kept, out = self._sifted(own, seen)
            made.append({"property": of or "any", "sequences": kept, "written": own, "left_out": dict(out)})
        return made

    def _wish(self, one: str) -> tuple[str, str]:
        of, _, begin = one.partition(":")
        of, begin = of.strip(), begin.strip()
        of = "" if of == "any" else _bare(of)
        if of and self.options.controlled and self.labels and of not in self.labels:
            raise DataError(
                f"{of!r} is no property that was learned.{did_you_mean(of, self.labels)} There are: {', '.join(self.labels)}; or any."
            )
        if begin:
            begin, wrong = cleaned(begin)
            if wrong:
                raise DataError(f"{one!r}: the first residues have {wrong}.")
        return of, begin

    def _sifted(self, texts: Sequence[str], seen: set[str]) -> tuple[list[str], Counter[str]]:
        """The answers that are kept, and the others by reason."""
        kept, out = [], Counter[str]()
        for text in texts:
            sequence, reason = self.valid(text)
            if reason is None and sequence in seen:
                reason = "repeated"
            if reason is None and low_complexity(sequence) > self.options.complexity:
                reason = "low complexity"
            if reason is None:
                kept.append(sequence)
                seen.add(sequence)
            else:
                out[reason] += 1
        return kept, out

    def valid(self, text: str) -> tuple[str, str | None]:
        """The sequence of what was written, and what is wrong with it: it does not end, has other letters, or its length."""
        body, end, _ = text.partition(CLOSE)
        if not end:
            return "", "without end"
        sequence, wrong = cleaned(body)
        if wrong is not None:
            return "", "letters" if wrong.startswith("letters") else wrong
        if not self.options.shortest <= len(sequence) <= self.options.longest:
            return "", "length"
        return sequence, None

    def shown(self, one: Any, prediction: Any) -> Shown:
        told = ", ".join(f"{n} {why}" for why, n in prediction["left_out"].items())
        return Shown(" ".join(prediction["sequences"]) or f"nothing valid ({told})", prediction["property"])

    # -- scores ----------------------------------------------------------------------------------------------------

    def judge(self, split: Split, predictions: list[Any]) -> dict[str, float]:
        """Measures of what was written for the split's rows; those against the training rows where these were read."""
        own, _ = self._clean(split, "evaluated")
        pairs = [(self.valid(text), one["property"]) for one in predictions for text in one["written"]]
        good = [(sequence, of) for (sequence, wrong), of in pairs if wrong is None]
        total = max(len(pairs), 1)
        kept = sum(len(one["sequences"]) for one in predictions)
        found = {"valid": len(good) / total, "kept": kept / total} | measures(good, own, self._known)
        if self.options.controlled and len({of for _, of in self._known}) > 1:
            found |= by_property(good, own, self._known, total)
        if self.options.folds is not None:
            found |= folded([sequence for sequence, _ in good], Path(self.options.folds))
        return found

    def metered(
        self, model: nn.Module, processor: Any, inputs: Sequence[str], batch_size: int = 16
    ) -> tuple[list[Any], dict[str, Any]]:
        """What `predict` gives, and tokens per second and per watt of it, by the method that is told (`proteins.meter`).

        Tokens are those of the texts as the tokenizer reads them, prompts and the marks of the end not counted.
        """
        with Meter() as meter:
            made = self.predict(model, processor, inputs, batch_size)
            texts = [text for one in made for text in one["written"]]
            meter.count(
                sum(map(len, processor(texts, add_special_tokens=False)["input_ids"])) if texts else 0
            )
        return made, meter.reading.to_dict()


def _bare(of: str) -> str:
    """A property without what ProLLaMA's data writes around it: `Superfamily=<CheY-like superfamily>`."""
    inner = of.partition("=<")[2].rpartition(">")[0] if "=<" in of else of
    return " ".join(inner.split())
