"""Adapters on a spectrogram transformer come near full fine-tuning; a linear probe does only where order in time does not matter.

claim      Cappellazzo et al. 2024, arXiv:2312.03694: on AST, LoRA and bottleneck adapters train a small share of the parameters and come
           near full fine-tuning; linear probing is far behind, above all on speech
miniature  a tiny AST, pretrained here to tell 12 stationary textures apart, learns two tasks. "Textures": 8 new stationary ones.
           "Chirps": 4 courses of a gliding tone (up, down, up and down, down and up) that have the same spectrum on average, so that
           nothing but order in time tells them apart. Always trained: the linear head on the mean of all tokens and the encoder's
           final norm, as in the paper; the probe trains nothing else. LoRA on q and v and a parallel bottleneck at the MLP have
           nearly equal sizes. Error on 512 fresh clips, the better of two learning rates
seen       at this size the claim holds in part only, see README.md: adapters lie halfway between the probe and full fine-tuning
real data  --data FOLDER_OR_NPZ [--label COLUMN] takes sounds in place of the chirps: a folder per class (or per split, then per class), or
           an archive of samples and offsets, see `adaptome.data.readers`. A fifth is held out for testing where there is no test split
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable

import torch
from _harness import Adapted, Loss, Measure, Score, Table, adapt, descend, run
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ASTConfig, ASTModel

from adaptome.tasks.pooling import SpectrogramClassifier

FRAMES, MELS, PATCH, BATCH = 64, 32, 8, 24
RATES = (1e-3, 5e-3)
ALWAYS = ["classifier", "encoder.layernorm"]
Clips = tuple[Tensor, Tensor]
Draw = Callable[[int, torch.Generator], Clips]


def textures(seed: int, classes: int) -> Draw:
    """Stationary sounds: each class has a spectrum of its own and a share of noise, the same at every moment."""
    generator = torch.Generator().manual_seed(seed)
    spectra = torch.rand(classes, MELS, generator=generator).mul(2 * torch.pi)
    spectra = 1.2 * torch.cos(
        torch.arange(MELS) * torch.linspace(0.3, 2.6, classes)[:, None] + spectra[:, :1]
    )

    def draw(count: int, generator: torch.Generator) -> Clips:
        label = torch.randint(classes, (count,), generator=generator)
        noise = torch.randn(count, FRAMES, MELS, generator=generator)
        loudness = torch.randn(count, 1, 1, generator=generator) * 0.3
        return spectra[label][:, None] + noise + loudness, label

    return draw


def chirps(count: int, generator: torch.Generator) -> Clips:
    """A tone that glides over 16 mel bands: up, down, up and down, or down and up."""
    label = torch.randint(4, (count,), generator=generator)
    t = torch.linspace(0, 1, FRAMES)
    there_and_back = 1 - (2 * t - 1).abs()
    course = torch.stack([t, 1 - t, there_and_back, 1 - there_and_back])[label]
    low = torch.rand(count, 1, generator=generator) * (MELS - 18)
    away = torch.arange(MELS) - (low + 17 * course)[..., None]
    noise = torch.randn(count, FRAMES, MELS, generator=generator)
    return 2.5 * torch.exp(-(away**2)) + 0.6 * noise, label


def of(draw: Draw) -> tuple[Loss, Score, int]:
    """Loss on fresh clips, error on 512 fixed ones, and the number of classes."""
    x, y = draw(512, torch.Generator().manual_seed(99))

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        clips, label = draw(BATCH, generator)
        return F.cross_entropy(model(input_values=clips).logits, label)

    return loss, error(x, y), int(y.max()) + 1


def error(x: Tensor, y: Tensor) -> Score:
    """The share of wrong labels."""

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            made = torch.cat([model.eval()(input_values=part).logits.argmax(-1) for part in x.split(128)])
        return float((made != y).float().mean())

    return score


def given(path: str, label: str | None) -> tuple[Loss, Score, int]:
    """The same of the sounds in a folder or an archive: its train split trains, its test split tests."""
    from transformers import ASTFeatureExtractor

    from adaptome.data import load_splits
    from adaptome.tasks import get_task

    columns = {"label": label} if label else {}
    splits = load_splits(path, columns=columns, validation_fraction=0, test_fraction=0.2, files="audio")
    extractor = ASTFeatureExtractor(max_length=FRAMES, num_mel_bins=MELS)
    data = get_task("audio-classification").prepare(splits, extractor)
    batches = {
        name: data.collator([data[name][i] for i in range(len(data[name]))]) for name in ("train", "test")
    }
    x, y = batches["train"]["input_values"], batches["train"]["labels"]

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        return F.cross_entropy(model(input_values=x[rows]).logits, y[rows])

    return loss, error(batches["test"]["input_values"], batches["test"]["labels"]), len(data.labels)


def pretrained() -> SpectrogramClassifier:
    """A tiny AST (hidden 48, 3 blocks) that tells 12 textures apart; its positions differ from the start."""
    torch.manual_seed(0)
    config = ASTConfig(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96, patch_size=PATCH, frequency_stride=PATCH, time_stride=PATCH, max_length=FRAMES, num_mel_bins=MELS)  # fmt: skip
    encoder = ASTModel(config)
    nn.init.normal_(encoder.embeddings.position_embeddings, std=0.2)
    loss, _, classes = of(textures(7, 12))
    model = SpectrogramClassifier(encoder, classes, 0.0, "mean")
    descend(model, loss, 200, 3e-3, seed=0, adapted=False)
    return model


def train(base: nn.Module, parts: list[str], loss: Loss, score: Score, steps: int, seed: int) -> Adapted:
    """Train the named parts of a copy of the base, at the better learning rate."""
    runs = []
    for rate in RATES:
        model = copy.deepcopy(base).requires_grad_(False)
        for part in parts:
            model.get_submodule(part).requires_grad_(True)
        descend(model, loss, steps, rate, seed, adapted=False)
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        runs.append(Adapted(model, score(model), count))
    return min(runs, key=lambda seen: seen.value)


def measurement(tasks: dict[str, tuple[Loss, Score, int]]) -> Measure:
    """Every way of training, on every task."""
    source = pretrained()

    def measure(seed: int, table: Table) -> None:
        for name, (loss, score, classes) in tasks.items():
            torch.manual_seed(seed)
            base = SpectrogramClassifier(copy.deepcopy(source.encoder), classes, 0.0, "mean")
            steps = 100 if name == "textures" else 150
            how = {"steps": steps, "rates": RATES, "seed": seed, "train": ALWAYS}
            seen = {
                "probe": train(base, ALWAYS, loss, score, steps, seed),
                "lora": adapt(base, "lora", loss, score, targets=["q", "v"], r=4, alpha=8, **how),
                "bottleneck": adapt(base, "parallel", loss, score, targets="mlp-blocks", size=8, activation="gelu", bias=True, **how),
                "full": train(base, [""], loss, score, steps, seed),
            }  # fmt: skip
            for label, found in seen.items():
                table.add(f"{name}: {label}", found.value, found.parameters)

    return measure


def judge(temporal: str) -> Callable[[Table], dict[str, bool]]:
    """What the claim says of the stationary task and of the temporal one."""

    def parts(table: Table) -> dict[str, bool]:
        probe, full = f"{temporal}: probe", f"{temporal}: full"
        gap = table.mean(probe) - table.mean(full)
        small = table.parameters[f"{temporal}: lora"] < 0.15 * table.parameters[full]
        adapters = {k: f"{temporal}: {k}" for k in ("lora", "bottleneck")}
        return {
            "adapters train less than 15 % of the parameters": small,
            f"{temporal}: the probe's error is twice full fine-tuning's or more, every seed": table.below(full, probe, by=0.5),
            **{f"{temporal}: {k} is a fifth below the probe, every seed": table.below(v, probe, by=0.2) for k, v in adapters.items()},
            **{f"{temporal}: {k} closes nine tenths of the probe's gap": table.as_good(v, full, 0.1 * gap) for k, v in adapters.items()},
            "textures: the probe is within 0.05 of full fine-tuning": table.as_good("textures: probe", "textures: full", 0.05),
        }  # fmt: skip

    return parts


def main() -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data", help="a folder or archive of sounds in place of the chirps")
    parser.add_argument("--label", help="its column of labels")
    args, rest = parser.parse_known_args()
    temporal, task = ("sounds", given(args.data, args.label)) if args.data else ("chirps", of(chirps))
    tasks = {"textures": of(textures(1, 8)), temporal: task}
    return run(__doc__, "share of wrong labels", measurement(tasks), judge(temporal), rest)


if __name__ == "__main__":
    sys.exit(main())
