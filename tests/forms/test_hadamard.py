"""Hadamard transforms against the matrices they stand for, and sparse products against dense ones."""

import pytest
import torch
from scipy.linalg import hadamard
from torch.testing import assert_close

from adaptome.forms.hadamard import factors, orders, transform
from adaptome.forms.sparse_rows import sparse_product


@pytest.mark.parametrize("n", [1, 2, 8, 64, 256])
def test_powers_of_two_are_sylvesters(n):
    H = transform(torch.eye(n, dtype=torch.float64))
    assert_close(H, torch.tensor(hadamard(n), dtype=torch.float64) / n**0.5)
    x = torch.randn(3, 5, n, dtype=torch.float64)
    assert_close(transform(transform(x)), x)


@pytest.mark.parametrize("n", [12, 20, 28, 36, 40, 52, 60, 76, 108, 140, 148, 156, 172, 24, 112, 104, 688])
def test_composed_orders_are_hadamard_matrices(n):
    H = transform(torch.eye(n, dtype=torch.float64))
    assert_close(H @ H.T, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-12)
    assert_close(H.abs(), torch.full_like(H, n**-0.5))
    x = torch.randn(4, n, dtype=torch.float64)
    assert_close(transform(transform(x), inverse=True), x)


def test_what_has_no_hadamard_matrix_is_block_diagonal():
    assert orders(22) == (2, 0) and orders(7) == (1, 0)
    H = transform(torch.eye(22, dtype=torch.float64))
    assert_close(H @ H.T, torch.eye(22, dtype=torch.float64))
    assert int(H.count_nonzero()) == 2 * 22


@pytest.mark.parametrize(
    ("n", "base"), [(14336, 28), (3072, 12), (11008, 172), (13824, 108), (18944, 148), (8960, 140)]
)
def test_widths_of_real_models_have_one(n, base):
    assert orders(n)[0] == base and 0 not in orders(n)
    product = 1
    for H in factors(n):
        product *= len(H)
    assert product == n


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sparse_product_and_its_gradients_are_the_dense_ones(dtype):
    torch.manual_seed(0)
    F = torch.randn(9, 14, dtype=dtype) * (torch.rand(9, 14) < 0.3)
    F[4] = 0  # a row without numbers
    rows, columns = F.nonzero(as_tuple=True)
    counts = rows.bincount(minlength=9).int()
    c = F[rows, columns].clone().requires_grad_()
    z = torch.randn(2, 5, 14, dtype=dtype, requires_grad=True)
    y = sparse_product(z, c, counts, columns.to(torch.int16), 9)
    assert_close(y, z @ F.T)
    g = torch.randn_like(y)
    dz, dc = torch.autograd.grad(y, (z, c), g)
    assert_close(dz, g @ F)
    assert_close(dc, torch.einsum("bto,bti->oi", g, z)[rows, columns])
