"""The texts that an instruction is given to a language model in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Template = Literal["alpaca", "alpaca-indented", "chat", "plain"]

IGNORED = -100  # positions that the loss passes over
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
WITHOUT_INPUT = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
INDENT = " " * 16


def prompt_of(record: Mapping[str, str], template: Template, processor: Any) -> str:
    """The text up to where the answer begins.

    Args:
        record: its instruction, and input, which may be empty; and system, which 'chat' alone has a place for.
        template: 'alpaca', 'alpaca-indented' (as LLM-Adapters' finetune.py writes it), 'chat', the tokenizer's own, or 'plain', a line each.
        processor: the tokenizer.
    """
    given = record["input"]
    if template == "chat":
        asked = "\n\n".join(filter(None, (record["instruction"], given)))
        told = [{"role": "system", "content": record["system"]}] if record.get("system") else []
        chat = [*told, {"role": "user", "content": asked}]
        return str(processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    if template == "plain":
        return "".join(f"{part}\n" for part in (record["instruction"], given) if part)
    parts = [
        ("Instruction", record["instruction"]),
        *([("Input", given)] if given else []),
        ("Response", ""),
    ]
    if template == "alpaca":
        head = WITH_INPUT if given else WITHOUT_INPUT
        return f"{head}\n\n" + "\n\n".join(f"### {title}:\n{text}" for title, text in parts)
    # with the spaces that end the script's first line
    head = f"{WITH_INPUT} " if given else f"{WITHOUT_INPUT}  "
    sections = f"\n{INDENT}\n".join(f"{INDENT}### {title}:\n{INDENT}{text}" for title, text in parts)
    return f"{head}\n\n{sections}"


def tokenised(
    records: Sequence[Mapping[str, str]],
    template: Template,
    processor: Any,
    max_length: int,
    everything: bool,
    drops: bool = False,
) -> tuple[dict[str, list[Any]], int, int]:
    """Columns of the examples, how many were cut, and how many were left out for they have no room for an answer.

    Args:
        records: instruction, input and output of each.
        template, processor: as for `prompt_of`.
        max_length: tokens kept of an example.
        everything: the loss is over the prompt too.
        drops: longer examples are left out, where others are cut; they are counted either way.
    """
    special = template != "chat"  # a rendered chat has its special tokens
    prompts = [prompt_of(record, template, processor) for record in records]
    texts = [prompt + record["output"] for prompt, record in zip(prompts, records, strict=True)]
    whole = processor(texts, add_special_tokens=special)["input_ids"]
    before = whole if everything else processor(prompts, add_special_tokens=special)["input_ids"]
    rows: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": [], "length": []}
    cut = unlearned = 0
    for ids, prompt in zip(whole, before, strict=True):
        full = _ended(ids, processor.eos_token_id)
        kept = full[:max_length]
        # Nothing stands before the first token: padded on the left, it would be predicted from padding.
        masked = 1 if everything else max(1, _shared(prompt, kept))
        cut += len(full if drops else ids) > max_length
        if drops and len(full) > max_length:
            continue
        if masked == len(kept):
            unlearned += 1
            continue
        rows["input_ids"].append(kept)
        rows["attention_mask"].append([1] * len(kept))
        rows["labels"].append([IGNORED] * masked + kept[masked:])
        rows["length"].append(len(kept))
    return rows, cut, unlearned


def _ended(ids: list[int], end: int) -> list[int]:
    return ids if ids and ids[-1] == end else [*ids, end]


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common beginning: a token that joins prompt and answer belongs to the answer."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
