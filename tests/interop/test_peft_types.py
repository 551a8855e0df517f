"""The types that PEFT and we both have, both ways: outputs equal to the installed PEFT's."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import adaptome as ad
from adaptome.core.errors import FormatError, KeyMismatchError, MergeError

IDS = torch.randint(0, 30, (3, 5), generator=torch.Generator().manual_seed(1))
SIZES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def llama(**more):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.2, attention_bias=True, **more)).eval()


def bert():
    torch.manual_seed(0)
    sizes = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
    return BertForSequenceClassification(BertConfig(**sizes, initializer_range=0.2)).eval()


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, x):
        return self.conv(x)


def logits(model, x=None):
    out = model(
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
        if _is_conv(model)
        else IDS
        if x is None
        else x
    )
    return out if isinstance(out, torch.Tensor) else out.logits


def _is_conv(model):
    return any(isinstance(m, Convolution) for m in model.modules())


def shake(parameters, std=0.1):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in parameters:
            p.add_(torch.randn(p.shape, generator=generator) * std)


#: case -> model, our method, its settings, targets, PEFT's configuration
CASES = {
    "ia3": (llama, "ia3", {}, None, peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "ia3 conv": (Convolution, "ia3", {"side": "output"}, "conv", peft.IA3Config(target_modules=["conv"], feedforward_modules=[])),
    "ia3 conv input": (Convolution, "ia3", {"side": "input"}, "conv", peft.IA3Config(target_modules=["conv"], feedforward_modules=["conv"])),
    "norms": (bert, "norm-tuning", {}, None, peft.LNTuningConfig(target_modules=["LayerNorm"])),
    "norm weights": (bert, "norm-tuning", {"bias": False}, None, None),
    "adalora": (llama, "adalora", {"r": 3, "init_r": 5, "alpha": 7.0}, ["q", "down"], peft.AdaLoraConfig(init_r=5, target_r=3, lora_alpha=7, total_step=10, target_modules=["q_proj", "down_proj"])),
    "vera": (llama, "vera", {"r": 6}, ["q", "down"], peft.VeraConfig(r=6, target_modules=["q_proj", "down_proj"])),
    "vera unsaved": (llama, "vera", {"r": 6}, ["q", "down"], peft.VeraConfig(r=6, target_modules=["q_proj", "down_proj"], save_projection=False, projection_prng_key=4)),
    "fourierft": (llama, "fourierft", {"n": 20}, ["q", "down"], peft.FourierFTConfig(n_frequency=20, scaling=90.0, target_modules=["q_proj", "down_proj"], n_frequency_pattern={"down_proj": 31})),
    "fourierft by layer": (llama, "fourierft", {"n": 20, "per_layer": {"down": {"n": 7}}}, ["q", "down"], None),
    "boft": (llama, "boft", {"size": 4, "factors": 1, "scale": True}, ["q", "down"], peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj", "down_proj"])),
    "boft dropout": (llama, "boft", {"size": 4, "factors": 1, "scale": True, "dropout": 0.5}, ["q"], peft.BOFTConfig(boft_block_size=4, boft_dropout=0.5, target_modules=["q_proj"])),
    "boft blocks": (llama, "boft", {"size": 2, "factors": 1}, ["q"], peft.BOFTConfig(boft_block_size=0, boft_block_num=4, target_modules=["q_proj", "down_proj"])),
    "beft": (llama, "ssf", {"scale": False}, ["v"], peft.BeftConfig(target_modules=["v_proj"])),
    "glora": (llama, "glora", {"r": 2, "A": "vector", "B": "vector", "C": "lora", "D": "vector", "E": "vector"}, ["q", "down"], peft.GloraConfig(r=3, target_modules=["q_proj", "down_proj"])),
    "road": (llama, "road", {"size": 4, "variant": 2}, ["q"], peft.RoadConfig(group_size=4, target_modules=["q_proj", "down_proj"])),
    "delora by layer": (llama, "delora", {"r": 2, "per_layer": {"down": {"r": 4}}}, ["q", "down"], peft.DeloraConfig(r=3, target_modules=["q_proj", "down_proj"])),
    "boft conv": (Convolution, "boft", {"size": 4, "factors": 1, "scale": True}, "conv", peft.BOFTConfig(boft_block_size=4, target_modules=["conv"])),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_what_we_write_runs_the_same_in_peft_and_comes_back(case, tmp_path):
    make, method, settings, targets, _ = CASES[case]
    model = make()
    ad.attach(model, method, targets=targets, **settings)
    shake(ad.parameters_of(model).values())
    report = ad.export(model, tmp_path / "out", format="peft")
    assert report.format == f"peft-{method}" and report.worst == 0
    assert not torch.allclose(logits(make()), logits(model), atol=1e-2)
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path / "out").eval()
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)
    again = make()
    ad.load(again, tmp_path / "out")
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [case for case, row in CASES.items() if row[4] is not None])
def test_what_peft_writes_runs_the_same_here(case, tmp_path):
    make, method, _, _, config = CASES[case]
    theirs = peft.get_peft_model(make(), config).eval()
    shake(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path / "theirs")
    model = make()
    assert ad.load(model, tmp_path / "theirs").method == method
    assert not torch.allclose(logits(make()), logits(model), atol=1e-2)
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_adalora_that_lost_triplets_keeps_its_scale(tmp_path):
    config = peft.AdaLoraConfig(
        init_r=5,
        target_r=3,
        lora_alpha=7,
        total_step=10,
        tinit=1,
        tfinal=1,
        deltaT=1,
        target_modules=["q_proj"],
    )
    theirs = peft.get_peft_model(llama(), config)
    shake(p for p in theirs.parameters() if p.requires_grad)
    for step in range(10):
        theirs(IDS, labels=IDS).loss.backward()
        theirs.base_model.update_and_allocate(step)
    theirs.eval().save_pretrained(tmp_path / "theirs")
    ranks = {
        v.shape[0]
        for k, v in load_file(tmp_path / "theirs" / "adapter_model.safetensors").items()
        if "lora_E" in k
    }
    assert min(ranks) < 5  # it did lose some
    model = llama()
    ad.load(model, tmp_path / "theirs")
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("factors", [2, 3])
def test_boft_with_butterflies_is_pefts(factors, tmp_path, monkeypatch):
    from peft.tuners.boft import layer as boft

    # without its CUDA kernel PEFT cuts the factors to one; the kernel's work, in torch
    monkeypatch.setattr(boft, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(
        boft.FastBlockDiag, "apply", lambda x: torch.stack([torch.block_diag(*blocks) for blocks in x])
    )
    config = peft.BOFTConfig(
        boft_block_size=2, boft_n_butterfly_factor=factors, target_modules=["q_proj", "down_proj"]
    )
    theirs = peft.get_peft_model(llama(), config).eval()
    shake((p for p in theirs.parameters() if p.requires_grad), 0.4)
    theirs.save_pretrained(tmp_path / "theirs")
    model = llama()
    ad.load(model, tmp_path / "theirs")
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-5)
    ad.export(model, tmp_path / "out", format="peft-boft")
    again = peft.PeftModel.from_pretrained(llama(), tmp_path / "out").eval()
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)


def test_a_projection_that_no_seed_gives_is_refused(tmp_path):
    theirs = peft.get_peft_model(llama(), peft.VeraConfig(r=6, target_modules=["q_proj"]))
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file(
        {k: v * 2 if k.endswith("vera_A") else v for k, v in tensors.items()},
        tmp_path / "adapter_model.safetensors",
    )
    model = llama()
    with pytest.raises(FormatError, match="only the seed is kept"):
        ad.load(model, tmp_path)
    assert ad.adapters(model) == {}


def test_a_weight_has_no_place_where_the_type_has_none(tmp_path):
    model = llama()
    ad.attach(model, "ia3")
    ad.activate(model, "default", {"default": 0.5})
    with pytest.raises(MergeError, match="no place for in PEFT"):
        ad.export(model, tmp_path / "out", format="peft-ia3")


# -- prompts -------------------------------------------------------------------------------------------------------


def last(model, n=IDS.shape[1]):
    """The logits of the tokens: PEFT's models return the prompts' too."""
    values = logits(model)
    return values[:, -n:] if values.dim() == 3 else values


PROMPTS = {
    "prompt": (llama, "prompt-tuning", {"p": 3}, "CAUSAL_LM", lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
    "prompt, classes": (bert, "prompt-tuning", {"p": 3, "place": "front"}, "SEQ_CLS", lambda: peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)),
    "p-tuning": (llama, "p-tuning", {"p": 3, "hidden": 10}, "CAUSAL_LM", lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=10)),
    "p-tuning lstm": (llama, "p-tuning", {"p": 3, "hidden": 10, "encoder": "lstm"}, "CAUSAL_LM", lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=10, encoder_reparameterization_type="LSTM")),
    "prefix": (llama, "prefix-tuning", {"p": 3, "std": 0.5}, "CAUSAL_LM", lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
    "prefix, made": (llama, "prefix-tuning", {"p": 3, "std": 0.5, "hidden": 7}, "CAUSAL_LM", lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=7)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", PROMPTS)
def test_prompts_run_the_same_in_peft(case, tmp_path):
    make, method, settings, task, _ = PROMPTS[case]
    model = make()
    ad.attach(model, method, **settings)
    shake(ad.parameters_of(model).values())
    ad.export(model, tmp_path / "out", format="peft", task_type=task)
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path / "out").eval()
    assert not torch.allclose(last(make()), last(model), atol=1e-2)
    torch.testing.assert_close(last(theirs), last(model), rtol=1e-5, atol=1e-5)
    again = make()
    ad.load(again, tmp_path / "out")
    torch.testing.assert_close(last(again), last(model), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", PROMPTS)
def test_prompts_of_peft_run_the_same_here(case, tmp_path):
    make, _, _, _, config = PROMPTS[case]
    theirs = peft.get_peft_model(make(), config()).eval()
    shake((p for p in theirs.parameters() if p.requires_grad), 0.5)
    theirs.save_pretrained(tmp_path / "theirs")
    model = make()
    ad.load(model, tmp_path / "theirs")
    assert not torch.allclose(last(make()), last(model), atol=1e-2)
    torch.testing.assert_close(last(model), last(theirs), rtol=1e-5, atol=1e-5)


def test_prompts_that_peft_has_no_place_for_are_refused(tmp_path):
    model = bert()
    ad.attach(model, "prompt-tuning", p=2)
    with pytest.raises(MergeError, match="place='front'"):
        ad.export(model, tmp_path / "out", format="peft", task_type="SEQ_CLS")
    with pytest.raises(MergeError, match="pass task_type"):
        ad.export(model, tmp_path / "out", format="peft")
    part = llama()
    ad.attach(part, "prefix-tuning", p=2, layers=[1])
    with pytest.raises(MergeError, match="every one of the 2 layers"):
        ad.export(part, tmp_path / "out", format="peft", task_type="CAUSAL_LM")


def test_a_prompt_of_another_length_is_refused(tmp_path):
    theirs = peft.get_peft_model(
        llama(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_virtual_tokens": 4}))
    model = llama()
    with pytest.raises(KeyMismatchError, match="has 3 rows"):
        ad.load(model, tmp_path)
    assert ad.adapters(model) == {}


# -- fused experts -------------------------------------------------------------------------------------------------


def qwen():
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **SIZES,
            num_experts=3,
            num_experts_per_tok=2,
            moe_intermediate_size=12,
            head_dim=4,
            initializer_range=0.2,
        )
    ).eval()


def oss():
    torch.manual_seed(0)
    return GptOssForCausalLM(
        GptOssConfig(
            **SIZES | {"num_hidden_layers": 1},
            num_local_experts=3,
            num_experts_per_tok=2,
            head_dim=4,
            initializer_range=0.2,
            layer_types=["full_attention"],
        )
    ).eval()


EXPERTS = {"stored [out, in]": qwen, "stored [in, out]": oss}
NAMES = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", EXPERTS)
@pytest.mark.parametrize("both", [True, False])
def test_lora_on_fused_experts_is_pefts_both_ways(case, both, tmp_path):
    make = EXPERTS[case]
    names = NAMES if both else NAMES[1:]
    model = make()
    ad.attach(
        model,
        "lora",
        r=2,
        targets=[*(f"*{n}" for n in names), "q"],
        per_layer={"*down_proj": {"r": 3, "alpha": 5.0}},
    )
    shake(ad.parameters_of(model).values())
    ad.export(model, tmp_path / "out")
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path / "out").eval()
    assert not torch.allclose(logits(make()), logits(model), atol=1e-2)
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)
    again = make()
    ad.load(again, tmp_path / "out")
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)

    config = peft.LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=["q_proj"],
        target_parameters=names,
        rank_pattern={"experts.down_proj": 3},
        use_rslora=both,
    )
    theirs = peft.get_peft_model(make(), config).eval()
    shake(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path / "theirs")
    model = make()
    ad.load(model, tmp_path / "theirs")
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-5)
    kinds = {a.host.kind for a in ad.adapters(model)["default"].adapters.values()}
    assert kinds == {"experts", "linear"}


@pytest.mark.filterwarnings("ignore")
def test_several_adapters_of_one_peft_model(tmp_path):
    theirs = peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    theirs.add_adapter(
        "other", peft.LoraConfig(r=3, target_modules=["down_proj"], modules_to_save=["lm_head"])
    )
    shake(p for n, p in theirs.named_parameters() if "lora_" in n or "modules_to_save" in n)
    theirs.eval().save_pretrained(tmp_path)
    model = llama()
    ad.load(model, tmp_path)
    ad.load(model, tmp_path / "other", name="other")
    for name in ("default", "other"):
        theirs.set_adapter(name)
        ad.activate(model, name)
        torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-5)
