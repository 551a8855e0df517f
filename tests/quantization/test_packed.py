"""Packed weights against what their own layers compute."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from adaptome.core import packed
from adaptome.core.errors import HostError, MergeError

OUT, IN = 96, 64
FOUR_BIT = [("nf4", True), ("nf4", False), ("fp4", True)]


def bnb():
    return pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


def ao():
    return pytest.importorskip("torchao.quantization", reason="torchao is not installed")


def four_bit(quant_type="nf4", nested=True, dtype=torch.float32, quantised=True):
    layer = bnb().nn.Linear4bit(IN, OUT, quant_type=quant_type, compress_statistics=nested)
    layer.weight.data = layer.weight.data.to(dtype)
    return layer.to("cpu") if quantised else layer


def eight_bit(quantised=True, **settings):
    layer = bnb().nn.Linear8bitLt(IN, OUT, has_fp16_weights=False, **settings)
    return layer.to("cpu") if quantised else layer


def int8():
    return _torchao(ao().Int8WeightOnlyConfig())


def int8_per_tensor():
    return _torchao(ao().Int8WeightOnlyConfig(granularity=ao().PerTensor()))


def int4():
    return _torchao(ao().IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao().PerGroup(32)))


def int4_asymmetric():
    config = ao().IntxWeightOnlyConfig(
        weight_dtype=torch.int4, granularity=ao().PerGroup(16), mapping_type=ao().MappingType.ASYMMETRIC
    )
    return _torchao(config)


def float8():
    return _torchao(ao().Float8WeightOnlyConfig())


def nf4():
    layer = nn.Linear(IN, OUT)
    layer.weight = nn.Parameter(ao().to_nf4(layer.weight.detach(), 32, 64), requires_grad=False)
    return layer


def _torchao(config):
    layer = nn.Linear(IN, OUT)
    ao().quantize_(layer, config)
    return layer


#: maker -> largest relative error that its quantisation makes on a random weight
MAKERS = {
    "bnb-nf4": (lambda: four_bit("nf4", False), 0.12),
    "bnb-nf4-nested": (lambda: four_bit("nf4", True), 0.12),
    "bnb-fp4": (lambda: four_bit("fp4", True), 0.2),
    "bnb-int8": (eight_bit, 0.02),
    "bnb-int8-threshold": (lambda: eight_bit(threshold=6.0), 0.02),
    "torchao-int8": (int8, 0.02),
    "torchao-int8-per-tensor": (int8_per_tensor, 0.02),
    "torchao-int4": (int4, 0.12),
    "torchao-int4-asymmetric": (int4_asymmetric, 0.12),
    "torchao-float8": (float8, 0.05),
    "torchao-nf4": (nf4, 0.12),
}


@pytest.fixture(params=MAKERS)
def made(request):
    torch.manual_seed(0)
    maker, error = MAKERS[request.param]
    return maker().train(), error


def bits(layer):
    """Everything that the layer's forward reads, copied."""
    value = layer._parameters["weight"]
    if hasattr(value, "__tensor_flatten__"):
        names, _ = value.__tensor_flatten__()
        return [getattr(value, n).clone() for n in names if isinstance(getattr(value, n), torch.Tensor)]
    statistics = [layer.state_dict()[k].clone() for k in layer.state_dict() if k != "bias"]
    return [value.data.clone(), *statistics]


def same(a, b):
    return len(a) == len(b) and all(
        x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True)
    )


def test_dense_is_what_the_layer_multiplies_with(made):
    layer, _ = made
    assert packed.is_packed(layer) and not packed.is_packed(layer, "bias")
    for _ in range(2):  # before and after the first forward, which moves 8-bit statistics to the layer
        weight = packed.dense(layer)
        assert weight.shape == (OUT, IN) and weight.dtype == torch.float32 and not weight.requires_grad
        x = torch.randn(5, IN, requires_grad=True)
        y = layer(x)
        assert_close(y, F.linear(x, weight, layer.bias), rtol=1e-5, atol=1e-5)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert_close(gradient, weight.sum(0).expand(5, IN), rtol=1e-5, atol=1e-5)


