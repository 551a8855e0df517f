"""NF4 as QLoRA defines it, against bitsandbytes: levels, blocks, errors, sizes, and the layer that trains on it."""

import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.testing import assert_close

import adaptome as ad
from adaptome.core import packed

functional = pytest.importorskip("bitsandbytes.functional")

PRINTED = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def levels():
    """8 positive and 7 negative quantiles of the normal distribution, and 0, scaled to 1."""
    delta = 0.5 * ((1 - 1 / 30) + (1 - 1 / 32))
    positive = norm.ppf(torch.linspace(delta, 0.5, 9).double().numpy())[:-1]
    negative = -norm.ppf(torch.linspace(delta, 0.5, 8).double().numpy())[:-1]
    found = torch.tensor(sorted([*positive, *negative, 0.0]), dtype=torch.float64)
    return found / found.max()


def by_hand(W, block=64):
    """W with every number at the level nearest to its share of its block's largest magnitude."""
    flat = nn.functional.pad(W.flatten().double(), (0, -W.numel() % block)).view(-1, block)
    c = flat.abs().amax(1, keepdim=True)
    table = torch.tensor(PRINTED, dtype=torch.float64)
    code = (flat[..., None] / c[..., None] - table).abs().argmin(-1)
    return (table[code] * c).flatten()[: W.numel()].view(W.shape)


def nf4(W, kind="nf4", nested=False):
    data, state = functional.quantize_4bit(W, quant_type=kind, blocksize=64, compress_statistics=nested)
    return functional.dequantize_4bit(data, state), data, state


def test_the_levels_are_the_normal_quantiles():
    assert_close(levels(), torch.tensor(PRINTED, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(32, 64), (1, 480), (7, 24)])
def test_the_librarys_rounding_is_the_definition(shape):
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    W.view(-1)[3] = 0
    made = nf4(W)[0]
    assert_close(made.double(), by_hand(W), rtol=1e-5, atol=1e-6)
    assert made.view(-1)[3] == 0
    largest = W.flatten()[:64].abs().argmax()
    assert made.flatten()[largest] == W.flatten()[largest]
    assert torch.equal(nf4(made)[0], made)


def test_rows_that_the_cpu_kernels_misread_are_refused():
    W = torch.randn(10, 48, generator=torch.Generator().manual_seed(0))
    wrong = (nf4(W)[0] - W).norm() > 1.5 * (nf4(W.flatten())[0] - W.flatten()).norm()
    with pytest.raises(ad.errors.HostError, match="48 inputs, no multiple of 64"):
        ad.quantize(nn.Sequential(nn.Linear(48, 10)), "nf4", targets="0")
    assert wrong, "bitsandbytes reads such rows rightly now: the refusal can go"


def test_on_normal_weights_it_beats_other_four_bits():
    W = torch.randn(256, 256, generator=torch.Generator().manual_seed(1))
    error = lambda made: float((made - W).square().mean())  # noqa: E731
    blocks = W.view(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True) / 7
    int4 = ((blocks / scale).round().clamp(-7, 7) * scale).view_as(W)
    assert error(nf4(W)[0]) < error(nf4(W, "fp4")[0]) < 2 * error(int4)
    assert error(nf4(W)[0]) < error(int4)


@pytest.mark.parametrize(("double", "bits"), [(False, 4.5), (True, 4.127)])
def test_bits_a_weight(double, bits):
    model = nn.Sequential(nn.Linear(1024, 1024, bias=False))
    report = ad.quantize(model, "nf4", targets="0", double=double)
    maps = 8 * 4 * (16 + (256 if double else 0)) / 1024**2  # the library keeps its tables with every layer
    assert report.layers[0].bits == pytest.approx(bits + maps, abs=2e-3)


def test_a_qlora_layer_is_lora_on_the_quantised_weight():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48))
    ad.quantize(model, "nf4", targets="0")
    W, x = packed.dense(model[0]), torch.randn(5, 64, requires_grad=True)
    base = model(x)
    ad.attach(model, "lora", r=4, targets="0")
    assert_close(model(x), base)
    a = model[0].adaptome["default"]
    nn.init.normal_(a.B)
    y = model(x)
    merged = W + a.delta()
    assert_close(y, x @ merged.T + model[0].bias, rtol=1e-4, atol=1e-4)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert_close(dx, torch.ones(5, 48) @ merged.detach(), rtol=1e-4, atol=1e-4)
    ad.dequantize(model, torch.float32)
    ad.merge(model)
    assert_close(model(x), y, rtol=1e-4, atol=1e-4)
