"""MoS: assembly from pools, routing, counts (arXiv:2410.00938)."""

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import HostError, MethodError
from tests.methods.helpers import adapted, batch, linear, llama, llama2_7b, llama3_8b, llama32_3b, shake


def stack(layers=3, fan_in=12, fan_out=12):
    """A model of several layers of one role and shape."""
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(fan_in, fan_out) for _ in range(layers)]).double()


def attached(method, layers=3, seed=0, **shape):
    model = stack(layers, **shape)
    ad.attach(model, method, targets=[str(i) for i in range(layers)], seed=seed)
    return model, list(ad.adapters(model)["default"].adapters.values())


def assembled(adapter, l):
    """A [q, in], B [out, q], concatenated by hand from the pools."""
    pools = adapter.shared
    out = []
    for pool, index in ((pools.A[adapter.group], adapter.a), (pools.B[adapter.group], adapter.b)):
        index = index.tolist()
        out.append(
            torch.stack([torch.cat([pool[i] for i in index[t : t + l]]) for t in range(0, len(index), l)])
        )
    return out[0], out[1].T


@pytest.mark.parametrize("l", [1, 2, 4])
@pytest.mark.parametrize("sides", [(12, 20), (20, 12)])
def test_forward_is_the_assembly_by_hand(l, sides):
    model, adapters = attached(ad.MoS(r=2, layer_rank=4, shards=l, alpha=5.0))
    shake(model)
    x = h = batch(3, 5, 12)
    for layer, adapter in zip(stack(), adapters, strict=True):
        A, B = assembled(adapter, l)
        assert A.shape == (4, 12) and B.shape == (12, 4)
        h = h @ (layer.weight.detach() + 5.0 / 4 * B @ A).T + layer.bias.detach()
    torch.testing.assert_close(model(x), h)
    single, a = adapted(linear(*sides), ad.MoS(r=3, layer_rank=3, shards=l, private=1, alpha=6.0))
    shake(single)
    A, B = assembled(a, l)
    W, b = linear(*sides).weight.detach().double(), linear(*sides).bias.detach().double()
    torch.testing.assert_close(single(batch(4, sides[0])), batch(4, sides[0]) @ (W + 2.0 * B @ A).T + b)


def test_it_starts_as_the_base_with_the_gradient_in_b_then_in_both():
    model, _ = attached(ad.MoS(r=2, layer_rank=4))
    x = batch(6, 12)
    assert torch.equal(model(x), stack()(x))
    pools = ad.adapters(model)["default"].shared
    optimizer = torch.optim.SGD(ad.parameters_of(model).values(), lr=0.1)
    for first in (True, False):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        for A, B in zip(pools.A.values(), pools.B.values(), strict=True):
            assert B.grad.any() and bool(A.grad.any()) != first
        optimizer.step()


def test_with_every_shard_private_it_is_lora():
    x = batch(4, 12)
    model, a = adapted(linear(), ad.MoS(r=3, layer_rank=3, private=3, shards=2, alpha=6.0))
    shake(model)
    other, b = adapted(linear(), ad.LoRA(r=3, alpha=6.0))
    pools = a.shared
    with torch.no_grad():
        b.A.copy_(pools.A[a.group].view(3, 12))
        b.B.copy_(pools.B[a.group].view(3, 20).T)
    assert torch.equal(model(x), other(x))
    model(x).square().sum().backward()
    other(x).square().sum().backward()
    torch.testing.assert_close(pools.A[a.group].grad.view(3, 12), b.A.grad)
    torch.testing.assert_close(pools.B[a.group].grad.view(3, 20).T, b.B.grad)


def test_routing_has_no_shard_twice_and_private_ones_in_one_layer():
    model, adapters = attached(ad.MoS(r=4, layer_rank=6, private=1, shards=2), layers=5)
    public = 3 * 5 * 2
    for name in "ab":
        routes = [getattr(a, name).tolist() for a in adapters]
        private = [i for route in routes for i in route if i >= public]
        assert all(len(set(route)) == len(route) == 12 for route in routes)
        assert sorted(private) == list(range(public, 4 * 5 * 2))
        assert len({tuple(route) for route in routes}) == 5
    assert all(not torch.equal(a.a, a.b) for a in adapters)
    again = attached(ad.MoS(r=4, layer_rank=6, private=1, shards=2), layers=5)[1]
    assert all(torch.equal(a.a, b.a) and torch.equal(a.b, b.b) for a, b in zip(adapters, again, strict=True))