def test_repacking_keeps_the_settings_and_the_old_object_brings_the_bits_back(made):
    layer, error = made
    x = torch.randn(5, IN)
    y, before, old = layer(x).detach(), bits(layer), layer._parameters["weight"]
    meant = packed.dense(layer) + 0.1 * torch.randn(OUT, IN)
    new = packed.repack(layer, meant)
    assert same(bits(layer), before)  # repacking alone changes nothing
    assert type(new) is type(old) and new.dtype == old.dtype and not new.requires_grad
    packed.install(layer, new)
    found = packed.requantisation_error(layer, meant)
    assert 0 < found < error
    assert_close(found, float((packed.dense(layer) - meant).norm() / meant.norm()))
    assert_close(layer(x), F.linear(x, packed.dense(layer), layer.bias), rtol=1e-5, atol=1e-5)
    assert not same(bits(layer), before)
    packed.install(layer, old)
    assert layer._parameters["weight"] is old and same(bits(layer), before)
    assert torch.equal(layer(x), y)


def test_repacking_the_same_weight_is_nearly_lossless(made):
    layer, _ = made
    weight = packed.dense(layer)
    packed.install(layer, packed.repack(layer, weight))
    assert packed.requantisation_error(layer, weight) < 0.02


def test_a_copy_of_a_changed_layer_is_independent(made):
    layer, _ = made
    if type(layer.weight).__name__ == "NF4Tensor":
        pytest.skip("torchao's NF4Tensor cannot be copied with these block sizes")
    other = copy.deepcopy(layer)
    before = packed.dense(layer)
    packed.install(other, packed.repack(other, 2 * before))
    assert_close(packed.dense(layer), before, rtol=0, atol=0)
    assert_close(packed.dense(other), 2 * before, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("quant_type", "nested"), FOUR_BIT)
def test_four_bit_settings_survive(quant_type, nested):
    layer = four_bit(quant_type, nested, torch.bfloat16)
    old = layer.weight.quant_state
    new = packed.repack(layer, packed.dense(layer)).quant_state
    assert (new.quant_type, new.nested, new.blocksize, new.dtype) == (
        quant_type,
        nested,
        old.blocksize,
        torch.bfloat16,
    )
    layer.quant_state = old
    packed.install(layer, packed.repack(layer, packed.dense(layer)))
    assert layer.quant_state is layer.weight.quant_state is not old


@pytest.mark.parametrize("make", [lambda: four_bit(quantised=False), lambda: eight_bit(quantised=False)])
def test_a_layer_that_is_not_quantised_yet(make):
    layer = make()
    assert packed.is_packed(layer)
    weight = layer.weight.data.clone()
    assert torch.equal(packed.dense(layer), weight)
    packed.install(layer, packed.repack(layer, 2 * weight))
    assert torch.equal(packed.dense(layer), 2 * weight)
    layer.to("cpu")
    assert not layer.weight.is_floating_point()
    assert_close(packed.dense(layer), 2 * weight, rtol=0.1, atol=0.1)


def test_eight_bit_refuses_what_float16_cannot_hold():
    layer = eight_bit()
    with pytest.raises(MergeError, match="float16"):
        packed.repack(layer, torch.full((OUT, IN), 1e6))


def test_settled_layers_keep_bits_and_gradients_through_an_evaluation():
    layer = four_bit(nested=True)
    before, x = bits(layer), torch.randn(5, IN)
    packed.settle(layer)
    layer.eval()
    with torch.no_grad():
        layer(x)
    assert same(bits(layer), before)
    layer.train().requires_grad_(False)
    assert layer(x.requires_grad_()).requires_grad
    flag = layer.support_avx512bf16_for_cpu
    packed.release(layer)
    assert (
        "_bnb_cpu_packing" not in layer.__dict__
        and layer.support_avx512bf16_for_cpu == four_bit().support_avx512bf16_for_cpu
    )
    assert not flag


