"""What zeros buy: gathering gives the same output with fewer multiplications; a closed MLP goes and changes nothing."""

import pytest
import torch
from torch.nn import functional as F
from transformers import T5Config, T5EncoderModel

import adaptome as ad
from adaptome.core.activations import mlps
from adaptome.core.errors import HostError, StateError
from adaptome.sparsity import GatheredLinear, gathered_mlps, skip_mlps
from tests.core.models import bert, llama

IDS = torch.tensor([[5, 6, 7, 8], [9, 4, 3, 2]])


@pytest.mark.parametrize("alive", [0, 3, 9, 20])
def test_gathering_gives_the_dense_product(alive):
    torch.manual_seed(0)
    W, b, x = torch.randn(7, 20), torch.randn(7), torch.zeros(2, 3, 20)
    x[..., torch.randperm(20)[:alive]] = torch.randn(2, 3, alive)
    layer = GatheredLinear(W, b, most=0.5)
    torch.testing.assert_close(layer(x), F.linear(x, W, b), rtol=0, atol=1e-5)
    assert layer.saved.dense == 6 * 7 * 20
    assert layer.saved.done == 6 * 7 * (alive if alive <= 10 else 20)


def test_a_whole_model_runs_the_same_with_fewer_multiplications():
    torch.manual_seed(0)
    model = T5EncoderModel(
        T5Config(d_model=8, d_ff=24, d_kv=4, num_heads=2, vocab_size=20, num_layers=2)
    ).eval()
    with torch.no_grad():
        for mlp in mlps(model):
            model.get_submodule(mlp.up[0]).weight[5:] = 0  # 19 of 24 units are dead
        before = {k: id(v) for k, v in model.named_modules()}
        dense = model(IDS).last_hidden_state
        with gathered_mlps(model, most=0.5) as saved:
            sparse = model(IDS).last_hidden_state
    torch.testing.assert_close(sparse, dense, rtol=0, atol=1e-6)
    assert saved.share >= 19 / 24
    assert {k: id(v) for k, v in model.named_modules()} == before


def test_an_adapter_on_the_last_map_is_refused_and_all_is_put_back():
    model = llama()
    plain = {k: id(v) for k, v in model.named_modules()}
    ad.attach(model, "lora", r=2, targets="down", layers=1)
    with pytest.raises(HostError, match="Merge"), gathered_mlps(model):
        pass
    ad.detach(model)
    assert {k: id(v) for k, v in model.named_modules()} == plain


@pytest.mark.parametrize("make", [bert, llama])
def test_closed_mlps_go_with_their_weights(make):
    model = make().eval()
    with pytest.raises(StateError, match="mlp-gate"):
        skip_mlps(model)
    base = model(IDS).logits
    ad.attach(model, "mlp-gate")
    torch.testing.assert_close(model(IDS).logits, base, rtol=0.05, atol=1e-2)
    last = mlps(model)[-1]
    model.get_submodule(last.host).adaptome["default"].a.data.fill_(-200.0)
    closed = model(IDS).logits
    gone = {id(model.get_submodule(path).weight) for path in (*last.up, last.down)}
    report = skip_mlps(model, below=0.5)
    assert report.removed == (last.block,) and len(report.gates) == len(mlps(make()))
    assert torch.equal(model(IDS).logits, closed)
    assert not gone & {id(p) for p in model.parameters()}
    assert report.after == sum(p.numel() * p.element_size() for p in model.parameters()) < report.before
