"""What the tasks of language models share: tokenizer and model, exact likelihoods, generation."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.errors import DataError, RecipeError
from adaptome.tasks.base import ModelSpec
from adaptome.tasks.inference import evaluating
from adaptome.tasks.models import check_vocabulary, has_weights, load_config, load_pretrained, load_tokenizer


def language_tokenizer(model: ModelSpec) -> Any:
    """The tokenizer of a causal language model.

    Raises:
        RecipeError: it cannot be had, or has no end-of-sequence token.
    """
    tokenizer = load_tokenizer(model)
    if tokenizer.eos_token is None:
        raise RecipeError(
            f"the tokenizer {model.tokenizer or model.name!r} has no end-of-sequence token, so a model could not "
            "learn where to stop. Name a causal language model's tokenizer: model.tokenizer."
        )
    return tokenizer


def language_model(model: ModelSpec, processor: Any) -> tuple[nn.Module, list[str]]:
    """A causal language model that knows its padding token, and the modules its checkpoint had no weights for.

    Raises:
        RecipeError: it cannot be had, is a checkpoint of another kind, or lacks tokens that the tokenizer has.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(model)
    if processor is not None and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = processor.pad_token_id
    if processor is not None and model.from_config is not None and "eos_token_id" not in model.from_config:
        config.eos_token_id = processor.eos_token_id  # the family's default may be a letter of this tokenizer
    built, new = load_pretrained(AutoModelForCausalLM, model, config)
    if model.from_config is None and new and has_weights():
        raise RecipeError(
            f"model.name={model.name!r}: the checkpoint has no weights for {', '.join(new)}. "
            "It is not a causal language model's."
        )
    check_vocabulary(built, processor)
    writing = getattr(built, "generation_config", None)
    if processor is not None and writing is not None and writing.pad_token_id is None:
        writing.pad_token_id = processor.pad_token_id  # else the Trainer warns of a difference that is none
    return built, new


# -- likelihood ----------------------------------------------------------------------------------------------------


