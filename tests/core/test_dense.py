"""Quantised layers made dense again, with the adapters on them."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import adaptome as ad
from adaptome.core import packed

SCHEMES = {"nf4": {}, "uniform": {"group": 16}, "sketch": {}}
X = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=SCHEMES)
def model(request):
    if request.param == "nf4":
        pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 16, bias=False))
    ad.quantize(model, request.param, targets=["0", "2"], **SCHEMES[request.param])
    return model


def test_the_layers_are_plain_ones_with_the_same_outputs(model):
    layers, y = [model[0], model[2]], model(X)
    assert ad.dequantize(model, torch.float32) == ("0", "2")
    assert [model[0], model[2]] == layers and type(model[0]) is nn.Linear
    assert set(model[0].__dict__) == set(nn.Linear(1, 1).__dict__)
    assert_close(model(X), y, rtol=1e-5, atol=1e-5)
    with pytest.raises(ad.errors.HostError, match="no quantised linear layer"):
        ad.dequantize(model)


@pytest.mark.parametrize("method", ["lora", "dora", "paca", "ssf", "qwha"])
def test_adapters_stay_and_merge_exactly(model, method):
    ad.attach(model, method, targets=["0", "2"])
    with torch.no_grad():
        for value in ad.parameters_of(model).values():
            value.add_(0.1 * torch.randn(value.shape))
    y = model(X)
    with pytest.raises(ad.errors.MergeError, match="requantise=True"):
        ad.merge(model)
    ad.dequantize(model, torch.float32)
    assert_close(model(X), y, rtol=1e-4, atol=1e-4)
    model(X).sum().backward()
    ad.check_gradients(model)
    report = ad.merge(model)
    assert not report.requantised
    assert_close(model(X), y, rtol=1e-4, atol=1e-4)
    ad.detach(model)
    assert type(model[0]) is nn.Linear


def test_a_merged_or_sketched_one_is_refused(model):
    ad.attach(model, "lora", targets="0")
    ad.merge(model, requantise=True, tolerance=float("inf"))
    with pytest.raises(ad.errors.StateError, match="unmerge"):
        ad.dequantize(model)
    ad.detach(model)
    if getattr(model[0], "form", None) is not None and model[0].form.kind == "sketch":
        ad.attach(model, "sketchtune", targets="0")
        with pytest.raises(ad.errors.StateError, match="needs the layer as it is"):
            ad.dequantize(model)
        assert packed.is_packed(model[0])


def test_a_saved_model_is_an_ordinary_one(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=40, tie_word_embeddings=False
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    ad.quantize(model, "uniform", group=16)
    ad.dequantize(model, torch.float32)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not hasattr(again.config, "quantization_config")
    tokens = torch.randint(40, (2, 7))
    assert_close(again(tokens).logits, model(tokens).logits)
