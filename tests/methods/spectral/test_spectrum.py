"""FourierFT (arXiv:2405.03003) and LoCA (arXiv:2502.06820) against dense transforms, PEFT's and finite differences."""

import math

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import HostError
from adaptome.forms import spectrum
from tests.methods.helpers import adapted, batch, linear, llama, llama2_7b, roberta, shake


def cosines(N):
    """The orthonormal DCT-II matrix, entry by entry."""
    C = torch.empty(N, N, dtype=torch.float64)
    for i in range(N):
        for j in range(N):
            C[i, j] = math.sqrt((1 if i == 0 else 2) / N) * math.cos((2 * j + 1) * i * math.pi / (2 * N))
    return C


def dense(a):
    """The update of either method from its definition."""
    M, N = a.host.fan_out, a.host.fan_in
    S = torch.zeros(M, N, dtype=torch.float64)
    if hasattr(a, "c"):
        cells = torch.randperm(M * N, generator=torch.Generator().manual_seed(777))[: len(a.c)]
        S = S.index_put((cells // N, cells % N), a.c, accumulate=True)
        return 300.0 * torch.fft.ifft2(S).real
    rows, columns = (at.round().long() for at in a.coordinates())
    return 0.5 * cosines(M).T @ S.index_put((rows, columns), a.a, accumulate=True) @ cosines(N)


METHODS = [
    ad.FourierFT(n=17),
    ad.LoCA(n=17, alpha=0.5, pace=2.0),
    ad.LoCA(n=17, alpha=0.5, locations="fixed"),
]


def transform(basis, x):
    """F x by the waves, `[tokens, length]`."""
    N = x.shape[-1]
    row, factor = basis.place(torch.arange(basis.length(N)), N, x)
    return basis.analyse(x).index_select(0, row).T * factor


def transposed(basis, s, N):
    """F^T s."""
    row, factor = basis.place(torch.arange(basis.length(N)), N, s)
    waves = s.new_zeros(2 * (N // 2 + 1), len(s)).index_add(0, row, (s * factor).T)
    return basis.synthesise(waves, N)


@pytest.mark.parametrize("N", [1, 2, 3, 4, 5, 8, 13, 40])
def test_the_cosine_transform_is_the_orthonormal_matrix(N):
    x, C = batch(3, N), cosines(N)
    torch.testing.assert_close(C @ C.T, torch.eye(N, dtype=torch.float64))
    torch.testing.assert_close(transform(spectrum.COSINE, x), x @ C.T)
    torch.testing.assert_close(transposed(spectrum.COSINE, x, N), x @ C)
    scipy_fft = pytest.importorskip("scipy.fft")
    theirs = torch.from_numpy(scipy_fft.dct(x.numpy(), type=2, norm="ortho"))
    torch.testing.assert_close(transform(spectrum.COSINE, x), theirs)


@pytest.mark.parametrize("N", [1, 2, 3, 8, 13])
def test_the_fourier_transform_is_the_matrix_and_its_transpose(N):
    x, h = batch(3, N), N // 2 + 1
    angles = torch.outer(torch.arange(h), torch.arange(N)).double() * (2 * math.pi / N)
    matrix = torch.cat([angles.cos(), -angles.sin()])
    torch.testing.assert_close(transform(spectrum.FOURIER, x), x @ matrix.T)
    s = batch(3, 2 * h)
    torch.testing.assert_close(transposed(spectrum.FOURIER, s, N), s @ matrix)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("fan_in", "fan_out"), [(12, 20), (13, 7), (9, 10)])
@pytest.mark.parametrize("tokens", [5, 200])
def test_every_route_and_its_gradients_are_the_dense_ones(method, fan_in, fan_out, tokens):
    layer, x = linear(fan_in, fan_out), batch(2, tokens, fan_in).requires_grad_()
    model, a = adapted(layer, method)
    W, bias = layer._parameters["weight"], layer.bias
    assert torch.equal(model(x), nn.functional.linear(x, W, bias))
    shake(model)
    expected = nn.functional.linear(x, W + dense(a), bias)
    torch.testing.assert_close(model(x), expected)
    wanted = [x, a.c if hasattr(a, "c") else a.a]
    right = torch.autograd.grad(expected.square().sum(), wanted)
    for a.many in (0, math.inf):  # through dW, and through the activations
        torch.testing.assert_close(torch.autograd.grad(model(x).square().sum(), wanted), right)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)
    ad.merge(model)
    torch.testing.assert_close(model(x), expected)


def test_products_with_a_sparse_spectrum_take_places_in_any_order_and_twice():
    generator = torch.Generator().manual_seed(0)
    G, X, values = (torch.randn(*shape, generator=generator) for shape in ((7, 5), (6, 5), (9,)))
    rows, columns = torch.tensor([3, 0, 3, 6, 0, 0, 5, 3, 3]), torch.tensor([1, 5, 1, 0, 0, 5, 2, 4, 1])
    torch.testing.assert_close(spectrum._dots(G, X, rows, columns), (G[rows] * X[columns]).sum(1))
    S = torch.zeros(7, 6).index_put((rows, columns), values, accumulate=True)
    ones = torch.ones(9)
    made = spectrum._spread(X, (columns, ones), (rows, 2 * ones), values, 7)
    torch.testing.assert_close(made, 2 * S @ X)


def test_no_route_keeps_a_matrix_for_the_backward():
    for method in METHODS:
        model, a = adapted(linear(24, 20, bias=False), method)
        shake(model)
        base = a.host.stored("weight").data_ptr()
        for a.many in (0, math.inf):
            kept = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):  # noqa: B023
                model(batch(200, 24)).sum()
            assert not [
                t
                for t in kept
                if t.dim() == 2 and t.numel() >= 480 and t.shape[0] != 200 and t.data_ptr() != base
            ]


@pytest.mark.parametrize("method", METHODS)
def test_convolutions_read_the_changed_kernel(method):
    conv = nn.Conv2d(6, 8, (3, 2), groups=2)
    model, a = adapted(conv, method)
    shake(model)
    W = conv._parameters["weight"]
    x = batch(2, 6, 5, 4)
    torch.testing.assert_close(
        model(x), nn.functional.conv2d(x, W + dense(a).view(W.shape), conv.bias, groups=2)
    )


def test_fourierft_is_pefts_on_the_same_weights():
    peft = pytest.importorskip("peft")
    config = peft.FourierFTConfig(n_frequency=50, scaling=150.0, target_modules=["0"], random_loc_seed=777)
    theirs = peft.get_peft_model(nn.Sequential(linear(24, 20)), config)
    ours = nn.Sequential(linear(24, 20))
    ad.attach(ours, ad.FourierFT(n=50, alpha=150.0), targets="0")
    value = theirs.get_parameter("base_model.model.0.fourierft_spectrum.default")
    ad.parameters_of(ours)["0.c"].data.copy_(value)
    x = batch(5, 24).float()
    torch.testing.assert_close(ours(x), theirs(x))


def test_fourierft_can_start_as_the_paper_has_it():
    model, a = adapted(linear(), ad.FourierFT(n=30, init="normal"))
    assert a.c.std() > 0.5 and not torch.allclose(
        model(batch(3, 12)), batch(3, 12) @ a.host.weight().T + model[0].bias
    )


def test_more_coefficients_than_cells_are_refused():
    with pytest.raises(HostError, match="n = 1000 coefficients, but its weight has 240"):
        ad.attach(nn.Sequential(linear()), "loca", n=1000, targets="0")


def test_norms_are_those_of_the_spectrum_and_duplicates_add():
    model, a = adapted(linear(), ad.LoCA(n=9, alpha=0.5))
    shake(model)
    S = cosines(20) @ a.delta() @ cosines(12).T / 0.5
    torch.testing.assert_close(a.delta().norm(), 0.5 * S.norm())
    a.start[:, 1] = a.start[:, 0]
    a.l.data.zero_()
    row, column = a.start[:, 0].tolist()
    S = cosines(20) @ a.delta() @ cosines(12).T / 0.5
    torch.testing.assert_close(S[row, column], a.a[0] + a.a[1])
    torch.testing.assert_close(
        model(batch(3, 12)), batch(3, 12) @ (a.host.weight() + dense(a)).T + model[0].bias
    )


@pytest.mark.parametrize("route", ["dense", "product"])
def test_the_gradient_of_a_place_is_the_central_difference_of_a_linear_loss(route):
    a = torch.tensor([0.3, -0.2, 0.4, 0.25, 50.0], dtype=torch.float64)
    rows = torch.tensor([2.0, 0.0, 4.0, 3.2, 2.0], dtype=torch.float64, requires_grad=True)
    columns = torch.tensor([3.0, 6.0, 0.0, 1.8, 3.0], dtype=torch.float64, requires_grad=True)
    G = batch(5, 7)

    def loss(rows, columns, t):
        p, q = rows.round().long().clamp(0, 4), columns.round().long().clamp(0, 6)
        return float(a[t] * G[p[t], q[t]])

    if route == "dense":
        made = spectrum.CosineMatrix.apply(a, rows, columns, 5, 7)
        (made * (cosines(5).T @ G @ cosines(7))).sum().backward()
    else:  # tokens whose transforms are the unit vectors, and gradients that are G's columns: K = G
        x = transposed(spectrum.COSINE, torch.eye(7, dtype=torch.float64), 7)
        y = spectrum._Product.apply(x, a, rows, columns, 5, spectrum.COSINE)
        y.backward(transposed(spectrum.COSINE, G.T, 5))
    for t in range(5):
        step = torch.zeros(5, dtype=torch.float64)
        step[t] = 1
        with torch.no_grad():
            row = (loss(rows + step, columns, t) - loss(rows - step, columns, t)) / 2
            column = (loss(rows, columns + step, t) - loss(rows, columns - step, t)) / 2
        assert float(rows.grad[t]) == pytest.approx(max(-1.0, min(1.0, row)))
        assert float(columns.grad[t]) == pytest.approx(max(-1.0, min(1.0, column)))


def test_locations_move_nothing_before_the_values_do():
    model, a = adapted(linear(), ad.LoCA(n=9))
    x = batch(6, 12)
    before = model(x)
    before.square().sum().backward()
    assert not a.l.grad.any() and a.a.grad.any()
    with torch.no_grad():
        a.l += 1.0
    assert torch.equal(model(x), before)


def test_one_step_of_the_values_changes_the_outputs():
    model, a = adapted(linear(), ad.LoCA(n=9))
    before = model(batch(6, 12)).detach()
    ad.on_step(model, 0, 100)
    optimiser = torch.optim.SGD(ad.parameters_of(model).values(), lr=0.1)
    model(batch(6, 12)).square().sum().backward()
    optimiser.step()
    assert not torch.allclose(model(batch(6, 12)), before)


def test_every_cell_can_be_reached_to_the_corners():
    model, a = adapted(linear(700, 600), ad.LoCA(n=1))
    for offset, corner in ((1e3, (599, 699)), (-1e3, (0, 0))):
        a.l.data.fill_(offset)
        assert tuple(int(at.round()) for at in a.coordinates()) == corner


def test_values_and_places_are_kept_in_float32_under_half_precision():
    model = nn.Sequential(linear(1000, 20)).bfloat16()
    ad.attach(model, ad.LoCA(n=9), targets="0", dtype=torch.bfloat16)
    a = next(iter(ad.adapters(model)["default"].adapters.values()))
    a.l.data[1].fill_(500.3 / 16)  # bfloat16 would hold 500 or 504
    a.start.zero_()
    assert [p.dtype for p in ad.parameters_of(model).values()] == [torch.float32] * 2
    assert a.coordinates()[1].round().tolist() == [500.0] * 9
    assert model(torch.randn(3, 1000).bfloat16()).dtype == torch.bfloat16


def train(model, optimiser, step, total, accumulate=1):
    """One optimiser step as a loop does it; which of a and l changed."""
    a = next(iter(ad.adapters(model)["default"].adapters.values()))
    before = a.a.detach().clone(), a.l.detach().clone()
    for k in range(accumulate):
        model(batch(6, 12) + k).square().mean().backward()
    optimiser.step()
    optimiser.zero_grad()
    ad.on_step(model, step + 1, total)
    return "".join(
        n for n, old, new in zip("al", before, (a.a, a.l), strict=True) if not torch.equal(old, new)
    )


@pytest.mark.parametrize("accumulate", [1, 4])
def test_values_and_places_take_turns(accumulate):
    model, _ = adapted(linear(), ad.LoCA(n=9, location_share=0.6))
    model.train()
    optimiser = torch.optim.AdamW(ad.parameters_of(model).values(), lr=0.01, weight_decay=0.1)
    ad.on_step(model, 0, 100)
    changed = [train(model, optimiser, step, 100, accumulate) for step in range(100)]
    phases = ["l" if s < 60 and s % 30 >= 10 else "a" for s in range(100)]
    assert changed == phases


def test_fixed_places_train_their_values_alone_in_every_step():
    model, a = adapted(linear(), ad.LoCA(n=9, locations="fixed"))
    optimiser = torch.optim.AdamW(ad.parameters_of(model).values(), lr=0.01)
    ad.on_step(model, 0, 4)
    for step in range(4):
        before = a.a.detach().clone()
        model(batch(6, 12)).square().mean().backward()
        optimiser.step()
        ad.on_step(model, step + 1, 4)
        assert not torch.equal(a.a, before) and a.l is None


def test_a_resumed_run_goes_on_in_its_phase(tmp_path):
    model, _ = adapted(linear(), ad.LoCA(n=9, location_share=0.6))
    shake(model)
    ad.on_step(model, 25, 100)
    assert ad.adapters(model)["default"].shared.phase == "locations"
    optimiser = torch.optim.AdamW(ad.parameters_of(model).values(), lr=0.01)
    assert train(model, optimiser, 25, 100) == "l"
    ad.save(model, tmp_path / "a")
    ad.on_step(model, 99, 100)
    expected = model(batch(6, 12))
    ad.detach(model)
    ad.load(model, tmp_path / "a")
    a = next(iter(ad.adapters(model)["default"].adapters.values()))
    torch.testing.assert_close(model(batch(6, 12)), expected)
    assert {k for k in a.state_dict() if k not in a.rebuilt} == {"a", "l"}


@pytest.mark.parametrize(
    ("make", "n", "count"),
    [
        (roberta, 1000, 24_000),
        (lambda: roberta("large"), 1000, 48_000),
        (llama2_7b, 150_000, 9_600_000),
        (lambda: llama(5120, 13824, 40, 40, 40), 150_000, 12_000_000),
    ],
)
def test_locas_counts_are_the_papers_and_those_in_the_location_phase(make, n, count):
    model = make()
    assert ad.plan(model, ad.LoCA(n=n, locations="fixed"), targets=["q", "v"]).trainable == count
    assert ad.plan(model, ad.LoCA(n=n), targets=["q", "v"]).trainable == 3 * count


def test_fourierfts_count_is_the_papers():
    assert ad.plan(llama2_7b(), ad.FourierFT(n=1000), targets=["q", "v"]).trainable == 64_000
