"""DyLoRA: every rank works, and a step trains what it says (arXiv:2210.07558)."""

from collections import Counter

import pytest
import torch

import adaptome as ad
from adaptome.core.errors import MethodError
from tests.methods.helpers import adapted, batch, linear, roberta, shake


@pytest.mark.parametrize("b", [1, 3, 8])
def test_a_steered_rank_is_the_truncated_lora(b):
    layer, x = linear(), batch(4, 12)
    W, bias = layer.weight.detach().double(), layer.bias.detach().double()
    model, a = adapted(layer, ad.DyLoRA(r=8, alpha=5.0))
    shake(model)
    expected = x @ (W + (5.0 / b) * a.B[:, :b] @ a.A[:b]).T + bias
    with ad.steer(rank=b):
        torch.testing.assert_close(model(x), expected)
        ad.merge(model)
        torch.testing.assert_close(model(x), expected)
        ad.unmerge(model)


def test_at_full_rank_it_is_lora_bit_for_bit():
    x = batch(4, 12)
    model, a = adapted(linear(), ad.DyLoRA(r=4, alpha=7.0))
    shake(model)
    other, b = adapted(linear(), ad.LoRA(r=4, alpha=7.0))
    with torch.no_grad():
        b.A.copy_(a.A)
        b.B.copy_(a.B)
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize("update", ["normal", "frozen"])
def test_a_step_moves_only_the_rows_it_trains(update):
    method = ad.DyLoRA(r=6, update=update)
    model, a = adapted(linear(), method)
    shake(model)
    model.train()
    optimizer = torch.optim.AdamW(ad.parameters_of(model).values(), lr=0.1, weight_decay=0.1)
    ad.on_step(model, 0, 10)
    for step in range(1, 8):
        b = method.draw(step - 1)
        assert a.rank == b
        before_A, before_B = a.A.detach().clone(), a.B.detach().clone()
        optimizer.zero_grad()
        model(batch(4, 12)).square().sum().backward()
        trained = slice(b - 1 if update == "frozen" else 0, b)
        assert (a.A.grad[trained].abs().sum(1) > 0).all() and a.A.grad[b:].abs().sum() == 0
        optimizer.step()
        ad.on_step(model, step, 10)
        moved = (a.A != before_A).any(1) | (a.B != before_B).any(0)
        assert moved.nonzero().flatten().tolist() == list(range(6))[trained]


def test_draws_follow_the_distribution_and_repeat():
    uniform = ad.DyLoRA(r=8, r_min=3)
    counts = Counter(uniform.draw(k) for k in range(6000))
    assert sorted(counts) == [3, 4, 5, 6, 7, 8] and all(abs(c / 6000 - 1 / 6) < 0.02 for c in counts.values())
    geometric = Counter(ad.DyLoRA(r=4, distribution="geometric", p=0.5).draw(k) for k in range(6000))
    assert [round(geometric[b] / 6000 * 15) for b in (1, 2, 3, 4)] == [8, 4, 2, 1]
    assert {ad.DyLoRA(r=8, unit=4).draw(k) for k in range(50)} == {4, 8}
    assert [uniform.draw(k) for k in range(9)] == [ad.DyLoRA(r=8, r_min=3).draw(k) for k in range(9)]


def test_export_at_a_rank_is_a_plain_lora(tmp_path):
    model, a = adapted(linear(), ad.DyLoRA(r=8))
    shake(model)
    with ad.steer(rank=3):
        report, expected = ad.export(model, tmp_path / "out"), model(batch(4, 12))
    assert report.rank == 3 and report.worst == 0.0
    other = torch.nn.Sequential(linear()).double()
    ad.load(other, tmp_path / "out")
    torch.testing.assert_close(other(batch(4, 12)), expected, rtol=1e-5, atol=1e-5)


def test_impossible_ranks_are_refused():
    with pytest.raises(MethodError, match="r_min = 5 is above r = 4"):
        ad.DyLoRA(r=4, r_min=5)
    model, _ = adapted(linear(), ad.DyLoRA(r=4))
    with ad.steer(rank=9), pytest.raises(MethodError, match="not between 1 and r = 4"):
        model(batch(4, 12))


def test_count_is_the_papers():
    assert ad.plan(roberta(), ad.DyLoRA(r=8), targets=["q", "v"]).trainable == 294_912
