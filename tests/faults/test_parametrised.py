"""Layers whose weight a parametrisation makes: wav2vec2's positional convolution (weight norm), spectral norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

import adaptome as ad
from adaptome.core.errors import HostError
from tests.core.families import FAMILIES
from tests.core.models import move

POSITIONS = "wav2vec2.encoder.pos_conv_embed.conv"


def normed(kind: str) -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv1d(8, 6, 3, padding=1, groups=2)
    made = {
        "weight norm": lambda: parametrizations.weight_norm(conv, dim=2),
        "old weight norm": lambda: weight_norm(conv, dim=2),
        "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(10, 6)),
    }[kind]()
    return nn.Sequential(made).eval()


def example(kind: str) -> torch.Tensor:
    return torch.randn(2, 10) if kind == "spectral norm" else torch.randn(2, 8, 10)


KINDS = pytest.mark.parametrize(
    "kind",
    [
        "weight norm",
        pytest.param("old weight norm", marks=pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")),
        "spectral norm",
    ],
)


@KINDS
def test_bitfit_trains_the_bias_and_merges(kind):
    model, x = normed(kind), example(kind)
    before, keys = model(x).detach(), list(model.state_dict())
    plan = ad.attach(model, "bitfit", targets="0", seed=0)
    assert plan.trainable == ad.trainable(model).count == 6
    torch.testing.assert_close(model(x), before)
    model(x).square().sum().backward()
    (trained,) = ad.parameters_of(model).values()
    assert trained.grad is not None and bool(trained.grad.abs().sum() > 0)
    added = torch.randn(6)
    with torch.no_grad():
        trained.add_(added)
    expected = before + (added if kind == "spectral norm" else added[:, None])
    torch.testing.assert_close(model(x), expected)
    ad.merge(model)
    torch.testing.assert_close(model(x), expected)
    ad.detach(model)
    assert torch.equal(model(x), before) and list(model.state_dict()) == keys


@KINDS
@pytest.mark.parametrize("method", ["lora", "dora", "ssf", "ia3", "oft", "paca", "vera", "fourierft"])
def test_methods_that_change_the_weight_are_refused_with_the_way_out(method, kind):
    model = normed(kind)
    with pytest.raises(
        HostError, match="its weight is made by a parametrisation from .*remove_parametrizations"
    ):
        ad.attach(model, method, targets="0")
    assert not ad.adapters(model)


def test_a_role_leaves_them_out_by_name():
    model = FAMILIES["wav2vec2"].build()
    plan = ad.attach(model, "lora", targets="convs", r=2, seed=0)
    assert POSITIONS not in {entry.path for entry in plan.entries} and len(plan.entries) == 2
    assert plan.notes[0].startswith(f"left out {POSITIONS}: its weight is made by a parametrisation")
    with pytest.raises(HostError, match="remove_parametrizations"):
        ad.attach(FAMILIES["wav2vec2"].build(), "lora", targets=["convs", f"={POSITIONS}"])


def test_bitfit_on_wav2vec2_trains_every_bias():
    model = FAMILIES["wav2vec2"].build()
    plan = ad.attach(model, "bitfit", seed=0)
    assert POSITIONS in {entry.path for entry in plan.entries} and plan.notes == ()
    assert plan.trainable == ad.trainable(model).count
    move(model)
