"""The library against the survey's table of methods (arXiv:2501.13787): every cell has a method here, or a reason why not."""

from __future__ import annotations

import typing

import pytest

import adaptome as ad
from adaptome.core.method import CATEGORIES, Export, Kind, Merge

METHODS = ad.list_methods()
KINDS = typing.get_args(Kind)

#: the survey's methods by cell -> ours
HERE: dict[tuple[str, str], dict[str, str]] = {
    ("selective", "LLM"): {
        "BitFit": "bitfit",
        "Masking": "sparse-delta",
        "Diff-pruning": "sparse-delta",
        "FISH mask": "fish-mask",
    },
    ("selective", "VFM"): {"bias tuning": "bitfit", "random columns": "paca"},
    ("selective", "VLM"): {"LayerNorm tuning": "norm-tuning"},
    ("selective", "VGM"): {"norm tuning": "norm-tuning"},
    ("additive", "LLM"): {
        "Houlsby": "houlsby",
        "series adapter": "series",
        "parallel adapter": "parallel",
        "AdapterFusion": "adapter-fusion",
        "LST": "lst",
    },
    ("additive", "VFM"): {"AdaptFormer": "adaptformer", "Convpass": "convpass", "SSF": "ssf"},
    ("additive", "VLM"): {
        "CLIP-Adapter": "clip-adapter",
        "Tip-Adapter": "tip-adapter",
    },
    ("prompt", "LLM"): {
        "Prompt tuning": "prompt-tuning",
        "P-tuning": "p-tuning",
        "Prefix-tuning, P-tuning v2": "prefix-tuning",
    },
    ("prompt", "VFM"): {"VPT": "vpt"},
    # the survey files LLaMA-Adapter under additive; what it adds is prompts
    ("prompt", "VLM"): {"CoOp": "coop", "LLaMA-Adapter": "llama-adapter"},
    ("reparameterisation", "LLM"): {
        "LoRA, QLoRA": "lora",
        "DoRA": "dora",
        "LoRA-FA": "lora-fa",
        "AdaLoRA": "adalora",
        "VeRA": "vera",
        "MoE-LoRA": "moe-lora",
        "IA3": "ia3",
    },
    ("reparameterisation", "VFM"): {"LoRA": "lora", "OFT": "oft", "BOFT": "boft", "FourierFT": "fourierft"},
    ("reparameterisation", "VLM"): {"LoRA": "lora", "CLIP-SVD": "clip-svd"},
    ("reparameterisation", "VGM"): {"LoHa": "loha", "LoKr": "lokr", "DiffuseKronA": "diffusekrona"},
    ("hybrid", "LLM"): {"UniPELT": "unipelt", "Compacter": "compacter", "MAM": "mam"},
}
COMPOSED = "made of several attachments; ad.attach them side by side"
#: the survey's methods by cell that are left out -> why
ELSEWHERE: dict[tuple[str, str], dict[str, str]] = {
    ("selective", "LLM"): {
        "layer subsets": "any layer trains whole with ad.attach(..., train=...)",
        "PASTA": "trains special tokens of classifiers, as rows of the embedding with train=...",
        "AutoFreeze": "freezes layers of full fine-tuning during training",
        "Child-Tuning": "full fine-tuning with masked gradients; its fixed mask is fish-mask's",
    },
    ("selective", "VFM"): {
        "linear and partial tuning": "train=... names the layers",
        "FC-CLIP": "a segmentation model",
    },
    ("selective", "VGM"): {
        "Tune-A-Video": "a video model's attention projections, trained whole with train=..."
    },
    ("additive", "LLM"): {
        "AdaMix": "random routing, then averaged",
        "MAD-X, BAD-X": COMPOSED,
        "AdapterDrop": "layers=... leaves blocks out",
        "AdapterBias": "bitfit's offsets with a token weight",
        "SparseAdapter": "pruning of adapters",
    },
    ("additive", "VFM"): {
        "ViT-Adapter": "a spatial pyramid beside a ViT for dense heads",
        "SAN, DTL": "side networks of one task",
    },
    ("additive", "VGM"): {
        "T2I-Adapter, IP-Adapter, I2V-Adapter": "whole conditioning networks: diffusers has them",
        "ControlNet, ControlNeXt": "whole conditioning networks: diffusers has them; divcontrol factorises their layers",
    },
    ("prompt", "LLM"): {
        "PET, null prompts, AutoPrompt": "text, or a search for text: nothing is trained",
        "PPT, SPoT, prompt transfer": "other starts of prompt-tuning",
        "DART, Y-tuning": "label spaces of classifiers",
    },
    ("prompt", "VFM"): {
        "DAM-VP": "clusters of visual prompts",
        "EVP, label mapping, LION": "prompts on pixels and labels",
    },
    ("prompt", "VLM"): {"OVSeg": "a segmentation model", "BLIP-2 queries": "a part of one model"},
    ("prompt", "VGM"): {
        "Textual Inversion": "new rows of the text encoder's embedding, with train=...; diffusers loads them"
    },
    ("reparameterisation", "LLM"): {
        "Delta-LoRA": "changes the base's weights as it trains",
        "MPO": "the tensor form is tlora's ring",
    },
    ("reparameterisation", "VLM"): {"low-rank sparse attention": "a change of one model's attention"},
    ("reparameterisation", "VGM"): {"Mix-of-Show": "fuses several finished LoRAs"},
    ("hybrid", "LLM"): {"design spaces": "a search over methods"},
    ("hybrid", "VFM"): {"NOAH": "a search over methods"},
    ("hybrid", "VGM"): {"DiffFit": COMPOSED, "V-PETL": COMPOSED},
}
#: cells in which the survey has nothing
EMPTY = {("hybrid", "VLM")}


