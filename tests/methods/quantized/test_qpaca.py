"""QPaCA: PaCA's columns on quantised layers, and CLoQ's start: against the dense weights that the base stands for."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import adaptome as ad
from adaptome.core import packed

BASES = {
    "nf4": {"scheme": "nf4"},
    "uniform-3": {"scheme": "uniform", "bits": 3, "group": 32},
    "sketch": {"scheme": "sketch", "tables": 2},
}


@pytest.fixture(params=BASES)
def base(request):
    if request.param == "nf4":
        pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    full = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 32, bias=False))
    model = copy.deepcopy(full)
    ad.quantize(model, targets=["0", "2"], **BASES[request.param])
    return full, model


def test_columns_are_replaced_and_get_the_gradient_of_full_tuning(base):
    _, model = base
    W = packed.dense(model[0])
    ad.attach(model, "paca", r=8, targets="0", seed=1)
    a = model[0].adaptome["default"]
    nn.init.normal_(a.P, std=0.1)
    changed = W.clone()
    changed[:, a.I] += a.scale * a.P.detach()
    changed.requires_grad_()
    x = torch.randn(3, 5, 64, requires_grad=True)
    y, expected, g = model[0](x), x @ changed.T + model[0].bias, torch.randn(3, 5, 128)
    assert_close(y, expected, rtol=1e-4, atol=1e-4)
    dx, dP = torch.autograd.grad(y, (x, a.P), g)
    dense_x, dense_W = torch.autograd.grad(expected, (x, changed), g)
    assert_close(dx, dense_x, rtol=1e-4, atol=1e-4)
    assert_close(dP, a.scale * dense_W[:, a.I], rtol=1e-4, atol=1e-4)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["0.adaptome.default.P"]


def test_of_the_input_only_the_columns_are_kept(base):
    _, model = base
    ad.attach(model, "paca", r=8, targets=["0", "2"], seed=1)
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(t.shape) or t, lambda t: t):
        model(torch.randn(3, 5, 64))
    assert not any(shape.numel() == 3 * 5 * 64 for shape in shapes)
    assert any(shape.numel() == 3 * 5 * 8 for shape in shapes)


def test_columns_are_chosen_by_the_dequantised_norm(base):
    _, model = base
    W = packed.dense(model[0])
    ad.attach(model, "paca", r=5, selection="largest", targets="0")
    assert torch.equal(model[0].adaptome["default"].I, W.norm(dim=0).topk(5).indices.sort().values)


def test_cloq_is_the_best_low_rank_answer_on_the_inputs(base):
    full, model = base
    X = torch.randn(400, 64) * (1 + 5 * (torch.arange(64) % 9 == 0))
    D = (full[0].weight - packed.dense(model[0])).detach().double()
    before = float((D @ X.T.double()).norm())
    twin = copy.deepcopy(model)
    report = ad.cloq(model, full, [X], ad.LoRA(r=6), targets="0", damping=1e-6)
    ad.loftq(twin, full, ad.LoRA(r=6), targets="0")
    errors = []
    for other in (model, twin):
        a = other[0].adaptome["default"]
        errors.append(float(((D - a.delta().double().detach()) @ X.T.double()).norm()))
    # the rank-6 optimum of ||(D - M) X||: what the singular values of D X beyond the sixth leave
    left = torch.linalg.svdvals(D @ X.T.double())[6:].square().sum().sqrt()
    assert errors[0] == pytest.approx(float(left), rel=1e-3)
    assert errors[0] < errors[1] and errors[0] < before
    assert report.layers[0].after == pytest.approx(errors[0], rel=1e-2)
    assert report.layers[0].before == pytest.approx(before, rel=1e-2)


def test_cloq_refuses_a_base_that_lacks_nothing():
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ad.errors.HostError, match="cloq: 0 is not quantised"):
        ad.cloq(model, model, [torch.randn(2, 8)], ad.LoRA(r=2), targets="0")
