"""Sparse delta against the dense equation."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import adaptome as ad
from adaptome.core.hosts import host_of
from adaptome.forms.sparse import places
from tests.methods.helpers import adapted, batch, linear, llama2_7b, shake


def conv1d():
    torch.manual_seed(0)
    return Conv1D(20, 12)


@pytest.mark.parametrize("make", [linear, lambda: linear(bias=False), conv1d])
def test_forward_and_gradients_are_those_of_the_dense_equation(make):
    layer = make()
    W = layer.weight.detach().double()
    W = W.T if isinstance(layer, Conv1D) else W
    b = None if layer.bias is None else layer.bias.detach().double()
    model, a = adapted(layer, ad.SparseDelta(n=30))
    x = batch(3, 5, 12).requires_grad_()
    torch.testing.assert_close(model(x), nn.functional.linear(x, W, b), rtol=1e-12, atol=1e-12)
    shake(model)
    D = torch.zeros(240, dtype=torch.float64)
    D[a.index] = a.values.detach()
    full = (W + D.view(20, 12)).requires_grad_()
    z = x.detach().clone().requires_grad_()
    expected, g = nn.functional.linear(z, full, b), batch(3, 5, 20)
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(a.delta(), D.view(20, 12))
    expected.backward(g)
    model(x).backward(g)
    torch.testing.assert_close(x.grad, z.grad)
    torch.testing.assert_close(a.values.grad, full.grad.flatten()[a.index])


def test_its_backward_is_right_by_finite_differences_and_keeps_the_input_alone():
    model, a = adapted(linear(6, 5), ad.SparseDelta(n=7))
    shake(model)
    x = batch(3, 6).requires_grad_()

    def run(x, values):
        return torch.func.functional_call(model, {"0.adaptome.default.values": values}, x)

    assert torch.autograd.gradcheck(run, (x, a.values))
    own, kept = {p.data_ptr() for p in model.parameters()} | {a.index.data_ptr()}, []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        model(x)
    assert [t.data_ptr() for t in kept if t.data_ptr() not in own] == [x.data_ptr()]


def test_under_autocast_and_on_another_adapter_it_is_the_same():
    layer, x = linear(), batch(4, 12)
    W, b = layer.weight.detach().double(), layer.bias.detach().double()
    model, a = adapted(layer, ad.LoRA(r=2))
    ad.attach(model, ad.SparseDelta(n=30), "two", targets="0")
    shake(model)
    two = ad.adapters(model)["two"].adapters["0"]
    with torch.no_grad():
        two.values.normal_()
    expected = x @ (W + a.delta() + two.delta()).T + b
    torch.testing.assert_close(model(x), expected)
    ad.activate(model, "two")
    with torch.autocast("cpu", torch.bfloat16):
        y = model.float()(x.float())
    torch.testing.assert_close(y.double(), x @ (W + two.delta()).T + b, rtol=0.05, atol=0.1)


def test_places_differ_follow_the_seed_and_are_saved(tmp_path):
    host = host_of(nn.Linear(40, 50))
    for n in (3, 400, 600, 1999, 5000):
        chosen = places(host, n, "random")
        assert len(chosen) == len(chosen.unique()) == min(n, 2000) and int(chosen.max()) < 2000
    counts = torch.zeros(2000)
    for _ in range(200):
        counts[places(host, 100, "random")] += 1
    assert abs(float(counts[:1000].sum()) / 20000 - 0.5) < 0.02  # no end of the weight is preferred
    one, two, three = (adapted(linear(40, 50), ad.SparseDelta(n=100), seed=s)[1].index for s in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, three)
    model, a = adapted(linear(), ad.SparseDelta(n=30))
    shake(model)
    ad.save(model, tmp_path / "a")
    other = nn.Sequential(linear()).double()
    ad.load(other, tmp_path / "a")
    assert torch.equal(other(batch(4, 12)), model(batch(4, 12)))


@pytest.mark.parametrize(("selection", "largest"), [("largest", True), ("smallest", False)])
def test_places_by_magnitude(selection, largest):
    W = linear().weight.detach().double()
    _, a = adapted(linear(), ad.SparseDelta(n=30, selection=selection))
    assert a.index.tolist() == W.abs().flatten().topk(30, largest=largest).indices.sort().values.tolist()


def test_counts_are_n_a_layer():
    assert ad.plan(llama2_7b(), ad.SparseDelta(n=1000)).trainable == 224_000
    assert ad.plan(nn.Sequential(nn.Linear(4, 5)), ad.SparseDelta(n=1000), targets="0").trainable == 20
