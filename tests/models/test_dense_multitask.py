"""One encoder for several dense tasks: counts at full size, how tasks pass through it, and their losses."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import adaptome as ad
from adaptome.core.errors import ModelError
from adaptome.models import composite_models
from adaptome.models.dense_losses import LOSSES
from adaptome.models.dense_multitask import DenseMultitask
from adaptome.models.encoders import swin_maps

SWIN_T = {"model_type": "swin", "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7, "image_size": 448}  # fmt: skip
TINY = {"model_type": "swin", "image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4, "drop_path_rate": 0.0}  # fmt: skip
TASKS = {
    "semseg": {"kind": "classes", "outputs": 21},
    "human_parts": {"kind": "classes", "outputs": 7, "weight": 2},
    "sal": {"kind": "saliency", "outputs": 1, "weight": 5},
    "normals": {"kind": "normals", "outputs": 3, "weight": 10},
}
CHEAP = [
    "encoder.encoder.norms",
    "encoder.embeddings.norm",
    "*.patch_embeddings",
    "*.reduction",
    "*.relative_position_bias",
]


def dense(config=TINY, **settings) -> DenseMultitask:
    torch.manual_seed(0)
    made = composite_models()["dense-multitask"].from_settings(encoder={"from_config": config}, **{"tasks": TASKS, "width": 4, **settings})  # fmt: skip
    assert isinstance(made, DenseMultitask)
    return made.eval()


def mtlora(model: DenseMultitask, **settings) -> ad.Plan:
    given = {"r": 2, "task_r": 2, "specific": ["*.layers.0.blocks.0.*", "*.layers.1.blocks.1.*"], **settings}
    return ad.attach(model, "mtlora", targets="encoder.all-linear", exclude="*.reduction", **given)


def disturb(model: DenseMultitask, part: str) -> None:
    """Give every B of the adapters whose name has this part values."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".B" in name and part in name:
                torch.nn.init.normal_(p, std=0.3)


def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def labels() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    made = {t: torch.randint(0, n, (2, 16, 16), generator=g).byte() for t, n in (("semseg", 21), ("human_parts", 7), ("sal", 2))}  # fmt: skip
    return made | {"normals": F.normalize(torch.randn(2, 16, 16, 3, generator=g), dim=-1)}


@pytest.mark.parametrize("decoder,count", [("hrnet", 1_946_624), ("mlp", 2_537_504)])
def test_decoders_at_full_size_have_the_papers_counts(decoder, count):
    with torch.device("meta"):
        model = DenseMultitask.from_settings(
            weights=False, encoder={"from_config": SWIN_T}, tasks=TASKS, decoder=decoder
        )
    assert sum(p.numel() for p in model.decoders.parameters()) == count
    if decoder == "hrnet":
        last = [f"*.layers.{i}.blocks.{j}.*" for i, j in enumerate((1, 1, 5, 1))]
        plan = mtlora(model, r=16, task_r=4, specific=last, train=["decoders", *CHEAP])
        # q, k, v apart cost 6 C r, not 4 C r
        assert plan.trainable == 18 * 4416 * 16 + 69_120 * 4 + 1_599_546 + count
    else:
        plan = ad.attach(
            model,
            "polyhistor-lite",
            targets=["encoder.o", "encoder.down"],
            train=["encoder.norms", "decoders"],
        )
        assert plan.trainable == 394_344 + 4 * 32 + 2 * 5_520 + count


