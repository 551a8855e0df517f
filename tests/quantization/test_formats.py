"""Codes in bytes, grids, tables: what is written is what is read, at the size that is promised."""

import pytest
import torch
from torch.testing import assert_close

from adaptome.core.errors import MethodError
from adaptome.quantization.bits import pack, packed_bytes, planes, unpack
from adaptome.quantization.formats import Sketch, Uniform, format_from, gathered


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 7, 24, 33])
def test_codes_come_back_and_take_no_more_bits_than_they_have(bits, count):
    codes = torch.randint(2**bits, (5, count), generator=torch.Generator().manual_seed(bits)).to(torch.uint8)
    data = pack(codes, bits)
    assert torch.equal(unpack(data, bits, count), codes)
    assert data.shape == (5, packed_bytes(count, bits))
    if count % 8 == 0:
        assert data.shape[1] * 8 == count * bits
    assert sum(planes(bits)) == bits


def test_nibbles_lie_high_first():
    assert pack(torch.tensor([[1, 2, 15, 0]]), 4).tolist() == [[0x12, 0xF0]]


@pytest.mark.parametrize("zero", ["integer", "none", "float"])
@pytest.mark.parametrize("values", ["float16", "float32"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounding_to_nearest_follows_the_equation(bits, values, zero):
    W, form = draw(6, 50), Uniform(bits, values, group=16, zero=zero)
    q, s, z = form.read(form.encode(W), 50)
    spread = lambda t: t.repeat_interleave(16, 1)[:, :50].double()  # noqa: E731
    half, top = 2 ** (bits - 1), 2**bits - 1
    if zero == "float":
        expected = (((W - spread(z)) / spread(s)).round() + half).clamp(0, top)
        dense = (q.double() - half) * spread(s) + spread(z)
    else:
        expected = ((W / spread(s)).round() + spread(z)).clamp(0, top)
        dense = (q.double() - spread(z)) * spread(s)
    assert torch.equal(q.double(), expected.double())
    assert_close(form.decode(form.encode(W), 50).double(), dense, rtol=1e-6, atol=1e-7)
    if zero != "float":  # nothing lies off the grid by more than a step
        assert ((dense - W).abs() <= spread(s) * 1.01).all()


def test_a_symmetric_grid_clips_nothing():
    W, form = draw(6, 48), Uniform(4, "float32", 16, "none")
    s, _ = form.grid(W)
    low, high = W.unflatten(1, (3, 16)).amin(-1), W.unflatten(1, (3, 16)).amax(-1)
    assert_close(s, torch.maximum(low / -8, high / 7))


def test_the_size_is_what_the_format_says():
    assert Uniform(4, group=64).row_bytes(4096) * 8 / 4096 == 4 + (16 + 8) / 64
    assert Uniform(3, group=128, zero="none").row_bytes(4096) * 8 / 4096 == 3 + 16 / 128
    assert Sketch(4, tables=4).row_bytes(4096) == 4096 // 2 + 4 * 16 * 2
    assert Sketch(2).row_bytes(4096) == 4096 // 4 + 4 * 2


@pytest.mark.parametrize(
    "form", [Uniform(4, group=24), Uniform(3, zero="none"), Uniform(2, zero="float"), Sketch(3, tables=2)]
)
def test_quantising_what_is_on_the_grid_changes_no_bit(form):
    data = form.encode(draw(7, 96))
    again = form.encode(form.decode(data, 96), old=data)
    assert torch.equal(form.decode(again, 96), form.decode(data, 96))


@pytest.mark.parametrize("form", [Uniform(3, "float32", 40, "float"), Sketch(4, "float32", 2)])
def test_a_format_is_told_and_read_again(form):
    assert format_from(form.to_dict()) == form


def test_impossible_formats_say_why():
    with pytest.raises(MethodError, match="bits = 9"):
        Uniform(9)
    with pytest.raises(MethodError, match="'uniform'"):
        format_from({"kind": "uniforms"})
    with pytest.raises(MethodError, match="no setting"):
        format_from({"kind": "sketch", "group": 3})
    with pytest.raises(MethodError, match="tables = 5 must divide the 96 inputs"):
        Sketch(tables=5).row_bytes(96)


@pytest.mark.parametrize("tables", [1, 2, 4, 8])
def test_a_gather_is_the_loop(tables):
    T, q = draw(3, tables, 4), torch.randint(4, (3, 16), generator=torch.Generator().manual_seed(1))
    loop = [[T[o, j // (16 // tables), q[o, j]] for j in range(16)] for o in range(3)]
    assert torch.equal(gathered(T, q), torch.tensor(loop))


def test_zeros_and_single_values_are_kept():
    W = torch.zeros(3, 32)
    W[1] = 0.25
    for form in (Uniform(4, "float32", 8), Uniform(4, "float32", 8, "none"), Sketch(2)):
        made = form.decode(form.encode(W), 32)
        assert torch.equal(made[0], W[0]) and torch.isfinite(made).all()
        assert_close(made[1], W[1], rtol=0.15, atol=0)
