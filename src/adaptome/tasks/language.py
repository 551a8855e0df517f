"""What the tasks of language models share: tokenizer and model, exact likelihoods, generation."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from adaptome.core.errors import DataError, RecipeError
from adaptome.tasks.base import ModelSpec
from adaptome.tasks.inference import chunks, evaluating, to_device
from adaptome.tasks.models import check_vocabulary, load_config, load_pretrained, load_tokenizer


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
    built, new = load_pretrained(AutoModelForCausalLM, model, config)
    if model.from_config is None and new:
        raise RecipeError(
            f"model.name={model.name!r}: the checkpoint has no weights for {', '.join(new)}. "
            "It is not a causal language model's."
        )
    check_vocabulary(built, processor)
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
    """exp(loss), infinite where that is out of range."""
    return math.exp(loss) if loss < 700 else math.inf


# -- generation ----------------------------------------------------------------------------------------------------


def generate(
    model: nn.Module,
    processor: Any,
    prompts: Sequence[str],
    batch_size: int,
    special_tokens: bool = True,
    **settings: Any,
) -> list[str]:
    """What the model writes after each prompt, in their order.

    Prompts of similar length share a batch and are padded on the left, so that every row ends where its answer
    begins. On a terminal a bar tells how far it is.

    Args:
        special_tokens: whether the tokenizer adds its own to the prompts; a rendered chat has them already.
        settings: of the model's `generate`, such as max_new_tokens.
    """
    from tqdm.auto import tqdm

    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    parts = list(chunks(order, batch_size))
    made = [""] * len(prompts)
    side, processor.padding_side = processor.padding_side, "left"
    hidden = len(parts) < 2 or not sys.stderr.isatty()
    try:
        with evaluating(model) as device:
            for part in tqdm(parts, desc="generating", unit="batch", file=sys.stderr, disable=hidden):
                batch = processor(
                    [prompts[i] for i in part],
                    padding=True,
                    return_tensors="pt",
                    add_special_tokens=special_tokens,
                )
                batch.pop("token_type_ids", None)
                moved = to_device(batch, device)
                found = model.generate(**moved, pad_token_id=processor.pad_token_id, **settings)  # type: ignore[operator]
                new = found[:, moved["input_ids"].shape[1] :]
                texts = processor.batch_decode(new, skip_special_tokens=True)
                for i, text in zip(part, texts, strict=True):
                    made[i] = text
    finally:
        processor.padding_side = side
    return made
