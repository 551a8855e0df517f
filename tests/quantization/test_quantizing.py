"""The verb on models: what it replaces, refuses and reports; folders that load again; memory."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import adaptome as ad
from adaptome.core.errors import DataError, HostError, MethodError, StateError
from adaptome.quantization.layers import PackedLinear

transformers = pytest.importorskip("transformers")
TOKENS = torch.randint(96, (6, 40), generator=torch.Generator().manual_seed(1))
BATCHES = [{"input_ids": TOKENS}]


def llama(layers=2):
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=192, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=96, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


SCHEMES = {
    "uniform": {},
    "uniform-3": {"bits": 3, "zero": "none", "group": 24},
    "gptq": {"batches": BATCHES},
    "gptq-magr": {"batches": BATCHES, "magr": True, "bits": 3, "act_order": True},
    "sketch": {"tables": 4},
    "sketch-2": {"batches": BATCHES, "bits": 2},
    "nf4": {},
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_folder_that_was_written_loads_again_to_the_bit(scheme, tmp_path):
    if scheme == "nf4":
        pytest.importorskip("bitsandbytes")
    full, model = llama(), llama()
    report = ad.quantize(model, scheme.partition("-")[0], **SCHEMES[scheme])
    assert len(report.layers) == 14 and type(model.lm_head) is nn.Linear
    model.save_pretrained(tmp_path / "base")  # before a forward, which on some processors rounds nf4's scales
    with torch.no_grad():
        logits = model(TOKENS).logits
        assert_close(logits, full(TOKENS).logits, rtol=0, atol=0.2)
    again = ad.load_quantized(tmp_path / "base", dtype=torch.float32)
    assert type(again.model.layers[0].mlp.up_proj) is type(model.model.layers[0].mlp.up_proj)
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, logits)
    ad.attach(again, "lora", r=2)
    again(input_ids=TOKENS, labels=TOKENS).loss.backward()
    ad.check_gradients(again)


def test_it_loads_in_half_precision_with_the_same_codes(tmp_path):
    model = llama()
    ad.quantize(model, "uniform")
    model.save_pretrained(tmp_path)
    half = ad.load_quantized(tmp_path, dtype=torch.bfloat16)
    ours, theirs = model.model.layers[1].mlp.down_proj, half.model.layers[1].mlp.down_proj
    assert torch.equal(ours.weight, theirs.weight) and half.lm_head.weight.dtype == torch.bfloat16
    with torch.no_grad():
        assert half(TOKENS).logits.dtype == torch.bfloat16
        assert_close(half(TOKENS).logits.float(), model(TOKENS).logits, rtol=0.1, atol=0.05)


def test_the_report_is_what_the_layers_hold():
    full, model = llama(), llama()
    report = ad.quantize(model, "gptq", batches=BATCHES, bits=3, group=64)
    size = 0
    for entry in report.layers:
        layer, old = model.get_submodule(entry.name), full.get_submodule(entry.name)
        dense = layer.form.decode(layer.weight, layer.in_features)
        assert entry.error == pytest.approx(float((dense - old.weight).norm() / old.weight.norm()), rel=1e-4)
        assert 0 < entry.output_error < entry.error
        assert entry.bits == pytest.approx(3 + 24 / 64)
        size += layer.weight.numel()
    assert report.after == size and report.before == 4 * sum(e.shape[0] * e.shape[1] for e in report.layers)
    assert "output error" in str(report) and report.to_dict()["after"] == size


def test_memory_really_drops():
    """The tensors that a model holds, counted by their storage, before and after; nothing dense stays behind."""

    def held(model):
        tensors = [*model.parameters(), *model.buffers()]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    model = nn.Sequential(nn.Linear(512, 512, bias=False), nn.Linear(512, 256, bias=False))
    before = held(model)
    ad.quantize(model, "sketch", targets=["0", "1"], bits=4)
    assert before / 8 < held(model) < before / 8 + 768 * 16 * 2 + 1
    y = model(torch.randn(3, 512, requires_grad=True))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        model(torch.randn(3, 512, requires_grad=True)).sum().backward()
    assert saved and all(t.dtype == torch.uint8 for t in saved) and y.shape == (3, 256)


def test_later_blocks_are_fed_by_quantised_ones():
    """The second block's Gram matrix is that of the inputs which the quantised first one gives."""
    model = llama()
    seen = {}

    def run(model, batch):
        first = model.model.layers[0].mlp.down_proj
        seen.setdefault(type(first).__name__, 0)
        seen[type(first).__name__] += 1
        return model(**batch)

    ad.quantize(model, "gptq", batches=BATCHES, bits=2, run=run)
    assert seen == {"Linear": 1, "PackedLinear": 1}


