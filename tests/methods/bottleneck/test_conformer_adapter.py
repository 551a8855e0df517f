"""The conformer adapter against loops over time (arXiv:2312.03694), and its batch norm's statistics."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import adaptome as ad
from adaptome.core.errors import HostError
from tests.methods.bottleneck.models import family, inputs, run
from tests.methods.helpers import batch, shake

D, B = 12, 4


class Block(nn.Module):
    """A sub-layer with a frozen norm, dropout and batch norm beside it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.dropout, self.bn = nn.LayerNorm(D), nn.Dropout(0.5), nn.BatchNorm1d(D)
        self.inner = nn.Linear(D, D)

    def forward(self, x):
        return self.dropout(self.bn(self.inner(self.norm(x)).mT).mT)


def adapted(**settings):
    model = nn.Sequential(Block()).double().eval()
    ad.attach(model, "conformer-adapter", targets="0", size=B, seed=0, **settings)
    return model, ad.adapters(model)["default"].adapters["0"]


def reference(a, x):
    """The module step by step, with explicit loops over time, in eval mode."""
    t = {k: v.detach() for k, v in (*a.named_parameters(), *a.named_buffers())}
    samples, N, _ = x.shape
    if "norm.weight" in t:
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        x = (x - mean) / (var + 1e-5).sqrt() * t["norm.weight"] + t["norm.bias"]
    wide = x @ t["D"].T + t["d"]
    z = wide[..., :B] * torch.sigmoid(wide[..., B:])
    k, y = t["K"].shape[1], torch.zeros(samples, N, B, dtype=x.dtype)
    for n in range(N):
        for j in range(k):
            at = n + j - (k - 1) // 2
            if 0 <= at < N:
                y[:, n] += t["K"][:, j] * z[:, at]
    y = y + t["c"]
    y = (y - t["bn.mean"]) / (t["bn.var"] + 1e-5).sqrt() * t["bn.gamma"] + t["bn.beta"]
    return (y * torch.sigmoid(y)) @ t["U"].T + t["u"]


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("kernel", [1, 2, 3, 8, 31])
def test_it_is_its_equation(kernel, pre_norm):
    model, a = adapted(kernel=kernel, pre_norm=pre_norm)
    base, x = nn.Sequential(Block()).double().eval(), batch(3, 7, D)
    assert torch.equal(model(x), base(x))
    shake(model)
    a.bn.mean.uniform_(-1, 1)
    a.bn.var.uniform_(0.5, 2)
    y = model(x)
    assert y.shape == base(x).shape  # even kernels keep the number of tokens
    torch.testing.assert_close(y, base(x) + reference(a, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", [4, 5])
def test_same_padding_is_torchs(kernel):
    model, a = adapted(kernel=kernel)
    from adaptome.forms.tokens import depthwise

    z = batch(2, B, 9)
    padded = F.pad(z, ((kernel - 1) // 2, kernel - 1 - (kernel - 1) // 2))
    torch.testing.assert_close(depthwise(z, a.K, a.c), F.conv1d(padded, a.K[:, None], a.c, groups=B))
    if kernel % 2:
        torch.testing.assert_close(
            depthwise(z, a.K, a.c), F.conv1d(z, a.K[:, None], a.c, groups=B, padding="same")
        )


def test_its_layer_norm_is_used():
    """A release's fault: the norm's output is discarded, so its parameters are counted and never move."""
    model, a = adapted()
    shake(model)
    model(batch(2, 6, D)).square().sum().backward()
    assert a.norm.weight.grad.any() and a.norm.bias.grad.any()
    before = model(batch(2, 6, D))
    torch.testing.assert_close(model(100 * batch(2, 6, D)) - model[0].frozen_forward(100 * batch(2, 6, D)),
                               before - model[0].frozen_forward(batch(2, 6, D)), rtol=1e-3, atol=1e-3)  # fmt: skip
    with_none, a = adapted(pre_norm=False)
    assert a.norm is None and not any("norm." in k for k in ad.parameters_of(with_none))


def test_training_moves_its_statistics_alone():
    model, a = adapted(kernel=3)
    block, x = model[0], 2 * batch(5, 6, D) + 1
    frozen = {k: v.clone() for k, v in block.bn.state_dict().items()}
    before = model(x)
    model.train()
    assert not block.bn.training and block.dropout.training
    seen = []
    a.bn.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    model(x)
    var, mean = torch.var_mean(seen[0], (0, 2))
    torch.testing.assert_close(a.bn.mean, 0.1 * mean)
    torch.testing.assert_close(a.bn.var, 0.9 + 0.1 * var)
    assert all(torch.equal(v, frozen[k]) for k, v in block.bn.state_dict().items())
    model.eval()
    moved = a.bn.mean.clone()
    model(x)
    assert torch.equal(a.bn.mean, moved)
    assert torch.equal(model(x), before)  # U is zero: statistics alone change nothing


def test_in_training_it_normalises_by_the_batch_as_torch_does():
    model, a = adapted(kernel=3)
    z, other = batch(4, B, 7), nn.BatchNorm1d(B).double()
    torch.testing.assert_close(a.bn.train()(z), other(z))
    torch.testing.assert_close(a.bn.mean, other.running_mean)
    torch.testing.assert_close(a.bn.var, other.running_var)


@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16])
def test_statistics_are_saved_and_come_back_bit_for_bit(dtype, tmp_path):
    model, other = family("ast").float(), family("ast").float()
    x = inputs("ast")["input_values"].float()
    ad.attach(model, "conformer-adapter", size=3, kernel=4, dtype=dtype)
    with torch.no_grad():
        for p in ad.parameters_of(model).values():
            p.add_(0.1 * torch.randn_like(p))
        model.train()(x)
        before = model.eval()(x).last_hidden_state
    ad.save(model, tmp_path / "a")
    ad.load(other, tmp_path / "a")
    with torch.no_grad():
        assert torch.equal(other(x).last_hidden_state, before)
    mine, theirs = (ad.adapters(m)["default"].adapters for m in (model, other))
    first = next(iter(mine))
    assert mine[first].bn.mean.any() and torch.equal(mine[first].bn.mean, theirs[first].bn.mean)
    assert torch.equal(mine[first].bn.var, theirs[first].bn.var)


def test_tokens_of_all_samples_in_one_row_are_refused():
    """OPT's MLP sees [batch * tokens, d]: a convolution there would run from one sample into the next."""
    model, _ = adapted()
    with pytest.raises(HostError, match="without a dimension for the samples"):
        model[0].adaptome["default"].network(batch(6, D))


def test_windows_and_maps_keep_their_shape():
    model, a = adapted(kernel=3)
    shake(model)
    x = batch(2, 3, 5, D)
    torch.testing.assert_close(a.bypass(x), a.bypass(x.flatten(1, 2)).view(2, 3, 5, D))


def test_the_norms_in_front_train_beside_it():
    model = family("ast")
    ad.attach(model, "conformer-adapter", size=3, kernel=3, train="*.layernorm_after")
    assert torch.equal(run(model, "ast"), run(family("ast"), "ast"))
    shake(model)
    model.train()(**inputs("ast")).last_hidden_state.square().sum().backward()
    ad.check_gradients(model)
    grads = {k: p.grad for k, p in ad.parameters_of(model).items() if "layernorm_after" in k}
    assert len(grads) == 4 and all(g.any() for g in grads.values())
