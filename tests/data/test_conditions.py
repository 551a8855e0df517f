"""Conditions of pictures: each is of the picture's size, the same whenever it is taken, and what it says it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from adaptome.core.errors import ModelError, RecipeError
from adaptome.data.conditions import CONDITIONS, get_condition

PLAIN = sorted(name for name in CONDITIONS.all() if name not in ("depth", "normal", "segmentation"))


def picture(wide=24, high=16):
    """A red square on a blue ground."""
    values = np.full((high, wide, 3), (30, 40, 200), np.uint8)
    values[4:12, 6:18] = (220, 60, 50)
    return Image.fromarray(values)


@pytest.mark.parametrize("name", PLAIN)
def test_a_condition_is_of_the_pictures_size_and_the_same_again(name):
    annotator = get_condition(name)
    first, again = annotator(picture()), annotator(picture())
    assert first.size == (24, 16) and first.mode == "RGB" and first.tobytes() == again.tobytes()
    assert annotator.instruction.endswith(" to image")
    assert get_condition({"name": name, "instruction": "mine"}).instruction == "mine"
    tiny = Image.fromarray(np.zeros((2, 3, 3), np.uint8))
    assert annotator(tiny).size == (3, 2)


def array(name, **settings):
    return np.asarray(get_condition({"name": name, **settings})(picture())).astype(int)


def test_they_are_what_they_say():
    whole = np.asarray(picture()).astype(int)
    gray = array("grayscale")
    assert (gray[..., 0] == gray[..., 2]).all() and np.abs(
        gray[..., 0] - whole @ [0.299, 0.587, 0.114]
    ).max() <= 1
    blocks = array("palette", block=8)
    assert (
        np.abs(blocks[:8, :8] - whole[:8, :8].mean((0, 1))).max() <= 1
        and np.ptp(blocks[:8, :8], (0, 1)).max() == 0
    )
    shuffled = array("shuffle", parts=2)
    assert sorted(map(tuple, shuffled.reshape(-1, 3))) == sorted(map(tuple, whole.reshape(-1, 3)))
    hole, middle = array("inpainting"), array("outpainting")
    assert (hole + middle == whole).all() and not hole[4:12, 6:18].any()
    edges = array("canny", sigma=0.5)
    found = np.argwhere(edges[..., 0])
    assert set(np.unique(edges)) == {0, 255} and len(found) > 20
    assert all(min(abs(y - 4), abs(y - 11)) <= 1 or min(abs(x - 6), abs(x - 17)) <= 1 for y, x in found)
    for name in ("lineart", "sketch"):
        drawn = array(name)
        assert drawn[0, 0, 0] > 240 and drawn.min() < 200  # lines at the square, none in the corner
    assert (
        np.abs(array("blur", radius=1) - whole).max() > 30
        and len(np.unique(array("brush", colours=2).reshape(-1, 3), axis=0)) <= 2
    )


def test_a_supplied_model_gives_depth_normals_and_segments(tmp_path):
    from transformers import (
        DPTConfig,
        DPTForDepthEstimation,
        DPTImageProcessor,
        SegformerConfig,
        SegformerForSemanticSegmentation,
        SegformerImageProcessor,
    )

    torch.manual_seed(0)
    config = DPTConfig(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8] * 4, fusion_hidden_size=8, head_in_index=-1)  # fmt: skip
    DPTForDepthEstimation(config).save_pretrained(tmp_path / "dpt")
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "dpt")
    depth = np.asarray(get_condition({"name": "depth", "model": str(tmp_path / "dpt")})(picture()))
    assert depth.shape == (16, 24, 3) and depth.min() == 0 and depth.max() == 255
    normal = (
        np.asarray(get_condition({"name": "normal", "model": str(tmp_path / "dpt")})(picture())) / 127.5 - 1
    )
    assert np.abs(np.linalg.norm(normal, axis=-1) - 1).max() < 0.02
    segformer = SegformerConfig(
        num_labels=3, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, depths=[1] * 4, decoder_hidden_size=8
    )
    SegformerForSemanticSegmentation(segformer).save_pretrained(tmp_path / "seg")
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "seg")
    found = np.asarray(get_condition({"name": "segmentation", "model": str(tmp_path / "seg")})(picture()))
    assert len(np.unique(found.reshape(-1, 3), axis=0)) <= 3
    with pytest.raises(ModelError, match="depth: /nowhere cannot be had"):
        get_condition({"name": "depth", "model": "/nowhere"})(picture())


def test_what_is_not_known_is_told():
    with pytest.raises(RecipeError, match="Did you mean 'canny'"):
        get_condition("cany")
    with pytest.raises(RecipeError, match=r"unknown key 'task\.conditions\.sigm'"):
        get_condition({"name": "canny", "sigm": 2})
