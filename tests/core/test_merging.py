"""Merging is exact, says what it did, and when it fails leaves everything as it was."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import MergeError, StateError
from tests.core.models import IDS, Net, llama, move, run, same, snapshot


def adapted(*names: str) -> nn.Module:
    model = Net()
    for number, name in enumerate(names or ("default",)):
        ad.attach(model, "lora", name, r=2, targets=["wide", "narrow"], seed=number)
        move(model, name, seed=number)
    return model


def test_the_report_tells_and_prints():
    model = adapted()
    report = ad.merge(model)
    assert report.names == ("default",) and list(report.differences) == ["wide", "narrow"]
    assert 0 <= report.worst < 1e-5 and report.requantised == {} and report.untied == ()
    assert str(report).startswith("merged default\nlayer") and "narrow" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["worst"] == report.worst


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_summed_in_float32_and_rounded_once(dtype):
    model = Net().to(dtype)
    ad.attach(model, "lora", r=2, alpha=2.0, targets="wide")
    move(model)
    W, t = model.wide.weight.float(), ad.parameters_of(model)
    assert t["wide.A"].dtype == torch.float32
    ad.merge(model)
    assert torch.equal(model.wide.weight, (W + t["wide.B"] @ t["wide.A"]).to(dtype))


def test_merging_in_turn_and_failing_in_between_keeps_what_was_merged():
    model = adapted("a", "b", "c")
    all_three = run(model)
    with torch.no_grad():
        spoilt = ad.parameters_of(model, "c")["narrow.B"]
        good = spoilt.clone()
        spoilt[0, 0] = float("nan")
    ad.merge(model, "a")
    before = snapshot(model)
    with pytest.raises(MergeError, match=r"narrow.weight: the merged value is not finite"):
        ad.merge(model, ["b", "c"])
    assert same(snapshot(model), before)
    with torch.no_grad():
        spoilt.copy_(good)
    torch.testing.assert_close(run(model), all_three)
    ad.merge(model, ["b", "c"])
    torch.testing.assert_close(run(model), all_three)
    with pytest.raises(MergeError, match=r"nothing to merge: active are .*merged already \['a', 'b', 'c'\]"):
        ad.merge(model)
    ad.unmerge(model)
    assert torch.equal(run(model), all_three)
    with pytest.raises(MergeError, match="nothing is merged; attached are"):
        ad.unmerge(model)


def test_the_order_is_that_of_the_forward_whatever_order_is_named():
    model = Net()
    for number, method in enumerate(("lora", "dora", "ia3")):
        ad.attach(model, method, method, targets="narrow", seed=number)
        move(model, method, seed=number)
    before = run(model)
    assert ad.merge(model, ["ia3", "lora", "dora"]).worst < 1e-5
    torch.testing.assert_close(run(model), before)
    ad.unmerge(model)
    ad.activate(model, ["ia3", "dora", "lora"])
    other = run(model)
    assert not torch.allclose(other, before)
    ad.merge(model)
    torch.testing.assert_close(run(model), other)


@pytest.mark.parametrize(("earlier", "later"), [("lora", "dora"), ("dora", "lora"), ("ia3", "dora")])
def test_a_later_adapter_does_not_merge_under_an_earlier_one(earlier, later):
    model = Net()
    for number, (name, method) in enumerate((("a", earlier), ("b", later))):
        ad.attach(model, method, name, targets=["wide", "narrow"], seed=number)
        move(model, name, seed=number)
    before = snapshot(model)
    with pytest.raises(MergeError, match=r"'a' acts on wide before 'b': merging only the later one would"):
        ad.merge(model, "b")
    assert same(snapshot(model), before)
    ad.activate(model, ["b", "a"])
    both = run(model)
    ad.merge(model, "b")
    torch.testing.assert_close(run(model), both)


def test_one_that_adds_merges_past_another_that_adds():
    model = adapted("a", "b", "c")
    ad.activate(model, ["a", "b", "c"], weights={"a": 0.5, "b": -2.0})
    everything = run(model)
    ad.merge(model, "b")
    torch.testing.assert_close(run(model), everything)
    ad.merge(model, "c")
    torch.testing.assert_close(run(model), everything)
    ad.unmerge(model)
    assert torch.equal(run(model), everything)


def test_one_that_adds_does_not_merge_past_one_that_scales_in_between():
    model = Net()
    for number, (name, method) in enumerate((("a", "lora"), ("scale", "ia3"), ("b", "lora"))):
        ad.attach(model, method, name, targets="narrow", seed=number)
        move(model, name, seed=number)
    everything = run(model)
    with pytest.raises(MergeError, match="'scale' acts on narrow before 'b'"):
        ad.merge(model, "b")
    ad.merge(model, "a")
    torch.testing.assert_close(run(model), everything)


def test_dora_over_a_merged_adapter_sees_the_merged_weight():
    model = Net()
    ad.attach(model, "lora", "below", targets="narrow")
    ad.attach(model, "dora", "above", targets="narrow")
    move(model, "below"), move(model, "above")
    before = run(model)
    ad.merge(model, "below")
    torch.testing.assert_close(run(model), before)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_starts_from_the_weight_starts_from_the_bases_even_on_a_merged_model(init, tmp_path):
    model = adapted("a")
    ad.merge(model)
    ad.attach(model, "lora", "b", r=2, init=init, targets="narrow")
    move(model, "b")
    ad.unmerge(model)
    ad.activate(model, "b")
    ad.save(model, tmp_path / "b", "b")
    other = Net()
    ad.load(other, tmp_path / "b", "b")
    torch.testing.assert_close(run(other), run(model))


def test_weights_of_adapters_are_merged_with_them():
    model = adapted("a", "b")
    ad.activate(model, ["a", "b"], weights={"a": 0.25, "b": -1.5})
    before = run(model)
    ad.merge(model)
    torch.testing.assert_close(run(model), before)


def test_keep_false_frees_the_old_weights_and_needs_every_merged_adapter():
    model = adapted("a", "b")
    before = run(model)
    ad.merge(model, "a")
    with pytest.raises(MergeError, match=r"keep=False frees the old weights, which \['a'\] need"):
        ad.merge(model, "b", keep=False)
    torch.testing.assert_close(run(model), before)
    ad.merge(model, keep=False)
    torch.testing.assert_close(run(model), before)
    assert not ad.adapters(model) and model.state_dict().keys() == Net().state_dict().keys()
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(StateError, match="nothing is attached"):
        ad.unmerge(model)


def test_detaching_a_merged_adapter_gives_the_bits_back():
    model = adapted()
    ad.merge(model)
    ad.detach(model)
    assert torch.equal(run(model), run(Net()))


def test_merging_leaves_modes_hooks_and_optimisers_alone():
    model = adapted().train()
    model.norm.eval()
    calls = []
    model.wide.register_forward_hook(lambda *a: calls.append(1))
    ad.merge(model)
    assert model.training and model.wide.training and not model.norm.training
    calls.clear()
    run(model)
    assert calls == [1]


def test_a_tolerance_that_is_not_met_is_refused():
    model = Net().bfloat16()
    ad.attach(model, "lora", r=2, targets="wide")
    move(model, std=3.0)
    before = snapshot(model)
    with pytest.raises(
        MergeError,
        match=r"wide: the merged layer differs from the adapted one by .* above 1e-09.\n  Pass a tolerance",
    ):
        ad.merge(model, tolerance=1e-9)
    assert same(snapshot(model), before)


def test_weights_that_are_not_there_are_not_merged():
    with torch.device("meta"):
        model = Net()
    ad.attach(model, "lora", targets="wide")
    with pytest.raises(MergeError, match="offloaded or on the meta device"):
        ad.merge(model)


def test_trained_heads_merge_too():
    model = llama()
    ad.attach(model, "lora", targets="q", train=["lm_head", "re:.*layers.0.*norm"])
    move(model)
    before = run(model, IDS)
    ad.merge(model, keep=False)
    torch.testing.assert_close(run(model, IDS), before)
    with pytest.raises(StateError, match="no adapter is called 'other'"):
        ad.attach(model, "lora", targets="q")
        ad.merge(model, "other")
