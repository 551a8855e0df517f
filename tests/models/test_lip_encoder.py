"""The lip encoder: shapes, padding, folders, and the names of the authors' AV-HuBERT."""

import json

import pytest
import torch
from safetensors.torch import save_file

from adaptome.core.errors import ModelError
from adaptome.models.base import Part
from adaptome.models.lip_encoder import load_lip_encoder, ours

CONFIG = dict(model_type="hubert", hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, channels=[2, 4], blocks=2, do_stable_layer_norm=True, fused=True, layerdrop=0.0)  # fmt: skip
#: theirs -> ours, one of each kind
NAMES = {
    "feature_extractor_video.resnet.frontend3D.0.weight": "frontend.0.weight",
    "feature_extractor_video.resnet.trunk.layer2.0.downsample.1.running_mean": "trunk.1.0.downsample.1.running_mean",
    "feature_extractor_video.resnet.trunk.layer1.1.relu2.weight": "trunk.0.1.relu2.weight",
    "feature_extractor_video.proj.bias": "project.bias",
    "layer_norm.weight": "norm.weight",
    "post_extract_proj.weight": "join.weight",
    "encoder.pos_conv.0.weight_g": "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
    "encoder.pos_conv.0.weight_v": "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
    "encoder.pos_conv.0.bias": "encoder.pos_conv_embed.conv.bias",
    "encoder.layers.1.self_attn.k_proj.weight": "encoder.layers.1.attention.k_proj.weight",
    "encoder.layers.1.self_attn_layer_norm.bias": "encoder.layers.1.layer_norm.bias",
    "encoder.layers.1.final_layer_norm.bias": "encoder.layers.1.final_layer_norm.bias",
    "encoder.layers.0.fc1.weight": "encoder.layers.0.feed_forward.intermediate_dense.weight",
    "encoder.layers.0.fc2.weight": "encoder.layers.0.feed_forward.output_dense.weight",
    "encoder.layer_norm.weight": "encoder.layer_norm.weight",
}


def theirs(key: str) -> str:
    """The authors' name of a tensor of ours."""
    table = [
        ("frontend.", "feature_extractor_video.resnet.frontend3D."), ("project.", "feature_extractor_video.proj."), ("norm.", "layer_norm."),
        ("join.", "post_extract_proj."), ("encoder.pos_conv_embed.conv.parametrizations.weight.original0", "encoder.pos_conv.0.weight_g"),
        ("encoder.pos_conv_embed.conv.parametrizations.weight.original1", "encoder.pos_conv.0.weight_v"), ("encoder.pos_conv_embed.conv.", "encoder.pos_conv.0."),
    ]  # fmt: skip
    for mine, other in table:
        if key.startswith(mine):
            return other + key.removeprefix(mine)
    if key.startswith("trunk."):
        _, stage, rest = key.split(".", 2)
        return f"feature_extractor_video.resnet.trunk.layer{int(stage) + 1}.{rest}"
    for mine, other in ((".attention.", ".self_attn."), (".feed_forward.intermediate_dense.", ".fc1."), (".feed_forward.output_dense.", ".fc2.")):  # fmt: skip
        key = key.replace(mine, other)
    return key.replace(".layer_norm.", ".self_attn_layer_norm.") if key.startswith("encoder.layers.") else key


def test_the_authors_names():
    assert {name: ours(name) for name in NAMES} == NAMES


@pytest.mark.parametrize("names", ["ours", "theirs"])
def test_a_folder_under_either_names(tmp_path, names):
    torch.manual_seed(0)
    made = load_lip_encoder(Part(from_config=CONFIG), True).eval()
    state = {theirs(k) if names == "theirs" else k: v.contiguous() for k, v in made.state_dict().items()}
    state |= {"mask_emb": torch.zeros(8), "final_proj.weight": torch.zeros(2, 8)} if names == "theirs" else {}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(state, tmp_path / "model.safetensors")
    again = load_lip_encoder(Part(name=str(tmp_path)), True).eval()
    frames, mask = torch.randn(1, 7, 16, 16), torch.ones(1, 7, dtype=torch.bool)
    assert again(frames, mask).shape == (1, 7, 8)
    assert torch.equal(again(frames, mask), made(frames, mask))
    save_file({"frontend.0.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="do not fit its configuration"):
        load_lip_encoder(Part(name=str(tmp_path)), True)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        load_lip_encoder(Part(name=str(tmp_path)), True)


def test_frames_after_a_clips_end_change_nothing():
    torch.manual_seed(0)
    made = load_lip_encoder(
        Part(from_config={**CONFIG, "fused": False, "do_stable_layer_norm": False}), True
    ).eval()
    x, mask = torch.randn(1, 9, 16, 16), torch.arange(9)[None] < 6
    x[:, 6:] = 0
    alone = made(x[:, :6], mask[:, :6])
    assert torch.allclose(made(x, mask)[:, :6], alone, atol=1e-5)


def test_another_kind_of_configuration_is_refused():
    with pytest.raises(ModelError, match="a hubert's"):
        load_lip_encoder(Part(from_config={"model_type": "vit"}), True)


def test_batch_norms_that_do_not_train_keep_their_statistics():
    made = load_lip_encoder(Part(from_config=CONFIG), True).train()
    frames, mask = torch.randn(1, 3, 16, 16), torch.ones(1, 3, dtype=torch.bool)
    made(frames, mask)
    assert made.frontend[1].num_batches_tracked == 1  # all of it trains here
    made.requires_grad_(False).train()
    before = {name: value.clone() for name, value in made.named_buffers()}
    made(frames, mask)
    assert all(torch.equal(value, before[name]) for name, value in made.named_buffers())
