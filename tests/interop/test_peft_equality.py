"""On the same base and the same adapter weights, PEFT's outputs and gradients, to 1e-5."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import adaptome as ad

IDS = torch.randint(0, 30, (3, 5), generator=torch.Generator().manual_seed(1))
#: our tensor -> PEFT's, by the end of the name
NAMES = {
    "A": "lora_A.default.weight",
    "B": "lora_B.default.weight",
    "m": "lora_magnitude_vector.default.weight",
    "l": "ia3_l.default",
}


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        initializer_range=0.2, attention_bias=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


LORA = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"]}
CASES = {
    "lora": (ad.LoRA(r=4, alpha=6.0), ["q", "v", "down"], lambda: peft.LoraConfig(**LORA)),
    "rslora": (ad.LoRA(r=4, alpha=6.0, rslora=True), ["q", "v", "down"], lambda: peft.LoraConfig(**LORA, use_rslora=True)),
    "dora": (ad.DoRA(r=4, alpha=6.0), ["q", "v", "down"], lambda: peft.LoraConfig(**LORA, use_dora=True)),
    "ia3": (
        ad.IA3(), ["k", "v", "down"],
        lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ),
    "norm-tuning": (ad.NormTuning(), "norms", lambda: peft.LNTuningConfig(target_modules=["input_layernorm", "post_attention_layernorm", "norm"])),
}  # fmt: skip


def partner(ours: str, theirs: dict[str, nn.Parameter]) -> nn.Parameter:
    """PEFT's parameter for one of ours."""
    path, _, last = ours.rpartition(".")
    ends = f"{path}.{NAMES[last]}" if last in NAMES else f"{path}.ln_tuning_layers.default.weight"
    [found] = [p for k, p in theirs.items() if k.endswith(ends)]
    return found


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_pefts(case):
    method, targets, config = CASES[case]
    model = llama()
    ad.attach(model, method, targets=targets)
    other = peft.get_peft_model(copy.deepcopy(llama()), config()).eval()
    theirs = dict(other.named_parameters())
    offset = case == "norm-tuning"  # ours is an offset of the norm's weight, theirs the weight
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in ad.parameters_of(model).items():
            parameter.add_(0.2 * torch.randn_like(parameter))
            twin = partner(name, theirs)
            twin.copy_(((twin + parameter) if offset else parameter).view(twin.shape))
    mine, peer = model(IDS, labels=IDS), other(IDS, labels=IDS)
    torch.testing.assert_close(mine.logits, peer.logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(mine.logits, llama()(IDS).logits, atol=1e-2)
    mine.loss.backward()
    peer.loss.backward()
    for name, parameter in ad.parameters_of(model).items():
        twin = partner(name, theirs)
        torch.testing.assert_close(
            parameter.grad,
            twin.grad.view(parameter.shape),
            rtol=1e-4,
            atol=1e-5,
            msg=lambda m, n=name: f"{n}: {m}",
        )
    assert ad.trainable(model).count == sum(p.numel() for p in other.parameters() if p.requires_grad)


@pytest.mark.parametrize("case", ["lora", "dora", "ia3"])
def test_merged_weights_are_pefts(case):
    method, targets, config = CASES[case]
    model = llama()
    ad.attach(model, method, targets=targets)
    other = peft.get_peft_model(copy.deepcopy(llama()), config()).eval()
    theirs = dict(other.named_parameters())
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in ad.parameters_of(model).items():
            parameter.add_(0.2 * torch.randn_like(parameter))
            partner(name, theirs).copy_(parameter.view(partner(name, theirs).shape))
    ad.merge(model, keep=False)
    merged = other.merge_and_unload().state_dict()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, merged[key], rtol=1e-5, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
