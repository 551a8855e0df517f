"""Dropout inside a product: the same mathematics, one bit kept a number."""

import pytest
import torch
from torch.nn import functional as F

from adaptome.forms.dropped import dropped_linear, keep, pack, unpack


@pytest.mark.parametrize("shape", [(1,), (13,), (3, 5, 7), (64, 8)])
def test_bits_keep_every_boolean(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.4
    bits = pack(mask)
    assert torch.equal(unpack(bits, mask.shape), mask) and bits.nbytes == -(-mask.numel() // 8)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_the_mask_keeps_its_share_and_the_scale_its_mean(p):
    torch.manual_seed(0)
    mask, scale = keep(torch.empty(400, 500), p)
    assert abs(float(mask.float().mean()) - (1 - p)) < 4e-3 and abs(scale * (1 - p) - 1) < 2e-4
    lanes = mask.view(-1, 4).float().mean(0)
    assert float(lanes.max() - lanes.min()) < 1.2e-2


def test_gradients_are_those_of_the_drawn_mask():
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    A = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)

    def seeded(x, A):
        torch.manual_seed(3)
        return dropped_linear(x, A, 0.3)

    assert torch.autograd.gradcheck(seeded, (x, A))
    torch.manual_seed(3)
    mask, scale = keep(x, 0.3)
    torch.testing.assert_close(seeded(x, A), F.linear(x * mask * scale, A))


def test_neither_the_dropped_copy_nor_a_bytemask_is_kept():
    x, A = torch.randn(256, 512, requires_grad=True), torch.randn(4, 512, requires_grad=True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (sizes.append((t.data_ptr(), t.nbytes)), t)[1], lambda t: t
    ):
        dropped_linear(x, A, 0.1).sum()
    extra = [size for pointer, size in sizes if pointer not in (x.data_ptr(), A.data_ptr())]
    assert sum(extra) <= 256 * 512 // 8 + 256 * 4 * 4


def test_it_compiles_without_a_break():
    x, A = torch.randn(8, 6), torch.randn(3, 6, requires_grad=True)
    compiled = torch.compile(lambda x, A: dropped_linear(x, A, 0.5), fullgraph=True, backend="aot_eager")
    compiled(x, A).sum().backward()
    assert A.grad is not None
