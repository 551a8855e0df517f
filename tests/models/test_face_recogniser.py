"""The recogniser of faces: PETALface's Swin, its embedding, the sampled head and the release's weights."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import adaptome as ad
from adaptome.core.errors import ModelError, RecipeError
from adaptome.models.face_recogniser import FaceRecogniser, sampled
from adaptome.models.face_release import main, released
from adaptome.models.face_swin import sides_apart, whole_of, windows_of
from adaptome.recipe import load_recipe

SWIN = {"model_type": "face-swin", "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4}  # fmt: skip
VIT = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32, "patch_size": 8}  # fmt: skip


def recogniser(people=10, encoder=SWIN, **own):
    torch.manual_seed(0)
    return FaceRecogniser.from_settings(
        encoder={"from_config": encoder}, people=people, width=24, **own
    ).eval()


def faces(count=3):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_counts_of_the_papers_recipe():
    recipe = load_recipe("petalface-tinyface")
    with torch.device("meta"):
        model = FaceRecogniser.from_settings(
            encoder={"from_config": {"model_type": "face-swin"}}, people=2570
        )
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert sizes["encoder"] + sizes["embedding"] == 213_666_768 and sizes["head"] == 1_315_840
    counts = [ad.plan(model, m.name, targets=m.targets, **m.settings).trainable for m in recipe.methods]
    assert counts == [1_130_496, 311_296]


@pytest.mark.parametrize(
    ("encoder", "own"),
    [
        (SWIN, {}),
        (SWIN | {"shift_mask": True}, {"feature": "mean"}),
        (VIT, {"feature": "first", "norm": "none"}),
        (
            {"model_type": "swin", "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4},
            {},
        ),
    ],
    ids=["face-swin", "masked", "vit", "swin"],
)  # fmt: skip
def test_it_embeds_with_its_mirror_image_and_comes_back_from_its_folder(encoder, own, tmp_path):
    model, x = recogniser(encoder=encoder, **own), faces()
    found = model(x)
    assert set(found) == {"embeddings", "norms"} and found["embeddings"].shape == (3, 24)
    torch.testing.assert_close(found["embeddings"], model(x.flip(-1))["embeddings"])
    torch.testing.assert_close(found["norms"], found["embeddings"].norm(dim=-1))
    model.save_pretrained(tmp_path / "saved")
    again = FaceRecogniser.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(again(x)["embeddings"], found["embeddings"])
    with pytest.raises(ModelError, match="takes faces of 32 x 32 pixels"):
        model(torch.zeros(1, 3, 16, 16))


def test_windows_come_back_and_a_shifted_ones_sides_are_told_apart():
    x = torch.arange(2 * 8 * 8 * 3).float().view(2, 8, 8, 3)
    assert torch.equal(whole_of(windows_of(x, 4), 8, 4), x)
    mask = sides_apart(8, 4, 2)
    assert mask.shape == (4, 16, 16) and not mask[0].any() and set(mask.unique().tolist()) == {-100.0, 0.0}
    # in the last window only tokens of the same corner see each other: four groups of four
    assert int((mask[3] == 0).sum()) == 4 * 4 * 4
    own, masked = recogniser(encoder=SWIN), recogniser(encoder=SWIN | {"shift_mask": True})
    assert not torch.allclose(own(faces())["embeddings"], masked(faces())["embeddings"])


def test_a_batch_of_several_qualities_is_its_faces_run_singly():
    model, x = recogniser(), faces()
    before = model(x)["embeddings"]
    ad.attach(model, "petalface", targets="encoder.qkv", r=2)
    with ad.steer(quality=0.8):
        torch.testing.assert_close(
            model(x)["embeddings"], before
        )  # adapters begin at the recogniser as it came
    for name, parameter in model.named_parameters():
        if ".B." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    scores = torch.tensor([0.1, 0.5, 0.9])
    with torch.no_grad():
        with ad.steer(quality=scores):
            together = model(x)["embeddings"]
        for i, score in enumerate(scores.tolist()):
            with ad.steer(quality=score):
                torch.testing.assert_close(
                    together[i], model(x[i : i + 1])["embeddings"][0], rtol=1e-4, atol=1e-5
                )
        with ad.steer(quality=scores.flip(0)):
            assert not torch.allclose(model(x)["embeddings"], together)


def test_only_adapters_and_head_train_and_batch_norms_keep_their_statistics():
    model = recogniser()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    ad.attach(model, "petalface", targets="encoder.qkv", r=2, train=["head"])
    ad.attach(model, "lora", "embedding", targets="embedding.linear", r=2)
    ad.activate(model, ["default", "embedding"])
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    with ad.steer(quality=torch.tensor([0.2, 0.5, 0.7])):
        for _ in range(3):
            model(faces(), labels=torch.tensor([0, 4, 9]))["loss"].backward()
            optimizer.step()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert all("qkv" in n or n.startswith(("embedding.linear", "head")) for n in trained), trained
    assert any(n.startswith("head") for n in trained) and any("qkv" in n for n in trained)
    after = dict(model.named_buffers())
    assert all(torch.equal(after[name], value) for name, value in before.items() if "running" in name)


def test_cosines_are_told_finely_under_autocast():
    model = recogniser()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        made = model(faces(), people=torch.tensor([0, 1, 2]))
    exact = F.normalize(made["embeddings"], dim=-1) @ F.normalize(model.head.weight, dim=-1).T
    assert made["logits"].dtype == torch.float32
    torch.testing.assert_close(made["logits"], exact.detach(), atol=1e-6, rtol=1e-6)


def test_a_sampled_head_compares_to_the_batchs_own_people_and_some_others():
    torch.manual_seed(0)
    people = torch.tensor([7, 2, 7, 90])
    chosen, targets = sampled(people, 100, 0.2)
    assert len(chosen) == 20 == len(set(chosen.tolist())) and torch.equal(chosen[targets], people)
    again, _ = sampled(people, 100, 0.2)
    assert not torch.equal(chosen, again)
    assert len(sampled(people, 100, 0.01)[0]) == 3  # never fewer than its own
    model = recogniser(people=100, sample=0.2).train()
    found = model(faces(4), people=people, labels=people)
    assert found["logits"].shape == (4, 20) and found["loss"].isfinite()
    rows = F.normalize(found["embeddings"], dim=-1) @ F.normalize(model.head.weight, dim=-1).T
    own = found["logits"][torch.arange(4), found["targets"]]
    torch.testing.assert_close(own, rows[torch.arange(4), people])
    whole = model.eval()(faces(4), people=people)
    assert whole["logits"].shape == (4, 100) and torch.equal(whole["targets"], people)


@pytest.mark.parametrize("kind", ["arcface", "cosface"])
def test_margins_are_put_at_a_sampled_heads_own_columns(kind):
    from adaptome.objectives.base import Seen, get_objective

    model = recogniser(people=50, sample=0.2).train()
    people = torch.tensor([3, 40, 8])
    torch.manual_seed(3)
    found = model(faces(), people=people)
    objective = get_objective("margin-softmax", kind=kind, scale=10.0, margin=0.3)
    value = objective.value(found, {"labels": people}, Seen(model))
    right = found["logits"][torch.arange(3), found["targets"]]
    moved = right - 0.3 if kind == "cosface" else (right.arccos() + 0.3).cos()
    logits = found["logits"].scatter(1, found["targets"][:, None], moved[:, None])
    torch.testing.assert_close(value, F.cross_entropy(10 * logits, found["targets"]))
    value.backward()
    assert model.head.weight.grad.isfinite().all()
    at_one = torch.tensor([[1.0, -1.0]], requires_grad=True)
    objective.value({"logits": at_one}, {"labels": torch.tensor([0])}, Seen(model)).backward()
    assert at_one.grad.isfinite().all()


def test_a_release_becomes_a_folder(tmp_path, capsys):
    torch.manual_seed(0)
    model = recogniser(people=0)
    theirs = {}
    for key, value in model.state_dict().items():
        if key.startswith("head."):
            continue
        for old, new in (("before", "0"), ("linear", "2"), ("after", "3")):
            key = key.replace(f"embedding.{old}.", f"module.feature_layer.{new}.")
        theirs[key.removeprefix("encoder.")] = value
    theirs["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16).long()
    theirs["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    save_file(theirs, tmp_path / "model.safetensors")
    config = {k: v for k, v in SWIN.items() if k != "model_type"}
    told = [str(tmp_path / "model.safetensors"), str(tmp_path / "out"), "--config", json.dumps(config)]
    assert main(told) == 0 and capsys.readouterr().out.strip() == str(tmp_path / "out")
    again = FaceRecogniser.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(again(faces())["embeddings"], model(faces())["embeddings"])
    with pytest.raises(ModelError, match=r"lora_right.*adapters in them"):
        released(theirs | {"layers.0.blocks.0.attn.qkv.lora_right": torch.zeros(2, 2)}, **config)
    with pytest.raises(ModelError, match="of that configuration"):
        released({k: v for k, v in theirs.items() if "mlp" not in k}, **config)


def test_windows_that_do_not_fit_are_refused():
    with pytest.raises(RecipeError, match=r"stage 0 has 8 x 8 tokens, which windows of 5"):
        recogniser(encoder=SWIN | {"window_size": 5})
    with pytest.raises(RecipeError, match="windw"):
        recogniser(encoder=SWIN | {"windw": 5})
