"""FISH mask: scores and selection (arXiv:2111.09839)."""

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import DataError, MethodError
from adaptome.methods.selective.fish_mask import fish_mask, fisher
from tests.methods.helpers import batch, llama2_7b, shake


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def loss(model, sample):
    x, y = sample
    return nn.functional.cross_entropy(model(x), y)


def samples(count=5):
    return [(x[None], torch.tensor([i % 3])) for i, x in enumerate(batch(count, 6))]


TARGETS = ["0", "2"]


def by_hand(model):
    """mean_x (d log p / dW)^2, one sample at a time, from log-softmax."""
    total = {name: torch.zeros_like(model.get_submodule(name).weight) for name in TARGETS}
    for x, y in samples():
        model.zero_grad()
        model(x).log_softmax(-1)[0, y].sum().backward()
        for name in TARGETS:
            total[name] += model.get_submodule(name).weight.grad ** 2 / 5
    return total


def test_scores_are_the_mean_squared_gradients_of_the_log_likelihood():
    model = network()
    model[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    scores = fisher(model, samples(), loss, TARGETS)
    for name, expected in by_hand(network()).items():
        torch.testing.assert_close(scores[name].double(), expected, rtol=1e-5, atol=1e-12)
    assert not model[0].weight.requires_grad and model[2].weight.requires_grad
    assert model[0].weight.grad is None and all(
        torch.equal(v, before[k]) for k, v in model.state_dict().items()
    )


@pytest.mark.parametrize("k", [1, 10, 37, 72])
def test_the_best_entries_of_all_layers_are_trained(k, tmp_path):
    model, scores = network(), by_hand(network())
    flat = torch.cat([s.flatten() for s in scores.values()])
    expected = set(flat.topk(k).indices.tolist())
    plan = fish_mask(model, samples(), loss, k, TARGETS)
    offset = {"0": 0, "2": 48}
    chosen = [
        offset[n] + i for n, a in ad.adapters(model)["default"].adapters.items() for i in a.index.tolist()
    ]
    assert set(chosen) == expected and len(chosen) == k == plan.trainable == ad.trainable(model).count
    shake(model)
    x = batch(4, 6)
    h = x
    for name, layer in network().named_children():
        if isinstance(layer, nn.Linear):
            W = layer.weight.detach().clone().flatten()
            adapter = ad.adapters(model)["default"].adapters.get(name)
            if adapter is not None:
                W[adapter.index] += adapter.values.detach()
            h = h @ W.view(layer.weight.shape).T + layer.bias.detach()
        else:
            h = layer(h)
    torch.testing.assert_close(model(x), h)
    ad.save(model, tmp_path / "a")
    other = network()
    ad.load(other, tmp_path / "a")
    assert torch.equal(other(x), model(x))


def test_conv1d_is_scored_as_the_linear_layer_it_is():
    from transformers.pytorch_utils import Conv1D

    linear = network()
    conv = network()
    conv[0] = Conv1D(8, 6).double()
    with torch.no_grad():
        conv[0].weight.copy_(linear[0].weight.T)
        conv[0].bias.copy_(linear[0].bias)
    torch.testing.assert_close(
        fisher(conv, samples(), loss, "0")["0"], fisher(linear, samples(), loss, "0")["0"]
    )


def test_equal_scores_give_exactly_k():
    model = network()
    constant = [(torch.ones(1, 6, dtype=torch.float64), torch.tensor([0]))]  # equal columns
    assert fish_mask(model, constant, loss, 5, TARGETS).trainable == 5


def test_bad_requests_are_refused():
    with pytest.raises(MethodError, match="k = 73 is not between 1 and the 72"):
        fish_mask(network(), samples(), loss, 73, TARGETS)
    with pytest.raises(DataError, match="no batches"):
        fisher(network(), [], loss, TARGETS)


def test_counts_are_n_a_layer():
    assert ad.plan(llama2_7b(), ad.FishMask(n=1000), targets=["q", "v"]).trainable == 64_000
