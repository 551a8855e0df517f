"""Counts at full size, on the meta device: the tables of AST-PETL, LLM-Adapters, Polyhistor and the methods' own papers."""

import functools

import pytest

import adaptome as ad
from adaptome.architectures import build
from adaptome.core.errors import HostError


@functools.cache
def model(name):
    return build(name, task="features")


#: arXiv:2312.03694, 12 layers: method, settings -> at reductions 64, 96 and 128
AST = [
    ("pfeiffer", {}, (230_544, 156_768, 119_880)),
    ("pfeiffer", {"form": "parallel", "place": "before"}, (230_544, 156_768, 119_880)),
    ("conformer-adapter", {"kernel": 31}, (364_608, 252_288, 196_128)),
    ("conformer-adapter", {"kernel": 8}, (361_296, 250_080, 194_472)),
    ("conformer-adapter", {"kernel": 31, "pre_norm": False}, (346_176, 233_856, 177_696)),
]


@pytest.mark.parametrize("reduction", [64, 96, 128])
@pytest.mark.parametrize(("method", "settings", "counts"), AST)
def test_the_table_of_ast_petl(method, settings, counts, reduction):
    expected = counts[(64, 96, 128).index(reduction)]
    for targets in (["up", "down"], "mlp-blocks"):
        if method == "pfeiffer" and not settings and targets != "mlp-blocks":
            targets = "down"
        plan = ad.plan(model("ast-base"), method, reduction=reduction, targets=targets, **settings)
        assert plan.trainable == expected


def test_houlsby_doubles_pfeiffer_and_the_norms_in_front_come_by_train():
    ast = model("ast-base")
    assert ad.plan(ast, "houlsby", reduction=96).trainable == 2 * 156_768
    one = ad.plan(ast, "conformer-adapter", reduction=96, train="*.layernorm_after")
    assert one.trainable == 252_288 + 18_432
    assert one.trainable - 18_432 == pytest.approx(0.0029 * 86.2e6, rel=0.02)  # the abstract's share
    two = ad.plan(
        ast, "conformer-adapter", reduction=96, targets=["q", "o", "up", "down"],
        train=["*.layernorm_before", "*.layernorm_after"],
    )  # fmt: skip
    assert two.trainable == 2 * (252_288 + 18_432)


def test_its_lora_has_rank_768_over_the_reduction():
    assert ad.plan(model("ast-base"), "lora", r=round(768 / 64), targets=["q", "v"]).trainable == 442_368


@pytest.mark.parametrize(("name", "series", "parallel"), [
    ("llama-2-7b", 67_108_864, 247_463_936), ("llama-2-13b", 104_857_600, 387_973_120),
])  # fmt: skip
def test_llm_adapters_single_maps_and_whole_sublayers(name, series, parallel):
    llama = model(name)
    assert ad.plan(llama, "series", size=256).trainable == series
    assert ad.plan(llama, "pfeiffer", size=256, bias=False).trainable == series
    assert ad.plan(llama, "parallel", size=256).trainable == parallel
    # beside the whole MLP there is one bypass of its width, as many numbers as in series
    assert ad.plan(llama, "adaptformer", size=256, bias=False).trainable == series
    assert ad.plan(llama, "houlsby", size=256, bias=False).trainable == 2 * series


def test_the_repositorys_default_preset_before_gate_and_up_after_down():
    llama = model("llama-2-7b")
    before = ad.plan(llama, "series", size=256, place="before", targets=["gate", "up"]).trainable
    assert before == 134_217_728 and before + 67_108_864 == 201_326_592


def test_polyhistors_adapters_on_swin_tiny():
    swin = model("swin-t")
    shared = ad.plan(swin, "houlsby", reduction=4, train="norms")
    assert shared.trainable == 2_192_352
    adapters = ad.plan(swin, "houlsby", reduction=4).trainable
    assert adapters == 2 * (1_078_272 + 5_520)
    assert 4 * adapters + (shared.trainable - adapters) == 8_695_104  # four tasks, their norms in common


def test_four_tasks_are_four_adapters_of_which_one_trains_the_norms():
    swin = build("swin-t", task="features")
    for task in ("semseg", "parts", "saliency", "normals"):
        ad.attach(swin, "houlsby", task, reduction=4, train="norms" if task == "semseg" else ())
    assert ad.trainable(swin).count == 8_695_104


def test_compacter_is_its_formula():
    """4 (b + d) a layer for the matrices, arXiv:2106.04647, and n^3 in all; Compacter++ half of the layers' part."""
    roberta, b, d, n = model("roberta-base"), 24, 768, 4
    assert ad.plan(roberta, "compacter", size=b, terms=n, bias=False).trainable == 12 * 4 * (b + d) + n**3
    assert ad.plan(roberta, "compacter").trainable == 12 * (4 * (b + d) + 2 * (b + d)) + n**3 == 57_088
    plus = ad.plan(roberta, "compacter", targets="down", bias=False)
    assert plus.trainable == 12 * 2 * (b + d) + n**3 and plus.shared == 64
    ratio = ad.plan(roberta, "compacter").trainable / ad.plan(roberta, "houlsby", size=b).trainable
    assert ratio < 0.07


def test_compacter_refuses_what_its_terms_do_not_divide():
    with pytest.raises(HostError, match="terms = 5 does not divide the width 768 and the bottleneck 24"):
        ad.plan(model("roberta-base"), "compacter", terms=5)


@pytest.mark.parametrize(("method", "name", "settings", "count"), [
    ("adaptformer", "vit-b-16", {}, 1_189_632),
    ("convpass", "vit-b-16", {}, 327_552),
    ("convpass", "ast-base", {"dims": 1, "targets": ["up", "down"]}, 12 * (2 * 768 * 8 + 8 + 768 + 3 * 64 + 8)),
    ("soft-moa", "ast-base", {"reduction": 128}, 12 * 7 * (2 * 768 * 6 + 6 + 768 + 768)),
    ("soft-moa", "ast-base", {"reduction": 128, "routing": "dense"}, 12 * 7 * (2 * 768 * 6 + 6 + 768 + 769)),
])  # fmt: skip
def test_counts_that_the_docstrings_tell(method, name, settings, count):
    assert ad.plan(model(name), method, **settings).trainable == count


def test_adapter_fusion_has_three_square_matrices_a_layer():
    bert = build("bert-base", task="features")
    for name in ("a", "b"):
        ad.attach(bert, "pfeiffer", name)
    assert ad.plan(bert, "adapter-fusion", adapters=("a", "b")).trainable == 12 * 3 * 768**2 == 21_233_664


def test_peftcds_adapter_in_front_of_the_blocks():
    import torch
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    with torch.device("meta"):
        model = DINOv3ViTModel(
            DINOv3ViTConfig(
                hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
            )
        )
    method = ad.Series(size=32, activation="gelu", outer="gelu", bias=True, place="before")
    assert ad.plan(model, method, targets="blocks").trainable == 1_598_208
