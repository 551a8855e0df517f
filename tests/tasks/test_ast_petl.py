"""The AST benchmark of Cappellazzo et al. 2024, arXiv:2312.03694: its counts at AST's full size, its LoRA, its faults.

Of the faults of the released code, these are tested elsewhere: the best epoch chosen on the test fold and kept by reference
(tests/training/test_sounds.py), unknown keys of a recipe (tests/cli/test_sounds.py), dead starts (tests/methods/bottleneck).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import adaptome as ad
from adaptome.core.errors import MethodError
from adaptome.recipe import load_recipe
from adaptome.tasks import get_task
from adaptome.tasks.pooling import SpectrogramClassifier
from tests.methods.helpers import shake
from tests.sounds import AST
from tests.tasks.tiny import spec

RECIPES = Path(ad.__file__).parent / "recipes" / "audio-classification"
NORMS, FINAL = 12 * 2 * 768, 2 * 768


def attached(recipe, labels):
    """The plan of a recipe's method on AST at its full size, on the meta device."""
    from transformers import ASTConfig, ASTModel

    with torch.device("meta"):
        model = SpectrogramClassifier(ASTModel(ASTConfig()), labels, 0.0, "mean")
    section = load_recipe(RECIPES / recipe).methods[0]
    train = [*section.train, "classifier"]
    plan = ad.attach(model, section.name, targets=section.targets, train=train, **section.settings)
    base = sum(
        p.numel() for n, p in model.named_parameters() if n.startswith("encoder.") and "adaptome" not in n
    )
    return plan, base


def head(labels):
    return 768 * labels + labels


def test_the_conformer_recipes_train_029_percent():
    if "conformer-adapter" not in ad.list_methods():
        pytest.skip("conformer-adapter is not registered")
    plan, base = attached("esc50-conformer.yaml", 50)
    assert plan.trainable == 252_288 + NORMS + FINAL + head(50)
    assert round(100 * 252_288 / base, 2) == 0.29
    plan, _ = attached("speech-commands-conformer.yaml", 35)
    assert plan.trainable == 252_288 + NORMS + FINAL + head(35)


def test_the_lora_recipe_has_rank_12_from_reduction_64_and_its_scale():
    """The paper's 'rank' is a reduction rate: r = round(768 / 64), and the update is scaled by alpha / 64, not by alpha / r."""
    plan, _ = attached("urbansound8k-lora.yaml", 10)
    assert plan.trainable == 442_368 + FINAL + head(10)
    method = ad.get_method("lora", **load_recipe(RECIPES / "urbansound8k-lora.yaml").methods[0].settings)
    assert method.r == round(768 / 64) and method.scale == 8 / 64 == 0.125
    assert ad.get_method("lora", r=12, alpha=8).scale == pytest.approx(8 / 12)  # the default is alpha / r


def test_merged_queries_and_values_give_the_same_outputs():
    torch.manual_seed(0)
    task = get_task("audio-classification", pooling="mean")
    task.labels = ["a", "b"]
    model = task.load_model(spec(from_config=AST)).double().eval()
    ad.attach(model, "lora", targets=["q", "v"], r=3, alpha=3 * 8 / 64, seed=0)
    shake(model)
    x = torch.randn(2, 64, 32, dtype=torch.float64)
    before = model(input_values=x).logits
    q = model.encoder.layers[0].attention.q_proj
    A, B = (getattr(next(iter(q.adaptome.values())), k) for k in "AB")
    z = torch.randn(5, 16, dtype=torch.float64)
    with torch.no_grad():
        base = torch.nn.functional.linear(z, q._parameters["weight"], q._parameters["bias"])
        torch.testing.assert_close(q(z), base + 0.125 * z @ A.T @ B.T)
    ad.merge(model)
    torch.testing.assert_close(model(input_values=x).logits, before)


def test_a_flag_that_says_false_is_false():
    """The released command line reads every boolean by `bool`, so that 'False' is true."""
    base = {"task": "audio-classification", "data": "sounds", "method": {"name": "lora", "targets": "q"}}
    for text in ("False", "false", "no"):
        assert load_recipe(base, [f"method.rslora={text}"]).methods[0].settings["rslora"] is False
        assert load_recipe(base, [f"evaluation.predictions={text}"]).evaluation.predictions is False
    with pytest.raises(MethodError, match="rslora"):
        ad.get_method("lora", rslora="False")


def test_only_what_the_paper_trains_is_trained():
    task = get_task("audio-classification", pooling="mean")
    task.labels = ["a", "b"]
    model = task.load_model(spec(from_config=AST))
    ad.attach(
        model,
        "parallel",
        targets="mlp-blocks",
        size=2,
        train=["classifier", "encoder.layernorm", "*.layernorm_after"],
    )
    before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model(input_values=torch.randn(4, 64, 32), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = dict(model.named_parameters())
    assert all(torch.equal(after[n], value) for n, value in before.items())
    trained = {n.split(".adaptome.")[0] for n, p in model.named_parameters() if p.requires_grad}
    layers = [f"encoder.layers.{i}.{part}" for i in (0, 1) for part in ("mlp", "layernorm_after")]
    assert trained == {"classifier", "encoder.layernorm", *layers}
