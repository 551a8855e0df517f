"""Conversion to LoRA: what is kept, what is told, and what a server is given."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import adaptome as ad
from adaptome.core.errors import MergeError
from adaptome.interop.convert import SERVED_RANKS
from tests.interop.test_peft_types import SIZES, logits, shake


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.2)).eval()


def batches(count=2):
    generator = torch.Generator().manual_seed(4)
    # few words make inputs that vary in few directions
    return [{"input_ids": torch.randint(0, 6, (4, 7), generator=generator)} for _ in range(count)]


def adapted(method, **settings):
    model = llama()
    ad.attach(model, method, targets=["q", "down"], **settings)
    shake(ad.parameters_of(model).values())
    return model


def in_peft(folder):
    return peft.PeftModel.from_pretrained(llama(), folder).eval()


def test_low_rank_methods_leave_whole_at_a_rank_that_servers_take(tmp_path):
    model = adapted("hydra", r=2, q=3)
    report = ad.convert(model, tmp_path / "out", batches=batches())
    assert report.rank == 8 and {c.rank for c in report.layers.values()} == {5}
    assert report.worst < 1e-5 and all(c.weight_error == c.output_error == 0 for c in report.layers.values())
    torch.testing.assert_close(logits(in_peft(tmp_path / "out")), logits(model), rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (
        config["r"] == config["lora_alpha"] == 8
        and not config["rank_pattern"]
        and not config["alpha_pattern"]
    )
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata()["sha256"] == report.sha256 and file.metadata()["method"] == "hydra"
    assert all(8 in v.shape for v in load_file(tmp_path / "out" / "adapter_model.safetensors").values())


def test_the_errors_told_are_those_of_the_file(tmp_path):
    model, data = adapted("dora", r=2), batches()
    report = ad.convert(model, tmp_path / "out", rank=6, batches=data, force=True)
    other = llama()
    ad.load(other, tmp_path / "out")
    seen = {}
    hooks = [
        a.host.layer.register_forward_pre_hook(lambda m, args, path=path: seen.setdefault(path, []).append(args[0].flatten(0, 1)))
        for path, a in ad.adapters(model)["default"].adapters.items()
    ]  # fmt: skip
    outputs = {k: [] for k in ("base", "adapted", "converted")}
    with torch.no_grad():
        for batch in data:
            outputs["adapted"].append(model(**batch).logits)
            outputs["converted"].append(other(**batch).logits)
            outputs["base"].append(llama()(**batch).logits)
    for hook in hooks:
        hook.remove()
    base, full, low = (torch.cat(outputs[k]) for k in ("base", "adapted", "converted"))
    assert report.output_error == pytest.approx(float((low - full).norm() / (full - base).norm()), rel=1e-3)
    theirs = ad.adapters(other)["default"].adapters
    for path, a in ad.adapters(model)["default"].adapters.items():
        W = a.host.weight()
        dW = (a.changed("weight", W) - W).detach()
        gap, x = dW - theirs[path].delta().detach(), torch.cat(seen[path])
        assert report.layers[path].weight_error == pytest.approx(float(gap.norm() / dW.norm()), rel=1e-3)
        told = float((x @ gap.T).norm() / (x @ dW.T).norm())
        assert report.layers[path].output_error == pytest.approx(told, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("method", ["dora", "fourierft", "oft"])
def test_weighing_by_the_inputs_gives_less_error_at_the_outputs(method, tmp_path):
    settings = {"dora": {"r": 2}, "fourierft": {"n": 200, "alpha": 500.0}, "oft": {"size": 4}}[method]
    model = adapted(method, **settings)
    how = {"rank": 4, "batches": batches(), "force": True}
    plain = ad.convert(model, tmp_path / "plain", weighted=False, **how)
    weighed = ad.convert(model, tmp_path / "weighed", **how)
    for path, told in weighed.layers.items():
        assert told.output_error <= plain.layers[path].output_error + 1e-9
        assert told.weight_error >= plain.layers[path].weight_error * (
            1 - 1e-6
        )  # no rank-4 matrix is nearer than the plain one
    assert weighed.output_error < 0.9 * plain.output_error
    unseen = {"input_ids": torch.randint(0, 6, (8, 7), generator=torch.Generator().manual_seed(9))}
    full = model(**unseen).logits
    errors = [(in_peft(tmp_path / k)(**unseen).logits - full).norm() for k in ("weighed", "plain")]
    assert errors[0] < errors[1]


def test_energy_and_error_choose_the_rank_layer_by_layer(tmp_path):
    model = adapted("dora", r=2)
    by_error = ad.convert(model, tmp_path / "error", max_error=0.2)
    assert all(c.weight_error <= 0.2 for c in by_error.layers.values())
    for path, a in ad.adapters(model)["default"].adapters.items():
        W = a.host.weight()
        S = torch.linalg.svdvals((a.changed("weight", W) - W).detach())
        left = [float(S[r:].norm() / S.norm()) for r in range(len(S) + 1)]
        assert by_error.layers[path].rank == next(r for r, e in enumerate(left) if e <= 0.2)
    by_energy = ad.convert(model, tmp_path / "energy", energy=0.96)
    assert {p: c.rank for p, c in by_energy.layers.items()} == {p: c.rank for p, c in by_error.layers.items()}
    assert len({c.rank for c in by_error.layers.values()}) > 1


def test_doras_magnitude_is_not_lost(tmp_path):
    model = adapted("dora", r=2)
    with torch.no_grad():
        for key, value in ad.parameters_of(model).items():
            if key.endswith(".m"):
                value.mul_(1.5)
    ad.convert(model, tmp_path / "out", max_error=1e-4, batches=batches())
    torch.testing.assert_close(logits(in_peft(tmp_path / "out")), logits(model), rtol=1e-3, atol=1e-3)


def test_what_would_lose_too_much_is_refused_unless_forced(tmp_path):
    model = adapted("oft", size=4)
    for data in (None, batches()):
        with pytest.raises(MergeError, match="nothing was written"):
            ad.convert(model, tmp_path / "out", rank=1, batches=data)
    assert not (tmp_path / "out").exists()
    assert ad.convert(model, tmp_path / "out", rank=1, force=True).worst > 0.1
    assert list(ad.adapters(model)) == ["default"] and ad.active(model) == ["default"]


def test_the_model_is_left_as_it_was(tmp_path):
    model = adapted("dora", r=2).train()
    ad.attach(model, "lora", "second", targets="k")
    shake(ad.parameters_of(model, "second").values())
    ad.activate(model, ["default", "second"], {"second": 0.5})
    before = logits(model)
    ad.convert(model, tmp_path / "out", rank=12, batches=batches(), force=True)
    assert ad.active(model) == ["default", "second"] and model.training
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


def test_wrong_choices_are_refused(tmp_path):
    model = adapted("oft", size=4)
    for choice, words in (
        ({"rank": 2, "energy": 0.5}, "not both"),
        ({"energy": 1.5}, "must be a share"),
        ({"rank": 0}, "at least 1"),
        ({}, "no bounded rank"),
    ):
        with pytest.raises(MergeError, match=words):
            ad.convert(model, tmp_path / "out", **choice)
    wide = nn.Sequential(nn.Linear(600, 600))
    ad.attach(wide, "oft", targets="0", size=20)
    shake(ad.parameters_of(wide).values())
    with pytest.raises(MergeError, match="above 512"):
        ad.convert(wide, tmp_path / "out", rank=560, force=True)


def test_heads_and_other_layers_are_told(tmp_path):
    model = llama()
    ad.attach(model, "lora", r=3, targets="q", train="lm_head")
    report = ad.convert(model, tmp_path / "out")
    assert any("lm_head" in note for note in report.notes) and "--max-lora-rank 8" in report.notes[0]
    assert "note: vLLM" in str(report) and report.to_dict()["rank"] == 8


def test_the_export_rules_hold_together(tmp_path):
    """One rank and one alpha, padded with zeros; the scale inside B; a rank that vLLM takes; the origin in the metadata; and PEFT reads it."""
    model = llama()
    model.config._name_or_path, model.config._commit_hash = "some/base", "abc123"
    ad.attach(
        model, "lora", r=9, alpha=27.0, targets="attention", per_layer={"k_proj": {"r": 2, "alpha": 1.0}}
    )
    shake(ad.parameters_of(model).values())
    report = ad.convert(model, tmp_path / "served", task_type="CAUSAL_LM")
    config = json.loads((tmp_path / "served/adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == report.rank == 16 and 16 in SERVED_RANKS
    assert config["rank_pattern"] == config["alpha_pattern"] == {} and not config["use_rslora"]
    assert config["base_model_name_or_path"] == "some/base" and config["revision"] == "abc123"
    with safe_open(tmp_path / "served/adapter_model.safetensors", "pt") as file:
        metadata, keys = file.metadata(), list(file.keys())
        (name,) = [k for k in keys if "layers.0.self_attn.k_proj.lora_A" in k]
        A, B = file.get_tensor(name), file.get_tensor(name.replace("lora_A", "lora_B"))
    assert A.shape[0] == B.shape[1] == 16 and not A[2:].any() and not B[:, 2:].any()
    layer = model.get_submodule("model.layers.0.self_attn.k_proj")
    torch.testing.assert_close(B @ A, layer.adaptome["default"].delta().detach())
    assert (metadata["base"], metadata["revision"]) == ("some/base", "abc123")
    assert metadata["sha256"] == report.sha256 and len(metadata["base_names_sha256"]) == 64
    card = (tmp_path / "served/README.md").read_text()
    assert card.startswith("---\nbase_model: some/base\n") and report.sha256 in card and "16 and 16" in card
    theirs = peft.PeftModel.from_pretrained(llama(), tmp_path / "served").eval()
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)


def test_the_card_names_no_path_of_this_machine(tmp_path):
    model = llama()
    model.config._name_or_path = str(tmp_path / "secret" / "place")
    ad.attach(model, "lora", r=2, targets="q")
    ad.export(model, tmp_path / "peft")
    card = (tmp_path / "peft/README.md").read_text()
    assert "secret" not in card and "base_model:" not in card and "PeftModel.from_pretrained" in card