@pytest.mark.parametrize("decoder", ["hrnet", "mlp"])
def test_maps_are_the_stages_of_transformers_own(decoder):
    model = dense(decoder=decoder)
    merged = decoder == "hrnet"
    maps = swin_maps(model.encoder, pixels(), merged)
    states = model.encoder(pixels(), output_hidden_states=True).reshaped_hidden_states
    # theirs are merged ones, behind the embeddings
    assert [tuple(m.shape[1:]) for m in maps] == (
        [(16, 4, 4), (16, 4, 4)] if merged else [(8, 8, 8), (16, 4, 4)]
    )
    last = states[-1] if merged else model.encoder.layernorm(states[-1].movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(maps[-1], last)
    if merged:
        torch.testing.assert_close(maps[0], states[1])


@pytest.mark.parametrize("decoder", ["hrnet", "mlp"])
def test_every_way_of_passing_starts_alike(decoder):
    plain = dense(decoder=decoder)(pixels(), labels())
    for passes, method in (("streams", "mtlora"), ("each", "polyhistor-lite"), ("each", "mtlora")):
        model = dense(decoder=decoder, passes=passes)
        if method == "mtlora":
            mtlora(model)
        else:
            ad.attach(model, method, targets=["encoder.o", "encoder.down"], k=4, r=1)
        found = model(pixels(), labels())
        assert all(torch.allclose(found[key], plain[key], atol=1e-5) for key in plain), (passes, method)


@pytest.mark.parametrize("passes", ["streams", "each"])
def test_a_tasks_factors_move_its_own_map_alone_and_the_shared_ones_all(passes):
    model = dense(passes=passes)
    mtlora(model)
    before = model(pixels())
    disturb(model, ".sal")
    after = model(pixels())
    assert {t for t in TASKS if not torch.allclose(before[t], after[t], atol=1e-6)} == {"sal"}
    disturb(model, ".shared")
    assert all(not torch.allclose(after[t], made, atol=1e-6) for t, made in model(pixels()).items())


def test_a_tasks_loss_gives_other_tasks_no_gradient():
    model = dense(passes="streams")
    mtlora(model, train=["decoders"])
    disturb(model, "")
    model.train()(pixels(), {"sal": labels()["sal"]})["loss"].backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    others = [t for t in TASKS if t != "sal"]
    assert not [n for n in reached if any(f".{t}" in n for t in others)]
    assert any("decoders.sal" in n for n in reached) and any(n.endswith(".sal") for n in reached)
    assert any(n.endswith(".shared") for n in reached)


def test_one_pass_serves_all_tasks():
    """The encoder's patches are embedded once, and its first blocks see the batch once; a pass for each task does both four times."""
    rows: dict[str, int] = {}
    for passes in ("streams", "each"):
        model, seen = dense(passes=passes), []
        mtlora(model)
        hook = model.encoder.embeddings.register_forward_hook(
            lambda m, args, out, seen=seen: seen.append(len(args[0]))
        )
        model(pixels())
        hook.remove()
        rows[passes] = sum(seen)
    assert rows == {"streams": 2, "each": 2 * len(TASKS)}


def test_the_loss_is_the_weighed_sum_of_the_papers():
    model, given = dense(), labels()
    given["semseg"][0, :3] = 255
    given["normals"][1, :, :4] = 0
    made = model(pixels(), given)
    o = {t: made[t].double() for t in TASKS}
    known = given["semseg"] != 255
    ce = [
        F.cross_entropy(o[t].movedim(1, -1)[k], given[t][k].long())
        for t, k in (("semseg", known), ("human_parts", known | True))
    ]
    y, p = given["sal"].double(), o["sal"][:, 0].sigmoid()
    w = (y == 0).double().mean()
    bce = -(w * y * p.log() + (1 - w) * (1 - y) * (1 - p).log()).mean()
    there = given["normals"].abs().sum(-1) > 0
    n = F.normalize(o["normals"].movedim(1, -1), dim=-1)[there]
    l1 = (n - given["normals"][there].double()).abs().mean()
    torch.testing.assert_close(
        made["loss"].double(), ce[0] + 2 * ce[1] + 5 * bce + 10 * l1, atol=1e-5, rtol=1e-5
    )


def test_edges_and_depth():
    y = torch.tensor([[[0, 1], [255, 1]]], dtype=torch.uint8)
    o = torch.tensor([[[[0.5, -1.0], [3.0, 2.0]]]], dtype=torch.float64)
    p = o[0, 0].sigmoid()
    expected = -(0.05 * (1 - p[0, 0]).log() + 0.95 * (p[0, 1].log() + p[1, 1].log())) / 3
    torch.testing.assert_close(LOSSES["edges"](o, y).double(), expected, atol=1e-6, rtol=1e-6)
    depth = torch.tensor([[[1.0, 0.0], [2.0, 4.0]]])
    assert LOSSES["depth"](torch.ones(1, 1, 2, 2), depth) == pytest.approx((0 + 1 + 3) / 3)
    for kind, blank in (("depth", torch.zeros(1, 2, 2)), ("normals", torch.zeros(1, 2, 2, 3)), ("classes", torch.full((1, 2, 2), 255))):  # fmt: skip
        assert LOSSES[kind](torch.ones(1, 3, 2, 2), blank) == 0


def test_what_it_does_not_work_with_is_told():
    with pytest.raises(ModelError, match="works with Swin; ViTModel is none"):
        dense(
            {
                "model_type": "vit",
                "hidden_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "intermediate_size": 8,
            }
        )
    with pytest.raises(ModelError, match="needs tasks"):
        dense(tasks={})


def test_a_folder_brings_it_back(tmp_path):
    model = dense(passes="streams", decoder="mlp")
    model.save_pretrained(tmp_path)
    again = DenseMultitask.from_pretrained(tmp_path).eval()
    found, made = again(pixels()), model(pixels())
    assert list(found) == list(TASKS) and all(torch.equal(found[t], made[t]) for t in TASKS)
