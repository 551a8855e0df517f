"""Layers of HQQ, GPTQModel, AutoGPTQ and AutoAWQ in our format, and torchao's for quantisation-aware training.

HQQ is the real package. GPTQModel and AutoAWQ ask for other versions of torch and for CUDA: their layers are stand-ins of the same class names
and attributes, filled by the definition of the files' layout.
"""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import adaptome as ad
from adaptome.core import packed
from adaptome.quantization.layers import PackedLinear
from tests.stored_layers import awq_layer, gptq_layer

X = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))


class Network(nn.Sequential):
    """Two linear layers, the first of which becomes one of another library."""

    def __init__(self, first):
        super().__init__(first, nn.ReLU(), nn.Linear(32, 16))


def buffers(layer, tensors):
    for name, value in tensors.items():
        layer.register_buffer(name, value)
    return layer


def foreign(kind):
    """A stand-in, and the weight it stands for."""
    layer = type(kind, (nn.Module,), {"forward": lambda self, x: x @ self.W.t()})()
    layer.in_features, layer.out_features, layer.group_size, layer.bias = 64, 32, 32, torch.randn(32)
    if kind.startswith(("Awq", "WQ")):
        tensors, W = awq_layer(64, 32, 32)
        layer.w_bit = 4
    else:
        mixed = kind == "TritonV2Linear"
        tensors, W = gptq_layer(64, 32, 4, 32, 2 if mixed else 1, mixed)
        layer.bits = 4
        if mixed:
            layer.qzero_format = lambda: 2
    return buffers(layer, tensors), W


@pytest.mark.parametrize(
    "kind", ["TorchLinear", "TritonV2Linear", "QuantLinear", "AwqTorchLinear", "WQLinear_GEMM"]
)
def test_layers_in_the_files_order_are_adopted(kind):
    layer, W = foreign(kind)
    model = Network(layer)
    with pytest.raises(ad.errors.HostError, match=r"ad\.adopt"):
        ad.attach(model, "lora", targets="=0")
    assert ad.adopt(model) == ("0",)
    assert torch.equal(packed.dense(model[0]), W)
    assert_close(model[0](X), X @ W.t() + layer.bias)
    ad.attach(model, "lora", targets="=0")
    model(X).sum().backward()


def test_a_kernels_own_order_is_refused_and_nothing_changes():
    layer, _ = foreign("MarlinLinear")
    model = Network(layer)
    with pytest.raises(ad.errors.HostError, match="MarlinLinear.*TorchLinear"):
        ad.adopt(model)
    assert model[0] is layer
    with pytest.raises(ad.errors.HostError, match="no layer of HQQ"):
        ad.adopt(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
@pytest.mark.parametrize("group", [32, None])
def test_hqqs_layers_are_adopted(bits, group):
    hqq = pytest.importorskip("hqq.core.quantize", reason="hqq is not installed")
    torch.manual_seed(0)
    settings = hqq.BaseQuantizeConfig(nbits=bits, group_size=group, axis=1)
    layer = hqq.HQQLinear(nn.Linear(64, 32), settings, compute_dtype=torch.float32, device="cpu")
    model = Network(layer)
    W, y = layer.dequantize().clone(), model(X)
    with pytest.raises(ad.errors.HostError, match=r"HQQLinear.*ad\.adopt"):
        ad.attach(model, "lora", targets="=0")
    ad.adopt(model)
    assert isinstance(model[0], PackedLinear) and model[0].form.bits == bits
    assert_close(packed.dense(model[0]), W, rtol=1e-5, atol=1e-6)
    assert_close(model(X), y, rtol=1e-4, atol=1e-5)
    for method in ("lora", "dora", "qwha"):
        tried = copy.deepcopy(model)
        ad.attach(tried, method, targets="=0", r=2)
        with torch.no_grad():
            for value in ad.parameters_of(tried).values():
                value.add_(0.01)
        before = tried(X)
        report = ad.merge(tried, requantise=True, tolerance=10.0)
        assert report.requantised["0"] < 1.0
        ad.unmerge(tried)
        assert_close(tried(X), before)


def test_hqqs_groups_over_rows_are_refused():
    hqq = pytest.importorskip("hqq.core.quantize", reason="hqq is not installed")
    settings = hqq.BaseQuantizeConfig(nbits=4, group_size=32, axis=0)
    layer = hqq.HQQLinear(nn.Linear(64, 32), settings, compute_dtype=torch.float32, device="cpu")
    with pytest.raises(ad.errors.HostError, match="axis"):
        ad.adopt(Network(layer))


@pytest.fixture
def aware():
    """A network that torchao prepared for quantisation-aware training."""
    ao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    qat = pytest.importorskip("torchao.quantization.qat", reason="torchao has no quantisation-aware training")
    torch.manual_seed(0)
    model = Network(nn.Linear(64, 32))
    weights = qat.IntxFakeQuantizeConfig(torch.int4, group_size=16)
    ao.quantize_(model, qat.QATConfig(weight_config=weights, step="prepare"))
    return model


@pytest.mark.parametrize("method", ["lora", "loha", "dora", "oft", "paca", "fourierft", "qwha", "ia3"])
def test_adapters_on_a_layer_in_quantisation_aware_training(aware, method):
    base = copy.deepcopy(aware)
    ad.attach(aware, method, targets=["=0", "=2"], seed=1)
    assert_close(aware(X), base(X), rtol=1e-4, atol=1e-5)
    plain = Network(nn.Linear(64, 32))  # the same method on the rounded weights
    for i in (0, 2):
        plain[i].weight.data, plain[i].bias.data = packed.dense(base[i]), base[i].bias.data.clone()
    ad.attach(plain, method, targets=["=0", "=2"], seed=1)
    for model in (aware, plain):
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for value in ad.parameters_of(model).values():
                value.add_(0.05 * torch.randn(value.shape, generator=generator))
    assert_close(aware(X), plain(X), rtol=1e-4, atol=1e-5)
    aware(X).square().sum().backward()
    ad.check_gradients(aware)
    if method == "ia3":  # it scales activations: its merge is tested with those of other bases
        return
    before = aware(X)
    with pytest.raises(ad.errors.MergeError, match="requantise"):
        ad.merge(aware)
    report = ad.merge(aware, requantise=True, tolerance=10.0)
    assert 0 < report.requantised["0"] < 0.2
    assert not torch.equal(aware(X), before)  # the layer rounds what was merged
    ad.unmerge(aware)
    assert_close(aware(X), before)
