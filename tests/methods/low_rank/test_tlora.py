"""TLoRA: ring and transform against brute force (arXiv:2501.08727)."""

import itertools

import pytest
import torch

import adaptome as ad
from adaptome.core.errors import MethodError
from adaptome.methods.low_rank.tlora import factorise
from tests.methods.helpers import adapted, batch, linear, shake


def transform(cores):
    """T[i, j] = tr(A1[i1, j1] A2[i2, j2] A3[i3, j3])."""
    rows = list(itertools.product(*[range(c.shape[0]) for c in cores]))
    columns = list(itertools.product(*[range(c.shape[1]) for c in cores]))
    T = torch.empty(len(rows), len(columns), dtype=torch.float64)
    for i, a in enumerate(rows):
        for j, b in enumerate(columns):
            T[i, j] = (cores[0][a[0], b[0]] @ cores[1][a[1], b[1]] @ cores[2][a[2], b[2]]).trace()
    return T


def ring(B, C):
    """D[i, j] = tr(B1[i1] B2[i2] B3[i3] C1[j1] C2[j2] C3[j3])."""
    left = [B[0][i] @ B[1][j] @ B[2][k] for i, j, k in itertools.product(*[range(len(c)) for c in B])]
    right = [C[0][i] @ C[1][j] @ C[2][k] for i, j, k in itertools.product(*[range(len(c)) for c in C])]
    return torch.stack([torch.stack([(b @ c).trace() for c in right]) for b in left])


@pytest.mark.parametrize("R", [0, 1, 2, 3])
@pytest.mark.parametrize("residual", ["lora", "ring", "ttm"])
def test_forward_and_merge_are_the_equation(R, residual):
    layer, x = linear(12, 20), batch(2, 3, 12)
    W, b = layer.weight.detach().double().clone(), layer.bias.detach().double()
    model, a = adapted(layer, ad.TLoRA(R=R, q=2, residual=residual, alpha=3.0))
    torch.testing.assert_close(model(x), x @ W.T + b, rtol=1e-6, atol=1e-6)
    shake(model)
    T = transform([c.detach() for c in a.cores()]) if R else torch.eye(12, dtype=torch.float64)
    D = {"ring": ring, "ttm": lambda B, C: transform(B), "lora": lambda B, C: B[0] @ C[0]}[residual](a.B, a.C)
    expected = x @ (W @ T + 3.0 / 2**0.5 * D).T + b
    torch.testing.assert_close(model(x), expected)
    ad.merge(model)
    torch.testing.assert_close(model(x), expected)


def test_the_transform_starts_as_the_identity():
    for R in (1, 2, 3):
        model, a = adapted(linear(60, 8), ad.TLoRA(R=R))
        torch.testing.assert_close(transform(a.cores()), torch.eye(60, dtype=torch.float64))


