"""Dialogues: a chat model learns to answer as an adviser does, in its own chat template, scored by likelihood, form, facts and likeness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field
from torch import nn

from adaptome.core.errors import DataError
from adaptome.data.chats import joined
from adaptome.data.dialogues import check_turns, with_messages, without_duplicates
from adaptome.data.splits import Split, Splits
from adaptome.tasks.base import ModelSpec, Prepared, register_task
from adaptome.tasks.chat_templates import Chat, answer_spans, rendered, require_template, set_template
from adaptome.tasks.dialogue_scores import bleu, gains, of_facts, of_form, of_likeness, require_likeness
from adaptome.tasks.instructed import Written, WrittenOptions
from adaptome.tasks.language import generate
from adaptome.tasks.lengths import cut_note
from adaptome.tasks.reasoning_prompts import IGNORED


class DialogueOptions(WrittenOptions):
    max_length: int = Field(default=2048, ge=8, description="tokens of a dialogue; the rest is cut")
    max_new_tokens: int = Field(default=512, ge=1, description="of an answer, at most")
    chat_template: str | None = Field(
        default=None,
        description="human-assistant (plain lines), or a Jinja file; default: the tokenizer's own",
    )
    system: str | None = Field(
        default=None, description="system prompt of dialogues that have none, in training and in use"
    )
    train_on_inputs: bool = Field(
        default=False, description="the loss is over the whole dialogue, not the answers alone"
    )
    near_duplicates: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="leave out training dialogues whose TF-IDF cosine to an earlier one, or to validation or test, is above this; "
        "the same ones are left out in any case",
    )
    measure_before: bool = Field(
        default=False, description="score and ask the base without the adapters too: <metric>_before, and what was gained with its interval"
    )  # fmt: skip


@register_task("dialogue")
class Dialogue(Written):
    """Columns: messages ({role, content}), or ShareGPT's conversations ({from, value}); user and assistant in turn.

    The last answer of each dialogue is written anew and scored: its form (headings, lists, 'Action Steps'), ROUGE-L and BLEU against
    the reference, `unfinished` for what the limit on tokens cut; with a column facts what it must state (a text for each, `a|b` for
    either), with wrong what it must not.
    """

    Options = DialogueOptions
    options: DialogueOptions
    chats = ("messages",)
    later_options = ("max_new_tokens", "num_beams", "measure_before")
    judges = True

    @property
    def measures_before(self) -> bool:  # type: ignore[override]  # a fixed choice of most tasks, an option here
        return self.options.measure_before

    def load_processor(self, model: ModelSpec) -> Any:
        tokenizer = super().load_processor(model)
        set_template(tokenizer, self.options.chat_template)
        require_template(tokenizer, model.tokenizer or model.name)
        return tokenizer

    # -- data ------------------------------------------------------------------------------------------------------

    def shaped(self, splits: Splits) -> Splits:
        """Turns checked, and training rows that come again left out."""
        found = with_messages(splits)
        found.require("messages")
        for split in found.values():
            for row, messages in enumerate(split.rows["messages"]):
                check_turns(split.where(row), messages)
        return without_duplicates(found, self.options.near_duplicates)

    def prepare(self, splits: Splits, processor: Any) -> Prepared:
        require_likeness()  # else it would be missed when all is trained
        made, notes = {}, list(splits.notes)
        for name, split in splits.items():
            made[name], told = self._tokenised(split, name, processor)
            notes += told
        return Prepared(made, self.collator(processor), length_column="length", notes=notes)

    def _tokenised(self, split: Split, name: str, processor: Any) -> tuple[Any, list[str]]:
        import datasets

        limit = self.options.max_length
        rows: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": [], "length": []}
        cut = unlearned = 0
        for messages in split.rows["messages"]:
            ids, labels = self._row(processor, self._with_system(messages))
            cut += len(ids) > limit
            ids, labels = ids[:limit], labels[:limit]
            if all(label == IGNORED for label in labels):
                unlearned += 1
                continue
            for key, value in (("input_ids", ids), ("attention_mask", [1] * len(ids)), ("labels", labels), ("length", len(ids))):  # fmt: skip
                rows[key].append(value)
        if not rows["length"]:
            raise DataError(f"{split.source}: no dialogue of the {name} split has an answer within task.max_length={limit} tokens. Raise it.")  # fmt: skip
        notes = cut_note(cut, len(split), name, limit)
        if unlearned:
            notes.append(f"{unlearned} dialogues of {name} were left out of the loss: their questions leave no room for an answer.")  # fmt: skip
        return datasets.Dataset.from_dict(rows), notes

    def _row(self, processor: Any, chat: Chat) -> tuple[list[int], list[int]]:
        """Tokens of a dialogue, and their labels: those of the answers, or all but the first."""
        if self.options.train_on_inputs:
            text, spans = rendered(processor, chat).rstrip(), None
        else:
            text, spans = answer_spans(processor, chat)
            text = text[: spans[-1][1]]
        read = processor(text, add_special_tokens=False, return_offsets_mapping=spans is not None)
        ids: list[int] = read["input_ids"]
        if spans is None:
            return ids, [IGNORED, *ids[1:]]
        learned = [any(a < end and begin < b for a, b in spans) for begin, end in read["offset_mapping"]]
        learned[0] = False  # nothing stands before the first token
        return ids, [i if own else IGNORED for i, own in zip(ids, learned, strict=True)]

    def _with_system(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        told = self.options.system is not None and messages[0]["role"] != "system"
        return [{"role": "system", "content": self.options.system}, *messages] if told else list(messages)

    # -- predictions and scores ------------------------------------------------------------------------------------

    def inputs(self, rows: Any) -> list[Any]:
        return [messages[:-1] for messages in rows["messages"]]

    def truths(self, rows: Any) -> list[Any]:
        return [messages[-1]["content"] for messages in rows["messages"]]

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 16
    ) -> list[Any]:
        """Answers, greedily chosen: each input is a question, or a dialogue that a user speaks last in.

        Returns a list of {"prompt", "completion", "finished"}; finished: it ended before the limit on tokens.
        """
        chats = [[{"role": "user", "content": one}] if isinstance(one, str) else joined(list(one), "the dialogue") for one in inputs]  # fmt: skip
        prompts = [rendered(processor, self._with_system(chat), answering=True) for chat in chats]
        texts = generate(
            model, processor, prompts, batch_size, False,
            max_new_tokens=self.options.max_new_tokens, num_beams=self.options.num_beams, do_sample=False,
        )  # fmt: skip
        sizes = [len(ids) for ids in processor(texts, add_special_tokens=False)["input_ids"]] if texts else []
        return [
            {"prompt": one, "completion": text.strip(), "finished": size < self.options.max_new_tokens}
            for one, text, size in zip(inputs, texts, sizes, strict=True)
        ]

    def judge(self, split: Split, predictions: list[Any]) -> dict[str, float]:
        """Means of every score, and BLEU."""
        scores = self._scores(split, predictions)
        told = {name: float(values.mean()) for name, values in scores.items() if len(values)}
        answers = [one["completion"] for one in predictions]
        return told | {"bleu": bleu(answers, self.truths(split.rows))}

    def contrast(self, split: Split, predictions: list[Any], before: list[Any]) -> dict[str, float]:
        """What the answers gained over the base's, with 95 % intervals."""
        return gains(self._scores(split, predictions), self._scores(split, before))

    def _scores(self, split: Split, predictions: list[Any]) -> dict[str, np.ndarray]:
        rows, answers = split.rows, [one["completion"] for one in predictions]
        found = of_form(answers) | of_likeness(answers, self.truths(rows))
        found["unfinished"] = np.array([not one["finished"] for one in predictions], dtype=float)
        if "facts" in rows.column_names:
            wrong = rows["wrong"] if "wrong" in rows.column_names else None
            found |= of_facts(answers, rows["facts"], wrong)
        return found
