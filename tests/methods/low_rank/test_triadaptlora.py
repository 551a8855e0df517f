"""TriAdaptLoRA: assembly, growth, budget (arXiv:2501.08008)."""

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import MethodError
from tests.methods.helpers import adapted, batch, linear, roberta, shake

SIX = "all-linear"


def several(method, layers=4):
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(12, 12) for _ in range(layers)]).double()
    ad.attach(model, method, targets=[str(i) for i in range(layers)], seed=0)
    return model, list(ad.adapters(model)["default"].adapters.values())


def filled(a, ends):
    """L + U written from the paper: strips of rows, and strips of columns, up to each block's end."""
    S, s = ends[-1], int(a.active)
    C, at, first = torch.zeros(S, S, dtype=a.L.dtype), 0, 0
    for last in ends:
        strip = (last - first) * last
        C[first:last, :last] += a.L.detach()[at : at + strip].view(last - first, last)
        C[:last, first:last] += a.U.detach()[at : at + strip].view(last - first, last).T
        at, first = at + strip, last
    return C[:s, :s]


@pytest.mark.parametrize(
    ("init_r", "growth", "ends"), [(1, 1, [1, 2, 3, 4, 5, 6]), (2, 3, [2, 5, 6]), (6, 1, [6])]
)
@pytest.mark.parametrize("active", [2, 4, 6])
def test_forward_is_b_core_a_over_the_active_ranks(init_r, growth, ends, active):
    layer, x = linear(), batch(3, 5, 12)
    W, b = layer.weight.detach().double(), layer.bias.detach().double()
    method = ad.TriAdaptLoRA(r=6, init_r=init_r, growth=growth, max_r=6, alpha=3.0)
    model, a = adapted(layer, method)
    assert method.ends() == ends and torch.equal(model(x), nn.functional.linear(x, W, b))
    shake(model)
    a.active.fill_(active)
    C = filled(a, ends)
    torch.testing.assert_close(a.core()[:active, :active].detach(), C)
    expected = x @ (W + 3.0 / active * a.B[:, :active] @ C @ a.A[:active]).T + b
    torch.testing.assert_close(model(x), expected)


def test_blocks_of_one_are_triangles_and_every_pair_of_ranks_trains():
    method = ad.TriAdaptLoRA(r=5, growth=1, max_r=5)
    model, a = adapted(linear(), method)
    shake(model)
    a.active.fill_(5)
    with torch.no_grad():
        a.U.zero_()
    assert torch.equal(a.core(), a.core().tril()) and a.core().diagonal().all()
    model(batch(8, 12)).square().sum().backward()
    assert a.L.grad.all() and a.U.grad.all() and a.L.numel() == 15


def test_the_start_is_not_the_dead_one():
    model, a = adapted(linear(), ad.TriAdaptLoRA(r=4, init_r=2))
    x = batch(8, 12)
    optimizer = torch.optim.SGD(a.parameters(), lr=0.5)
    model(x).square().sum().backward()
    assert a.B.grad.any() and not a.A.grad.any() and not a.L.grad.any() and not a.U.grad.any()
    optimizer.step()
    optimizer.zero_grad()
    model(x).square().sum().backward()
    assert all(p.grad.any() for p in a.parameters())
    model, a = adapted(linear(), ad.TriAdaptLoRA(r=4, init_r=2))
    with torch.no_grad():  # as the authors' file starts: nothing ever moves
        for p in (a.B, a.L, a.U):
            p.zero_()
    model(x).square().sum().backward()
    assert not any(p.grad.any() for p in a.parameters())


@pytest.mark.parametrize(("ranks", "times"), [(1, 3), (2, 2), (3, 2)])
def test_growing_keeps_the_function_and_the_new_ranks_train(ranks, times):
    model, a = adapted(linear(), ad.TriAdaptLoRA(r=6, init_r=2, growth=4, max_r=8))
    shake(model)
    x = batch(8, 12)
    for time in range(times):
        before, old = model(x), int(a.active)
        assert a.grow(ranks, f"{time}") == ranks and int(a.active) == old + ranks
        torch.testing.assert_close(model(x), before, rtol=1e-9, atol=1e-9)
        a.zero_grad()
        model(x).square().sum().backward()
        assert (
            a.B.grad[:, old:].any()
            and not a.B.grad[:, int(a.active) :].any()
            and not a.A.grad[int(a.active) :].any()
        )
        rows, columns = a.place // 8, a.place % 8
        coupled = (columns < old) & (rows >= old) & (rows < int(a.active))
        assert a.U.grad[coupled].all()
        with torch.no_grad():
            for p in a.parameters():
                p.add_(0.1 * torch.randn_like(p))


@pytest.mark.parametrize("transposed", [False, True])
def test_after_growth_it_merges_and_unmerges(transposed):
    from transformers.pytorch_utils import Conv1D

    model, a = adapted(
        Conv1D(20, 12) if transposed else linear(), ad.TriAdaptLoRA(r=6, init_r=2, growth=4, max_r=8)
    )
    shake(model)
    a.grow(3, "1")
    shake(model, seed=2)
    x, W = batch(4, 12), a.host.layer._parameters["weight"].clone()
    expected = model(x)
    ad.merge(model)
    torch.testing.assert_close(model(x), expected)
    ad.unmerge(model)
    assert torch.equal(a.host.layer._parameters["weight"], W) and torch.equal(model(x), expected)


