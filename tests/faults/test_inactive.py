"""An inactive adapter asks for no gradient, and asks again once it is activated. Under DDP and FSDP: tests/core/distributed.py."""

from __future__ import annotations

import copy
import pickle

import torch

import adaptome as ad
from tests.core.models import IDS, Net


def two() -> Net:
    model = Net()
    ad.attach(model, "lora", "a", targets="wide", train="classifier")
    ad.attach(model, "mos", "b", targets=["wide", "narrow"], r=2)
    return model


def training(model) -> set[str]:
    return {n.split("adaptome", 1)[1].split(".")[1] for n, p in model.named_parameters() if p.requires_grad}


def test_what_does_not_run_asks_for_nothing():
    model = two()
    everything = {n for n, p in model.named_parameters() if p.requires_grad}
    assert training(model) == {"a", "b"}
    ad.activate(model, "a")
    assert training(model) == {"a"}
    model(IDS).sum().backward()
    ad.activate(model, "b")
    assert training(model) == {"b"}
    ad.activate(model, [])
    assert training(model) == set()
    ad.activate(model, ["b", "a"])
    assert {n for n, p in model.named_parameters() if p.requires_grad} == everything


def test_what_a_user_froze_stays_frozen_and_what_is_thawed_while_inactive_trains_later():
    model = two()
    ad.set_trainable(model, "a", False)
    ad.activate(model, "b")
    ad.activate(model, ["a", "b"])
    assert training(model) == {"b"}
    ad.activate(model, "b")
    ad.set_trainable(model, "a")
    assert training(model) == {"b"}
    ad.activate(model, "a")
    assert training(model) == {"a"}
    ad.activate(model, "b")
    ad.set_trainable(model, "a", False)
    ad.activate(model, "a")
    assert training(model) == set()


def test_merging_disabling_copying_and_detaching():
    model = two()
    ad.activate(model, ["a"])
    ad.merge(model, "a")
    assert training(model) == set()
    ad.unmerge(model)
    assert training(model) == {"a"}
    with ad.disabled(model):
        assert training(model) == {"a"}  # a reference run in the middle of a step changes nothing
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        ad.activate(made, "b")
        assert training(made) == {"b"}
    ad.detach(model, "a")
    ad.activate(model, "b")
    assert training(model) == {"b"}
    ad.detach(model)
    assert all(p.requires_grad for p in model.parameters())


def test_a_loaded_one_that_was_inactive_trains_once_activated(tmp_path):
    model = two()
    ad.activate(model, "a")
    ad.save(model, tmp_path, "b")
    fresh = Net()
    ad.load(fresh, tmp_path, "b", trainable=True)
    assert training(fresh) == {"b"}
    optimizer = torch.optim.SGD(ad.parameters_of(model, "b").values(), 0.1)
    ad.activate(model, "b")
    model(IDS).square().sum().backward()
    before = {k: v.clone() for k, v in ad.parameters_of(model, "b").items()}
    optimizer.step()
    assert any(not torch.equal(v, before[k]) for k, v in ad.parameters_of(model, "b").items())
