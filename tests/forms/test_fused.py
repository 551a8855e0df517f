"""A linear layer and its low-rank update as one node, against plain operations."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import adaptome as ad
from adaptome.forms.fused import linear_with_pair, plain_weight
from tests.methods.helpers import adapted, batch, linear, shake


def parts(*shapes):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
@pytest.mark.parametrize("again", [False, True])
def test_it_equals_the_plain_operations_with_both_derivatives(lead, again):
    x, W, b, A, B = parts((*lead, 6), (4, 6), (4,), (2, 6), (4, 2))
    wanted = [t.requires_grad_() for t in (x, A, B)]
    fused = linear_with_pair(x, W, b, (A, B), 1.5, again=(lambda: (A, B)) if again else None)
    plain = F.linear(x, W, b) + 1.5 * x @ A.T @ B.T
    torch.testing.assert_close(fused, plain)
    first = [torch.autograd.grad(y.tanh().sum(), wanted, create_graph=True) for y in (fused, plain)]
    torch.testing.assert_close(*first)
    second = [torch.autograd.grad(sum(g.square().sum() for g in grads), wanted) for grads in first]
    torch.testing.assert_close(*second)


def test_dropout_is_one_mask_for_forward_and_backward_and_keeps_the_mean():
    x, W, A, B = parts((50, 40), (30, 40), (3, 40), (30, 3))
    wanted = [t.requires_grad_() for t in (x, A, B)]
    torch.manual_seed(0)
    fused = linear_with_pair(x, W, None, (A, B), 2.0, dropout=0.25)
    torch.manual_seed(0)
    from adaptome.forms.dropped import keep

    mask, kept = keep(x, 0.25)
    plain = F.linear(x, W) + 2.0 * kept * (x * mask) @ A.T @ B.T
    assert kept == pytest.approx(4 / 3, rel=1e-3)
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(*(torch.autograd.grad(y.tanh().sum(), wanted) for y in (fused, plain)))


def test_what_is_not_trained_keeps_nothing_for_it():
    x, W, A, B = parts((50, 40), (30, 40), (3, 40), (30, 3))
    for trained, size in ((A, 50 * 40), (B, 50 * 3)):
        for t in (A, B):
            t.requires_grad_(t is trained)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):  # noqa: B023
            linear_with_pair(x, W, None, (A, B), 1.0).sum().backward()
        assert [t.numel() for t in kept if len(t) == 50] == [size]


def test_a_layer_that_is_more_than_one_product_is_run_as_it_is():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    x = batch(5, 12)
    for layer, plain in ((linear(), True), (Doubled(12, 20).double(), False)):
        model, a = adapted(layer, ad.LoRA(r=2))
        seen = {}
        forward = type(a).forward

        def spy(self, frozen, x, forward=forward, seen=seen):
            seen["plain"] = plain_weight(self.host, frozen, x) is not None
            return forward(self, frozen, x)

        shake(model)
        a.__class__ = type("Spy", (type(a),), {"forward": spy})
        factor = 1 if plain else 2
        expected = factor * F.linear(x, a.host.weight(), layer.bias) + a.scale * x @ a.A.T @ a.B.T
        torch.testing.assert_close(model(x), expected)
        assert seen["plain"] is plain


def test_functional_transforms_still_work():
    model, a = adapted(linear(), ad.LoRA(r=2))
    shake(model)
    x, values = batch(7, 12), dict(ad.parameters_of(model))

    def loss(values, row):
        named = {f"0.adaptome.default.{k.rpartition('.')[2]}": v for k, v in values.items()}
        return torch.func.functional_call(model, named, (row,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(values, x)
    model(x).square().sum().backward()
    for key, value in values.items():
        torch.testing.assert_close(each[key].sum(0), value.grad)


@pytest.mark.parametrize("tokens", [2, 64])
@pytest.mark.parametrize("method", [ad.LoRA(r=3), ad.VeRA(r=6), ad.PaCA(r=4)], ids=lambda m: m.name)
def test_few_and_many_tokens_give_one_layer_and_its_derivatives(method, tokens):
    layer, x = linear(), batch(tokens, 12).requires_grad_()
    model, a = adapted(layer, method)
    shake(model)
    wanted = [x, *a.parameters()]
    dense = F.linear(x, a.changed("weight", a.host.weight()), layer.bias)
    torch.testing.assert_close(model(x), dense)
    first = [torch.autograd.grad(y.tanh().sum(), wanted, create_graph=True) for y in (model(x), dense)]
    torch.testing.assert_close(*first)
    if method.name != "paca":  # its backward reads columns of x that have no derivative of their own
        second = [torch.autograd.grad(sum(g.square().sum() for g in grads), wanted) for grads in first]
        torch.testing.assert_close(*second)


@pytest.mark.parametrize("name", ["lora", "vera", "paca", "loca", "fourierft", "loha", "randlora"])
def test_in_half_precision_a_small_update_is_not_rounded_away(name):
    """Beside weights of 1, of which every row of the input makes 0."""
    layer = nn.Linear(12, 20, bias=False)
    nn.init.ones_(layer.weight)
    model = nn.Sequential(layer).bfloat16()
    ad.attach(model, name, targets="0", seed=0, **({"n": 40} if name in ("loca", "fourierft") else {}))
    adapter = next(iter(ad.adapters(model)["default"].adapters.values()))
    shake(model)
    with torch.no_grad():
        shrink = (1e-3 / adapter.delta().abs().max()) ** (1 / len(list(adapter.parameters())))
        for parameter in adapter.parameters():
            parameter.mul_(shrink)
    half = batch(200, 6).bfloat16()
    x = torch.cat([half, -half], 1)
    expected = x.float() @ adapter.delta().float().T
    assert (model(x) - expected).norm() < 0.02 * expected.norm()


def test_layers_that_read_one_activation_keep_it_once():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = nn.Linear(24, 16), nn.Linear(24, 8), nn.Linear(24, 8)

        def forward(self, x):
            return torch.cat([self.q(x), self.k(x), self.v(x)], -1)

    model = Attention()
    ad.attach(model, "lora", r=2, dropout=0.5, targets=["q", "k", "v"])
    kept: dict[int, int] = {}

    def see(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(5, 7, 24, requires_grad=True) * 2
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        model(x).sum().backward()
    activations = sorted(size for place, size in kept.items() if place not in own)
    bits, reduced = 5 * 7 * 24 // 8, 4 * 5 * 7 * 2
    assert activations == sorted([bits] * 3 + [reduced] * 3 + [4 * x.numel()])
