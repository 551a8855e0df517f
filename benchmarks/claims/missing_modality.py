"""A bank of scales and shifts wins back what a network loses when one of its two modalities is absent.

claim      Reza et al. 2023, arXiv:2310.03986: a network trained on all modalities collapses when one is absent; scales and shifts after the
           layers of the available branch and the fusion, under 2 % of its parameters, trained on zero-filled inputs, win much of it back
miniature  two small transformer encoders and a cross-attention over both are pretrained here to name one of 8 classes from u and v, which
           both tell it, v more clearly than u; then v is zero. Compared: the pretrained network as it is; its head trained alone; the bank
           of {u}, and its scales or its shifts alone, on all layers but v's and the head (120 steps, the better of two learning rates for
           each); and a network trained for u alone from the start. Features are the fusion's, likeness is the cosine to those of the full
           input. Seeds draw the classes, the pretraining and the adaptation
"""

from __future__ import annotations

import copy

import torch
from _harness import Adapted, Table, adapt, descend, main
from torch import Tensor, nn
from torch.nn import functional as F

import adaptome as ad

WIDTH, TOKENS, CLASSES, PRETRAINING, STEPS = 72, 6, 8, 150, 120
FULL, ZEROS, PROBE, BANK, DEDICATED = "full input, pretrained", "v zero, pretrained", "v zero, head alone", "v zero, bank", "u alone, trained for it"  # fmt: skip
LOSS = "training loss, {}"


class Attention(nn.Module):
    """Attention of x over y, with 4 heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = (m(z).unflatten(-1, (4, -1)).transpose(1, 2) for m, z in ((self.q_proj, x), (self.k_proj, y), (self.v_proj, y)))  # fmt: skip
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention of x over y, then an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), Attention()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        n = self.norm1(x)
        x = x + self.attention(n, n if y is None else y)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Encoder(nn.Module):
    """One modality's tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.places = nn.Linear(8, WIDTH), nn.Parameter(0.1 * torch.randn(TOKENS, WIDTH))
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.inputs(x) + self.places)


class Fusion(nn.Module):
    """Both encoders, attention over what they give, and a head on the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v, self.fusion = Encoder(), Encoder(), Block()
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def features(self, u: Tensor, v: Tensor) -> Tensor:
        both = torch.cat([self.u(u), self.v(v)], 1)
        return self.norm(self.fusion(both).mean(1))

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        return self.head(self.features(u, v))


class Data:
    """Three forms of each class in each modality, and noise, of which u has more."""

    def __init__(self) -> None:
        self.forms = torch.randn(2, CLASSES, 3, TOKENS, 8)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        y = torch.randint(CLASSES, (count,), generator=generator)
        pair = []
        for forms, noise in zip(self.forms, (1.3, 1.0), strict=True):
            form = torch.randint(3, (count,), generator=generator)
            pair.append(forms[y, form] + noise * torch.randn(count, TOKENS, 8, generator=generator))
        return pair[0], pair[1], y


def measure(seed: int, table: Table) -> None:
    data = Data()
    u, v, y = data.draw(2000, torch.Generator().manual_seed(1000 + seed))
    nothing = torch.zeros_like(v)

    def loss_with(second: bool):  # type: ignore[no-untyped-def]
        def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
            a, b, truth = data.draw(32, generator)
            with ad.steer(available="u"):
                return F.cross_entropy(model(a, b if second else torch.zeros_like(b)), truth)

        return loss

    def error(model: nn.Module, second: Tensor = nothing) -> float:
        with torch.no_grad(), ad.steer(available="u"):
            return float((model(u, second).argmax(-1) != y).float().mean())

    full, zeros = loss_with(True), loss_with(False)
    base = Fusion()
    dedicated = copy.deepcopy(base)
    descend(base, full, PRETRAINING, 3e-3, seed, adapted=False)
    descend(dedicated, zeros, PRETRAINING, 3e-3, seed, adapted=False)
    size = sum(p.numel() for p in base.parameters())
    table.add(FULL, error(base, v), size)
    table.add(ZEROS, error(base))
    table.add(DEDICATED, error(dedicated), size)

    rates = (3e-3, 1e-2)
    probes = []
    for rate in rates:
        probe = copy.deepcopy(base).requires_grad_(False)
        probe.head.requires_grad_(True)
        descend(probe, zeros, STEPS, rate, seed, adapted=False)
        probes.append(error(probe))
    table.add(PROBE, min(probes), sum(p.numel() for p in base.head.parameters()))

    def adapted(**settings: bool) -> Adapted:
        return adapt(
            base, "missing-modality", zeros, error, steps=STEPS, rates=rates, seed=seed, targets=["all-linear", "norms"], exclude="head",
            modalities=["u", "v"], sets=["u"], branches={"u": "u.*", "v": "v.*"}, **settings,
        )  # fmt: skip

    def final(model: nn.Module) -> float:
        with torch.no_grad(), ad.steer(available="u"):
            a, b, truth = data.draw(2000, torch.Generator().manual_seed(seed))
            return float(F.cross_entropy(model(a, torch.zeros_like(b)), truth))

    for label, settings in (("scale and shift", {}), ("scale alone", {"shift": False}), ("shift alone", {"scale": False})):  # fmt: skip
        seen = adapted(**settings)
        table.add(LOSS.format(label), final(seen.model), seen.parameters)
        if not settings:
            table.add(BANK, seen.value, seen.parameters)
            with torch.no_grad():
                goal = base.features(u, v)
                before = F.cosine_similarity(base.features(u, nothing), goal)
                with ad.steer(available="u"):
                    after = F.cosine_similarity(seen.model.features(u, nothing), goal)  # type: ignore[operator]
            table.add("1 - likeness, pretrained", 1 - float(before.mean()))
            table.add("1 - likeness, bank", 1 - float(after.mean()))


def judge(table: Table) -> dict[str, bool]:
    share = table.parameters[BANK] / table.parameters[FULL]
    both = table.mean(LOSS.format("scale and shift"))
    either = min(table.mean(LOSS.format(f"{one} alone")) for one in ("scale", "shift"))
    return {
        f"the bank is under 2 % of the network ({share:.2%})": share < 0.02,
        "the pretrained network loses over twice its error without v, every seed": table.below(FULL, ZEROS, by=0.5),
        "the bank below the pretrained network by a tenth, every seed": table.below(BANK, ZEROS, by=0.1),
        "the full input below the bank, every seed": table.below(FULL, BANK),
        "the bank below the head alone, every seed": table.below(BANK, PROBE),
        "features nearer to those of the full input, every seed": table.below("1 - likeness, bank", "1 - likeness, pretrained"),
        f"scale and shift fit as well as either alone ({both:.3f}, {either:.3f})": both <= either + 0.02,
    }  # fmt: skip


if __name__ == "__main__":
    main(__doc__, "error (or loss, or likeness)", measure, judge)
