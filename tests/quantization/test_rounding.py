"""Rounding with feedback, clustering and sketching against direct computations."""

import itertools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from adaptome.core.errors import DataError
from adaptome.quantization.clusters import cluster, nearest
from adaptome.quantization.feedback import (
    gptq,
    inverse_root,
    magr,
    prepared,
    round_with_feedback,
)
from adaptome.quantization.formats import Sketch, Uniform
from adaptome.quantization.sketching import sketched

N = 48


def inputs(seed=0, tokens=400, outliers=True):
    """Correlated inputs, a few columns of them much larger."""
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(tokens, 12, generator=g).double() @ torch.randn(12, N, generator=g).double()
    X += 0.5 * torch.randn(tokens, N, generator=g)
    if outliers:
        X[:, ::11] *= 8
    return X


def weight(seed=1, rows=24):
    return torch.randn(rows, N, generator=torch.Generator().manual_seed(seed)).double()


def missed(W, Q, X):
    return float(((Q.double() - W) @ X.T).norm())


def test_the_root_gives_the_inverse():
    G = prepared(weight(), inputs().T @ inputs(), 0.01)[1]
    U = inverse_root(G)
    assert torch.equal(U, U.triu())
    assert_close(U.T @ U @ G, torch.eye(N).double(), rtol=0, atol=1e-9)


def test_feedback_is_the_solution_for_the_columns_to_come():
    """After each column, those still to come are the least-squares answer to the errors made so far: the textbook form, without blocks."""
    X, W = inputs(tokens=200), weight(rows=3)
    G = X.T @ X + 0.1 * torch.eye(N)
    rounded = lambda j, column, rest: column.round()  # noqa: E731
    expected, current = torch.empty_like(W), W.clone()
    for j in range(N):
        expected[:, j] = current[:, j].round()
        error = current[:, j] - expected[:, j]
        rest = slice(j + 1, N)
        current[:, rest] += torch.outer(error, torch.linalg.solve(G[rest, rest], G[rest, j]))
    for block in (1, 5, 128):
        assert_close(round_with_feedback(W, inverse_root(G), rounded, block), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("settings", [{}, {"act_order": True}])
def test_gptq_keeps_outputs_better_than_rounding(bits, settings):
    X, W = inputs(), weight()
    form = Uniform(bits, "float32", group=16)
    plain = form.decode(form.encode(W), N)
    fed = form.decode(gptq(W, X.T @ X, form, **settings), N)
    assert missed(W, fed, X) < 0.8 * missed(W, plain, X)


def test_gptq_without_correlation_is_rounding():
    W, form = weight(), Uniform(4, "float32", group=16)
    fed = form.decode(gptq(W, torch.eye(N), form, damping=0.0), N)
    assert torch.equal(fed, form.decode(form.encode(W), N))


def test_inputs_that_never_come_have_no_weight():
    X, form = inputs(), Uniform(4, "float32", 16)
    X[:, 5] = 0
    assert not form.decode(gptq(weight(), X.T @ X, form), N)[:, 5].any()
    with pytest.raises(DataError, match="NaN or infinity"):
        gptq(weight(), torch.full((N, N), float("nan")), form)


def test_magr_cuts_the_peaks_and_keeps_the_outputs():
    X, W = inputs(), weight()
    W[:, 3] *= 6
    V = magr(W, X.T @ X, strength=1e-2)
    assert V.abs().amax(1).mean() < 0.9 * W.abs().amax(1).mean()
    assert missed(W, V, X) < 0.05 * float((W @ X.T).norm())
    form = Uniform(2, "float32", group=N)
    after, before = gptq(V, X.T @ X, form), gptq(W, X.T @ X, form)
    assert missed(W, form.decode(after, N), X) < missed(W, form.decode(before, N), X)


def test_a_proximal_step_is_the_minimum():
    """Each row of V after one step from W minimises 1/2 |v - w|^2 + strength max |v|, which a fine search over the cut finds too."""
    W = weight(rows=4)
    V = magr(W, torch.eye(N).double(), strength=0.5, steps=1)
    for v, w in zip(V, W, strict=True):
        cost = lambda x, w=w: float(0.5 * (x - w).square().sum() + 0.5 * x.abs().max())  # noqa: E731
        levels = torch.linspace(0, float(w.abs().max()), 4001, dtype=torch.float64)
        assert cost(v) <= min(cost(w.clamp(-c, c)) for c in levels) + 1e-6


def exact_centres(x, weight, k):
    """The best k-means of sorted numbers, by trying every cut."""
    best = np.inf
    for cuts in itertools.combinations(range(1, len(x)), k - 1):
        cost = 0.0
        for part, mass in zip(np.split(x, cuts), np.split(weight, cuts), strict=True):
            centre = (part * mass).sum() / mass.sum()
            cost += (mass * (part - centre) ** 2).sum()
        best = min(best, cost)
    return best


@pytest.mark.parametrize("k", [2, 3])
def test_clusters_come_near_the_best_there_are(k):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(20, 12, generator=g).double().sort(-1).values
    w = torch.rand(20, 12, generator=g).double() + 0.1
    T = cluster(x, k, w)
    cost = (w * (T.gather(1, nearest(x, T).long()) - x).square()).sum(1).numpy()
    best = np.array([exact_centres(a.numpy(), m.numpy(), k) for a, m in zip(x, w, strict=True)])
    assert (cost >= best - 1e-9).all() and cost.sum() < 1.1 * best.sum()


def test_clusters_are_as_good_as_those_of_scikit_learn():
    from sklearn.cluster import KMeans

    x = torch.randn(4, 200, generator=torch.Generator().manual_seed(4)).double()
    T = cluster(x, 8)
    ours = (T.gather(1, nearest(x, T).long()) - x).square().sum(1)
    theirs = [KMeans(8, n_init=3, random_state=0).fit(row[:, None].numpy()).inertia_ for row in x]
    assert ours.sum() < 1.05 * sum(theirs)


def test_few_different_values_are_kept_exactly():
    """An identity has full rank and two values: a sketch holds it, a low rank does not."""
    form = Sketch(1, "float32")
    assert torch.equal(form.decode(form.encode(torch.eye(N)), N), torch.eye(N))
    U, S, V = torch.linalg.svd(torch.eye(N))
    assert (U[:, :8] * S[:8] @ V[:8] - torch.eye(N)).norm() > 6
    X, W = inputs(), torch.tensor([-0.5, 0.25, 1.0])[torch.randint(3, (5, N))].double()
    form = Sketch(2, "float32", tables=2)
    assert_close(form.decode(sketched(W, X.T @ X, form), N).double(), W, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bits", [3, 4])
def test_each_part_of_sketching_lowers_the_output_error(bits):
    """Weighted clustering with feedback < clustering alone < the uniform grid, with as many values a row."""
    X, W = inputs(), weight(rows=64)
    G, form = X.T @ X, Sketch(bits, "float32")
    full = missed(W, form.decode(sketched(W, G, form), N), X)
    plain = missed(W, form.decode(sketched(W, G, form, strength=0.0, feedback=False), N), X)
    grid = Uniform(bits, "float32", group=N)
    uniform = missed(W, grid.decode(grid.encode(W), N), X)
    assert full < plain < uniform


def test_more_tables_lower_the_error():
    X, W = inputs(), weight(rows=64)
    errors = [
        missed(W, form.decode(sketched(W, X.T @ X, form), N), X)
        for form in (Sketch(2, "float32", tables) for tables in (1, 2, 4, 8))
    ]
    assert errors == sorted(errors, reverse=True)
