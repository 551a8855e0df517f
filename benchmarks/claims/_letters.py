"""A tiny language model of letters, pretrained here on docstrings, and a new domain for it: Python sources.

All text is the standard library's own, so nothing is downloaded.
"""

from __future__ import annotations

import importlib
import inspect
import statistics

import torch
from _harness import Loss, Score, descend
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from adaptome.data.stdlib_docstrings import docstring_task

TRAIN = "argparse ast asyncio.base_events configparser csv dataclasses decimal difflib doctest email.message enum functools inspect"
TEST = "heapq ipaddress json.decoder logging pathlib"
SIZE, LENGTH, BATCH = 128, 64, 16


def prose() -> Tensor:
    """The standard library's docstrings as ASCII codes."""
    task = docstring_task()
    return _codes("\n".join(e.text for split in (task.train, task.validation, task.test) for e in split))


def code(modules: str = TRAIN) -> Tensor:
    """The sources of some of its modules."""
    return _codes("\n".join(inspect.getsource(importlib.import_module(name)) for name in modules.split()))


def _codes(text: str) -> Tensor:
    return torch.tensor([c for c in text.encode("ascii", "ignore") if c < SIZE])


def next_letter(text: Tensor) -> Loss:
    """The loss on a batch of pieces of the text."""

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        first = torch.randint(len(text) - LENGTH, (BATCH, 1), generator=generator)
        pieces = text[first + torch.arange(LENGTH)]
        return model(input_ids=pieces, labels=pieces).loss  # type: ignore[no-any-return]

    return loss


def held_out(text: Tensor, batches: int = 12) -> Score:
    """Nats a letter on fixed pieces of the text."""
    loss = next_letter(text)

    def score(model: nn.Module) -> float:
        generator = torch.Generator().manual_seed(99)
        with torch.no_grad():
            return statistics.fmean(float(loss(model.eval(), generator)) for _ in range(batches))

    return score


def language_model(steps: int = 400, blocks: int = 3, biases: bool = False) -> nn.Module:
    """A tiny Llama (hidden 48), or a GPT-2 of that size with biases, pretrained here on the docstrings."""
    torch.manual_seed(0)
    if biases:
        model: nn.Module = GPT2LMHeadModel(GPT2Config(vocab_size=SIZE, n_positions=LENGTH, n_embd=48, n_inner=96, n_layer=blocks, n_head=4, use_cache=False, bos_token_id=None, eos_token_id=None, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))  # fmt: skip
    else:
        model = LlamaForCausalLM(LlamaConfig(vocab_size=SIZE, hidden_size=48, intermediate_size=96, num_hidden_layers=blocks, num_attention_heads=4, num_key_value_heads=4, use_cache=False))  # fmt: skip
    descend(model, next_letter(prose()), steps, 3e-3, seed=0, adapted=False)
    return model
