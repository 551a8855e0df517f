"""VeRA and LoRA-FA against their equations, and what they keep for the backward."""

import torch
from torch import nn

import adaptome as ad
from tests.methods.helpers import adapted, batch, linear, llama2_7b, shake


def test_vera_is_its_equation():
    layer, x = linear(), batch(3, 12)
    W, bias = layer.weight.detach().double(), layer.bias.detach().double()
    model, a = adapted(layer, ad.VeRA(r=6))
    shake(model)
    A, B = a.corner()
    expected = x @ (W + torch.diag(a.b) @ B.double() @ torch.diag(a.d) @ A.double()).T + bias
    torch.testing.assert_close(model(x), expected)


def test_vera_shares_one_pair_and_stores_none_of_it(tmp_path):
    model = nn.Sequential(linear(), nn.Linear(20, 8)).double().eval()
    ad.attach(model, ad.VeRA(r=6), targets=["0", "1"])
    first, second = ad.adapters(model)["default"].adapters.values()
    assert (
        first.shared is second.shared and first.shared.A.shape == (6, 20) and first.shared.B.shape == (20, 6)
    )
    shake(model)
    expected = model(batch(3, 12))
    ad.save(model, tmp_path / "out")
    assert (tmp_path / "out" / "adapter.safetensors").stat().st_size < 8 * (6 + 20 + 6 + 8) + 600
    ad.detach(model)
    ad.load(model, tmp_path / "out")
    assert torch.equal(model(batch(3, 12)), expected)


def test_vera_count_is_the_papers():
    assert ad.plan(llama2_7b(), ad.VeRA(r=256), targets=["q", "v"]).trainable == 278_528


def saved(method) -> int:
    """Distinct numbers of activations that a step keeps for the backward of one wide layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48, bias=False))
    ad.attach(model, method, targets="0")
    weights = {p.data_ptr() for p in model.parameters()} | {b.data_ptr() for b in model.buffers()}
    kept: dict[int, int] = {}
    x = torch.randn(100, 64)

    def pack(t):
        if t.untyped_storage().data_ptr() not in weights:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(x).sum()
    return sum(kept.values()) // 4


def test_lora_fa_keeps_r_numbers_a_token_where_lora_keeps_the_input():
    assert saved(ad.LoRA(r=4)) >= 100 * 64
    assert saved(ad.LoRAFA(r=4)) <= 100 * 4 + 48 * 4


def test_lora_fa_trains_B_alone_and_stores_it_alone(tmp_path):
    model, a = adapted(linear(), ad.LoRAFA(r=4))
    assert set(ad.parameters_of(model)) == {"0.B"}
    shake(model)
    expected = model(batch(3, 12))
    ad.save(model, tmp_path / "out")
    ad.detach(model)
    ad.load(model, tmp_path / "out")
    assert torch.equal(model(batch(3, 12)), expected)
    assert ad.plan(llama2_7b(), ad.LoRAFA(r=8), targets=["q", "v"]).trainable == 2_097_152
