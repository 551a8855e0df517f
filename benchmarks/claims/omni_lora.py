"""Shared and task-specific LoRA together do at least as well as either alone, at equal size, in multi-task recognition.

claim      Cappellazzo et al. 2025, arXiv:2511.07253: one model for audio, visual and audio-visual recognition, with a shared LoRA (S), one
           for each task (T), or both (ST); ST is the best or equal (average error 7.9, 8.0 and 7.9)
miniature  a tiny Llama, pretrained here to continue sequences of 16 symbols from a random grammar, transcribes them from two synthetic streams:
           "audio", two noisy frames a symbol, and "video", one frame a symbol that shows only which of 8 pairs it belongs to. A
           trained linear map takes each stream to the model's width. Every step sums the losses of the three tasks (weights 1, 1.5,
           1). All linear layers, equal trained parameters: S has r = 12, T three of r = 4, ST four of r = 3. 80 steps, the better of
           two learning rates; the score is the mean over tasks of the share of wrong symbols, each read with the right ones before
           it. "At least as good" allows a hundredth
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from _harness import Table, descend, main
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

import adaptome as ad

SYMBOLS, LENGTH, WIDTH, FRAME = 16, 6, 32, 12
TASKS = {"audio": 1.0, "video": 1.5, "audiovisual": 1.0}
LAYOUTS = {"S r=12": ("S", 12), "T r=4": ("T", 4), "ST r=3": ("ST", 3)}
STEPS, RATES, BATCH = 80, (5e-3, 1e-2), 32


class World:
    """The grammar and what the two streams look like."""

    def __init__(self, generator: torch.Generator):
        self.next = (2 * torch.randn(SYMBOLS, SYMBOLS, generator=generator)).softmax(-1)
        self.heard = torch.randn(SYMBOLS, FRAME, generator=generator)
        self.seen = torch.randn(SYMBOLS // 2, FRAME, generator=generator)

    def text(self, count: int, generator: torch.Generator) -> Tensor:
        """Sequences of the grammar [n, length]."""
        words = [torch.randint(SYMBOLS, (count,), generator=generator)]
        for _ in range(LENGTH - 1):
            words.append(torch.multinomial(self.next[words[-1]], 1, generator=generator)[:, 0])
        return torch.stack(words, 1)

    def streams(self, text: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Frames of both kinds."""
        audio, video = self.heard[text].repeat_interleave(2, 1), self.seen[text // 2]
        noise = [s * torch.randn(x.shape, generator=generator) for s, x in ((2.0, audio), (0.5, video))]
        return {"audio": audio + noise[0], "video": video + noise[1]}


class Recogniser(nn.Module):
    """The language model after the projected frames of one task's streams and a separator (the last token)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.project = nn.ModuleDict({kind: nn.Linear(FRAME, WIDTH) for kind in ("audio", "video")})

    def forward(self, streams: dict[str, Tensor], text: Tensor, task: str) -> Tensor:
        """Logits of every symbol of the text."""
        kinds = ("audio", "video") if task == "audiovisual" else (task,)
        front = [self.project[kind](streams[kind]) for kind in kinds]
        table = self.model.get_input_embeddings()  # type: ignore[operator]
        begin = table(torch.full((len(text), 1), SYMBOLS))
        x = torch.cat([*front, begin, table(text[:, :-1])], 1)
        with ad.steer(task=task):
            return self.model(inputs_embeds=x).logits[:, -LENGTH:]


def language_model(world: World, seed: int) -> nn.Module:
    """A Llama that knows the grammar."""
    config = LlamaConfig(vocab_size=SYMBOLS + 1, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, use_cache=False)  # fmt: skip
    model = LlamaForCausalLM(config)

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        text = world.text(BATCH, generator)
        ids = torch.cat([torch.full((BATCH, 1), SYMBOLS), text], 1)
        return model(input_ids=ids, labels=ids).loss  # type: ignore[no-any-return]

    descend(model, loss, 200, 3e-3, seed, adapted=False)
    return model


def wrong(model: nn.Module, world: World) -> dict[str, float]:
    """Share of wrong symbols of every task on fixed sequences."""
    generator = torch.Generator().manual_seed(54321)
    text = world.text(512, generator)
    streams = world.streams(text, generator)
    with torch.no_grad():
        return {t: float((model(streams, text, t).argmax(-1) != text).float().mean()) for t in TASKS}


def measure(seed: int, table: Table) -> None:
    world = World(torch.Generator().manual_seed(100 + seed))
    base = Recogniser(language_model(world, seed))

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        text = world.text(BATCH, generator)
        streams = world.streams(text, generator)
        each = [w * F.cross_entropy(model(streams, text, t).flatten(0, 1), text.flatten()) for t, w in TASKS.items()]  # fmt: skip
        return torch.stack(each).sum() / 3

    table.add("guessing by the grammar", float(1 - world.next.max(1).values.mean()))
    for label, (layout, r) in LAYOUTS.items():
        runs: list[Any] = []
        for rate in RATES:
            model = copy.deepcopy(base)
            plan = ad.attach(model.model, "omni-lora", targets="all-linear", layout=layout, r=r, alpha=float(2 * r), tasks=tuple(TASKS), seed=seed)  # fmt: skip
            descend(model, loss, STEPS, rate, seed)
            seen = wrong(model, world)
            runs.append((sum(seen.values()) / 3, plan.trainable, seen))
        mean, count, seen = min(runs, key=lambda run: run[0])
        table.add(label, mean, count)
        for task, share in seen.items():
            table.add(f"({task}: {label})", share)


def judge(table: Table) -> dict[str, bool]:
    S, T, ST = LAYOUTS
    return {
        "equal parameters": len({table.parameters[label] for label in LAYOUTS}) == 1,
        "S, T and ST all below guessing, every seed": all(table.below(k, "guessing by the grammar") for k in LAYOUTS),
        "ST at least as good as S": table.as_good(ST, S, 0.01),
        "ST at least as good as T": table.as_good(ST, T, 0.01),
    }  # fmt: skip


if __name__ == "__main__":
    main(__doc__, "share of wrong symbols", measure, judge)
