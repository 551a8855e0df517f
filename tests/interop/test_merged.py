"""Merged models on disk: the same outputs without adaptome, written layer by layer and gone on with after a stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3MoeForCausalLM

import adaptome as ad
from adaptome.core.errors import MergeError
from adaptome.interop import merged
from tests.interop.test_peft_types import SIZES, logits, qwen, shake


def llama(**more):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.2, **more)).eval()


def adapted(model, method="dora", **how):
    ad.attach(model, method, **{"targets": ["q", "down"], **how})
    shake(ad.parameters_of(model).values())
    return model


def test_the_folder_loads_without_adaptome_and_gives_the_same(tmp_path):
    model = adapted(llama())
    before = logits(model)
    report = ad.save_merged(model, tmp_path / "out", shard_size="5KB")
    assert report.shards > 2 and len(report.layers) == 4 and report.resumed == 0
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(plain) is LlamaForCausalLM
    torch.testing.assert_close(logits(plain), before, rtol=1e-5, atol=1e-5)
    ad.merge(model, keep=False)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(plain.state_dict())
    assert index["metadata"]["total_size"] == report.bytes
    assert not (tmp_path / "out.partial").exists()


def test_several_adapters_heads_and_another_type(tmp_path):
    model = adapted(llama(), "lora", train="lm_head")
    ad.attach(model, "ia3", "second")
    shake(ad.parameters_of(model, "second").values())
    ad.activate(model, ["default", "second"], {"default": 0.5})
    ad.save_merged(model, tmp_path / "out", dtype=torch.bfloat16)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    assert plain.dtype == torch.bfloat16
    torch.testing.assert_close(logits(plain).float(), logits(model), rtol=0.1, atol=0.1)
    ad.save_merged(model, tmp_path / "whole")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    torch.testing.assert_close(logits(whole), logits(model), rtol=1e-5, atol=1e-5)


def test_a_tied_weight_that_changed_is_its_own(tmp_path):
    model = adapted(llama(tie_word_embeddings=True), "lora", targets="=lm_head")
    report = ad.save_merged(model, tmp_path / "out")
    assert report.untied == ("lm_head.weight",)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert not plain.config.tie_word_embeddings and model.config.tie_word_embeddings
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-5, atol=1e-5)
    tied = adapted(llama(tie_word_embeddings=True))
    ad.save_merged(tied, tmp_path / "tied")
    with safe_open(tmp_path / "tied" / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in list(file.keys())
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "tied").eval()), logits(tied)
    )


def test_fused_experts_are_written_as_their_hub_files_have_them(tmp_path):
    model = adapted(qwen(), "lora", targets=["*mlp.experts.gate_up_proj", "*mlp.experts.down_proj", "q"])
    ad.save_merged(model, tmp_path / "out")
    plain = Qwen3MoeForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path / "base")
    with (
        safe_open(tmp_path / "out" / "model.safetensors", "pt") as ours,
        safe_open(tmp_path / "base" / "model.safetensors", "pt") as theirs,
    ):
        assert set(ours.keys()) == set(theirs.keys())


def test_a_quantised_base_is_written_dense(tmp_path):
    torchao = pytest.importorskip("torchao.quantization")
    model = llama()
    torchao.quantize_(
        model,
        torchao.Int8WeightOnlyConfig(version=2),
        filter_fn=lambda m, n: isinstance(m, nn.Linear) and "layers" in n,
    )
    adapted(model, "lora")
    report = ad.save_merged(model, tmp_path / "out")
    assert report.dequantised == 14
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert all(type(p) is nn.Parameter for p in plain.parameters())
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-3, atol=1e-3)


def test_a_stopped_run_is_gone_on_with(tmp_path, monkeypatch):
    model, written = adapted(llama()), []
    stream = merged._stream

    def stopping(path, *rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        stream(path, *rest)
        written.append((path, path.stat().st_mtime_ns))

    monkeypatch.setattr(merged, "_stream", stopping)
    with pytest.raises(KeyboardInterrupt):
        ad.save_merged(model, tmp_path / "out", shard_size="5KB")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(merged, "_stream", stream)
    report = ad.save_merged(model, tmp_path / "out", shard_size="5KB")
    assert report.resumed == 2
    assert all((tmp_path / "out" / path.name).stat().st_mtime_ns == at for path, at in written)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-5, atol=1e-5)


def test_what_was_begun_with_another_adapter_is_begun_anew(tmp_path, monkeypatch):
    model = adapted(llama())
    monkeypatch.setattr(merged, "_companions", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        ad.save_merged(model, tmp_path / "out")
    monkeypatch.undo()
    shake(ad.parameters_of(model).values())
    assert ad.save_merged(model, tmp_path / "out").resumed == 0


def test_what_cannot_be_merged_or_would_not_load_again_is_refused(tmp_path):
    model = llama()
    ad.attach(model, "series", targets="down")
    with pytest.raises(MergeError, match="changes activations"):
        ad.save_merged(model, tmp_path / "out")
    ad.detach(model)
    ad.attach(model, "ssf")
    with pytest.raises(MergeError, match="would not load again"):
        ad.save_merged(model, tmp_path / "out")
    ad.detach(model)
    adapted(model)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(MergeError, match="not empty"):
        ad.save_merged(model, tmp_path / "out")
    (tmp_path / "there.partial").mkdir()
    (tmp_path / "there.partial" / "file").touch()
    with pytest.raises(MergeError, match="holds something else"):
        ad.save_merged(model, tmp_path / "there")
    with pytest.raises(MergeError, match="is no size"):
        ad.save_merged(model, tmp_path / "new", shard_size="big")


PEAK = """
import sys, torch
import adaptome as ad
from transformers import LlamaConfig, LlamaForCausalLM
def peak(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
def made(width, layers):
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=8))
    ad.attach(model, "lora", r=4, targets="all-linear")
    return model
ad.save_merged(made(32, 1), sys.argv[1] + "-first")  # what is imported on the way is not what is measured
model = made(512, 16)
open("/proc/self/clear_refs", "w").write("5")
before = peak()
ad.save_merged(model, sys.argv[1])
layer = sum(p.numel() * p.element_size() for n, p in model.model.layers[0].named_parameters() if "adaptome" not in n)
print(layer, peak() - before, 16 * layer)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own measure")
def test_beside_the_model_memory_holds_one_layer(tmp_path):
    # freed tensors go back to the system at once, as those of large models always do
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "100000"}
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "out")], capture_output=True, text=True, env=env
    )
    if done.returncode and "clear_refs" in done.stderr:
        pytest.skip("the kernel lets nobody reset the peak here")
    assert done.returncode == 0, done.stderr
    layer, more, model = map(int, done.stdout.split())
    assert more < 1.5 * layer < model / 8, (layer, more, model)
