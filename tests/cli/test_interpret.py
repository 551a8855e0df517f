"""`adaptome interpret --texts --space` from end to end: a small CLIP, a run trained from it, and what is told of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from adaptome.cli import main

WORDS = ["red", "green", "blue", "round", "square", "cat"]
ATTENTION = "vision_model.encoder.layers.1.self_attn"
RECIPE = """
model: clip
task: image-classification
data: {name: pictures.npz}
method: {name: clip-svd, targets: ["vision_model*proj", "vision_model*fc2"]}
training: {max_steps: 4, batch_size: 8, learning_rate: 0.05, device: cpu}
output: out
"""


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    return stopped.value.code or 0


def save_clip(folder: Path) -> None:
    """A CLIP with random weights, its tokenizer of a few words and its image processor, as the hub holds one."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    vocabulary = [
        *("<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz"),
        *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz"),
    ]
    tokens = {token: number for number, token in enumerate(vocabulary)}
    CLIPTokenizer(vocab=tokens, merges=[]).save_pretrained(folder)
    sizes = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            vision_config={"hidden_size": 32, "image_size": 16, "patch_size": 8, **sizes},
            text_config={"hidden_size": 24, "vocab_size": len(tokens), "max_position_embeddings": 12,
                         "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, **sizes},
            projection_dim=16,
        )
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip-run")
    save_clip(folder / "clip")
    pictures = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    pictures[::2, ..., 0] = 255
    labels = np.arange(24) % 2
    np.savez(folder / "pictures.npz", x_train=pictures[:16], y_train=labels[:16],
             x_test=pictures[16:], y_test=labels[16:], classes=["red", "other"])  # fmt: skip
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "words.txt").write_text("\n".join([*WORDS, "", WORDS[0]]), encoding="utf-8")
    (folder / "labels.json").write_text(json.dumps({ATTENTION: ["colours", None, "shapes", None]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("train", "recipe.yaml") == 0
    return folder


@pytest.fixture(autouse=True)
def _inside(place, monkeypatch):
    monkeypatch.chdir(place)


def nearest_by_hand(layer: str, index: int) -> dict[str, float]:
    """Every text's cosine to what the CLIP's projection makes of a layer's singular direction, from the CLIP alone."""
    from transformers import CLIPModel, CLIPTokenizer

    clip = CLIPModel.from_pretrained("clip").eval()
    tokens = CLIPTokenizer.from_pretrained("clip")(WORDS, padding=True, return_tensors="pt")
    with torch.no_grad():
        texts = F.normalize(clip.get_text_features(**tokens).pooler_output, dim=-1)
        texts = F.normalize(texts - texts.mean(0), dim=-1)
        u = torch.linalg.svd(clip.get_submodule(layer).weight, full_matrices=False)[0][:, index]
        image = clip.visual_projection((u - u.mean()) * clip.vision_model.post_layernorm.weight)
        cosines = texts @ F.normalize(image, dim=-1)
    return dict(zip(WORDS, cosines.tolist(), strict=True))


def test_directions_are_told_by_the_texts_of_the_clip(capsys):
    assert run("interpret", "out", "--texts", "words.txt", "--space", "clip", "--top", "4", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told["chance"]) == ["vision_model"] and 0 < told["chance"]["vision_model"] < 1
    assert len(told["directions"]) == 4
    for direction in told["directions"]:
        assert direction["role"] in ("o", "down")
        by_hand = nearest_by_hand(direction["layer"], direction["index"])
        best = sorted(by_hand, key=by_hand.get, reverse=True)[:3]
        worst = sorted(by_hand, key=by_hand.get)[:3]
        ends = [[text["text"] for text in direction[end]] for end in ("towards", "against")]
        assert ends in ([best, worst], [worst, best])  # a singular vector has no sign of its own
        cosine = direction["towards"][0]["cosine"]
        assert abs(cosine) == pytest.approx(abs(by_hand[ends[0][0]]), abs=1e-4)


def test_labels_texts_and_charts_are_shown(capsys):
    words = ["interpret", "out", "--texts", "words.txt", "--space", "clip", "--labels", "labels.json"]
    assert run(*words, "--page", "heads.html", "--top", "8", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["total"], len(told["heads"])) == (8, 8)
    labels = {h["head"]: h["label"] for h in told["heads"] if h["attention"] == ATTENTION}
    assert labels == {0: "colours", 1: None, 2: "shapes", 3: None}
    page = Path("heads.html").read_text(encoding="utf-8")
    assert (
        page.count("<svg") == 2 and "The most changed directions" in page
    )  # one chart of heads, one of directions
    assert "colours" in page and told["directions"][0]["towards"][0]["text"] in page
    assert run(*words, "--relative", "--top", "8") == 0
    shown = capsys.readouterr().out
    assert "The most changed of 8 heads" in shown and "shapes" in shown
    assert "a random direction's nearest text has cosine" in shown and "towards" in shown


def test_the_encoder_alone_has_no_texts_and_one_text_tells_nothing_apart(capsys):
    assert run("interpret", "out", "--texts", "words.txt") == 1
    assert "has no map from its residual stream to texts" in capsys.readouterr().err
    Path("one.txt").write_text("cat\ncat\n", encoding="utf-8")
    assert run("interpret", "out", "--texts", "one.txt", "--space", "clip") == 1
    assert "at least two different" in capsys.readouterr().err