def test_the_update_has_the_layers_rank_not_the_pools():
    model, adapters = attached(ad.MoS(r=2, layer_rank=6, private=1, shards=2), layers=6)
    shake(model)
    assert all(torch.linalg.matrix_rank(a.delta()) == 6 for a in adapters)


def test_a_public_shards_gradient_is_the_sum_of_its_appearances():
    model, adapters = attached(ad.MoS(r=2, layer_rank=4, shards=2))
    shake(model)
    x, pools = batch(4, 12), adapters[0].shared
    model(x).square().sum().backward()
    pool = pools.B[adapters[0].group]
    counts = torch.bincount(torch.cat([a.b for a in adapters]), minlength=len(pool))
    shard = int(counts.argmax())
    assert counts[shard] > 1
    for column in range(pool.shape[1]):
        values = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                pool[shard, column] += step
                values.append(float(model(x).square().sum()))
        with torch.no_grad():
            pool[shard, column] += 1e-5
        assert abs((values[0] - values[1]) / 2e-5 - float(pool.grad[shard, column])) < 1e-5


def test_pools_are_stored_once_and_indices_survive_another_generator(tmp_path):
    model, adapters = attached(ad.MoS(r=2, layer_rank=4))
    shake(model)
    expected = model(batch(4, 12))
    ad.save(model, tmp_path / "a")
    from safetensors.torch import load_file

    stored = load_file(tmp_path / "a" / "adapter.safetensors")
    floats = sum(t.numel() for t in stored.values() if t.is_floating_point())
    assert floats == ad.trainable(model).count == 3 * 2 * 24
    other = stack()
    torch.manual_seed(99)
    ad.load(other, tmp_path / "a")
    assert torch.equal(other(batch(4, 12)), expected)


def test_export_is_a_lora_of_the_layers_rank(tmp_path):
    model, _ = attached(ad.MoS(r=2, layer_rank=4))
    shake(model)
    report, expected = ad.export(model, tmp_path / "out"), model(batch(4, 12))
    assert report.rank == 4 and report.worst == 0.0
    other = stack()
    ad.load(other, tmp_path / "out")
    torch.testing.assert_close(other(batch(4, 12)), expected, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused_with_the_reason():
    with pytest.raises(HostError, match="12 and 20 do not both divide by shards = 8"):
        adapted(linear(), ad.MoS(shards=8))
    with pytest.raises(MethodError, match="at most 4 with r = 2"):
        attached(ad.MoS(r=2, layer_rank=9, private=1), layers=3)
    with pytest.raises(MethodError, match="private = 3 is above r = 2"):
        ad.MoS(r=2, private=3)
    with pytest.raises(MethodError, match="cannot differ between layers"):
        ad.attach(stack(), ad.MoS(r=2), targets=["0", "1"], per_layer={"1": {"r": 3}})


@pytest.mark.parametrize(
    ("make", "settings", "count"),
    [
        (llama2_7b, {"r": 2, "layer_rank": 8}, 4_997_120),
        (llama2_7b, {"r": 2, "layer_rank": 4, "shards": 2, "private": 0}, 4_997_120),
        (llama2_7b, {"r": 8, "layer_rank": 32}, 19_988_480),
        (lambda: llama(5120, 13824, 40, 40, 40), {"r": 2}, 7_823_360),
        (llama3_8b, {"r": 1, "private": 0}, 2_621_440),
        (llama3_8b, {"r": 2, "shards": 16}, 5_242_880),
        (llama32_3b, {"r": 8}, 12_156_928),
    ],
)
def test_counts_are_the_papers(make, settings, count):
    assert ad.plan(make(), ad.MoS(**settings)).trainable == count


def test_meta_attach_equals_the_formula():
    model = llama(512, 1408, 2, 4, 2)
    plan = ad.attach(model, ad.MoS(r=2))
    assert ad.trainable(model).count == plan.trainable and all(
        p.is_meta for p in ad.parameters_of(model).values()
    )
