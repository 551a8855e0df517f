"""`adaptome convert` and `adaptome merge` between the formats of other libraries."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaForCausalLM

import adaptome as ad
from adaptome.interop.opened import open_adapter

from ..interop.image_models import layers, output, shaken, text, unet
from ..interop.test_onnx import llama
from .test_run_commands import run


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """A pipeline's folder, and a file of kohya for two of its parts."""
    monkeypatch.chdir(tmp_path)
    unet().save_pretrained("pipe/unet")
    text().save_pretrained("pipe/text_encoder")
    index = {"unet": ["diffusers", "UNet2DConditionModel"], "text_encoder": ["transformers", "CLIPTextModel"], "vae": ["os", "system"], "scheduler": ["diffusers", "DDIMScheduler"]}  # fmt: skip
    Path("pipe/model_index.json").write_text(json.dumps(index))
    model = shaken(nn.ModuleDict({"unet": unet(), "text_encoder": text()}), "lora", layers(nn.ModuleDict({"unet": unet(), "text_encoder": text()}), "to_q", "fc1"), r=2)  # fmt: skip
    ad.export(model, "kohya.safetensors", format="kohya")
    return model


def test_a_file_of_kohya_becomes_one_of_diffusers(pipeline, capsys):
    words = ("kohya.safetensors", "out", "--to", "diffusers", "--base", "pipe")
    assert run("convert", *words, "--json") == 0
    assert json.loads(capsys.readouterr().out)["format"] == "diffusers"
    assert any(
        key.startswith("text_encoder.text_model.")
        for key in load_file("out/pytorch_lora_weights.safetensors")
    )
    opened = open_adapter("out", "pipe").model
    for part in ("unet", "text_encoder"):
        torch.testing.assert_close(output(opened[part]), output(pipeline[part]), rtol=1e-5, atol=1e-5)
    assert (
        run("convert", "kohya.safetensors", "x", "--from", "lycoris", "--to", "kohya", "--base", "pipe") == 1
    )
    assert "it is kohya" in capsys.readouterr().err
    assert run("convert", "kohya.safetensors", "x", "--from", "koyha", "--to", "kohya") == 1
    assert "Did you mean 'kohya'" in capsys.readouterr().err
    assert run("convert", "kohya.safetensors", "x", "--to", "kohya") == 1
    assert "which base it was trained on" in capsys.readouterr().err
    # no class outside of diffusers and transformers is ever loaded
    index = json.loads(Path("pipe/model_index.json").read_text()) | {"unet": ["os", "system"]}
    Path("pipe/model_index.json").write_text(json.dumps(index))
    assert run("convert", "kohya.safetensors", "x", "--to", "kohya", "--base", "pipe") == 1
    assert "is not loaded here" in capsys.readouterr().err


def test_a_language_model_goes_to_llama_cpp_and_onnx_runtime(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    llama().save_pretrained("base")
    model = LlamaForCausalLM.from_pretrained("base")
    ad.attach(model, "lora", r=2, targets="q")
    with torch.no_grad():
        for value in ad.parameters_of(model).values():
            value.add_(torch.randn_like(value), alpha=0.1)
    ad.save(model, "adapter")
    assert run("convert", "adapter", "a.gguf", "--to", "gguf", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rank"] == 2
    assert run("convert", "a.gguf", "peft", "--to", "peft", "--base", "base") == 0
    capsys.readouterr()
    assert "base_model" not in Path("peft/README.md").read_text() or "base_model: base" in Path("peft/README.md").read_text()  # fmt: skip
    assert run("merge", "adapter", "m.gguf", "--to", "gguf", "--dtype", "q8_0", "--json") == 0
    assert json.loads(capsys.readouterr().out)["format"] == "gguf"
    assert run("merge", "adapter", "m.onnx", "--to", "onnx", "--json") == 0
    assert json.loads(capsys.readouterr().out)["output_error"] < 1e-4
    assert run("merge", "adapter", "m", "--to", "onx") == 1
    assert "Did you mean 'onnx'" in capsys.readouterr().err
    assert run("merge", "adapter", "m", "--dtype", "q8_0") == 1
    assert run("merge", "adapter", "m.gguf", "--to", "gguf") == 1  # it is there
    assert "is there" in capsys.readouterr().err
