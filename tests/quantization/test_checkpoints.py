"""GPTQ and AWQ files: packed here by the formats' definition, one code after another, and by our own writer."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import adaptome as ad
from adaptome.quantization.formats import Uniform
from adaptome.quantization.layers import PackedLinear
from adaptome.quantization.stored import Rows, from_awq, from_gptq, to_gptq
from adaptome.quantization.words import from_words, to_words
from tests.stored_layers import awq_layer, by_columns, gptq_layer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gptqmodel") is not None,
    reason="GPTQModel is installed, and transformers' own loader is used",
)
TOKENS = torch.arange(40).view(2, 20) % 64


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 5])
def test_words_are_the_stream_of_bits(bits):
    codes = torch.randint(2**bits, (64, 5), generator=torch.Generator().manual_seed(1))
    words = to_words(codes, bits)
    assert torch.equal(words, by_columns(codes, bits))
    assert torch.equal(from_words(words, bits).long(), codes)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("bits", "group", "mixed"), [(4, 16, False), (3, 32, True), (2, 64, False), (8, 16, True)]
)
def test_gptq_is_read_and_written_as_defined(bits, group, mixed, version):
    fan_in, fan_out = 64, 32
    tensors, W = gptq_layer(fan_in, fan_out, bits, group, version, mixed)
    rows = from_gptq(*tensors.values(), bits, group, version)
    assert torch.equal(rows.weight(fan_in), W)
    assert (rows.order is not None) == mixed
    again, _ = to_gptq(rows, fan_in, version)
    for name, value in tensors.items():
        assert torch.equal(again[name], value), name


def test_a_zero_point_of_0_is_read_from_version_1_and_written_as_version_2():
    tensors, W = gptq_layer(32, 32, 4, 32, version=2)
    z = torch.zeros(32, 1, dtype=torch.int64)
    tensors["qzeros"] = by_columns((z - 1) & 15, 4).t().contiguous()  # as version 1 stores it
    rows = from_gptq(*tensors.values(), 4, 32, 1)
    assert torch.equal(rows.form.read(rows.data, 32)[2], torch.zeros(32, 1))
    assert to_gptq(rows, 32)[1] == 2
    with pytest.raises(ad.errors.ModelError, match="gptq_v2"):
        to_gptq(rows, 32, 1)


@pytest.mark.parametrize("group", [16, 64])
def test_awq_is_read_as_defined(group):
    tensors, W = awq_layer(64, 32, group)
    rows = from_awq(*tensors.values(), 4, group)
    assert torch.equal(rows.weight(64), W)


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=64,
            attention_bias=True,
        )
    ).eval()


def written(folder, kind, config, make):
    """A folder as a tool writes it, and the dense model with the same weights."""
    model = llama()
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            made, W = make(module.in_features, module.out_features)
            del tensors[f"{name}.weight"]
            tensors |= {f"{name}.{k}": v for k, v in made.items()}
            module.weight.data = W.clone()
    save_file(tensors, file, {"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": kind, "bits": 4, "group_size": 32, **config}
    (folder / "config.json").write_text(json.dumps(settings))
    return model


KINDS = {
    "gptq": ("gptq", {"desc_act": False, "sym": False}, lambda i, o: gptq_layer(i, o, 4, 32)[:2]),
    "gptq_v2, act-order": (
        "gptq",
        {"checkpoint_format": "gptq_v2", "desc_act": True},
        lambda i, o: gptq_layer(i, o, 4, 32, 2, True),
    ),
    "awq": ("awq", {"version": "gemm", "zero_point": True}, lambda i, o: awq_layer(i, o, 32)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_tools_folder_loads_trains_merges_and_is_saved(kind, tmp_path):
    dense = written(tmp_path / "tool", *KINDS[kind])
    model = ad.load_quantized(tmp_path / "tool", dtype=torch.float32)
    layers = [m for m in model.modules() if isinstance(m, PackedLinear)]
    assert len(layers) == 14 and type(model.lm_head) is nn.Linear
    with torch.no_grad():
        logits = model(TOKENS).logits
        torch.testing.assert_close(logits, dense(TOKENS).logits)
    model.save_pretrained(tmp_path / "ours")
    again = ad.load_quantized(tmp_path / "ours", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, logits)
    for method in ("lora", "paca"):
        ad.attach(model, method, r=2, name=method)
    model.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()
    ad.check_gradients(model)
    with torch.no_grad():
        for name in ("lora", "paca"):
            for value in ad.parameters_of(model, name).values():
                value.add_(0.01 * torch.randn_like(value))
        before = model.eval()(TOKENS).logits
        with pytest.raises(ad.errors.MergeError, match="requantise"):
            ad.merge(model)
        report = ad.merge(model, requantise=True, tolerance=1.0)
        assert len(report.requantised) == 14 and all(0 < e < 0.2 for e in report.requantised.values())
        ad.unmerge(model)
        torch.testing.assert_close(model(TOKENS).logits, before)


def test_what_a_folder_holds_and_is_not_read_is_told(tmp_path):
    kind, config, make = KINDS["gptq"]
    written(tmp_path / "a", kind, {**config, "checkpoint_format": "marlin"}, make)
    with pytest.raises(ad.errors.ModelError, match="marlin"):
        ad.load_quantized(tmp_path / "a")
    written(tmp_path / "b", "awq", {"version": "gemv"}, KINDS["awq"][2])
    with pytest.raises(ad.errors.ModelError, match="gemv"):
        ad.load_quantized(tmp_path / "b")


@pytest.mark.parametrize(
    ("scheme", "settings"), [("uniform", {"bits": 4}), ("gptq", {"bits": 3, "zero": "none"})]
)
def test_our_quantisers_write_gptq_folders(scheme, settings, tmp_path):
    model = llama()
    ad.quantize(
        model, scheme, group=32, batches=[{"input_ids": TOKENS}] if scheme == "gptq" else None, **settings
    )
    report = ad.save_gptq(model, tmp_path / "gptq")
    assert set(report.errors.values()) == {0.0} and len(report.errors) == 14
    told = json.loads((tmp_path / "gptq" / "config.json").read_text())["quantization_config"]
    assert (told["bits"], told["group_size"], told["quant_method"]) == (settings["bits"], 32, "gptq")
    assert told["sym"] == (scheme == "gptq")
    # read back by the definition
    tensors = load_file(tmp_path / "gptq" / "model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    q = from_words(tensors[f"{name}.qweight"], told["bits"]).float()
    z = from_words(tensors[f"{name}.qzeros"].t(), told["bits"]).t() + (report.version == 1)
    g = tensors[f"{name}.g_idx"].long()
    W = (tensors[f"{name}.scales"].float()[g] * (q - z.float()[g])).t()
    own = model.get_submodule(name)
    torch.testing.assert_close(W, own.form.decode(own.weight, own.in_features), rtol=0, atol=0)
    again = ad.load_quantized(tmp_path / "gptq", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    with pytest.raises(ad.errors.StateError, match="not empty"):
        ad.save_gptq(model, tmp_path / "gptq")


def test_l4q_ends_as_a_gptq_folder(tmp_path):
    model = llama().train()
    ad.attach(model, "l4q", r=2, bits=4, group=32, train_bias=False, seed=0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    ad.pack(model, values="float16")
    report = ad.save_gptq(model, tmp_path / "gptq")
    assert report.version == 1 and set(report.errors.values()) == {0.0}  # symmetric: every zero point is 8
    again = ad.load_quantized(tmp_path / "gptq", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(TOKENS).logits, model.eval()(TOKENS).logits)


def test_what_gptq_cannot_hold_is_told(tmp_path):
    model = llama()
    with pytest.raises(ad.errors.ModelError, match="no layer"):
        ad.save_gptq(model, tmp_path / "x")
    ad.quantize(model, "sketch", bits=4)
    with pytest.raises(ad.errors.ModelError, match="sketch"):
        ad.save_gptq(model, tmp_path / "x")
    model = llama()
    ad.quantize(model, "uniform", bits=5, group=32)
    with pytest.raises(ad.errors.ModelError, match="5 bits"):
        ad.save_gptq(model, tmp_path / "x")
    ad.attach(model, "lora", r=2)
    with pytest.raises(ad.errors.StateError, match="attached"):
        ad.save_gptq(model, tmp_path / "x")
    form = Uniform(4, "float32", 32, "float")
    model = llama()
    model.model.layers[0].mlp.up_proj = layer = PackedLinear(64, 96, False, form)
    layer.weight.data = form.write(
        torch.full((96, 64), 3), torch.full((96, 2), 0.1), torch.full((96, 2), 0.04)
    )
    with pytest.raises(ad.errors.ModelError, match="offsets between the steps"):
        ad.save_gptq(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert Rows(form, layer.weight.data).weight(64).shape == (96, 64)
