"""The segmenter of several modalities: counts at full size from the recipes, identity, absent inputs, statistics, and what trains."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import adaptome as ad
from adaptome.core.errors import ModelError, RecipeError
from adaptome.models import composite_models
from adaptome.models.dense_losses import IGNORED, hard_pixel_loss, pixel_loss
from adaptome.models.encoders import feature_maps, map_widths, smallest, stride
from adaptome.models.modality_segmenter import ModalitySegmenter
from adaptome.recipe import load_recipe, stages_of

TINY = {
    "model_type": "segformer", "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16], "patch_sizes": [3, 3],
    "strides": [2, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "drop_path_rate": 0.0,
}  # fmt: skip
B4 = {"model_type": "segformer", "depths": [3, 8, 27, 3], "hidden_sizes": [64, 128, 320, 512]}
BRANCHES = {"rgb": "encoders.rgb.*", "depth": "encoders.depth.*"}


def segmenter(**settings) -> ModalitySegmenter:
    torch.manual_seed(0)
    encoders = {name: {"from_config": TINY} for name in BRANCHES}
    made = composite_models()["modality-segmenter"].from_settings(
        **{"encoders": encoders, "width": 8, "labels": 4, **settings}
    )
    assert isinstance(made, ModalitySegmenter)
    return made.eval()


def banks(model: ModalitySegmenter, **settings) -> None:
    where = {"targets": ["all-linear", "norms", "convs"], "exclude": "decoder", "branches": BRANCHES}
    ad.attach(model, "missing-modality", **{**where, **settings})


def shake(model: torch.nn.Module) -> None:
    torch.manual_seed(2)
    for value in ad.parameters_of(model).values():
        value.data += 0.1 * torch.randn_like(value)


def views(*names: str, size=(30, 32)) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    made = {name: torch.randn(2, 3, *size) for name in BRANCHES}
    return {name: made[name] for name in names or BRANCHES}


def test_counts_at_full_size_from_the_recipe():
    (_, first), (_, second) = stages_of(load_recipe("missing-modality-mfnet"))
    settings = second.model.settings
    assert set(settings["encoders"].values()) == {"nvidia/mit-b4"}
    names = list(settings["encoders"])
    encoders = {one: {"from_config": B4} for one in names}
    with torch.device("meta"):
        model = ModalitySegmenter.from_settings(weights=False, **{**settings, "encoders": encoders, "labels": 9})  # fmt: skip
    told = second.methods[0]
    plan = ad.plan(model, told.name, targets=told.targets, exclude=told.exclude, **told.settings)
    # the sheet of a bank: 2 out of every linear layer, convolution and norm; the fusion adds 29 C / 2 a stage
    fusion = sum(29 * width // 2 for width in B4["hidden_sizes"])
    assert plan.trainable == 2 * (387_328 + fusion) == 804_352
    assert plan.trainable / 2 / sum(p.numel() for p in model.parameters()) < 0.007
    everything = ad.plan(model, first.methods[0].name, train=first.methods[0].train)
    assert everything.trainable == sum(p.numel() for p in model.parameters())


def test_banks_begin_as_the_network_and_the_full_set_stays_it():
    base, model = segmenter(), segmenter()
    banks(model)
    for given in (["rgb"], ["depth"], ["rgb", "depth"]):
        with ad.steer(available="+".join(given)):
            assert torch.equal(model(views(*given))["logits"], base(views(*given))["logits"])
    shake(model)
    with ad.steer(available={"rgb", "depth"}):
        assert torch.equal(model(views())["logits"], base(views())["logits"])
    with ad.steer(available="rgb"):
        assert not torch.equal(model(views("rgb"))["logits"], base(views("rgb"))["logits"])


def test_what_is_not_given_is_zeros_and_its_encoder_runs_on_them():
    model = segmenter()
    one = views("rgb")
    zeros = {**one, "depth": torch.zeros_like(one["rgb"])}
    assert torch.equal(model(one)["logits"], model(zeros)["logits"])
    # zeros in, but no zeros out: biases of the absent branch reach the fusion
    for name, value in model.encoders["depth"].named_parameters():
        value.data += 0.1 * name.endswith("bias")
    assert all(m.abs().sum() > 0 for m in feature_maps(model.encoders["depth"], zeros["depth"]))
    with pytest.raises(ModelError, match="takes rgb, depth, any of them but one at least; given: thermal"):
        model({"thermal": one["rgb"]})
    with pytest.raises(ModelError, match="given: nothing"):
        model.fused({})


def test_rows_that_lack_different_modalities_are_each_as_alone():
    model = segmenter()
    banks(model)
    shake(model)
    both = views()
    both["depth"][0], both["rgb"][1] = 0, 0
    for named in (("rgb", "depth"), ("depth", "rgb")):  # the banks find their columns by name
        rows = torch.tensor([["rgb" == n for n in named], ["depth" == n for n in named]])
        with ad.steer(available=rows, modalities=named):
            together = model(both)["logits"]
        for row, key in enumerate(("rgb", "depth")):
            with ad.steer(available=key):
                alone = model({n: v[row : row + 1] for n, v in both.items()})["logits"]
            torch.testing.assert_close(together[row : row + 1], alone, atol=1e-6, rtol=1e-5)
    with (
        ad.steer(available=rows, modalities=("rgb", "thermal")),
        pytest.raises(ad.AdaptomeError, match=r"steered for \['rgb', 'thermal'\]"),
    ):
        model(both)


def test_only_the_bank_of_the_set_trains_and_statistics_stay():
    model = segmenter()
    banks(model)
    before = {n: b.clone() for n, b in model.named_buffers() if "running" in n}
    assert before
    model.train()
    with ad.steer(available="depth"):
        model(views("depth"), torch.randint(0, 4, (2, 30, 32)))["loss"].backward()
    got = {n for n, p in model.named_parameters() if p.grad is not None}
    assert got and all(n.endswith((".g.depth", ".beta.depth")) for n in got)
    assert not any("encoders.rgb" in n for n in got)
    own = dict(model.named_buffers())
    assert all(torch.equal(own[n], b) for n, b in before.items())
    # a decoder that trains gathers statistics as ever
    fresh = segmenter().train()
    fresh(views(), torch.randint(0, 4, (2, 30, 32)))["loss"].backward()
    moved = dict(fresh.named_buffers())
    assert any(not torch.equal(moved[n], b) for n, b in before.items())


def test_a_folder_holds_every_encoder(tmp_path):
    model = segmenter()
    model.save_pretrained(tmp_path)
    again = ModalitySegmenter.from_pretrained(tmp_path).eval()
    assert again.modalities == ["rgb", "depth"] and sorted(again.parts()) == [
        "encoders.depth",
        "encoders.rgb",
    ]
    assert torch.equal(again(views())["logits"], model(views())["logits"])


def test_a_segformer_gives_a_map_a_stage():
    encoder = segmenter().encoders["rgb"]
    assert (map_widths(encoder), stride(encoder), smallest(encoder)) == ([8, 16], 4, 4)
    maps = feature_maps(encoder, torch.randn(1, 3, 32, 32))
    assert [tuple(m.shape) for m in maps] == [(1, 8, 16, 16), (1, 16, 8, 8)]


def test_models_that_do_not_go_together_are_told():
    with pytest.raises(RecipeError, match="is no set of modalities; name two or more"):
        segmenter(encoders={"rgb": {"from_config": TINY}})
    with pytest.raises(RecipeError, match="cannot be called 'keys'"):
        segmenter(encoders={"rgb": {"from_config": TINY}, "keys": {"from_config": TINY}})
    deeper = {**TINY, "num_encoder_blocks": 1, "depths": [1], "hidden_sizes": [8]}
    with pytest.raises(ModelError, match="rgb has 2 stages and depth 1"):
        segmenter(encoders={"rgb": {"from_config": TINY}, "depth": {"from_config": deeper}})
    vit = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 8, "image_size": 32}  # fmt: skip
    with pytest.raises(ModelError, match="ViTModel has no stages"):
        segmenter(encoders={"rgb": {"from_config": vit}, "depth": {"from_config": vit}})


def test_the_hard_loss_is_over_pixels_told_badly():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 8, 8) * 3, torch.randint(0, 3, (2, 8, 8))
    labels[0, :2] = IGNORED
    chance = logits.softmax(1).gather(1, labels.clamp(max=2)[:, None])[:, 0][labels != IGNORED]
    each = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")[labels != IGNORED]
    assert hard_pixel_loss(logits, labels).item() == pytest.approx(float(each[chance < 0.7].mean()))
    sure = F.one_hot(labels.clamp(max=2), 3).movedim(-1, 1) * 20.0
    sure[1, :, 0, 0] = 0  # one pixel is told badly: the worst sixteenth is taken
    found = F.cross_entropy(sure, labels, ignore_index=IGNORED, reduction="none")[labels != IGNORED]
    assert hard_pixel_loss(sure, labels).item() == pytest.approx(
        float(found.topk(len(found) // 16).values.mean())
    )
    assert float(hard_pixel_loss(logits, torch.full_like(labels, IGNORED))) == 0
    own = segmenter(loss="hard")
    truth = torch.randint(0, 4, (2, 30, 32))
    made = own(views(), truth)
    assert torch.equal(made["loss"], hard_pixel_loss(made["logits"], truth))
    assert made["loss"] >= pixel_loss(made["logits"], truth) - 1e-6


def test_an_absent_encoder_may_run_for_one_row_alone():
    runs, skips = segmenter(), segmenter()
    banks(runs)
    roots = ["encoders.rgb", "encoders.depth"]
    banks(skips, absent="skip", targets=["all-linear", "norms", "convs", *roots])
    shake(runs)
    shake(skips)
    rows: list[int] = []
    first = skips.encoders["depth"].get_submodule("stages.0.patch_embeddings.proj")
    first.register_forward_hook(lambda m, args, out: rows.append(len(args[0])))
    with torch.no_grad(), ad.steer(available="rgb"):
        torch.testing.assert_close(skips(views("rgb"))["logits"], runs(views("rgb"))["logits"])
    assert rows == [1]
