"""Methods: validated settings, an open registry, and honest metadata."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core import method as registry
from adaptome.core.errors import HostError, MethodError
from adaptome.core.hosts import host_of
from adaptome.forms.low_rank import LowRank
from tests.core.models import Net, run

METHODS = ad.list_methods()


@pytest.fixture
def spare_registry(monkeypatch):
    ad.list_methods()
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


def test_a_method_is_one_class_and_everything_works_with_it(spare_registry, tmp_path):
    @ad.register("ones", export="low-rank", source="nobody")
    class Ones(ad.Method):
        """Ones: a rank-one update."""

        scale: float = ad.option(2.0, above=0, help="of the update")

        def parameters(self, host):
            return host.fan_in + host.fan_out

        def adapter(self, host, shared=None):
            made = LowRank(host, self.scale)
            made.A, made.B = (
                nn.Parameter(torch.ones(1, host.fan_in)),
                nn.Parameter(torch.zeros(host.fan_out, 1)),
            )
            made.factors = lambda: (made.A, made.B)
            return made

    model = Net()
    assert ad.attach(model, "ones", scale=3, targets="wide").trainable == 20
    assert "ones" in ad.list_methods() and ad.get_method("ones").scale == 2.0
    assert Ones.summary() == "Ones: a rank-one update." and Ones.about()["options"][0]["above"] == 0
    with torch.no_grad():
        ad.parameters_of(model)["wide.B"].fill_(0.1)
    before = run(model)
    ad.save(model, tmp_path / "a")
    other = Net()
    ad.load(other, tmp_path / "a")
    assert torch.equal(run(other), before)
    ad.merge(model)
    torch.testing.assert_close(run(model), before)


def test_names_are_unique_and_metadata_is_known(spare_registry):
    with pytest.raises(
        MethodError, match="a method named 'lora' is registered already, by adaptome.methods.low_rank.lora"
    ):
        ad.register("lora")(type("Other", (ad.Method,), {"__annotations__": {}}))
    with pytest.raises(MethodError, match="unknown attribute 'exprot'. Did you mean 'export'"):
        ad.register("new", exprot="none")(type("Other", (ad.Method,), {"__annotations__": {}}))


@pytest.mark.parametrize("other", [5, None, torch.nn.Linear])
def test_what_is_no_method_is_refused(other):
    with pytest.raises(MethodError, match=r"is no method\.\n  Give a name"):
        ad.attach(torch.nn.Sequential(torch.nn.Linear(3, 4)), other)


def test_a_method_comes_from_its_name_class_or_instance():
    assert (
        ad.get_method("lora", r=3)
        == ad.get_method(ad.LoRA, r=3)
        == ad.get_method(ad.LoRA(r=3))
        == ad.LoRA(r=3)
    )
    assert ad.get_method(ad.LoRA(r=3), alpha=1) == ad.LoRA(r=3, alpha=1.0)
    assert hash(ad.LoRA()) == hash(ad.LoRA()) and ad.LoRA() != ad.LoRA(r=9)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ad.LoRA().r = 3
    with pytest.raises(AttributeError, match="Did you mean 'LoRA'"):
        ad.LoRa  # noqa: B018


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r": "8"}, "lora.r = '8' is a str; it must be int"), ({"r": True}, "r = True is a bool"), ({"r": -1}, "at least 1"),
        ({"dropout": 1.0}, "must be below 1"), ({"dropout": -0.1}, "at least 0"), ({"alpha": "x"}, "must be float"),
        ({"alpha": float("inf")}, "must be a finite number"), ({"alpha": 10**400}, "must be a finite number"),
        ({"rslora": 1}, "must be bool"), ({"init": "kaming"}, "Did you mean 'kaiming'"), ({"init": ["kaiming"]}, "must be 'kaiming' or"),
        ({"ranks": 1}, r"lora has no setting 'ranks'.*\n  It has: alpha, dropout, init, r, rslora"),
    ],
)  # fmt: skip
def test_a_wrong_setting_says_what_it_must_be(settings, words):
    with pytest.raises(MethodError, match=words):
        ad.get_method("lora", **settings)


@pytest.mark.parametrize("name", METHODS)
def test_settings_go_through_json_and_back(name):
    method = ad.get_method(name)
    assert ad.get_method(name, **json.loads(json.dumps(method.settings()))) == method
    about = json.loads(json.dumps(type(method).about()))
    assert about["name"] == name and about["summary"] and about["source"]
    assert all(o["help"] for o in about["options"])
    assert (about["merge"] == "none") <= (about["export"] == "none")


@pytest.mark.parametrize("name", METHODS)
def test_its_documentation_has_the_lines_that_the_docs_read(name):
    text = METHODS[name].__doc__
    for line in ("shapes", "init", "parameters", "merge", "source"):
        assert f"\n    {line} " in text, f"{name} does not tell its {line}"


def test_what_it_does_not_admit_it_says():
    host = host_of(nn.LayerNorm(4), "norm")
    assert (
        ad.LoRA().admits(host)
        == "it works on linear, conv, embedding, experts, parameter; this is a norm (LayerNorm)"
    )
    with pytest.raises(HostError, match="`adaptome methods` lists what each method admits"):
        ad.LoRA().check(host)
