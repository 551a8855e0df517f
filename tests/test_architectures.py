"""The built-in architectures have the published sizes, and a bad source is told how to be right."""

import json
import time

import pytest
import torch

from adaptome.architectures import build, hyperparameters, names
from adaptome.core.errors import ModelError

# Where each count was published. "hub": the safetensors metadata that the model's hub page shows ("Model size",
# exact in its API); "torchvision": num_params in the weight's metadata; "timm": param_count of results/*.csv.
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,  # hub, meta-llama/Llama-2-7b-hf
    "llama-2-13b": 13_015_864_320,  # hub, meta-llama/Llama-2-13b-hf
    "llama-3-8b": 8_030_261_248,  # hub, meta-llama/Meta-Llama-3-8B
    "llama-3.1-70b": 70_553_706_496,  # hub, meta-llama/Llama-3.1-70B
    "llama-3.2-1b": 1_235_814_400,  # hub, meta-llama/Llama-3.2-1B; the head is tied
    "llama-3.2-3b": 3_212_749_824,  # hub, meta-llama/Llama-3.2-3B; the head is tied
    "mistral-7b": 7_241_732_096,  # hub, mistralai/Mistral-7B-v0.1
    "phi-3-mini": 3_821_079_552,  # hub, microsoft/Phi-3-mini-4k-instruct
    "qwen2.5-7b": 7_615_616_512,  # hub, Qwen/Qwen2.5-7B
    "qwen2.5-32b": 32_763_876_352,  # hub, Qwen/Qwen2.5-32B
    "gpt2": 124_439_808,  # Radford et al. 2019 corrected: 124M; exact in transformers' and nanoGPT's printouts
    "gpt2-medium": 354_823_168,  # the same, 355M
    "bloom-7b1": 7_069_016_064,  # model card of bigscience/bloom-7b1
    "gpt-j-6b": 6_050_882_784,  # summed over the published tensors; the card's 6,053,381,344 is of the JAX original
    "opt-6.7b": 6_658_473_984,  # PEFT's int8 example: 6,666,862,592 with a LoRA of 8,388,608
    "bert-base": 109_514_298,  # BertForMaskedLM, 110M in Devlin et al. 2019
    "minilm-l6": 22_713_216,  # 22.7M on the hub page of all-MiniLM-L6-v2
    "roberta-base": 124_697_433,  # RobertaForMaskedLM, 125M in Liu et al. 2019
    "roberta-large": 355_412_057,  # RobertaForMaskedLM, 355M in Liu et al. 2019
    "deberta-v3-base": 183_831_552,  # backbone: 86M beside 98M embeddings (model card)
    "deberta-v3-large": 434_012_160,  # backbone: 304M beside 131M embeddings (model card)
    "t5-base": 222_903_552,  # 220M in Raffel et al. 2020; transformers' num_parameters
    "vit-b-16": 86_567_656,  # torchvision vit_b_16
    "vit-l-16": 304_326_632,  # torchvision vit_l_16
    "clip-vit-b-16": 149_620_737,  # open_clip's table of model profiles: ViT-B-16, 149.62M
    "clip-vit-l-14": 427_616_513,  # open_clip's table of model profiles: ViT-L-14, 427.62M
    "dinov2-b": 86_580_480,  # timm vit_base_patch14_dinov2, 86.58M
    "dinov2-l": 304_368_640,  # timm vit_large_patch14_dinov2, 304.37M
    "swin-t": 28_288_354,  # torchvision swin_t
    "swin-s": 49_606_258,  # torchvision swin_s
    "swin-b": 87_768_224,  # torchvision swin_b
    "ast-base": 86_594_063,  # 86.6M on the hub page; a sum by hand below
    "whisper-large-v3": 1_543_490_560,  # hub, openai/whisper-large-v3
    "blip2-qformer": 105_137_664,  # a sum by hand below; 107M with queries and projection in Li et al. 2023, table 2
    "sd-1.5-unet": 859_520_964,  # 860M in Rombach et al. 2022; exact in diffusers' printouts
    "sdxl-unet": 2_567_463_684,  # 2.6B in Podell et al. 2023; exact in diffusers' printouts
}


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", names())
def test_a_built_in_has_the_published_count(name):
    model = build(name)
    assert count(model) == PUBLISHED[name]
    assert all(p.is_meta for p in model.parameters())


