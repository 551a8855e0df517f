"""ONNX files, merged and with adapters beside the layers, in ONNX Runtime."""

import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import adaptome as ad
from adaptome.core.errors import MergeError


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, vocab_size=40,
        max_position_embeddings=32, initializer_range=0.2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def shaken(model, method="lora", **settings):
    ad.attach(model, method, **settings)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in ad.parameters_of(model).values():
            value.add_(torch.randn(value.shape, generator=generator) * 0.1)
    return model.eval()


@pytest.mark.parametrize(
    ("method", "merged"),
    [("lora", True), *(pytest.param(method, False, marks=pytest.mark.slow) for method in ("lora", "dora", "series"))],
)  # fmt: skip
def test_a_language_model_gives_the_same_in_onnx_runtime(method, merged, tmp_path):
    model = shaken(llama(), method)
    ids = torch.tensor([[5, 9, 3, 30, 2, 7]])
    with torch.no_grad():
        before = model(ids).logits
    report = ad.export_onnx(model, tmp_path / "m.onnx", merged=merged)
    assert report.output_error < 1e-5 and report.names == (("default",) if merged else ())
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    given = {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()}
    (found,) = session.run(None, {entry.name: given[entry.name] for entry in session.get_inputs()})
    torch.testing.assert_close(torch.from_numpy(found), before, rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # and the model is as it was
        assert torch.equal(model(ids).logits, before) and ad.active(model) == ["default"]
    onnx.checker.check_model(tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x


def test_what_torch_cannot_export_is_refused_with_the_reason(tmp_path):
    model = shaken(Branches(), targets="layer")
    with pytest.raises(MergeError, match="torch cannot export Branches"):
        ad.export_onnx(model, tmp_path / "m.onnx", {"x": torch.ones(2, 4)})
    with pytest.raises(MergeError, match="ends in .onnx"):
        ad.export_onnx(model, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_convolution_and_other_inputs(tmp_path):
    torch.manual_seed(0)
    model = shaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)), targets=["0", "2"])
    report = ad.export_onnx(model, tmp_path / "m.onnx", {"input": torch.randn(2, 3, 4, 4)}, merged=False)
    assert report.output_error < 1e-5 and report.tensors >= 4
    with pytest.raises(MergeError, match="nothing was written"):
        ad.export_onnx(model, tmp_path / "n.onnx", {"input": torch.randn(2, 3, 4, 4)}, tolerance=-1.0)
    assert not (tmp_path / "n.onnx").exists()