def test_every_cell_of_the_survey_has_a_method_or_a_reason():
    cells = {(category, kind) for category in CATEGORIES for kind in KINDS}
    assert set(HERE) | set(ELSEWHERE) == cells - EMPTY
    assert all(reason for cell in ELSEWHERE.values() for reason in cell.values())


@pytest.mark.parametrize("cell", HERE, ids="-".join)
def test_what_the_table_names_is_registered_in_its_cell(cell):
    category, kind = cell
    missing = {theirs: ours for theirs, ours in HERE[cell].items() if ours not in METHODS}
    assert not missing
    for name in HERE[cell].values():
        assert (METHODS[name].category, kind in METHODS[name].models) == (category, True), name


@pytest.mark.parametrize("name", METHODS)
def test_a_query_of_the_registry_tells_the_surveys_columns(name):
    about = METHODS[name].about()
    assert about["category"] in CATEGORIES and about["subcategory"]
    assert about["models"] and set(about["models"]) <= set(KINDS)
    assert about["positions"] and about["added_parameters"]
    assert about["hosts"] or not METHODS[name].default_targets  # a probe sits on no layer
    assert about["merge"] in typing.get_args(Merge) and about["export"] in typing.get_args(Export)
    assert (about["merge"] == "exact") == (about["inference_overhead"] == "none after merge")
    for flag in ("structure_changed", "identity_at_init", "admits_packed", "per_sample_routing"):
        assert isinstance(about[flag], bool)


def test_positions_and_formulas_come_from_targets_and_documentation():
    assert METHODS["lora"].located() == ("attention", "MLP")
    assert METHODS["ia3"].located() == ("attention", "MLP")
    assert METHODS["norm-tuning"].located() == ("norm",)
    assert METHODS["petalface"].located() == ("attention",)
    assert METHODS["lora"].formula().startswith("r (in + out) per layer")
    assert METHODS["diffora"].formula().endswith("110,592 for 6 shared pairs")
    assert {n for n, m in METHODS.items() if m.per_sample_routing} >= {"moe-lora", "petalface", "divcontrol"}


@pytest.mark.parametrize("name", sorted(ad.list_methods()))
def test_every_method_says_when_to_take_it(name):
    rows = [line.split(None, 1) for line in (ad.list_methods()[name].__doc__ or "").splitlines()]
    (when,) = [row[1] for row in rows if row and row[0] == "when"]
    assert len(when) > 20
