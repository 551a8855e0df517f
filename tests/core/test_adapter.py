"""The swap keeps the object, and adapters compose on the weight in attach order with activation adapters around them."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import adaptome as ad
from adaptome.core.adapter import Adapted, Frozen, adapted_class
from adaptome.core.errors import HostError
from tests.core.models import IDS, Net, move, run


def test_the_layer_stays_the_same_object_with_its_keys_and_kind():
    model = Net()
    layer = model.wide
    keys = list(model.state_dict())
    ad.attach(model, "lora", targets="wide")
    assert model.wide is layer and isinstance(layer, nn.Linear) and isinstance(layer, Adapted)
    assert type(layer).__name__ == "AdaptedLinear" and inspect.signature(layer.forward) == inspect.signature(
        nn.Linear(1, 1).forward
    )
    assert [k for k in model.state_dict() if ".adaptome." not in k] == keys
    assert list(ad.parameters_of(model)) == ["wide.A", "wide.B"]
    assert "Linear wide [12, 8]".lower() in repr(layer).lower()
    assert adapted_class(nn.Linear) is adapted_class(nn.Linear)


def test_a_class_that_was_defined_in_a_function_is_adapted_and_copied():
    class Local(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model, x = nn.Sequential(Local(4, 3)), torch.randn(2, 4)
    before = model(x)
    ad.attach(model, "lora", targets="0")
    torch.testing.assert_close(model(x), before)
    copied = copy.deepcopy(model)
    ad.detach(copied)
    assert type(copied[0]) is Local


def test_the_layers_own_hooks_run_once_around_its_adapters():
    model, seen = Net(), []
    model.wide.register_forward_pre_hook(lambda m, a: seen.append("before"))
    model.wide.register_forward_hook(lambda m, a, y: seen.append("after"))
    ad.attach(model, "lora", "a", targets="wide")
    ad.attach(model, "series", "b", targets="wide")
    run(model)
    assert seen == ["before", "after"]


def test_attributes_methods_and_moves_of_the_layer_still_work():
    model = Net()
    ad.attach(model, "dora", targets="wide", train=["classifier"])
    assert model.wide.in_features == 8
    model.double()
    assert model(IDS).dtype == torch.float64 and ad.parameters_of(model)["wide.A"].dtype == torch.float64
    model.load_state_dict(model.state_dict())
    model.float().train().eval().requires_grad_(False)
    assert ad.trainable(model).count == 0


def order(model: nn.Module, *names: str) -> torch.Tensor:
    ad.activate(model, list(names))
    return run(model, X)


X = torch.randn(3, 6, generator=torch.Generator().manual_seed(3)).double()


def composed(bias: bool = True) -> tuple[nn.Module, dict[str, dict[str, torch.Tensor]]]:
    """LoRA, DoRA, IA3, BitFit and a series adapter on one layer of doubles."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10, bias=bias)).double()
    methods = {
        "lora": ad.LoRA(r=2, alpha=2.0),
        "dora": ad.DoRA(r=2, alpha=2.0),
        "ia3": ad.IA3(),
        "bitfit": ad.BitFit(),
        "series": ad.Series(size=3),
    }
    tensors = {}
    for number, (name, method) in enumerate(methods.items()):
        if name == "bitfit" and not bias:
            continue
        ad.attach(model, method, name, targets="0", seed=number)
        move(model, name, seed=number)
        tensors[name] = {k.rpartition(".")[2]: p.detach() for k, p in ad.parameters_of(model, name).items()}
    return model, tensors


def by_hand(model: nn.Module, t: dict[str, dict[str, torch.Tensor]], names: tuple[str, ...]) -> torch.Tensor:
    """W -> W1 -> W2 in the order of the names, then the series adapter around."""
    W, b = model[0]._parameters["weight"].detach(), model[0]._parameters["bias"].detach()
    for name in names:
        if name == "lora":
            W = W + t["lora"]["B"] @ t["lora"]["A"]
        elif name == "dora":
            V = W + t["dora"]["B"] @ t["dora"]["A"]
            W = t["dora"]["m"][:, None] * V / V.norm(dim=1, keepdim=True)
        elif name == "ia3":
            W, b = t["ia3"]["l"][:, None] * W, t["ia3"]["l"] * b
        elif name == "bitfit":
            b = b + t["bitfit"]["bias"]
    y = F.linear(X, W, b)
    if "series" in names:
        y = y + torch.tanh(y @ t["series"]["D"].T) @ t["series"]["U"].T
    return y


