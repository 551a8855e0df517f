"""The verbs: attach changes nothing when it fails, detach leaves no trace, and what trains is counted right."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import GradientError, HostError, MethodError, StateError, TargetError
from tests.core.models import IDS, Net, llama, move, run, same, snapshot


def test_attaching_says_what_it_does_and_plan_says_the_same_before():
    model = Net()
    planned = ad.plan(model, "lora", r=2, targets=["wide", "narrow"], train=["classifier"])
    made = ad.attach(model, "lora", r=2, targets=["wide", "narrow"], train=["classifier"], seed=4)
    assert planned.entries == made.entries and (planned.seed, made.seed) == (None, 4)
    assert [(e.path, e.kind, e.shape, e.parameters) for e in made.entries] == [
        ("wide", "linear", (12, 8), 40), ("narrow", "linear", (8, 12), 40),
    ]  # fmt: skip
    assert made.heads == {"classifier": 27} and made.trainable == 107
    assert made.total == made.base + 107 == sum(p.numel() for p in Net().parameters()) + 107
    text = str(made)
    assert (
        "wide" in text
        and "12x8" in text
        and "trained whole" in text
        and f"trainable 107 of {made.total}" in text
    )
    assert json.loads(json.dumps(made.to_dict()))["trainable"] == 107


def test_like_layers_fold_into_one_row():
    text = str(ad.plan(llama(), "lora", targets="q"))
    assert "model.layers.*.self_attn.q_proj (x2)" in text


def test_the_report_counts_by_role_and_every_tensor_once():
    model = llama(tie=True)
    assert ad.trainable(model).roles == {"base": sum(p.numel() for p in model.parameters())}
    made = ad.attach(model, "lora", r=2, targets=["q", "v"], train=["lm_head"])
    report = ad.trainable(model)
    assert report.roles == {"q": 2 * 2 * 32, "v": 2 * 2 * 24, "head": 512}
    assert report.count == made.trainable and report.bytes == 4 * report.count and len(report.names) == 9
    assert "head" in str(report) and f"{report.count:,} of {report.total:,}" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["percent"] == report.percent


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"method": "lorra"}, MethodError, "no method is called 'lorra'. Nearest: lora"),
        ({"rank": 3}, MethodError, "lora has no setting 'rank'"),
        ({"r": 0}, MethodError, "lora.r = 0 must be at least 1"),
        ({"r": 2.5}, MethodError, "lora.r = 2.5 is a float; it must be int"),
        ({"alpha": float("nan")}, MethodError, "lora.alpha = nan must be a finite number"),
        ({"init": "pisa"}, MethodError, "Did you mean 'pissa'"),
        ({"targets": "q_proj"}, TargetError, "targets='q_proj' matches no module of Net"),
        ({"targets": ["wide", "nowhere"]}, TargetError, "'nowhere' matches no module"),
        ({"targets": "norm"}, HostError, "lora cannot be put on norm: .* this is a norm"),
        ({"train": ["head2"]}, TargetError, "head2"),
        ({"train": ["act"]}, TargetError, "act .ReLU. has no parameters to train"),
        ({"train": ["embed[3:2]"]}, TargetError, "rows 3 to 2 of embed, which has 20"),
        ({"targets": ["wide", "embed"], "train": ["embed[18:]"]}, TargetError, "embed is among the targets and some of its rows"),
        ({"targets": "wide", "train": ["wide"]}, TargetError, "matches only modules that are trained whole"),
        ({"name": "a.b"}, StateError, "use letters, digits"),
        ({"name": ""}, StateError, "use letters, digits"),
        ({"name": "items"}, StateError, "is an attribute of every module"),
        ({"per_layer": {"narrow": {"r": 3}}, "targets": "wide"}, TargetError, "matches none of the 1 targets"),
        ({"init": "pissa", "r": 99, "targets": "wide"}, HostError, "above the rank of wide, 8"),
    ],
)  # fmt: skip
def test_what_cannot_be_attached_says_why_and_changes_nothing(arguments, error, words):
    model = Net()
    model.act = nn.ReLU()
    model.norm.bias.requires_grad_(False)
    before = snapshot(model)
    with pytest.raises(error, match=words):
        ad.attach(model, **({"method": "lora", "targets": ["wide", "narrow"]} | arguments))
    assert same(snapshot(model), before)


def test_the_second_adapter_trains_its_own_copy_of_a_head(tmp_path):
    model = Net()
    for name in ("a", "b"):
        ad.attach(model, "lora", name, r=2, targets="wide", train=["classifier"])
        move(model, name, seed=ord(name))
    assert list(ad.parameters_of(model, "b")) == ["wide.A", "wide.B", "classifier.weight", "classifier.bias"]
    ad.activate(model, "a")
    alone = run(model)
    ad.detach(model, "b")
    assert torch.equal(run(model), alone)


def test_switching_names_order_and_weights():
    model = Net()
    base = run(model)
    for name in ("a", "b"):
        ad.attach(model, "lora", name, r=2, targets="wide")
        move(model, name, seed=ord(name))
    assert ad.active(model) == ["a", "b"]
    both = run(model)
    ad.activate(model, "b")
    only = run(model)
    assert not torch.allclose(both, only)
    ad.activate(model, ["b", "a"])
    torch.testing.assert_close(run(model), both)
    with pytest.raises(StateError, match="Did you mean 'a'"):
        ad.activate(model, "aa")
    with pytest.raises(StateError, match=r"weights name \['b'\], which are not among the activated \['a'\]"):
        ad.activate(model, "a", weights={"b": 1.0})
    with ad.disabled(model):
        with ad.disabled(model):
            assert torch.equal(run(model), base)
        assert torch.equal(run(model), base)
        ad.activate(model, "b")
        assert torch.equal(run(model), base)
    assert torch.equal(run(model), only)


def test_disabled_ends_when_the_block_fails_or_detaches():
    model = Net()
    ad.attach(model, "lora", r=2, targets="wide")
    move(model)
    before = run(model)
    with pytest.raises(ZeroDivisionError), ad.disabled(model):
        1 / 0  # noqa: B018
    assert torch.equal(run(model), before)
    with ad.disabled(model):
        ad.detach(model)
    assert torch.equal(run(model), run(Net()))


def test_verbs_without_anything_attached_say_so():
    for verb in (ad.active, ad.detach, ad.merge, ad.unmerge, ad.parameters_of, ad.check_gradients):
        with pytest.raises(StateError, match="nothing is attached to this Net"):
            verb(Net())
    assert ad.adapters(Net()) == {}


def test_what_trained_before_trains_again():
    model = Net()
    model.embed.weight.requires_grad_(False)
    ad.attach(model, "lora", "a", targets="wide")
    ad.attach(model, "lora", "b", targets="narrow")
    ad.detach(model, "a")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        "narrow.adaptome.b.A",
        "narrow.adaptome.b.B",
    }
    ad.detach(model)
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {"embed.weight"}


def test_training_changes_the_adapter_and_not_a_bit_of_the_base():
    model = Net()
    ad.attach(model, "lora", r=2, targets=["wide", "narrow"], train=["classifier", "embed[18:]"])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        model(IDS).square().sum().backward()
        ad.check_gradients(model)
        optimizer.step()
    after = model.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {k for k in before if ".adaptome." in k}


class Partly(Net):
    def forward(self, ids):
        return self.classifier(self.norm(self.embed(ids)))


def test_adapters_that_no_gradient_reaches_are_named():
    model = Partly()
    ad.attach(model, "lora", targets=["wide", "classifier"])
    model(IDS).sum().backward()
    with pytest.raises(GradientError, match="no gradient reached 1 of 2 adapters: default: wide."):
        ad.check_gradients(model)


def test_freezing_and_thawing_one_adapter():
    model = Net()
    ad.attach(model, "lora", "a", targets="wide")
    ad.attach(model, "lora", "b", targets="wide")
    ad.set_trainable(model, "a", False)
    assert set(ad.trainable(model).names) == {"wide.adaptome.b.A", "wide.adaptome.b.B"}
    ad.set_trainable(model, "a")
    assert len(ad.trainable(model).names) == 4


def test_adapters_have_the_type_asked_for_or_at_least_float32():
    for base, asked, given in (
        (torch.bfloat16, None, torch.float32), (torch.float64, None, torch.float64), (torch.float32, torch.bfloat16, torch.bfloat16),
    ):  # fmt: skip
        model = Net().to(base)
        ad.attach(model, "lora", targets="wide", train=["classifier"], dtype=asked)
        assert {p.dtype for p in ad.parameters_of(model).values()} == {given}
        assert run(model).dtype == base


def test_attaching_and_detaching_many_times_leaves_nothing():
    model = Net()
    before = snapshot(model)
    for number in range(5):
        ad.attach(model, "lora", f"n{number}", targets="wide")
    for number in (3, 0, 4, 1, 2):
        ad.detach(model, f"n{number}")
    assert same(snapshot(model), before)