def counts(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed loss, right tokens and counted tokens of every row [batch, 3]; position i predicts token i + 1."""
    shifted, targets = logits[:, :-1].float(), labels[:, 1:]
    counted = targets != -100
    loss = nn.functional.cross_entropy(
        shifted.transpose(1, 2), targets, ignore_index=-100, reduction="none"
    ).sum(1, dtype=torch.float64)
    right = ((shifted.argmax(-1) == targets) & counted).sum(1)
    return torch.stack([loss, right.double(), counted.sum(1).double()], dim=1)


def likelihood(total: torch.Tensor) -> dict[str, float]:
    """loss (a mean over tokens), perplexity and token_accuracy of the sum [3] of `counts`.

    Raises:
        DataError: no token counts towards the loss.
    """
    loss, right, counted = total.tolist()
    if not counted:
        raise DataError(
            "No token counts towards the loss: every label is masked. Is max_length shorter than the prompts?"
        )
    return {
        "loss": loss / counted,
        "perplexity": perplexity(loss / counted),
        "token_accuracy": right / counted,
    }


def perplexity(loss: float) -> float:
    """exp(loss); the largest number there is where that is out of range, for JSON has no infinity."""
    return math.exp(loss) if loss < 709 else sys.float_info.max


# -- generation ----------------------------------------------------------------------------------------------------

#: what it costs to read a token again among the others of its prompt, in tokens written one after the other
READ_AGAIN = 1 / 8


def left_padded(rows: Sequence[Sequence[int]], filler: int, width: int | None = None) -> torch.Tensor:
    """The rows as one tensor, `filler` before them up to the longest, or to `width`."""
    width = width or max(map(len, rows))
    return torch.tensor([[filler] * (width - len(row)) + list(row) for row in rows])


def generate(
    model: nn.Module,
    processor: Any,
    prompts: Sequence[str],
    batch_size: int,
    special_tokens: bool = True,
    stops: Sequence[str] = (),
    *,
    max_new_tokens: int,
    **settings: Any,
) -> list[str]:
    """What the model writes after each prompt, in their order.

    Prompts of similar length share a batch and are padded on the left, so that every row ends where its answer begins.
    A row ends with the tokenizer's or the model's end-of-sequence token, before any of `stops`, or with its last token.
    Without beams, a batch of which half has ended is given up when what is still written for its ended rows costs more than
    to read the others anew: these go on together with those of other batches. On a terminal a bar tells how far it is.

    Args:
        special_tokens: whether the tokenizer adds its own to the prompts; a rendered chat has them already.
        stops: texts that begin what is no part of an answer any more.
        settings: of the model's `generate`, such as num_beams.
    """
    from tqdm.auto import tqdm

    if not prompts:
        return []
    read = processor(list(prompts), add_special_tokens=special_tokens)["input_ids"]
    waiting = [_Row(i, ids, []) for i, ids in enumerate(read)]
    ends = end_tokens(model, processor)
    settings |= {"eos_token_id": ends, "pad_token_id": processor.pad_token_id, "use_cache": True}
    made, left = [""] * len(prompts), list[_Row]()
    hidden = len(prompts) <= batch_size or not sys.stderr.isatty()
    waiting.sort(key=len, reverse=True)
    with (
        evaluating(model) as device,
        tqdm(total=len(prompts), desc="generating", file=sys.stderr, disable=hidden) as bar,
    ):
        while waiting or left:
            source = left if len(left) >= batch_size or not waiting else waiting
            part, source[:] = source[:batch_size], source[batch_size:]
            ending = _Ending(part, processor, ends, stops, max_new_tokens, device)
            ending.gives_up = bool(waiting or left) and settings.get("num_beams", 1) == 1
            for row, ended in zip(part, _continue(model, part, ending, settings), strict=True):
                if ended:
                    made[row.place] = _before(processor.decode(row.written, skip_special_tokens=True), stops)
                    bar.update()
                else:
                    left.append(row)
            left.sort(key=len, reverse=True)
    return made


@dataclass
class _Row:
    """A prompt and what is written after it, as tokens; `place` is its own among the prompts."""

    place: int
    prompt: list[int]
    written: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.written)


class _Ending:
    """A stopping criterion of transformers' `generate` that keeps in mind where each of n rows ended.

    Its state is tensors, so that a step waits for the device only where there are `stops`. gives_up: whether all rows
    may be stopped before they end, which `over` then says was done.
    """

    def __init__(
        self,
        rows: Sequence[_Row],
        processor: Any,
        ends: Sequence[int],
        stops: Sequence[str],
        limit: int,
        device: Any,
    ):
        def numbers(values: Any) -> Tensor:
            return torch.tensor(values, device=device)

        self.processor, self.stops, self.gives_up = processor, stops, False
        self.prompt = max(map(len, rows))
        self.limit = max(limit - len(row.written) for row in rows)
        self.room = numbers([limit - len(row.written) for row in rows])
        self.read = numbers([len(row) for row in rows])
        self.ends = numbers(ends)
        self.ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
        self.length = numbers([0] * len(rows))  # of what is new, the end included
        self.idle = numbers(0)  # tokens written for rows that had ended
        self.over = numbers(False)

    def __call__(self, tokens: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows of tokens [n, length] end with their last one."""
        new = tokens[:, self.prompt :]
        last = torch.isin(new[:, -1], self.ends)
        if self.stops:
            last |= torch.tensor(self._stopped(new), device=new.device)
        if len(new) != len(self.ended):  # beams change places at every step; `generate` keeps count of them
            return last
        written = new.shape[1]
        self.idle += self.ended.sum()
        running = ~(self.ended | self.over)
        self.length = torch.where(running, written, self.length)
        self.ended |= running & (last | (written >= self.room))
        if self.gives_up:
            again = READ_AGAIN * ((self.read + written) * ~self.ended).sum()
            self.over |= (self.idle > again) & (2 * self.ended.sum() >= len(new))
        return self.ended | self.over

    def _stopped(self, new: Tensor) -> list[bool]:
        """Whether the texts end in what is no part of the answer; a token has at least one letter."""
        tail = self.processor.batch_decode(new[:, -max(map(len, self.stops)) - 1 :])
        return [any(stop in text for stop in self.stops) for text in tail]


def _continue(
    model: nn.Module, rows: Sequence[_Row], ending: _Ending, settings: Mapping[str, Any]
) -> list[bool]:
    """Write on after the rows; tells which ended."""
    from transformers import StoppingCriteriaList

    before, device = [row.prompt + row.written for row in rows], ending.room.device
    ids = left_padded(before, settings["pad_token_id"]).to(device)
    mask = left_padded([[1] * len(row) for row in before], 0).to(device)
    criteria: Any = [ending]  # any callable will do
    found = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=ending.limit,
        stopping_criteria=StoppingCriteriaList(criteria),
        **settings,
    )
    over, counted = bool(ending.over), zip(ending.ended.tolist(), ending.length.tolist(), strict=True)
    kept = [
        length if ended or over else None for ended, length in counted
    ]  # None: beams, which are not counted
    for row, new, length in zip(rows, found[:, ids.shape[1] :].tolist(), kept, strict=True):
        row.written += new[:length]
    return [ended or not over for ended in ending.ended.tolist()]


def end_tokens(model: nn.Module, processor: Any) -> list[int]:
    """The tokens that end a text: the tokenizer's, which training put there, and the model's own."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = own if isinstance(own, list) else [] if own is None else [own]
    return sorted({processor.eos_token_id, *several})


def _before(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of `stops`."""
    first = min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
    return text if first is None else text[:first].rstrip()