def test_without_compensation_the_update_shrinks_with_the_scale():
    model, a = adapted(linear(), ad.TriAdaptLoRA(r=6, init_r=2, growth=1, compensate=False))
    shake(model)
    before = a.delta().detach()
    a.grow(1, "")
    torch.testing.assert_close(a.delta(), before * 2 / 3)


def test_threshold_arithmetic():
    linear_, root = ad.TriAdaptLoRA(), ad.TriAdaptLoRA(threshold="non-linear")
    assert linear_.winners(0.5, 504, 72) == 72 and linear_.winners(0.5, 504, 1000) == 252
    assert root.winners(0.5, 504, 72) == 22
    assert linear_.winners(0.0, 504, 72) == root.winners(0.0, 504, 72) == 1
    for method in (linear_, root):
        ks = [method.winners(p / 20, 504, 10**6) for p in range(21)]
        assert ks == sorted(ks)
    assert ad.TriAdaptLoRA(threshold="fixed", top_k=3).winners(0.9, 504, 72) == 3


def test_the_layer_whose_core_grew_grows():
    method = ad.TriAdaptLoRA(r=4, init_r=2, growth=2, warmup=0.1, interval=1, threshold="fixed")
    model, layers = several(method)
    with torch.no_grad():
        layers[2].L.mul_(2)
        layers[2].U.mul_(2)
    assert [layer.score() > 0 for layer in layers] == [False, False, True, False]
    ad.on_step(model, 2, 10)
    assert [int(layer.active) for layer in layers] == [2, 2, 4, 2]
    assert [layer.score() for layer in layers] == [0.0] * 4
    ad.on_step(model, 2, 10)  # resuming calls it again with the step it stopped at
    assert [int(layer.active) for layer in layers] == [2, 2, 4, 2]


def train(model, first, last, total):
    optimizer = torch.optim.SGD(ad.parameters_of(model).values(), lr=0.5)
    ad.on_step(model, first, total)
    for step in range(first, last):
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ad.on_step(model, step + 1, total)


@pytest.mark.parametrize("threshold", ["linear", "non-linear"])
def test_the_budget_is_met_never_passed_and_nothing_grows_in_the_warmup(threshold):
    method = ad.TriAdaptLoRA(
        r=3, init_r=1, growth=2, max_r=6, warmup=0.2, end=0.6, interval=2, threshold=threshold
    )
    model, layers = several(method)
    totals = []
    for step in range(40):
        train(model, step, step + 1, 40)
        totals.append(sum(int(layer.active) for layer in layers))
    assert totals == sorted(totals) and set(totals[:9]) == {4} and totals[-1] == 12
    assert max(int(layer.active) for layer in layers) <= 6


def test_a_resumed_run_ends_bit_equal(tmp_path):
    method = ad.TriAdaptLoRA(r=3, init_r=1, growth=1, warmup=0.1, end=0.9, interval=3)
    whole, layers = several(method)
    train(whole, 0, 30, 30)
    assert sum(int(layer.active) for layer in layers) == 12
    for at in (6, 11):
        model, _ = several(method)
        train(model, 0, at, 30)
        ad.save(model, tmp_path / "a")
        ad.detach(model)
        ad.load(model, tmp_path / "a", trainable=True)
        train(model, at, 30, 30)
        for key, value in ad.parameters_of(whole).items():
            assert torch.equal(value, ad.parameters_of(model)[key]), key


def test_export_has_the_active_rank(tmp_path):
    model, a = adapted(linear(), ad.TriAdaptLoRA(r=6, init_r=3))
    shake(model)
    report, expected = ad.export(model, tmp_path / "out"), model(batch(4, 12))
    assert report.rank == 3 and report.worst == 0.0
    other = nn.Sequential(linear()).double()
    ad.load(other, tmp_path / "out")
    torch.testing.assert_close(other(batch(4, 12)), expected, rtol=1e-5, atol=1e-5)


def test_the_orthogonality_term_counts_active_ranks_only():
    model, a = adapted(linear(), ad.TriAdaptLoRA(r=6, init_r=3, orthogonal=0.3))
    shake(model)
    A, B = a.A.detach()[:3], a.B.detach()[:, :3]
    expected = (torch.linalg.norm(A @ A.T - torch.eye(3)) + torch.linalg.norm(B.T @ B - torch.eye(3))) / 2
    torch.testing.assert_close(ad.penalty(model), 0.3 * expected, rtol=1e-6, atol=1e-9)


def test_unfit_settings_are_refused():
    with pytest.raises(MethodError, match="must rise in this order"):
        ad.TriAdaptLoRA(r=4, init_r=5)
    with pytest.raises(MethodError, match="before it begins"):
        ad.TriAdaptLoRA(warmup=0.7)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"r": 1, "init_r": 1, "max_r": 1}, 166_032),
        ({"r": 8, "init_r": 1, "growth": 1, "max_r": 8}, 1_332_288),
        ({"r": 8, "init_r": 1, "growth": 4, "max_r": 9}, 1_501_200),
    ],
)
def test_counts_at_a_capacity_are_the_papers(settings, count):
    assert ad.plan(roberta(), ad.TriAdaptLoRA(**settings), targets=SIX).trainable == count


def test_a_square_layer_with_blocks():
    layer = nn.Linear(768, 768)
    for settings, count in (
        ({"r": 5, "growth": 4, "max_r": 5}, 7_722),
        ({"r": 8, "init_r": 8, "max_r": 8}, 12_416),
    ):
        assert ad.plan(nn.Sequential(layer), ad.TriAdaptLoRA(**settings), targets="0").trainable == count