def test_two_counts_by_hand():
    def layer(d, f):  # q, k, v, o; up, down; two norms
        return 4 * (d * d + d) + d * f + f + f * d + d + 4 * d

    cross = 2 * (768 * 768 + 768) + 2 * (1408 * 768 + 768) + 2 * 768  # on every second layer
    assert 12 * layer(768, 3072) + 6 * cross + 2 * 768 == PUBLISHED["blip2-qformer"]
    patches = 12 * 101  # (128 - 16) / 10 + 1 mels, (1024 - 16) / 10 + 1 frames
    embedding = 16 * 16 * 768 + 768 + 2 * 768 + (patches + 2) * 768
    assert embedding + 12 * layer(768, 3072) + 2 * 768 + 2 * 768 + 768 * 527 + 527 == PUBLISHED["ast-base"]


def test_seventy_billion_parameters_take_no_time():
    build("gpt2", num_hidden_layers=1)  # imports
    start = time.perf_counter()
    build("llama-3.1-70b", dtype=torch.bfloat16)
    assert time.perf_counter() - start < 5


def test_a_hub_id_of_a_built_in_needs_no_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: pytest.fail("asked the hub"))
    assert count(build("FacebookAI/roberta-base")) == PUBLISHED["roberta-base"]


def test_a_folder_and_a_file_build_the_same(tmp_path):
    config = {
        **hyperparameters("bert-base"),
        "num_hidden_layers": 2,
        "hidden_size": 24,
        "num_attention_heads": 3,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    for source in (tmp_path, tmp_path / "config.json", str(tmp_path)):
        model = build(source)
        assert type(model).__name__ == "BertForMaskedLM"
        assert model.config.hidden_size == 24


def test_a_saved_model_builds_its_own_structure(tmp_path):
    saved = build("gpt2", meta=False, n_layer=1, n_embd=24, n_head=3, vocab_size=50)
    saved.save_pretrained(tmp_path)
    rebuilt = build(tmp_path)
    assert {n: p.shape for n, p in rebuilt.named_parameters()} == {
        n: p.shape for n, p in saved.named_parameters()
    }


def test_a_saved_diffusers_model_builds(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({**hyperparameters("sd-1.5-unet"), "cross_attention_dim": 96})
    )
    model = build(tmp_path)
    assert type(model).__name__ == "UNet2DConditionModel"
    assert model.config.cross_attention_dim == 96


def test_task_dtype_and_changes_are_taken():
    model = build(
        "roberta-base", task="text-classification", dtype=torch.bfloat16, num_labels=5, num_hidden_layers=3
    )
    assert type(model).__name__ == "RobertaForSequenceClassification"
    assert model.classifier.out_proj.out_features == 5
    assert len(model.roberta.encoder.layer) == 3
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_off_the_meta_device_it_is_initialised_and_runs():
    model = build("gpt2", meta=False, num_hidden_layers=1, n_embd=24, n_head=3, vocab_size=50).eval()
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_hyperparameters_are_a_copy():
    hyperparameters("gpt2")["n_layer"] = 99
    assert hyperparameters("gpt2")["n_layer"] == 12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: build("roberta-bass"), "near it: roberta-base"),
        (lambda folder: build("nothing-like-it-at-all-zzz"), "Built-in names: ast-base"),
        (lambda folder: build(folder), "holds no config.json"),
        (
            lambda folder: build(folder / "config.json"),
            "neither a built-in architecture, nor an existing file",
        ),
        (lambda folder: build("gpt2", n_layers=3), "no hyperparameter 'n_layers'. Did you mean 'n_layer'?"),
        (lambda folder: build("sd-1.5-unet", cross_attention=3), "Did you mean 'cross_attention_dim'?"),
        (lambda folder: build("gpt2", task="causal"), "Did you mean 'causal-lm'?"),
        (lambda folder: hyperparameters("vit-b16"), "Did you mean 'vit-b-16'?"),
    ],
)
def test_a_bad_request_says_what_would_be_right(tmp_path, make, message):
    with pytest.raises(ModelError) as caught:
        make(tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "is not a model's config"),
        ('{"hidden_size": 3}', "neither model_type"),
        ('{"model_type": "bertt"}', "Did you mean 'bert'?"),
        (
            '{"model_type": "bert", "architectures": ["BertConfig"]}',
            "'BertConfig', which is no model of transformers",
        ),
        ('{"_class_name": "UNet2DOutput"}', "no model of diffusers"),
    ],
)
def test_a_bad_config_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError) as caught:
        build(tmp_path)
    assert message in str(caught.value)


def test_without_a_network_the_error_names_near_built_ins(monkeypatch, tmp_path):
    def unreachable(*_args, **_options):
        raise OSError("Name or service not known")

    monkeypatch.setattr("adaptome.architectures.socket.getaddrinfo", unreachable)
    monkeypatch.setattr("adaptome.architectures.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(ModelError) as caught:
        build("somebody/mistral-7b-v9")
    assert time.perf_counter() - start < 5
    assert "could not be fetched" in str(caught.value)
    assert "Built-in names near it: mistral-7b" in str(caught.value)
