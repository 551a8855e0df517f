"""weight_of and set_state: an adapter's numbers by hand."""

import copy

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import KeyMismatchError, MergeError, NonFiniteError, StateError, TargetError
from tests.methods.helpers import adapted, batch, linear, shake


def two() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 6)).double()


@pytest.mark.parametrize(
    "name", ["lora", "dora", "oft", "vera", "fourierft", "paca", "ssf", "clip-svd", "tlora"]
)
def test_weight_of_is_what_merging_writes(name):
    model = two()
    ad.attach(model, name, targets=["0", "2"], **{"oft": {"size": 4}, "fourierft": {"n": 9}}.get(name, {}))
    shake(model)
    ad.attach(model, "lora", name="second", targets="2")
    ad.parameters_of(model, "second")["2.B"].data.normal_()
    ad.activate(model, ["default", "second"], weights={"second": 0.5})
    before = {p: ad.weight_of(model, p) for p in ("0", "2", "2.bias")}
    assert before["2"].dtype == torch.float64 and before["2"].requires_grad
    x = batch(3, 12)
    y = nn.functional.linear(x, before["0"], ad.weight_of(model, "0.bias"))
    torch.testing.assert_close(model(x), nn.functional.linear(y.tanh(), before["2"], before["2.bias"]))
    assert not torch.allclose(before["2"], ad.adapters(model)["default"].adapters["2"].host.weight())
    ad.merge(model)
    for path, key in (("0", "0.weight"), ("2", "2.weight"), ("2.bias", "2.bias")):
        torch.testing.assert_close(before[path], model.get_parameter(key), rtol=1e-12, atol=1e-12)
        assert torch.equal(ad.weight_of(model, path), model.get_parameter(key))
    ad.unmerge(model)
    with ad.disabled(model):
        assert torch.equal(ad.weight_of(model, "0"), two()[0].weight)


def test_weight_of_in_half_precision_is_not_rounded():
    layer = nn.Sequential(nn.Linear(12, 20)).bfloat16()
    ad.attach(layer, "lora", targets="0")
    shake(layer)
    a = ad.adapters(layer)["default"].adapters["0"]
    W = ad.weight_of(layer, "0")
    assert W.dtype == torch.float32
    torch.testing.assert_close(W, a.host.weight().float() + a.delta())


def test_weight_of_convolutions_experts_and_transposed_layers():
    conv = nn.Sequential(nn.Conv2d(4, 6, 3))
    ad.attach(conv, "lora", targets="0", r=2)
    assert ad.weight_of(conv, "0").shape == (6, 4, 3, 3)
    from transformers.pytorch_utils import Conv1D

    gpt = nn.Sequential(Conv1D(20, 12)).double()
    ad.attach(gpt, "lora", targets="0", r=2)
    shake(gpt)
    x = batch(3, 12)
    torch.testing.assert_close(gpt(x), x @ ad.weight_of(gpt, "0") + gpt[0].bias)


def test_weight_of_refuses_what_has_no_one_weight():
    model = two()
    ad.attach(model, "parallel", targets="0", size=2)
    with pytest.raises(MergeError, match="changes activations"):
        ad.weight_of(model, "0")
    with pytest.raises(TargetError, match="'3' is no layer"):
        ad.weight_of(model, "3")
    with pytest.raises(TargetError, match="Tanh.*has no weight of its own"):
        ad.weight_of(model, "1")


