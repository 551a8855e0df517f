"""BiomedCLIP's layout by open_clip, from a folder: the same features as open_clip's own, three spectra of a fused map, a run and its answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import adaptome as ad
from adaptome.models import composite_models
from adaptome.models.prompted_classifier import Classes
from adaptome.recipe import load_recipe
from adaptome.tasks.models import resolve
from adaptome.training import load_run, run
from tests.tasks.test_image_text_classification import CLASSES, split_file

open_clip = pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small timm vision transformer and a BERT of two layers, in the files that the hub has of BiomedCLIP."""
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    root = tmp_path_factory.mktemp("biomed")
    (root / "bert").mkdir()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    (root / "bert" / "config.json").write_text(
        json.dumps({"model_type": "bert", **sizes, "vocab_size": 30522})
    )
    AutoTokenizer.from_pretrained(resolve("minilm")).save_pretrained(root)
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear", "image_size": 224}  # fmt: skip
    text = {"hf_model_name": str(root / "bert"), "hf_tokenizer_name": str(root), "context_length": 24, "hf_model_pretrained": False}  # fmt: skip
    pixels = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
    config = {
        "model_cfg": {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": pixels,
    }
    (root / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    made = open_clip.create_model(f"local-dir:{root}", load_weights=False, pretrained_hf=False)
    tensors = {name: tensor.contiguous().clone() for name, tensor in made.state_dict().items()}
    save_file(tensors, str(root / "open_clip_model.safetensors"))
    return root


def test_features_are_open_clips_and_every_map_has_its_spectrum(folder):
    own = open_clip.create_model(f"local-dir:{folder}", pretrained_hf=False).eval()
    model = composite_models()["prompted-classifier"].from_settings(encoder={"name": str(folder)}).eval()
    x, ids = torch.randn(2, 3, 224, 224), open_clip.get_tokenizer(f"local-dir:{folder}")(["a cat", "a dog"])
    with torch.no_grad():
        assert torch.allclose(model.encoder.get_image_features(x), own.encode_image(x), atol=1e-5)
        assert torch.allclose(model.encoder.get_text_features(ids), own.encode_text(ids), atol=1e-5)
        before = model(x, classes=Classes(ids))["logits"]
        plan = ad.attach(model, "clip-svd", targets=["attention", "mlp"])
        assert torch.allclose(model(x, classes=Classes(ids))["logits"], before, atol=1e-3)
    assert plan.trainable == 12 * 6 * 192 + 2 * 6 * 32


@pytest.mark.parametrize("method", ["clip-svd", "coop"])
def test_a_run_trains_and_answers(folder, tmp_path, method):
    data = split_file(tmp_path / "busi", "BUSI", CLASSES)
    chosen = (
        {"name": "coop", "p": 2} if method == "coop" else {"name": method, "targets": ["attention", "mlp"]}
    )
    context = {"context": {"words": 2}} if method == "coop" else {}
    content = {
        "model": {"composite": "prompted-classifier", "encoder": str(folder)},
        "task": {"name": "image-text-classification", **context}, "data": {"name": str(data), "shots": 1}, "method": chosen,
        "training": {"max_steps": 1, "batch_size": 4, "device": "cpu"}, "output": str(tmp_path / "run"),
    }  # fmt: skip
    result = run(load_recipe(content), callbacks=[])
    assert any("'a breast ultrasound of abyssinian.'" in note for note in result.notes)
    loaded = load_run(tmp_path / "run")
    picture = str(data.parent / "images" / "pug_test_0.png")
    told = loaded.task.predict(
        loaded.model, loaded.processor, [{"image": picture, "classes": ["a mass", "none"]}]
    )
    assert sum(told[0]["scores"].values()) == pytest.approx(1, abs=1e-5)
