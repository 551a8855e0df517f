"""The linear probe sits on no layer, which no other method does: what the grid asks of the others is asked here."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import adaptome as ad
from adaptome.core.errors import HostError, MergeError, MethodError, TargetError


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.2), nn.ReLU())
        self.classifier = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.body(x))


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    return Classifier()


def trained(model):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    for _ in range(3):
        F.cross_entropy(model(x), y).backward()
        ad.check_gradients(model)
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_it_is_logistic_regression_on_what_the_frozen_model_makes(model):
    base, x = copy.deepcopy(model).eval(), torch.randn(8, 4)
    plan = ad.attach(model, "linear-probe", train="classifier")
    assert torch.equal(model.eval()(x), base(x))
    assert plan.trainable == 6 * 3 + 3 == ad.trainable(model).count
    assert plan.entries == () and plan.heads == {"classifier": 21}
    with torch.no_grad():
        f, y = base.body(x).double(), torch.randint(3, (8,))
    W, b = (p.detach().double().requires_grad_() for p in base.classifier.parameters())
    optimizers = [torch.optim.SGD(ps, 0.5) for ps in ([W, b], [p for p in model.parameters() if p.requires_grad])]  # fmt: skip
    for _ in range(5):
        for loss, optimizer in zip((F.cross_entropy(f @ W.T + b, y), F.cross_entropy(model(x), y)), optimizers, strict=True):  # fmt: skip
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(model(x).double(), (f @ W.T + b), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(base.body.parameters(), model.body.parameters(), strict=True))  # fmt: skip


def test_it_is_saved_loaded_merged_and_detached(model, tmp_path):
    base, x = copy.deepcopy(model), torch.randn(5, 4)
    ad.attach(model, "linear-probe", train="classifier")
    y = trained(model).eval()(x)
    ad.save(model, tmp_path / "probe")
    other = copy.deepcopy(base).eval()
    assert ad.load(other, tmp_path / "probe").method == "linear-probe"
    assert torch.equal(other(x), y)
    ad.merge(model)
    assert torch.equal(model(x), y)
    ad.unmerge(model)
    ad.detach(model)
    assert torch.equal(model(x), base.eval()(x)) and type(model.classifier) is nn.Linear


def test_it_stands_beside_other_adapters(model):
    ad.attach(model, "lora", targets="body.0", r=2)
    ad.attach(model, "linear-probe", "probe", train="classifier")
    before = {n: {k: p.detach().clone() for k, p in ad.parameters_of(model, n).items()} for n in ad.active(model)}  # fmt: skip
    trained(model)
    for name, own in before.items():
        assert any(not torch.equal(p, own[k]) for k, p in ad.parameters_of(model, name).items()), name


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({}, TargetError, "nothing is named.\n  Name the head: train='classifier'"),
        ({"targets": "body.0", "train": "classifier"}, HostError, "cannot be put on body.0: it sits on no layer"),
        ({"budget": 100, "train": "classifier"}, MethodError, "no size to fit a budget with"),
    ],
)  # fmt: skip
def test_what_it_cannot_do_is_told(model, settings, error, told):
    with pytest.raises(error, match=told):
        ad.attach(model, "linear-probe", **settings)
    assert all(p.requires_grad for p in model.parameters())


def test_it_has_no_form_in_peft(model, tmp_path):
    ad.attach(model, "linear-probe", train="classifier")
    with pytest.raises(MergeError, match="changes no weight but the head's"):
        ad.export(model, tmp_path / "peft")


def test_the_paper_trains_38450_numbers_on_esc_50():
    with torch.device("meta"):
        head = nn.Sequential(nn.Linear(768, 768), nn.Linear(768, 50))
    assert ad.plan(head, "linear-probe", train="1").trainable == 768 * 50 + 50 == 38_450
