"""DEFT's price on active units makes MLPs sparse while an adapter is trained, at nearly the accuracy of the adapter alone.

claim      Runwal et al. 2024, arXiv:2402.01911: with the density of the MLPs' activations in the loss, adapters end with far fewer active
           units than without, at a similar accuracy, in models with ReLU and with GELU
miniature  a tiny BERT, pretrained here to tell which of six two-letter words is in a sequence, is adapted to tell which one comes twice: LoRA
           on the attention and houlsby adapters, 300 steps at one learning rate, with and without the price, on ReLU and on GELU. `density` is
           the share of exact non-zeros; of GELU, whose zeros are those of underflow, also that of magnitudes above 1e-3. The claim asks
           for 30 percent less density and at most 2 points less accuracy
"""

from __future__ import annotations

import copy

import torch
from _harness import Measure, Table, descend, main
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import adaptome as ad
from adaptome.objectives import Term, Terms, get_objective

VOCAB, LENGTH, WORDS, BATCH = 24, 20, 6, 32
METHODS = {"lora": {"r": 8, "targets": "attention"}, "houlsby": {"reduction": 2}}


def batch(generator: torch.Generator, twice: bool) -> dict[str, Tensor]:
    """Sequences of random letters; one word (letters 2 w, 2 w + 1) stands in each once, or once more than another that is there once."""
    ids = torch.randint(2 * WORDS, VOCAB, (BATCH, LENGTH), generator=generator)
    words = torch.stack([torch.randperm(WORDS, generator=generator)[:2] for _ in range(BATCH)])
    shown = (words[:, 0], words[:, 0], words[:, 1]) if twice else (words[:, 0],)
    slots = torch.stack(
        [torch.randperm(LENGTH // 2, generator=generator)[: len(shown)] for _ in range(BATCH)]
    )
    rows = torch.arange(BATCH)
    for k, word in enumerate(shown):
        for letter in (0, 1):
            ids[rows, 2 * slots[:, k] + letter] = 2 * word + letter
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": words[:, 0]}


def loss_of(twice: bool, terms: Terms | None = None):
    """The model's own loss, and that of the terms beside it."""

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        given = batch(generator, twice)
        if terms is None:
            return model(**given).loss  # type: ignore[no-any-return]
        with terms.watching():
            out = model(**given)
            return out.loss + terms.loss(out, given)[0]

    return loss


def seen_in(model: nn.Module) -> tuple[float, float, float]:
    """Share of wrong answers, density, and density above 1e-3, on sequences that were not trained on."""
    generator = torch.Generator().manual_seed(99)
    terms = Terms(model, [Term(get_objective("activation-density"))])
    wrong, found = [], []
    with torch.no_grad(), terms.watching():
        for _ in range(20):
            given = batch(generator, True)
            out = model(**given)
            terms.loss(out, given)
            wrong.append(float((out.logits.argmax(-1) != given["labels"]).float().mean()))
            found.append((float(terms.measured["density"]), float(terms.measured["density_above"])))
    mean = torch.tensor(found).mean(0)
    return sum(wrong) / len(wrong), float(mean[0]), float(mean[1])


def pretrained(activation: str) -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, hidden_act=activation,
        max_position_embeddings=LENGTH, num_labels=WORDS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    descend(model, loss_of(False), 500, 3e-3, seed=0, adapted=False)
    return model


def measurement() -> Measure:
    """The function that measures a seed; the bases are pretrained once."""
    bases = {activation: pretrained(activation) for activation in ("relu", "gelu")}

    def measure(seed: int, table: Table) -> None:
        for activation, base in bases.items():
            for method, settings in METHODS.items():
                for label, weight in (("alone", 0.0), ("DEFT", 1.0)):
                    model = copy.deepcopy(base)
                    plan = ad.attach(model, method, train=["classifier"], seed=seed, **settings)
                    terms = Terms(model, [Term(get_objective("activation-density"), weight=weight)])
                    descend(model, loss_of(True, terms if weight else None), 300, 3e-3, seed)
                    values = seen_in(model.eval())
                    for what, value in zip(("wrong", "density", "above 1e-3"), values, strict=True):
                        table.add(f"{activation}, {method} {label}: {what}", value, plan.trainable)

    return measure


def judge(table: Table) -> dict[str, bool]:
    parts = {}
    for activation in ("relu", "gelu"):
        for method in METHODS:
            name = f"{activation}, {method}"
            measures = ("density",) if activation == "relu" else ("density", "above 1e-3")
            for what in measures:
                parts[f"{name}: {what} at least 30 % less"] = table.below(f"{name} DEFT: {what}", f"{name} alone: {what}", 0.3)  # fmt: skip
            parts[f"{name}: at most 2 points more wrong"] = table.as_good(f"{name} DEFT: wrong", f"{name} alone: wrong", 0.02)  # fmt: skip
    return parts


if __name__ == "__main__":
    main(__doc__, "share", measurement(), judge)
