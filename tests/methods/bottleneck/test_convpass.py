"""Convpass (arXiv:2207.07039) against loops over the grid; its convolution counts, and the special tokens stand alone."""

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import HostError
from adaptome.forms.tokens import grid_of
from tests.methods.bottleneck.models import Sublayer, family, inputs, run
from tests.methods.helpers import batch, shake

D, B = 12, 3


def adapted(**settings):
    torch.manual_seed(0)
    model = nn.Sequential(Sublayer(D)).double().eval()
    ad.attach(model, "convpass", targets="0", size=B, seed=0, **settings)
    return model, ad.adapters(model)["default"].adapters["0"]


def quick_gelu(x):
    return x / (1 + torch.exp(-1.702 * x))


def reference(a, x, special, high, wide):
    """Loops over the grid and the kernel; special tokens see themselves alone."""
    t = {k: v.detach() for k, v in a.named_parameters()}
    z = quick_gelu(x @ t["D"].T + t["d"])
    y = torch.zeros_like(z)
    y[:, :special] = z[:, :special] @ t["K"][:, :, 1, 1].T
    for i in range(high):
        for j in range(wide):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if 0 <= i + di < high and 0 <= j + dj < wide:
                        source = z[:, special + (i + di) * wide + j + dj]
                        y[:, special + i * wide + j] += source @ t["K"][:, :, di + 1, dj + 1].T
    return quick_gelu(y + t["c"]) @ t["U"].T + t["u"]


@pytest.mark.parametrize(("tokens", "rows", "special", "high", "wide"), [
    (9, 0, 0, 3, 3), (10, 0, 1, 3, 3), (14, 3, 2, 3, 4), (5, 0, 1, 2, 2),
])  # fmt: skip
def test_it_is_its_equation_on_the_grid(tokens, rows, special, high, wide):
    model, a = adapted(rows=rows, scale=0.3)
    base, x = model[0].map, batch(2, tokens, D)
    assert torch.equal(model(x), base(x))
    shake(model)
    expected = base(x) + 0.3 * reference(a, x, special, high, wide)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


def test_activations_that_are_a_grid_are_taken_as_one():
    model, a = adapted()
    shake(model)
    x = batch(2, 3, 4, D)
    expected = reference(a, x.flatten(1, 2), 0, 3, 4).view_as(x)
    torch.testing.assert_close(a.network(x), expected, rtol=1e-10, atol=1e-10)


def test_in_one_dimension_it_runs_over_all_tokens():
    model, a = adapted(dims=1)
    shake(model)
    x = batch(2, 7, D)
    t = {k: v.detach() for k, v in a.named_parameters()}
    z, y = quick_gelu(x @ t["D"].T + t["d"]), torch.zeros(2, 7, B, dtype=x.dtype)
    for n in range(7):
        for j in (-1, 0, 1):
            if 0 <= n + j < 7:
                y[:, n] += z[:, n + j] @ t["K"][:, :, j + 1].T
    expected = quick_gelu(y + t["c"]) @ t["U"].T + t["u"]
    torch.testing.assert_close(a.network(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dims", [1, 2])
def test_its_convolution_is_used(dims):
    """A release's fault: the convolution's output is computed and ignored."""
    model, a = adapted(dims=dims)
    assert torch.equal(
        a.K.detach().flatten(2).sum(-1), torch.eye(B, dtype=torch.float64)
    )  # starts as the identity
    shake(model)
    x = batch(1, 9, D)
    x.requires_grad_(True)
    a.network(x)[0, 4].sum().backward()
    assert x.grad[0, 3].any() and x.grad[0, 5].any() and (dims == 1 or x.grad[0, 1].any())
    assert a.K.grad.any()


def test_grids_are_squares_unless_told():
    assert grid_of(197, 0, "") == (1, 14, 14) and grid_of(198, 0, "") == (2, 14, 14)
    assert grid_of(1214, 12, "") == (2, 12, 101) and grid_of(3136, 0, "") == (0, 56, 56)
    with pytest.raises(HostError, match="3 tokens do not fill a grid of 4 rows"):
        grid_of(3, 4, "convpass")
    for tokens, told in (
        (1214, "34 x 34 leave 58"),
        (62, "7 x 7 leave 13"),
    ):  # AST: no square, whatever is left over
        with pytest.raises(
            HostError, match=f"{tokens} tokens are no square .*{told}.*\n.*rows=12; .* dims=1"
        ):
            grid_of(tokens, 0, "convpass")
    assert grid_of(201, 0, "") == (5, 14, 14)  # with registers


@pytest.mark.parametrize("name", ["vit", "swin", "ast", "clip"])
def test_it_runs_in_vision_and_audio_models(name):
    model = family(name)
    ad.attach(model, "convpass", size=3)
    torch.testing.assert_close(run(model, name), run(family(name), name), rtol=1e-12, atol=1e-12)
    shake(model)
    model.train()(**inputs(name)).last_hidden_state.square().sum().backward()
    ad.check_gradients(model)
    assert all(p.grad is not None and p.grad.any() for p in ad.parameters_of(model).values())