@pytest.mark.parametrize(
    ("method", "path", "tensors"),
    [
        (ad.LoRA(r=2), "0", {"A": torch.ones(2, 12), "B": torch.ones(20, 2)}),
        (ad.LoRAFA(r=2), "0", {"A": torch.ones(2, 12), "B": torch.ones(20, 2)}),
        (ad.PaCA(r=2), "0", {"I": [3, 7], "P": torch.ones(20, 2)}),
        (ad.SparseDelta(n=3), "0", {"index": [0, 5, 239], "values": [1.0, 2.0, 3.0]}),
        (ad.FourierFT(n=3), "0", {"positions": [[0, 3, 19], [11, 6, 0]], "c": [1.0, 2.0, 3.0]}),
        (ad.LoCA(n=3), "0", {"start": [[0, 3, 19], [11, 6, 0]], "a": [1.0, 2.0, 3.0]}),
        (ad.VeRA(r=2), "shared", {"A": torch.ones(2, 20), "B": torch.ones(20, 2)}),
        (ad.RandLoRA(r=2), "shared", {"A": torch.ones(2, 20)}),
    ],
    ids=lambda v: getattr(v, "name", None),
)  # fmt: skip
def test_what_was_set_is_computed_with_saved_and_loaded(method, path, tensors, tmp_path):
    model, x = two(), batch(3, 12)
    ad.attach(model, method, targets=["0", "2"], seed=1)
    shake(model)
    before = model(x)
    ad.set_state(model, "default", {path: tensors})
    assert not torch.allclose(model(x), before)
    W = ad.weight_of(model, "0").detach()
    torch.testing.assert_close(model(x), model[2](nn.functional.linear(x, W, model[0].bias).tanh()))
    ad.save(model, tmp_path / "a")
    other = two()
    ad.load(other, tmp_path / "a")
    assert torch.equal(other(x), model(x)) and torch.equal(copy.deepcopy(model)(x), model(x))
    ad.save(other, tmp_path / "b")  # it is still known that the seed does not rebuild it
    again = two()
    ad.load(again, tmp_path / "b")
    assert torch.equal(again(x), model(x))


def test_a_fourier_update_is_that_of_the_positions_set():
    model, a = adapted(linear(), ad.FourierFT(n=2))
    ad.set_state(model, "default", {"0": {"positions": [[17, 4], [2, 9]], "c": [1.5, -2.0]}})
    S = torch.zeros(20, 12, dtype=torch.float64)
    S[17, 2], S[4, 9] = 1.5, -2.0
    expected = torch.fft.ifft2(S).real * 300.0  # alpha, PEFT's default
    torch.testing.assert_close(a.delta(), expected * (a.scale * 240 / 300))


def test_other_factors_than_the_weights_own_are_added_to_it():
    model, a = adapted(linear(), ad.ClipSVD())
    x, W = batch(3, 12), a.host.weight()
    ad.set_state(model, "default", {"0": {"L": torch.ones(20, 12), "dS": torch.ones(12)}})
    expected = x @ (W + torch.ones(20, 12, dtype=torch.float64) @ a.R).T + model[0].bias
    torch.testing.assert_close(model(x), expected)


def test_what_does_not_fit_is_refused_and_nothing_is_set():
    model, a = adapted(linear(), ad.PaCA(r=2))
    before = {k: v.clone() for k, v in a.state_dict().items()}
    P = torch.ones(20, 2)
    for state, error, match in [
        ({"1": {"P": P}}, KeyMismatchError, "no adapter on '1'"),
        ({"0": {"P": P, "Q": P}}, KeyMismatchError, "no tensor 'Q'.*It has"),
        ({"0": {"P": P.T}}, KeyMismatchError, r"\[2, 20\] stored, \[20, 2\] here"),
        ({"0": {"P": P, "I": [3, 12]}}, KeyMismatchError, "indices from 3 to 12; there are 12"),
        ({"0": {"P": P, "I": [-1, 2]}}, KeyMismatchError, "indices from -1"),
        ({"0": {"P": P, "I": [0.5, 2]}}, KeyMismatchError, "whole numbers"),
        ({"0": {"P": P * float("nan")}}, NonFiniteError, "NaN"),
    ]:
        with pytest.raises(error, match=match):
            ad.set_state(model, "default", state)
        assert all(torch.equal(v, before[k]) for k, v in a.state_dict().items())
    ad.merge(model)
    with pytest.raises(StateError, match="is merged"):
        ad.set_state(model, "default", {"0": {"P": P}})
