"""DyLoRA: every rank works, and a step trains what it says (arXiv:2210.07558)."""

import itertools
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
    with ad.steer(rank=b):
        assert torch.equal(model(x), torch.nn.functional.linear(x, W, bias))
    shake(model)
    expected = x @ (W + (5.0 / b) * a.B[:, :b] @ a.A[:b]).T + bias
    with ad.steer(rank=b):
        torch.testing.assert_close(model(x), expected)
        ad.merge(model)
        torch.testing.assert_close(model(x), expected)
    ad.unmerge(model)  # whatever rank it was merged at, the bits come back
    assert torch.equal(layer._parameters["weight"], W)


def test_at_full_rank_it_is_lora_bit_for_bit():
    x = batch(4, 12)
    model, a = adapted(linear(), ad.DyLoRA(r=4, alpha=7.0))
    shake(model)
    other, b = adapted(linear(), ad.LoRA(r=4, alpha=7.0))
    with torch.no_grad():
        b.A.copy_(a.A)
        b.B.copy_(a.B)
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize(("update", "unit"), [("normal", 1), ("frozen", 1), ("frozen", 4)])
def test_a_step_moves_only_the_rows_it_trains(update, unit):
    """With unit = 4 and r = 6 the ranks are 6 and 2, the smaller one below the unit."""
    method = ad.DyLoRA(r=6, update=update, unit=unit)
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
        trained = slice(max(b - unit, 0) if update == "frozen" else 0, b)
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


def test_all_layers_draw_the_same_rank():
    model = torch.nn.Sequential(linear(12, 12), linear(12, 12))
    ad.attach(model, ad.DyLoRA(r=8), targets="*")
    first, second = ad.adapters(model)["default"].adapters.values()
    seen = []
    for step in range(12):
        ad.on_step(model, step, 12)
        seen.append((first.rank, second.rank))
    assert all(a == b for a, b in seen) and len(set(seen)) > 2


def test_trained_on_an_update_its_first_components_are_the_leading_singular_ones():
    torch.manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(n, 4, dtype=torch.float64))[0] for n in (10, 8))
    values = torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    goal, eye = U * values @ V.T, torch.eye(8, dtype=torch.float64)

    def fitted(method):
        model, a = adapted(torch.nn.Linear(8, 10, bias=False), method)
        W, model = a.host.weight(), model.train()
        optimizer = torch.optim.Adam(ad.parameters_of(model).values(), lr=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)
        ad.on_step(model, 0, 800)
        for step in range(1, 801):
            optimizer.zero_grad()
            (model(eye).T - W - goal).square().sum().backward()
            optimizer.step()
            schedule.step()
            ad.on_step(model, step, 800)
        return a.A.detach(), a.B.detach()

    def aligned(B, b):
        """The smallest cosine between the spans of the first b columns of B and of U."""
        return float(torch.linalg.svdvals(torch.linalg.qr(B[:, :b])[0].T @ U[:, :b]).min())

    (A, B), (C, D) = fitted(ad.DyLoRA(r=4, alpha=4.0)), fitted(ad.LoRA(r=4, alpha=4.0))
    errors = [1.0]
    for b in (1, 2, 3, 4):
        errors.append(float((4.0 / b * B[:, :b] @ A[:b] - goal).square().sum() / goal.square().sum()))
        floor = float(values[b:].square().sum() / values.square().sum())
        # alpha / b gives one component another size at every rank, so that not all of them can be the truncated SVD at once
        assert floor - 1e-9 <= errors[-1] <= floor + 0.15
        assert b == 4 or aligned(B, b) > 0.95
    gains = [before - after for before, after in itertools.pairwise(errors)]
    assert gains == sorted(gains, reverse=True)
    assert (
        aligned(D, 1) < 0.9 and (D[:, :1] @ C[:1] - goal).square().sum() > 2 * errors[1] * goal.square().sum()
    )


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