def test_a_bias_stays_and_gradients_pass():
    model = nn.Sequential(nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 20, bias=False))
    bias = model[0].bias
    ad.quantize(model, "uniform", targets=["0", "2"], group=16)
    x = torch.randn(5, 32, requires_grad=True)
    W0, W2 = (m.form.decode(m.weight, m.in_features) for m in (model[0], model[2]))
    assert torch.equal(model[0].bias, bias)
    y = torch.tanh(x @ W0.T + bias) @ W2.T
    assert_close(model(x), y)
    (expected,) = torch.autograd.grad(y.square().sum(), x)
    (found,) = torch.autograd.grad(model(x).square().sum(), x)
    assert_close(found, expected)


def test_it_keeps_modes_and_takes_gpt2s_layers():
    from transformers.pytorch_utils import Conv1D

    model = nn.Sequential(Conv1D(24, 16), nn.Dropout(0.5)).train()
    W, x = model[0].weight.detach().clone(), torch.randn(3, 16)
    ad.quantize(model, "uniform", bits=8, targets="0")
    assert model.training and model[0].training and model[1].training
    assert_close(model[0](x), x @ W + model[0].bias, rtol=0, atol=0.05)


def test_on_the_meta_device_it_tells_sizes():
    with torch.device("meta"):
        model = llama()
    report = ad.quantize(model, "sketch", bits=4, tables=2)
    assert model.model.layers[0].mlp.up_proj.weight.is_meta
    assert report.after == sum(e.shape[0] * (e.shape[1] // 2 + 2 * 16 * 2) for e in report.layers)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: ad.quantize(m, "unifrom"), MethodError, "Nearest: uniform"),
        (lambda m: ad.quantize(m, "uniform", tables=2), MethodError, "no setting 'tables'"),
        (lambda m: ad.quantize(m, "uniform", bits=12), MethodError, "bits = 12"),
        (lambda m: ad.quantize(m, "nf4", bits=3), MethodError, "nf4 has 4 bits"),
        (lambda m: ad.quantize(m, "gptq"), DataError, "calibration data"),
        (lambda m: ad.quantize(m, targets="norms"), HostError, "quantises linear layers"),
        (lambda m: (ad.quantize(m), ad.quantize(m)), HostError, "quantised already"),
        (lambda m: (ad.attach(m, "lora"), ad.quantize(m)), StateError, "adapters are attached"),
        (lambda m: ad.quantize(m, "sketch", tables=5), MethodError, "must divide"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_told(call, error, words):
    with pytest.raises(error, match=words):
        call(llama(1))


def test_tied_weights_are_refused():
    model = llama(1)
    model.lm_head.weight = model.model.embed_tokens.weight
    with pytest.raises(HostError, match=r"shared by .*lm_head"):
        ad.quantize(model, targets="lm_head")


def test_copies_and_pickles_run():
    import pickle

    model = nn.Sequential(nn.Linear(16, 8))
    ad.quantize(model, "uniform", targets="0")
    x = torch.randn(2, 16)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(other[0], PackedLinear) and torch.equal(other(x), model(x))