@pytest.mark.parametrize(
    "names",
    [
        ("lora", "dora", "ia3", "bitfit", "series"), ("series", "bitfit", "ia3", "dora", "lora"), ("ia3", "dora"), ("dora", "ia3"),
        ("ia3", "bitfit", "dora", "lora"), ("bitfit", "ia3", "lora", "dora"), ("series", "lora"), ("dora", "series", "bitfit"),
    ],
)  # fmt: skip
def test_the_stack_is_the_weight_changed_in_order_and_the_rest_around(names):
    model, tensors = composed()
    expected = by_hand(model, tensors, names)
    torch.testing.assert_close(order(model, *names), expected, rtol=1e-9, atol=1e-9)
    weights = [n for n in names if n != "series"]
    ad.merge(model, weights)
    torch.testing.assert_close(run(model, X), expected, rtol=1e-9, atol=1e-9)


def test_the_stack_is_the_same_inside_copies_and_pickles():
    model, _ = composed()
    expected = order(model, "ia3", "dora", "bitfit", "lora", "series")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(other, X), expected)
        assert ad.active(other) == ["ia3", "dora", "bitfit", "lora", "series"]


def test_strength_interpolates_the_weight_or_the_output():
    model, t = composed()
    ad.activate(model, ["lora", "dora"], weights={"dora": 0.25})
    W, b = model[0]._parameters["weight"].detach() + t["lora"]["B"] @ t["lora"]["A"], model[0].bias
    V = W + t["dora"]["B"] @ t["dora"]["A"]
    W2 = t["dora"]["m"][:, None] * V / V.norm(dim=1, keepdim=True)
    torch.testing.assert_close(run(model, X), F.linear(X, W + 0.25 * (W2 - W), b), rtol=1e-9, atol=1e-9)
    ad.activate(model, ["series"], weights={"series": 0.5})
    y = F.linear(X, model[0].weight, b)
    expected = y + 0.5 * torch.tanh(y @ t["series"]["D"].T) @ t["series"]["U"].T
    torch.testing.assert_close(run(model, X), expected, rtol=1e-9, atol=1e-9)


def test_frozen_shows_the_weight_and_bias_before_an_adapter():
    model, t = composed()
    ad.activate(model, ["ia3", "dora"])
    layer = model[0]
    frozen = Frozen(layer, layer._chain[:1])
    W, b = layer._parameters["weight"], layer._parameters["bias"]
    torch.testing.assert_close(frozen.weight(), t["ia3"]["l"][:, None] * W)
    torch.testing.assert_close(frozen.bias(), t["ia3"]["l"] * b)
    assert not frozen.pristine and Frozen(layer, ()).pristine and Frozen(layer, ()).bias() is b
    with pytest.raises(HostError, match="has no nothing; it has"):
        frozen.weight("nothing")


def test_an_adapter_without_a_forward_is_an_error():
    from adaptome.core.hosts import host_of

    with pytest.raises(HostError, match="Adapter defines no forward"):
        ad.Adapter(host_of(nn.Linear(2, 2)))(None)


class ReadsTwice(nn.Linear):
    """Reads its weight without gradient first, then once for each row, as fused experts are read."""

    def forward(self, x):
        with torch.no_grad():
            scale = self.weight.abs().max()
        return torch.stack([F.linear(row, self.weight, self.bias) for row in x]) / scale


def test_a_parameter_read_many_times_is_changed_once_a_forward(monkeypatch):
    model, x = nn.Sequential(ReadsTwice(6, 4)), torch.randn(5, 6)
    ad.attach(model, "lora", targets="0.weight")
    move(model)
    adapter, calls = ad.adapters(model)["default"].adapters["0.weight"], []
    changed = type(adapter).changed
    monkeypatch.setattr(type(adapter), "changed", lambda *a: calls.append(1) or changed(*a))
    y = model(x)
    assert len(calls) == 2, "once without gradient, once with"
    y.sum().backward()
    ad.check_gradients(model)
    assert all(p.grad.any() for p in ad.parameters_of(model).values())
    W = changed(adapter, "weight", model[0]._parameters["weight"])
    torch.testing.assert_close(y, F.linear(x, W, model[0].bias) / W.abs().max())
    assert "_values" not in vars(model[0])


def test_a_model_whose_own_class_is_swapped_still_records_its_outputs():
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)  # fmt: skip
    model, x = ViTModel(config).eval(), torch.randn(1, 3, 8, 8)
    ad.attach(model, "pyra", r=0)
    assert isinstance(model, Adapted) and str(type(model)) == str(ViTModel)
    output = model(x, output_hidden_states=True)
    assert len(output.hidden_states) == 3