@pytest.mark.parametrize("nested", [True, False])
def test_the_layout_for_avx512_is_read_and_undone(nested):
    from bitsandbytes.functional import _convert_weight_packed_for_cpu

    layer = four_bit(nested=nested)
    exact = packed.dense(layer)
    layer.weight.data, layer.weight.quant_state = _convert_weight_packed_for_cpu(
        layer.weight.data, layer.weight.quant_state
    )
    layer.support_avx512bf16_for_cpu = True
    rounded = packed.dense(layer)
    assert_close(rounded, exact, rtol=2**-7, atol=0)  # scales rounded to bfloat16, codes the same
    assert layer.weight.quant_state.packing_format_for_cpu  # reading changed nothing
    new = packed.repack(layer, exact)
    assert new.quant_state.nested is nested and new.quant_state.dtype == torch.float32
    packed.settle(layer)
    assert not layer.weight.quant_state.packing_format_for_cpu
    assert torch.equal(packed.dense(layer), rounded)
    x = torch.randn(5, IN, requires_grad=True)
    assert_close(layer.eval()(x), F.linear(x, rounded, layer.bias), rtol=1e-5, atol=1e-5)


def test_a_four_bit_embedding_is_read_as_it_is_looked_up():
    layer = bnb().nn.Embedding4bit(30, 64, quant_type="nf4").to("cpu")
    tokens = torch.tensor([3, 17, 29])
    assert_close(layer(tokens), packed.dense(layer)[tokens])


def test_input_scales_belong_to_the_weight():
    layer = int8()
    layer.weight.act_pre_scale = torch.rand(IN) + 0.5
    x = torch.randn(5, IN)
    assert_close(layer(x), F.linear(x, packed.dense(layer), layer.bias), rtol=1e-5, atol=1e-5)
    meant = packed.dense(layer) * 2
    new = packed.repack(layer, meant)
    packed.install(layer, new)
    assert packed.requantisation_error(layer, meant) < 0.02
    assert_close(layer(x), F.linear(x, packed.dense(layer), layer.bias), rtol=1e-5, atol=1e-5)


def test_dense_takes_a_dtype(made):
    layer, _ = made
    assert_close(packed.dense(layer, dtype=torch.bfloat16), packed.dense(layer).bfloat16())


def test_a_plain_weight_is_not_packed():
    layer = nn.Linear(IN, OUT)
    assert not packed.is_packed(layer) and not packed.is_packed(layer, "absent")
    with pytest.raises(HostError, match="not packed"):
        packed.dense(layer)
    with pytest.raises(HostError, match="no parameter 'absent'"):
        packed.dense(layer, "absent")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e4m3fn])
def test_bytes_of_an_unknown_format_are_never_taken_for_a_weight(dtype):
    layer = nn.Linear(IN, OUT, bias=False)
    layer._parameters["weight"] = nn.Parameter(torch.ones(OUT, IN).to(dtype), requires_grad=False)
    assert packed.is_packed(layer)
    for call in (lambda: packed.dense(layer), lambda: packed.repack(layer, torch.ones(OUT, IN))):
        with pytest.raises(HostError, match="cannot read"):
            call()


def test_a_wrong_shape_is_refused(made):
    layer, _ = made
    with pytest.raises(MergeError, match=rf"\[{OUT}, {IN}\], not \[{IN}, {OUT}\]"):
        packed.repack(layer, torch.randn(IN, OUT))


def test_a_format_that_cannot_be_written_says_so():
    layer = int8()

    class Foreign(type(layer.weight)):
        pass

    layer.weight.__class__ = Foreign
    with pytest.raises(MergeError, match="full-precision base"):
        packed.repack(layer, torch.randn(OUT, IN))


def test_layers_that_pass_no_gradient_are_told():
    layer = _torchao(ao().Int8DynamicActivationInt8WeightConfig())
    x = torch.randn(5, IN, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is None  # the fact that the warning tells
    with pytest.warns(UserWarning, match=r"^1: torchao .* no gradient"):
        packed.settle(nn.Sequential(int8(), layer))
