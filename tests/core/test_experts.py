"""Fused experts of transformers' models, whichever way round each class stores them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.adapter import Frozen
from tests.core.models import move, run

D, H, E = 16, 8, 3
IDS = torch.tensor([[1, 5, 19, 0, 7], [7, 7, 2, 3, 1]])
SHARED = {
    "vocab_size": 32, "hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "max_position_embeddings": 32, "tie_word_embeddings": False, "pad_token_id": 0,
}  # fmt: skip
MOE = {"intermediate_size": 20, "moe_intermediate_size": H, "num_experts_per_tok": 2}
LATENT = {
    "q_lora_rank": None,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "head_dim": 4,
}
#: model -> its text model's settings; experts of width H on D features
MODELS = {
    "Llama4ForCausalLM": ("Llama4TextConfig", {"intermediate_size": H, "intermediate_size_mlp": 20, "num_local_experts": E, "num_experts_per_tok": 1, "use_qk_norm": False, "attn_scale": 0.1}),
    "GptOssForCausalLM": ("GptOssConfig", {"intermediate_size": H, "num_local_experts": E, "num_experts_per_tok": 2}),
    "MixtralForCausalLM": ("MixtralConfig", {"intermediate_size": H, "num_local_experts": E, "num_experts_per_tok": 2}),
    "Qwen2MoeForCausalLM": ("Qwen2MoeConfig", {**MOE, "num_experts": E, "shared_expert_intermediate_size": 20}),
    "Qwen3MoeForCausalLM": ("Qwen3MoeConfig", {**MOE, "num_experts": E}),
    "OlmoeForCausalLM": ("OlmoeConfig", {"intermediate_size": H, "num_experts": E, "num_experts_per_tok": 2}),
    "DeepseekV3ForCausalLM": ("DeepseekV3Config", {**MOE, **LATENT, "n_routed_experts": E, "n_shared_experts": 1, "first_k_dense_replace": 0}),
}  # fmt: skip


def moe(name: str) -> nn.Module:
    import transformers

    config, own = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**{**SHARED, **own})).eval()
    with torch.no_grad():  # some classes leave their experts as they were in memory
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def by_expert(layer: nn.Module, up: torch.Tensor, down: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What the first expert makes of x, from its matrices [out, in]."""
    gate, value = (x @ up.T).chunk(2, -1)
    return (layer.act_fn(gate) * value) @ down.T


@pytest.mark.parametrize("name", MODELS)
def test_canonical_weights_are_out_by_in(name):
    model = moe(name)
    plan = ad.attach(model, "lora", r=2, targets="experts", seed=1)
    fused = [entry for entry in plan.entries if entry.kind == "experts"]
    shapes = {entry.path.rpartition(".")[2]: tuple(entry.shape) for entry in fused}
    assert shapes == {"gate_up_proj": (E, 2 * H, D), "down_proj": (E, D, H)}
    assert sum(entry.parameters for entry in fused) == E * 2 * (2 * H + D + D + H)
    move(model)
    for entry in fused:
        adapter = ad.adapters(model)["default"].adapters[entry.path]
        layer, name = adapter.host.layer, adapter.host.parameter
        stored = layer._parameters[name].detach()
        W = adapter.host.weight()
        assert torch.equal(W, stored) or torch.equal(W, stored.mT)
        changed = Frozen(layer, ()).weight(name)
        torch.testing.assert_close(changed - W, adapter.scale * adapter.B @ adapter.A, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_merging_equals_the_forward(name):
    model = moe(name)
    base = run(model, IDS)
    ad.attach(model, "lora", r=2, targets="experts", seed=1)
    torch.testing.assert_close(run(model, IDS), base)
    move(model)
    expected = run(model, IDS)
    assert not torch.allclose(expected, base, atol=1e-3)
    ad.merge(model)
    torch.testing.assert_close(run(model, IDS), expected, rtol=1e-4, atol=1e-4)


def test_an_expert_of_llama_4_computes_by_its_canonical_weights():
    model = moe("Llama4ForCausalLM")
    ad.attach(model, "lora", r=2, targets="experts", seed=1)
    move(model)
    (layer,) = {
        a.host.layer for a in ad.adapters(model)["default"].adapters.values() if a.host.kind == "experts"
    }
    x = torch.randn(4, D)
    up, down = (Frozen(layer, ()).weight(name)[0] for name in ("gate_up_proj", "down_proj"))
    with torch.no_grad():
        made = layer(torch.cat([x, torch.zeros(4 * (E - 1), D)]))[:4]
        torch.testing.assert_close(made, by_expert(layer, up, down, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("d", "h"), [(8, 4), (8, 8), (4, 8), (8, 16), (16, 4)])
@pytest.mark.parametrize("transposed", [False, True])
def test_shapes_tell_the_layout_whatever_the_sizes(d, h, transposed):
    from adaptome.core.hosts import ExpertsHost

    class SomeExperts(nn.Module):
        def __init__(self):
            super().__init__()
            up, down = (2, 2 * h, d), (2, d, h)
            for name, (e, a, b) in (("gate_up_proj", up), ("down_proj", down)):
                self.register_parameter(
                    name, nn.Parameter(torch.zeros((e, b, a) if transposed else (e, a, b)))
                )

    assert ExpertsHost(SomeExperts(), parameter="gate_up_proj").shape == (2, 2 * h, d)
    assert ExpertsHost(SomeExperts(), parameter="down_proj").shape == (2, d, h)
