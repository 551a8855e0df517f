"""QWHA against its equations: budgets, places, values, fast and dense forms, and its start from a quantised base."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import adaptome as ad
from adaptome.forms.hadamard import transform
from adaptome.methods.quantized.qwha import budgets, chosen, refined


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def heavy(out, fan_in, seed=0):
    """Weights with a few rows and entries far larger than the rest."""
    W = rand(out, fan_in, seed=seed)
    W *= 1 + 6 * (rand(out, fan_in, seed=seed + 1) > 2.2)
    W[::17] *= 4
    return W


@pytest.mark.parametrize("fan_in", [64, 96, 50])
def test_the_forward_and_its_gradients_are_the_dense_ones(fan_in):
    torch.manual_seed(0)
    layer = nn.Linear(fan_in, 40).double()
    ad.attach(layer, "qwha", r=3, alpha=1.5, targets="=")
    adapter = layer.adaptome["default"]
    nn.init.normal_(adapter.c)
    F = torch.zeros(40, fan_in).double()
    rows, columns = adapter.places()
    F[rows, columns] = adapter.c.detach()
    H = transform(torch.eye(fan_in).double())
    W = layer._parameters["weight"] + 1.5 * F @ H.T
    x = rand(2, 7, fan_in).requires_grad_()
    y, g = layer(x), rand(2, 7, 40, seed=3)
    assert_close(y, x @ W.T + layer.bias)
    dx, dc = torch.autograd.grad(y, (x, adapter.c), g)
    assert_close(dx, g @ W)
    assert_close(dc, (1.5 * torch.einsum("bto,bti->oi", g, x) @ H)[rows, columns])
    assert len({*zip(rows.tolist(), columns.tolist(), strict=True)}) == 3 * (40 + fan_in)


def test_only_c_trains_and_places_are_saved_to_the_bit(tmp_path):
    model = nn.Sequential(nn.Linear(48, 32))
    fresh = copy.deepcopy(model)
    ad.attach(model, "qwha", r=2, targets="0", seed=3)
    adapter = model[0].adaptome["default"]
    assert [n for n, p in adapter.named_parameters()] == ["c"] and adapter.columns.dtype == torch.int16
    adapter.counts[0] += 1
    adapter.counts[1] -= 1  # as a start from data would
    nn.init.normal_(adapter.c)
    ad.save(model, tmp_path / "a")
    ad.load(fresh, tmp_path / "a")
    other = fresh[0].adaptome["default"]
    for name in ("c", "counts", "columns"):
        assert torch.equal(getattr(adapter, name), getattr(other, name))
    x = torch.randn(3, 48)
    assert torch.equal(model(x), fresh(x))


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("hot", [False, True])
def test_budgets_add_up_and_follow_the_errors(temperature, hot):
    errors = rand(40).abs()
    if hot:
        errors[7] *= 1000
    counts = budgets(errors, 40 * 30, 64, temperature)
    assert int(counts.sum()) == 40 * 30 and counts.min() >= 0 and counts.max() <= 64
    by_error = counts[errors.argsort()]
    assert (by_error.diff() >= (-1 if temperature == 0 else 0)).all()
    if hot and temperature >= 1:
        assert counts[7] == 64
    assert int(budgets(errors, 40 * 64, 64).sum()) == 40 * 64
    assert budgets(torch.zeros(4), 10, 9).tolist() == [3, 3, 2, 2]


def test_the_chosen_are_the_largest():
    score, counts = rand(6, 20).abs(), torch.tensor([0, 3, 20, 1, 5, 7])
    found = chosen(score, counts).split(counts.tolist())
    for row, columns, n in zip(score, found, counts.tolist(), strict=True):
        assert sorted(row.topk(n).indices.tolist()) == columns.tolist()


def problem(out=24, fan_in=32, tokens=100, seed=0):
    D, X = heavy(out, fan_in, seed), rand(tokens, fan_in, seed=seed + 2) @ rand(fan_in, fan_in, seed=seed + 3)
    return D, X.T @ X, X


def test_values_are_the_least_squares_solutions():
    D, G, X = problem()
    counts = budgets(D.norm(dim=1), 150, 32)
    columns = chosen(rand(24, 32, seed=9).abs(), counts)
    K, H = transform(transform(G).t()), transform(torch.eye(32).double())
    assert_close(K, H.T @ G @ H)
    c = refined(transform(D @ G), K, counts, columns, rows_at_once=5)
    for row, S, values in zip(D, columns.split(counts.tolist()), c.split(counts.tolist()), strict=True):
        basis = (X @ H)[:, S]
        if len(S):
            assert_close(values, torch.linalg.lstsq(basis, X @ row).solution, rtol=1e-6, atol=1e-8)
            assert (basis.T @ (X @ row - basis @ values)).abs().max() < 1e-6 * float(
                (X @ row).norm()
            ) * float(basis.norm())


def network(out=64, fan_in=96, bits=2, seed=0):
    """A full layer, its quantised copy, and calibration inputs with outliers."""
    torch.manual_seed(seed)
    full = nn.Sequential(nn.Linear(fan_in, out, bias=False))
    full[0].weight.data = (0.05 * heavy(out, fan_in, seed)).float()
    base = copy.deepcopy(full)
    ad.quantize(base, "uniform", targets="0", bits=bits, group=32)
    X = (rand(600, fan_in, seed=5) * (1 + 4 * (torch.arange(fan_in) % 13 == 0))).float()
    return full, base, X


def left(full, model, X):
    with torch.no_grad():
        return float((full(X) - model(X)).norm())


def test_a_full_budget_gives_the_full_weights_back():
    full, base, X = network(out=24, fan_in=48)
    report = ad.qwha(base, full, ad.QWHA(r=48), targets="0")
    assert report.plan.trainable == 24 * 48
    assert_close(base(X), full(X), rtol=0, atol=1e-4)
    assert report.layers[0].after < 1e-6 and report.layers[0].seconds > 0 and "seconds" in str(report)


def test_each_part_of_the_start_lowers_the_output_error():
    full, base, X = network()
    errors = {"none": left(full, base, X)}

    def start(label, **settings):
        model = copy.deepcopy(base)
        refine = settings.pop("refine", True)
        report = ad.qwha(model, full, ad.QWHA(r=8, **settings), targets="0", batches=[X], refine=refine)
        errors[label] = left(full, model, X)
        assert report.layers[0].before == pytest.approx(errors["none"], rel=1e-2)
        assert report.layers[0].after == pytest.approx(errors[label], rel=1e-2)
        return model

    start("weighted")
    start("magnitude", selection="magnitude")
    start("raw", selection="magnitude", refine=False)
    start("even", temperature=0.0)
    start("weight", allocation="weight")
    model = copy.deepcopy(base)
    ad.cloq(model, full, [X], ad.LoRA(r=8), targets="0")
    errors["cloq"] = left(full, model, X)
    random = copy.deepcopy(base)
    ad.attach(random, "qwha", r=8, targets="0", seed=1)
    adapter = random[0].adaptome["default"]
    D, G = (full[0].weight - random[0]._host.weight()).detach().double(), (X.T @ X).double()
    c = refined(transform(D @ G), transform(transform(G).t()), adapter.counts.long(), adapter.columns.long())
    adapter.c.data = c.float()
    errors["random"] = left(full, random, X)
    assert errors["weighted"] < errors["random"] < errors["none"]
    assert errors["magnitude"] < errors["raw"] < errors["none"]
    assert errors["weighted"] < errors["cloq"]
    assert max(errors["even"], errors["weight"]) < errors["random"]


def test_the_update_keeps_a_high_rank_where_the_largest_coefficients_alone_collapse():
    D = 0.05 * rand(64, 96)
    D[:4] *= 20  # few hot rows
    p = 2 * (64 + 96)
    counts = budgets(D.norm(dim=1), p, 96)
    F = torch.zeros_like(D)
    a = transform(D)
    F[torch.arange(64).repeat_interleave(counts), chosen(a.abs(), counts)] = 1.0
    F *= a
    top = torch.zeros_like(D).flatten()
    best = a.abs().flatten().topk(p).indices
    top[best] = a.flatten()[best]
    rank = lambda F: int(torch.linalg.matrix_rank(transform(F, inverse=True)))  # noqa: E731
    assert rank(F) >= 0.9 * 64 > 4 * rank(top.view_as(D))


@pytest.mark.parametrize(
    ("name", "count"),
    [("llama-2-7b", 159_907_840), ("llama-3-8b", 167_772_160), ("mistral-7b", 167_772_160), ("llama-3.2-3b", 97_255_424)],
)  # fmt: skip
def test_counts_are_the_papers(name, count):
    from adaptome import architectures

    assert ad.plan(architectures.build(name), "qwha", r=64).trainable == count


def test_it_refuses_what_it_cannot_start_from():
    full, base, X = network()
    with pytest.raises(ad.errors.DataError, match="full-precision weights hold no"):
        ad.qwha(base, {}, targets="0")
    with pytest.raises(ad.errors.HostError, match="linear layers"):
        ad.qwha(nn.Sequential(nn.Conv1d(4, 4, 3)), {}, targets="0")
