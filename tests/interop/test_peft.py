"""PEFT folders, both ways: what is trained on one side gives the same outputs on the other."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

import adaptome as ad
from adaptome.core.errors import (
    CheckpointError,
    FormatError,
    KeyMismatchError,
    MergeError,
    NonFiniteError,
    TornFileError,
)

IDS = torch.randint(0, 30, (3, 5), generator=torch.Generator().manual_seed(1))


def bert():
    torch.manual_seed(0)
    config = BertConfig(
        initializer_range=0.2,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=30,
    )
    return BertForSequenceClassification(config).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=30, n_positions=16, initializer_range=0.2)
    ).eval()


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.second = nn.Conv1d(4, 6, 3)

    def forward(self, x):
        return self.second(self.first(x).flatten(1).view(len(x), 4, -1))


def logits(model, x=IDS):
    out = model(x)
    return out if isinstance(out, torch.Tensor) else out.logits


def shake(parameters):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in parameters:
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)


CASES = {
    "lora": (bert, "lora", {"r": 3, "alpha": 5.0}, ["query", "word_embeddings", "intermediate.dense"]),
    "rank pattern": (bert, "lora", {"r": 3, "per_layer": {"query": {"r": 2, "alpha": 9.0}}}, "attention"),
    "rslora": (bert, "lora", {"r": 4, "rslora": True}, "attention"),
    "pissa": (bert, "lora", {"r": 4, "init": "pissa"}, "attention"),
    "conv1d": (gpt2, "lora", {"r": 4}, "all-linear"),
    "convolutions": (Convolutions, "lora", {"r": 2}, "convs"),
    "dora": (bert, "dora", {"r": 4, "alpha": 3.0}, "attention"),
}


@pytest.mark.parametrize("case", CASES)
def test_export_loads_in_peft_with_the_same_outputs(case, tmp_path):
    make, method, settings, targets = CASES[case]
    x = torch.randn(2, 3, 8, 8) if make is Convolutions else IDS
    model = make()
    ad.attach(model, method, targets=targets, seed=0, **settings)
    shake(ad.parameters_of(model).values())
    report = ad.export(model, tmp_path / "peft", format="peft-dora" if method == "dora" else "peft-lora")
    assert report.worst == 0.0
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path / "peft").eval()
    assert not torch.allclose(logits(make(), x), logits(model, x), atol=1e-3)
    torch.testing.assert_close(logits(theirs, x), logits(model, x), rtol=1e-5, atol=1e-5)


THEIRS = {
    "lora": (bert, peft.LoraConfig(r=4, lora_alpha=7, target_modules=["query", "word_embeddings"], modules_to_save=["classifier"], rank_pattern={"query": 2}, alpha_pattern={"query": 3})),
    "rslora": (bert, peft.LoraConfig(r=4, use_rslora=True, target_modules=["key"])),
    "dora": (bert, peft.LoraConfig(r=4, use_dora=True, target_modules=["query", "output.dense"])),
    "ia3": (bert, peft.IA3Config(target_modules=["key", "intermediate.dense", "output.dense"], feedforward_modules=["output.dense"])),
    "norms": (bert, peft.LNTuningConfig(target_modules=["LayerNorm"])),
    "conv1d": (gpt2, peft.LoraConfig(r=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "convolutions": (Convolutions, peft.LoraConfig(r=2, target_modules=["first", "second"])),
}  # fmt: skip


@pytest.mark.parametrize("case", THEIRS)
def test_a_peft_folder_loads_with_the_same_outputs(case, tmp_path):
    make, config = THEIRS[case]
    x = torch.randn(2, 3, 8, 8) if make is Convolutions else IDS
    theirs = peft.get_peft_model(make(), config).eval()
    shake(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path / "theirs")
    model = make()
    base = logits(model, x)
    report = ad.load(model, tmp_path / "theirs")
    assert report.tensors > 0 and not torch.allclose(base, logits(model, x), atol=1e-3)
    torch.testing.assert_close(logits(model, x), logits(theirs, x), rtol=1e-5, atol=1e-5)
    ad.detach(model)
    torch.testing.assert_close(logits(model, x), base, rtol=0, atol=0)


def test_a_head_trained_here_is_in_modules_to_save(tmp_path):
    model = bert()
    ad.attach(model, "lora", targets="q", train=["classifier"])
    shake(ad.parameters_of(model).values())
    ad.export(model, tmp_path / "peft", task_type="SEQ_CLS")
    theirs = peft.PeftModel.from_pretrained(bert(), tmp_path / "peft").eval()
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)


def test_a_full_rank_method_is_truncated_and_its_error_told(tmp_path):
    model = bert()
    ad.attach(model, "dora", targets="q", r=2)
    shake(ad.parameters_of(model).values())
    with pytest.raises(MergeError, match="give the rank"):
        ad.export(model, tmp_path / "peft")
    low, full = ad.export(model, tmp_path / "low", rank=2), ad.export(model, tmp_path / "full", rank=16)
    assert low.worst > 0.05 and full.worst < 1e-5
    with pytest.raises(MergeError, match="Raise the rank"):
        ad.export(model, tmp_path / "refused", rank=2, tolerance=1e-3)
    assert not (tmp_path / "refused").exists()
    theirs = peft.PeftModel.from_pretrained(bert(), tmp_path / "full").eval()
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-4, atol=1e-4)


BOUNDED = {
    "hydra": ({"r": 2, "q": 3}, 5),
    "loha": ({"r": 3}, 9),
    "loha, wide": ({"r": 5}, 12),  # 25 is above the smaller side
    "clip-svd": ({"ratio": 1.0}, 12),
    "clip-svd, part": ({"ratio": 0.7}, 8),
    "loldu": ({"r": 5, "init": "uniform"}, 5),
    "lora": ({"r": 4, "init": "pissa"}, 8),
}


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
@pytest.mark.parametrize("case", BOUNDED)
def test_updates_of_bounded_rank_are_exported_exactly_and_truncated_when_asked(case, shape, tmp_path):
    settings, rank = BOUNDED[case]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(*shape, bias=False))
    ad.attach(model, case.partition(",")[0], targets="0", **settings)
    shake(ad.parameters_of(model).values())
    ad.activate(model, "default", weights={"default": 0.7})
    (adapter,) = ad.adapters(model)["default"].adapters.values()
    W = adapter.host.weight()
    dW = (0.7 * (adapter.changed("weight", W) - W)).detach()  # dense, as merging has it
    whole = ad.export(model, tmp_path / "whole")
    assert whole.worst == 0 and whole.rank == rank
    S = torch.linalg.svdvals(dW)
    for k in (rank, rank - 1, 2):
        report = ad.export(model, tmp_path / str(k), rank=k)
        assert report.rank == k
        best = float(S[k:].norm() / S.norm()) if k < rank else 0.0  # no rank-k matrix is nearer
        assert report.worst == pytest.approx(best, rel=1e-3, abs=1e-6)
        other = nn.Sequential(nn.Linear(*shape, bias=False))
        other.load_state_dict({"0.weight": W})
        ad.load(other, tmp_path / str(k))
        (read,) = ad.adapters(other)["default"].adapters.values()
        assert float((read.delta() - dW).norm() / dW.norm()) == pytest.approx(best, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("method", ["series", "parallel"])
def test_what_is_no_weight_update_is_refused(method, tmp_path):
    model = bert()
    ad.attach(model, method, targets="down")
    with pytest.raises(MergeError, match="no LoRA form"):
        ad.export(model, tmp_path / "peft")


@pytest.mark.parametrize("odd", [{"groups": 2}, {"dilation": 2}, {"padding": 1, "padding_mode": "reflect"}])
def test_a_convolution_that_peft_computes_otherwise_is_refused(odd, tmp_path):
    model = nn.Sequential(nn.Conv2d(4, 4, 3, **odd))
    ad.attach(model, "lora", targets="convs", r=2)
    with pytest.raises(MergeError, match="no exact form"):
        ad.export(model, tmp_path / "peft")


def peft_folder(tmp_path, **changes):
    peft.get_peft_model(bert(), peft.LoraConfig(target_modules=["query"])).save_pretrained(
        tmp_path / "theirs"
    )
    path = tmp_path / "theirs" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return tmp_path / "theirs"


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"peft_type": "TINYLORA"}, FormatError, "type 'TINYLORA'"),
        ({"trainable_token_indices": [1]}, FormatError, "trainable_token_indices"),
        ({"a_setting_of_tomorrow": 2}, FormatError, "a_setting_of_tomorrow"),
        ({"init_lora_weights": "pissa"}, FormatError, "changed the base"),
        ({"bias": "all"}, FormatError, "trained biases"),
        ({"use_dora": True}, KeyMismatchError, "a factor is missing"),
    ],
)
def test_what_would_change_the_numbers_is_refused(changes, error, words, tmp_path):
    model = bert()
    with pytest.raises(error, match=words):
        ad.load(model, peft_folder(tmp_path, **changes))
    assert ad.adapters(model) == {}


def test_faulty_files_are_refused(tmp_path):
    folder = peft_folder(tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    first = next(iter(tensors))
    save_file(
        tensors | {first: torch.full_like(tensors[first], float("nan"))}, folder / "adapter_model.safetensors"
    )
    with pytest.raises(NonFiniteError, match="hold NaN"):
        ad.load(bert(), folder)
    save_file({k: v for k, v in tensors.items() if k != first}, folder / "adapter_model.safetensors")
    with pytest.raises(KeyMismatchError, match="a factor is missing"):
        ad.load(bert(), folder)
    save_file(
        tensors | {"base_model.model.bert.pooler.dense.weight": torch.zeros(2)},
        folder / "adapter_model.safetensors",
    )
    with pytest.raises(KeyMismatchError, match="pooler"):
        ad.load(bert(), folder)
    (folder / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(TornFileError, match="not a whole"):
        ad.load(bert(), folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="never read"):
        ad.load(bert(), folder)


def test_an_adapter_of_a_larger_model_is_refused(tmp_path):
    folder = peft_folder(tmp_path)
    with pytest.raises(KeyMismatchError, match="matches no"):
        ad.load(gpt2(), folder)


# -- LoHa and LoKr -------------------------------------------------------------------------------------------------

PRODUCTS = {
    "loha": {"r": 3, "alpha": 5.0},
    "lokr": {"r": 2, "alpha": 3.0},
    "lokr whole": {"r": 99, "alpha": 99.0, "factor": 4},
    "lokr both": {"r": 1, "alpha": 3.0, "decompose_both": True, "init": "d"},
}


def shaken(model):
    with torch.no_grad():
        for value in ad.parameters_of(model).values():
            value.normal_(std=0.3, generator=torch.Generator().manual_seed(3))
    return model


@pytest.mark.parametrize("case", PRODUCTS)
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_loha_and_lokr_run_the_same_in_peft_and_come_back(case, kind, tmp_path):
    method = case.split()[0]
    make, targets, x = (bert, "all-linear", IDS) if kind == "linear" else (
        Convolutions, ["first"] if case in ("lokr", "lokr whole") else ["first", "second"], torch.randn(2, 3, 8, 8),
    )  # fmt: skip
    model = make()
    first = "bert.encoder.layer.1.output.dense" if kind == "linear" else "first"
    per_layer = {first: {"r": 1 if case != "lokr whole" else 98, "alpha": 7.0}}
    ad.attach(model, method, targets=targets, per_layer=per_layer, **PRODUCTS[case])
    expected = logits(shaken(model), x)
    assert not torch.allclose(expected, logits(make(), x), atol=1e-3)
    report = ad.export(model, tmp_path / "out", format=f"peft-{method}")
    assert report.worst == 0 and report.format == f"peft-{method}"
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path / "out").eval()
    torch.testing.assert_close(logits(theirs, x), expected, rtol=1e-4, atol=1e-5)
    theirs.save_pretrained(tmp_path / "again")
    for folder in ("out", "again"):
        other = make()
        ad.load(other, tmp_path / folder)
        torch.testing.assert_close(logits(other, x), expected, rtol=1e-5, atol=1e-6)
        assert ad.adapters(other)["default"].method.name == method


def test_what_peft_trained_as_loha_or_lokr_is_read(tmp_path):
    for config in (
        peft.LoHaConfig(r=2, alpha=6, target_modules=["query"], init_weights=False, rank_dropout=0.1),
        peft.LoKrConfig(r=2, alpha=6, target_modules=["query"], init_weights=False, alpha_pattern={"layer.1.attention.self.query": 3}),
    ):  # fmt: skip
        theirs = peft.get_peft_model(bert(), config).eval()
        theirs.save_pretrained(tmp_path / config.peft_type.value)
        ours = bert()
        ad.load(ours, tmp_path / config.peft_type.value)
        torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-4, atol=1e-5)


def test_an_adapters_share_goes_into_alpha(tmp_path):
    model = bert()
    ad.attach(model, "loha", targets="q", r=2)
    ad.activate(shaken(model), "default", {"default": 0.5})
    ad.export(model, tmp_path / "out", format="peft-loha")
    theirs = peft.PeftModel.from_pretrained(bert(), tmp_path / "out").eval()
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-4, atol=1e-5)


def test_products_that_peft_has_no_form_of_are_refused(tmp_path):
    model = gpt2()
    ad.attach(model, "loha", targets="attention")
    with pytest.raises(MergeError, match="peft-loha is written for linear layers, Conv1d and Conv2d"):
        ad.export(model, tmp_path / "out", format="peft-loha")
    with pytest.raises(MergeError, match="peft-lokr needs lokr; 'default' is loha"):
        ad.export(model, tmp_path / "out", format="peft-lokr")
    with pytest.raises(FormatError, match="There are peft, peft-lora, peft-dora, peft-loha, peft-lokr"):
        ad.export(model, tmp_path / "out", format="peft-lohaa")
    other = bert()
    ad.attach(other, "lokr", targets="q", per_layer={"*layer.1*": {"factor": 2}})
    with pytest.raises(MergeError, match="per_layer sets factor"):
        ad.export(other, tmp_path / "out", format="peft-lokr")
    conv = Convolutions()
    theirs = peft.get_peft_model(
        conv, peft.LoHaConfig(r=2, target_modules=["first"], use_effective_conv2d=True)
    )
    theirs.save_pretrained(tmp_path / "effective")
    with pytest.raises(FormatError, match="use_effective_conv2d"):
        ad.load(Convolutions(), tmp_path / "effective")