def test_special_transforms_are_other_methods():
    x, W = batch(4, 12), linear(12, 20).weight.detach().double()
    model, a = adapted(linear(12, 20, bias=False), ad.TLoRA(R=1, q=0))
    cores = a.cores()
    with torch.no_grad():  # diagonal cores: a factor for every input, as DoRA's with its norm held
        for core, moved in zip(cores, a.transform, strict=True):
            moved += torch.diag(torch.rand(len(core), dtype=torch.float64))[:, :, None, None]
    T = transform(a.cores())
    assert torch.equal(T, torch.diag(T.diagonal()))
    torch.testing.assert_close(model(x), x * T.diagonal() @ W.T)
    model, a = adapted(linear(12, 20, bias=False), ad.TLoRA(R=1, q=0))
    with torch.no_grad():  # orthogonal cores: a rotation, as OFT's, which keeps the norm
        for core, moved in zip(a.cores(), a.transform, strict=True):
            Q = torch.linalg.qr(torch.randn(len(core), len(core), dtype=torch.float64))[0]
            moved += Q[:, :, None, None] - core
    T = transform(a.cores())
    torch.testing.assert_close(T @ T.T, torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(model(x), x @ (W @ T).T)
    torch.testing.assert_close((W @ T).norm(), W.norm())


def test_weight_decay_pulls_the_transform_to_the_identity():
    model, a = adapted(linear(), ad.TLoRA(R=2, q=0))
    optimizer = torch.optim.AdamW(ad.parameters_of(model).values(), lr=0.1, weight_decay=1.0)
    for parameter in ad.parameters_of(model).values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(transform(a.cores()), torch.eye(12, dtype=torch.float64))


def test_first_gradients_reach_the_cores_and_the_zero_factor():
    model, a = adapted(linear(), ad.TLoRA(R=2, q=2, residual="ring"))
    model(batch(4, 12)).square().sum().backward()
    assert all(c.grad.abs().sum() > 0 for c in [*a.transform, a.B[0]])
    assert all(c.grad.abs().sum() == 0 for c in [a.B[1], a.B[2], *a.C])


def test_factorisations_are_the_authors_and_balanced():
    assert [factorise(w) for w in (320, 640, 768, 1280, 2048)] == [
        (4, 8, 10),
        (8, 8, 10),
        (8, 8, 12),
        (8, 10, 16),
        (8, 16, 16),
    ]
    assert factorise(4096) == (16, 16, 16) and factorise(7) == (1, 1, 7)


def test_penalty_is_zero_at_the_identity_and_grows():
    model, a = adapted(linear(), ad.TLoRA(R=2, identity_penalty=0.5))
    assert ad.penalty(model).item() == 0.0
    with torch.no_grad():
        a.transform[0][:, :, 0, 0] += 1.0
    assert ad.penalty(model).item() == pytest.approx(0.5 * len(a.transform[0]))
    with pytest.raises(MethodError, match="both 0"):
        ad.TLoRA(R=0, q=0)


@pytest.mark.parametrize("R", [1, 2])
def test_the_orthogonal_penalty_is_zero_where_the_transform_is_orthogonal(R):
    model, a = adapted(linear(), ad.TLoRA(R=R, q=0, orthogonal_penalty=0.5))
    penalty = ad.penalty(model)
    assert penalty.item() == 0.0
    penalty.backward()
    assert not any(p.grad.isnan().any() for p in a.parameters())
    shake(model, 0.1)
    total = 0.0
    for core in a.cores():
        n = len(core)
        for i, j in itertools.product(range(n), range(n)):
            found = sum(torch.kron(core[i, l], core[j, l]) for l in range(n))
            total += (found - (i == j) * torch.full_like(found, 1 / R**2)).norm()
    torch.testing.assert_close(ad.penalty(model), 0.5 * total)
    # the product rule behind it: T T^T has the cores sum_l A[i, l] (x) A[j, l]
    doubled = []
    for core in a.cores():
        n, product = len(core), torch.empty(len(core), len(core), R * R, R * R, dtype=torch.float64)
        for i, j in itertools.product(range(n), range(n)):
            product[i, j] = sum(torch.kron(core[i, l], core[j, l]) for l in range(n)).detach()
        doubled.append(product)
    T = transform([c.detach() for c in a.cores()])
    torch.testing.assert_close(transform(doubled), T @ T.T)


SD15 = {320: 5, 640: 5, 1280: 6}
SDXL = {640: 10, 1280: 60}


def unet_count(blocks, cross, method):
    """Eight attention maps a block: q, k, v, o twice, of which two read the text."""
    from adaptome.core.hosts import host_of

    def one(fan_in, fan_out):
        return method.parameters(host_of(torch.nn.Linear(fan_in, fan_out, device="meta"), "x"))

    return sum(n * (6 * one(h, h) + 2 * one(cross, h)) for h, n in blocks.items())


@pytest.mark.parametrize(
    ("blocks", "cross", "method", "count"),
    [
        (SD15, 768, ("lora", 0, 4), 797_184),
        (SD15, 768, ("lora", 2, 4), 941_440),
        (SD15, 768, ("ring", 2, 6), 400_288),
        (SD15, 768, ("lora", 1, 1), 235_360),
        (SDXL, 2048, ("lora", 0, 1), 1_451_520),
        (SDXL, 2048, ("ring", 1, 2), 396_720),
        (SDXL, 2048, ("lora", 1, 1), 1_697_040),
    ],
)
def test_counts_are_the_papers(blocks, cross, method, count):
    residual, R, q = method
    assert unet_count(blocks, cross, ad.TLoRA(R=R, q=q, residual=residual)) == count


def test_factors_by_hand():
    x = batch(3, 48)
    method = ad.TLoRA(factors=((2, 4, 6), (1, 2, 10)), residual="ring", q=2)
    model, a = adapted(linear(48, 20), method)
    assert (a.I, a.O) == ((2, 4, 6), (1, 2, 10)) and factorise(48) == (3, 4, 4)
    assert ad.trainable(model).count == method.parameters(a.host) == 4 + 16 + 36 + 4 * (12 + 13)
    shake(model)
    W, b = a.host.weight(), model[0].bias
    expected = x @ (W @ transform([c.detach() for c in a.cores()]) + a.scale * ring(a.B, a.C)).T + b
    torch.testing.assert_close(model(x), expected)


def test_factors_by_hand_fit_or_are_refused(tmp_path):
    model, _ = adapted(linear(48, 20), ad.TLoRA(factors=((2, 4, 6),)))
    shake(model)
    ad.save(model, tmp_path / "a")
    other = torch.nn.Sequential(linear(48, 20)).double()
    ad.load(other, tmp_path / "a")
    assert torch.equal(other(batch(3, 48)), model(batch(3, 48)))
    with pytest.raises(MethodError, match="three whole numbers"):
        ad.TLoRA(factors=((6, 8),))
    with pytest.raises(MethodError, match="same width twice"):
        ad.TLoRA(factors=((2, 4, 6), (3, 4, 4)))
