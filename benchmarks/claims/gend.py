"""GenD: tuned norms and a normalised, aligned and spread feature detect forgeries that training did not have; pairs matter where sources leave traces.

claim      Yermakov et al. 2025, arXiv:2508.06248: LN-tuning with L2 and the align-uniform loss generalises to unseen manipulations better than full
           fine-tuning and than a linear probe; training on fakes together with their real sources is better than on fakes of other sources
miniature  a ViT of 4 layers and width 64, trained to tell what pictures of drawn faces have undergone as a whole; then 200 people, real and forged in
           three ways, and 120 others forged in two other ways, by cameras that differ as much as forgeries do. Full fine-tuning is also stopped where its
           AUROC in training reaches LN-tuning's. Learning rates from one list for all, the best by the AUROC on other people with the trained forgeries.
           Pairs: every person's camera has a pattern of its own; 12 people's real videos with their own fakes, or with 12 others', tested on new
           people and cameras. Video AUROC. Seeds make people, frames, encoder and order
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from _harness import Table, descend, main
from torch import Tensor, nn

import adaptome as ad
from adaptome.data.faces.forgeries import TRAINED, UNSEEN
from adaptome.data.makers.faces import face_patterns, table, videos
from adaptome.data.splits import to_split
from adaptome.models.feature_classifier import FeatureClassifier
from adaptome.objectives.align_uniform import alignment, uniformity
from adaptome.tasks.detection_scores import detection_metrics, per_video
from adaptome.tasks.pairing import chosen

VIT = {
    "model_type": "vit", "image_size": 32, "patch_size": 8, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 192, "initializer_range": 0.1,
}  # fmt: skip
#: for every method
RATES = (3e-2, 1e-2, 1e-3)
STEPS, BATCH = 300, 64
PATTERN = 0.06


class Frames:
    """Pictures [n, 3, 32, 32] from -1 to 1, labels and numbers of videos."""

    def __init__(self, rows: list[dict[str, Any]]):
        pictures = np.stack([np.asarray(row["image"]) for row in rows])
        self.x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        self.y = torch.tensor([int(row["label"] == "fake") for row in rows])
        self.videos = np.unique([row["video"] for row in rows], return_inverse=True)[1]

    def error(self, model: nn.Module) -> float:
        """1 - AUROC over videos; infinite where training diverged."""
        model.eval()
        with torch.no_grad():
            scores = torch.cat(
                [model(part)["logits"].softmax(-1)[:, 1] for part in self.x.split(256)]
            ).numpy()
        if not np.isfinite(scores).all():
            return math.inf
        return 1 - detection_metrics(*per_video(scores, self.y.numpy(), self.videos))["auroc"]


def drawn(x: Tensor, y: Tensor, spread: bool) -> Any:
    """The loss on a batch drawn at random, half of the batches mirrored."""

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        batch = x[rows].flip(-1) if torch.rand(1, generator=generator) < 0.5 else x[rows]
        made = model(batch, y[rows])
        if not spread:
            return made["loss"]
        z = made["embeddings"]
        return made["loss"] + 0.1 * alignment(z, y[rows]) + 0.5 * uniformity(z)

    return loss


def encoder(seed: int) -> nn.Module:
    """A small ViT that tells changes of whole pictures apart."""
    made = face_patterns(seed, 5000, 10)["train"].columns
    kinds = sorted(set(made["label"]))
    model = FeatureClassifier.from_settings(encoder={"from_config": VIT}, labels=len(kinds), normalize=False)
    x = torch.from_numpy(np.asarray(made["image"])).permute(0, 3, 1, 2).float() / 127.5 - 1
    descend(
        model,
        drawn(x, torch.tensor([kinds.index(k) for k in made["label"]]), False),
        600,
        2e-3,
        seed,
        adapted=False,
    )
    return model.encoder


def detector(base: nn.Module, method: str, normalize: bool = True) -> nn.Module:
    model = FeatureClassifier.from_settings(encoder={"from_config": VIT}, normalize=normalize)
    model.encoder = copy.deepcopy(base)
    if method != "full":
        ad.attach(
            model, method, **({} if method == "linear-probe" else {"targets": "encoder.norms"}), train="head"
        )
    return model


def fitted(base: nn.Module, method: str, data: Frames, held: Frames, seed: int, spread: bool = False, normalize: bool = True) -> nn.Module:  # fmt: skip
    """The model of the rate that is best on other people with the same forgeries."""
    tried = []
    for rate in RATES:
        torch.manual_seed(seed)
        model = detector(base, method, normalize)
        descend(model, drawn(data.x, data.y, spread), STEPS, rate, seed, adapted=method != "full")
        tried.append((held.error(model), len(tried), model))
    return min(tried)[2]


def stopped(base: nn.Module, data: Frames, error: float, seed: int) -> nn.Module:
    """Full fine-tuning up to an error in training."""
    torch.manual_seed(seed)
    model = detector(base, "full")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    loss, generator = drawn(data.x, data.y, False), torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        if step % 10 == 0 and data.error(model) <= error:
            break
        model.train()
        loss(model, generator).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def measure(seed: int, table_: Table) -> None:
    rng = np.random.default_rng((seed, 7))
    train, held = Frames(videos(rng, "train", 200, 2, TRAINED)), Frames(videos(rng, "held", 40, 4, TRAINED))
    unseen = Frames(videos(rng, "unseen", 120, 4, UNSEEN))
    torch.manual_seed(seed)
    base = encoder(seed)

    def add(label: str, model: nn.Module) -> None:
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        for kind, data in (("train", train), ("trained forgeries", held), ("unseen", unseen)):
            table_.add(f"{kind}: {label}", data.error(model), count)

    add("linear probe", fitted(base, "linear-probe", train, held, seed))
    add("LN", fitted(base, "norm-tuning", train, held, seed, normalize=False))
    add("LN + L2", fitted(base, "norm-tuning", train, held, seed))
    gend = fitted(base, "norm-tuning", train, held, seed, spread=True)
    add("LN + L2 + UnAl", gend)
    add("full", fitted(base, "full", train, held, seed))
    add("full, stopped", stopped(base, train, train.error(gend), seed))

    rows = videos(rng, "traces", 24, 6, TRAINED, PATTERN)
    new = Frames(videos(rng, "new", 60, 4, TRAINED, PATTERN))
    split = to_split([table(rows, "train")], "train")
    for how in ("paired", "unpaired"):
        kept = set(chosen(split, how, seed).rows["video"])  # type: ignore[arg-type]
        data = Frames([row for row in rows if row["video"] in kept])
        torch.manual_seed(seed)
        model = detector(base, "norm-tuning")
        descend(model, drawn(data.x, data.y, True), STEPS, 1e-2, seed)
        table_.add(f"traces, train: {how}", data.error(model))
        table_.add(f"traces, new people: {how}", new.error(model))


def judge(table_: Table) -> dict[str, bool]:
    def mean(label: str) -> float:
        return table_.mean(f"unseen: {label}")

    def every(other: str) -> bool:
        return table_.below("unseen: LN + L2 + UnAl", f"unseen: {other}")

    return {
        "unseen: LN + L2 + UnAl below full fine-tuning, every seed": every("full"),
        "unseen: below full fine-tuning stopped at its training AUROC, on average": mean("LN + L2 + UnAl") < mean("full, stopped"),
        "unseen: below the linear probe, on average": mean("LN + L2 + UnAl") < mean("linear probe"),
        "unseen: below the linear probe, every seed": every("linear probe"),
        "unseen: no worse than LN alone, on average": mean("LN + L2 + UnAl") <= mean("LN"),
        "traces: paired below unpaired by a tenth, every seed": table_.below("traces, new people: paired", "traces, new people: unpaired", by=0.1),
    }  # fmt: skip


if __name__ == "__main__":
    main(__doc__, "1 - AUROC", measure, judge)
