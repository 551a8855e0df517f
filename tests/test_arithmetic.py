"""Arithmetic of adapters beside the sums of dense updates, and beside PEFT's."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import MergeError, StateError
from tests.interop.test_peft_types import llama, logits, shake


def several() -> nn.Module:
    """A LoRA, a LoHa, an OFT and a DoRA on overlapping layers, none active."""
    model = llama()
    ad.attach(model, "lora", "a", r=2, targets=["q", "k"])
    ad.attach(model, "loha", "b", r=2, targets=["q", "down"])
    ad.attach(model, "oft", "c", size=4, targets=["q", "down"])
    ad.attach(model, "dora", "d", r=2, targets=["k"])
    for i, name in enumerate("abcd"):
        torch.manual_seed(i)
        with torch.no_grad():
            for value in ad.parameters_of(model, name).values():
                value.add_(torch.randn_like(value), alpha=0.3)
    ad.activate(model, [])
    return model


def delta(model, name, path):
    """The dense update of one adapter on one layer, zero where it has none; float64."""
    adapter = ad.adapters(model)[name].adapters.get(path)
    layer = model.get_submodule(path)
    W = layer.weight.detach()
    if adapter is None:
        return torch.zeros_like(W).double()
    return (adapter.changed("weight", W) - W).detach().double()


WEIGHTS = {"a": 0.7, "b": -1.0, "c": 2.0, "d": 0.5}


def test_a_sum_over_methods_is_the_sum_of_their_updates():
    model = several()
    report = ad.combine(model, WEIGHTS, "sum")
    paths = ad.adapters(model)["sum"].adapters
    assert len(paths) == 6 and report.worst == 0 and ad.active(model) == []
    for path in paths:
        expected = sum(w * delta(model, n, path) for n, w in WEIGHTS.items())
        torch.testing.assert_close(delta(model, "sum", path), expected, rtol=1e-4, atol=1e-5)
    assert report.ranks["model.layers.0.self_attn.q_proj"] == 16  # of 2 + 4 + 16, the layer's smaller side
    assert "0.7 a + -1 b" in str(report)


def test_a_task_is_taken_away():
    model = llama()
    ad.attach(model, "lora", "a", r=3, targets="q")
    shake(ad.parameters_of(model, "a").values())
    ad.combine(model, {"a": -1.0}, "minus")
    ad.activate(model, ["a", "minus"])
    torch.testing.assert_close(logits(model), logits(llama()), rtol=1e-5, atol=1e-5)


def test_a_smaller_rank_is_the_nearest_and_its_error_told():
    model = several()
    report = ad.combine(model, WEIGHTS, "low", rank=3)
    for path in ad.adapters(model)["low"].adapters:
        whole = sum(w * delta(model, n, path) for n, w in WEIGHTS.items())
        S = torch.linalg.svdvals(whole)
        gap = float((delta(model, "low", path) - whole).norm() / whole.norm())
        assert gap == pytest.approx(float(S[3:].norm() / S.norm()), rel=1e-3, abs=1e-6)
        assert report.errors[path] == pytest.approx(gap, rel=1e-3, abs=1e-6)


def by_hand(how, parts, weights, density):
    """The rules entry by entry, from the papers."""
    out = torch.zeros_like(parts[0])
    kept = []
    for part in parts:
        order = sorted(range(part.numel()), key=lambda i: -abs(float(part.flatten()[i])))
        keep = set(order[: max(1, int(density * part.numel()))])
        kept.append([float(v) if i in keep else 0.0 for i, v in enumerate(part.flatten())])
    for i in range(out.numel()):
        values = [w * k[i] for w, k in zip(weights, kept, strict=True)]
        if how == "ties":
            sign = 1 if sum(values) > 0 else -1
            values = [v for v in values if v * sign > 0]
            out.view(-1)[i] = sum(values) / len(values) if values else 0.0
        else:
            out.view(-1)[i] = sum(values)
    return out


@pytest.mark.parametrize("how", ["ties", "magnitude"])
def test_the_rules_are_the_papers(how):
    model = several()
    weights = {"a": 1.0, "b": 0.5, "c": -0.3}
    ad.combine(model, weights, "new", how, density=0.3)
    path = "model.layers.0.self_attn.q_proj"
    expected = by_hand(how, [delta(model, n, path) for n in weights], list(weights.values()), 0.3)
    torch.testing.assert_close(delta(model, "new", path), expected, rtol=1e-4, atol=1e-5)


def test_dare_keeps_a_share_of_the_entries_and_rescales_them():
    model = several()
    path = "model.layers.0.self_attn.q_proj"
    ad.combine(model, {"a": 2.0}, "new", "dare", density=0.4, seed=1)
    whole, left = 2.0 * delta(model, "a", path), delta(model, "new", path)
    kept = left.abs() > 1e-7
    assert 0.25 < float(kept.double().mean()) < 0.55
    torch.testing.assert_close(left[kept], whole[kept] / 0.4, rtol=1e-4, atol=1e-5)
    ad.combine(model, {"a": 2.0}, "again", "dare", density=0.4, seed=1)
    torch.testing.assert_close(delta(model, "again", path), left, rtol=0, atol=0)
    ad.combine(model, {"a": 2.0}, "other", "dare", density=0.4, seed=2)
    assert not torch.equal(delta(model, "other", path), left)
    # in the mean over draws it is the whole
    mean = torch.zeros_like(whole)
    for seed in range(50):
        ad.combine(model, {"a": 2.0}, "draw", "dare", density=0.4, seed=10 + seed)
        mean += delta(model, "draw", path) / 50
        ad.detach(model, "draw")
    assert float((mean - whole).norm() / whole.norm()) < 0.3
    ad.combine(model, {"a": 1.0, "b": 1.0}, "both", "dare-ties", density=1.0)
    ad.combine(model, {"a": 1.0, "b": 1.0}, "ties", "ties", density=1.0)
    torch.testing.assert_close(delta(model, "both", path), delta(model, "ties", path), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("cat", "sum"), ("svd", "sum"), ("ties_svd", "ties"), ("magnitude_prune_svd", "magnitude")],
)
def test_sums_are_pefts(theirs, ours, tmp_path):
    other = peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["q_proj"]), "a")
    other.add_adapter("b", peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj"]))
    shake(p for n, p in other.named_parameters() if "lora_" in n)
    other.save_pretrained(tmp_path)
    # PEFT elects signs before it weighs, so that the rules agree where the weights do
    weights, rank = [0.7, 0.7 if "ties" in theirs else 0.5], 16 if theirs != "svd" else 3
    other.add_weighted_adapter(
        ["a", "b"],
        weights,
        "new",
        theirs,
        svd_rank=rank,
        density=None if theirs in ("cat", "svd") else 0.4,
        majority_sign_method="total",
    )
    other.set_adapter("new")
    model = llama()
    ad.load(model, tmp_path / "a", name="a")
    ad.load(model, tmp_path / "b", name="b")
    ad.combine(
        model,
        dict(zip("ab", weights, strict=True)),
        "new",
        ours,
        rank=None if theirs == "cat" else rank,
        density=0.4,
    )
    ad.activate(model, "new")
    torch.testing.assert_close(logits(model), logits(other.eval()), rtol=1e-4, atol=1e-4)


def test_heads_have_no_sum_and_one_adapters_are_taken():
    model = llama()
    ad.attach(model, "lora", "a", r=2, targets="q", train="lm_head")
    ad.attach(model, "lora", "b", r=2, targets="q")
    shake(ad.parameters_of(model, "a").values())
    with pytest.raises(MergeError, match="heads='a'"):
        ad.combine(model, {"a": 1, "b": 1}, "new")
    ad.combine(model, {"a": 1, "b": 1}, "new", heads="a")
    ad.activate(model, "a")
    expected = logits(model)
    ad.activate(model, "new")
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


def test_what_has_no_sum_is_refused():
    model = llama()
    ad.attach(model, "series", "a", targets="down")
    with pytest.raises(MergeError, match="no LoRA form"):
        ad.combine(model, {"a": 1.0}, "new")
    for arguments, words in (
        (({}, "new"), "no adapters"),
        (({"a": 1.0}, "new", "tie"), "Did you mean 'ties'"),
        (({"b": 1.0}, "new"), "no adapter is called"),
    ):
        with pytest.raises(StateError, match=words):
            ad.combine(model, *arguments)
    with pytest.raises(StateError, match="density"):
        ad.combine(model, {"a": 1.0}, "new", "ties", density=0.0)
    assert list(ad.adapters(model)) == ["a"]


def test_a_moving_average_follows_its_adapter():
    model = llama()
    for name in ("default", "mean"):
        ad.attach(model, "dora", name, r=2, targets="q", seed=0)
    ad.activate(model, "default")
    expected = {k: v.clone().double() for k, v in ad.parameters_of(model, "mean").items()}
    for step in range(5):
        torch.manual_seed(step)
        with torch.no_grad():
            for value in ad.parameters_of(model).values():
                value.add_(torch.randn_like(value))
        ad.average(model, "mean", "default", 0.8)
        for k, v in ad.parameters_of(model).items():
            expected[k] = 0.8 * expected[k] + 0.2 * v.double()
    for k, v in ad.parameters_of(model, "mean").items():
        torch.testing.assert_close(v.double(), expected[k], rtol=1e-5, atol=1e-6)
    ad.attach(model, "lora", "other", targets="q")
    with pytest.raises(StateError, match="only like adapters"):
        ad.average(model, "other", "default", 0.8)
