"""MulT: shapes, what looks at what, absent sequences, and a bank for each set."""

from __future__ import annotations

import pytest
import torch

import adaptome as ad
from adaptome.core.errors import ModelError
from adaptome.models import composite_models
from adaptome.models.attention_blocks import Block, sinusoids
from adaptome.models.multimodal_transformer import MultimodalTransformer
from adaptome.recipe import load_recipe, stages_of

FEATURES = {"text": 6, "audio": 5, "vision": 4}
TINY = {"features": FEATURES, "kernels": {"audio": 3}, "width": 4, "heads": 2, "layers": 1, "own_layers": 1, "dropout": 0.0}  # fmt: skip


def mult(**settings) -> MultimodalTransformer:
    torch.manual_seed(0)
    made = composite_models()["multimodal-transformer"].from_settings(**{**TINY, **settings})
    assert isinstance(made, MultimodalTransformer)
    return made.eval()


def clips(*names: str, steps: int = 7) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    made = {name: torch.randn(3, steps, width) for name, width in FEATURES.items()}
    return {name: made[name] for name in names or FEATURES}


def test_every_modality_looks_at_every_other():
    model = mult()
    found = {(a, b) for a, others in model.crossed.items() for b in others}
    assert found == {(a, b) for a in FEATURES for b in FEATURES if a != b}
    seen: list[tuple[str, int]] = []
    for a, others in model.crossed.items():
        for b, blocks in others.items():
            blocks[0].register_forward_hook(lambda m, args, out, pair=(a, b): seen.append(pair))
    made = model(clips(), torch.tensor([1.0, -2.0, 0.5]))
    assert made["logits"].shape == (3, 1) and len(seen) == 6
    assert made["loss"].item() == pytest.approx(float((made["logits"][:, 0] - torch.tensor([1.0, -2.0, 0.5])).abs().mean()))  # fmt: skip
    assert mult(labels=3)(clips(), torch.tensor([0, 1, 2]))["loss"] > 0


def test_sequences_of_several_lengths_and_those_that_are_absent():
    model = mult()
    assert model({**clips("text"), **clips("audio", steps=11)})["logits"].shape == (3, 1)
    given = clips("text")
    whole = {name: given.get(name, torch.zeros(3, 7, width)) for name, width in FEATURES.items()}
    assert torch.equal(model(given)["logits"], model(whole)["logits"])
    with pytest.raises(ModelError, match=r"audio has 6 numbers a step, and the model takes 5: model.features=\{audio: 6\}"):  # fmt: skip
        model({"audio": torch.randn(3, 7, 6)})
    with pytest.raises(ModelError, match="given: smell"):
        model({"smell": torch.randn(3, 7, 6)})


def test_a_bank_for_each_set_as_the_recipe_has_it():
    (_, first), (_, second) = stages_of(load_recipe("missing-modality-mosei"))
    with torch.device("meta"):
        full = MultimodalTransformer.from_settings(**second.model.settings)
    everything = ad.plan(full, first.methods[0].name, train=first.methods[0].train)
    assert everything.trainable == sum(p.numel() for p in full.parameters())
    told = second.methods[0]
    where = dict(targets=told.targets, exclude=told.exclude, **told.settings)
    # of an attention 4 d, of the maps 5 d, norms 2 or 3 d: 12 d a crossed block, 11 (2 d) one behind it; 6 sets, inputs in 3 of them each
    crossed, own, rest = 6 * 4 * 12 * 40, 3 * 3 * 11 * 80, 3 * 80 + 2 * 240
    assert ad.plan(full, told.name, **where).trainable == 2 * (6 * (crossed + own + rest) + 3 * 3 * 40)
    model = mult()
    ad.attach(model, told.name, **where)
    before = {key: model(clips(*key.split("+")))["logits"] for key in ("text", "audio+vision")}
    for key, expected in before.items():
        with ad.steer(available=key):
            assert torch.equal(model(clips(*key.split("+")))["logits"], expected)
    with ad.steer(available="text"):
        model(clips("text"), torch.zeros(3))["loss"].backward()
    got = {n for n, p in model.named_parameters() if p.grad is not None}
    assert got and all(n.endswith(".text") and ".head" not in n for n in got)
    assert not any(n.startswith("inputs.audio") for n in got)


def test_blocks_see_no_masked_tokens_and_positions_are_sinusoids():
    torch.manual_seed(0)
    block, x = Block(8, 2).eval(), torch.randn(1, 5, 8)
    mask = torch.tensor([[True, True, True, False, False]])
    changed = x.clone()
    changed[:, 3:] = torch.randn(1, 2, 8)
    torch.testing.assert_close(block(x, mask=mask)[:, :3], block(changed, mask=mask)[:, :3])
    assert not torch.allclose(block(x)[:, :3], block(changed)[:, :3])
    places = sinusoids(6, 4)
    assert places.shape == (6, 4) and places[0].tolist() == [0, 1, 0, 1]
    assert places[2, 0].item() == pytest.approx(0.9093, abs=1e-4) and places[2, 2].item() == pytest.approx(
        0.02, abs=1e-4
    )


def test_settings_that_do_not_fit_are_told():
    with pytest.raises(ModelError, match="3 heads do not divide a width of 4"):
        mult(heads=3)
    with pytest.raises(ModelError, match="positions take an even one"):
        mult(width=5, heads=1)
    with pytest.raises(ModelError, match="'audio' must be one of .* with an odd number"):
        mult(kernels={"audio": 2})
