"""LLaMA-Adapter: gated prompts in attentions (arXiv:2303.16199)."""

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import adaptome as ad
from adaptome.core.errors import HostError
from tests.methods.helpers import llama2_7b, llama3_8b, shake
from tests.methods.prompt.models import IDS, picture, tiny

CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def adapted(name, **how):
    model = tiny(name)
    ad.attach(model, "llama-adapter", p=3, seed=0, **how)
    shake(model, 0.5)
    return model


def logits(model, **more):
    with torch.no_grad():
        return model(input_ids=IDS, **more).logits


def split(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_it_is_the_equation_with_a_softmax_of_its_own_and_keys_that_are_not_rotated(name):
    model = adapted(name)
    layer = model.model.layers[0].self_attn
    prompt, x = layer.adaptome["default"], torch.randn(2, 5, 16, dtype=torch.float64)
    cos, sin = model.model.rotary_emb(x, torch.arange(5)[None])
    y = layer(x, position_embeddings=(cos, sin), attention_mask=None)[0]

    def normed(kind, value):
        return getattr(layer, f"{kind}_norm")(value) if name == "qwen3" else value

    q, k, v = (
        normed("q", split(layer.q_proj(x), 4)),
        normed("k", split(layer.k_proj(x), 2)),
        split(layer.v_proj(x), 2),
    )
    K, V = normed("k", split(layer.k_proj(prompt.P[None]), 2)), split(layer.v_proj(prompt.P[None]), 2)
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    out = torch.zeros_like(q)
    for head in range(4):
        kv = head // 2
        scores = q[:, head] @ k[:, kv].transpose(1, 2) / q.shape[-1] ** 0.5
        tokens = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf).softmax(-1) @ v[:, kv]
        own = (q[:, head] @ K[:, kv].transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ V[:, kv]
        out[:, head] = tokens + torch.tanh(prompt.g[head]) * own
    torch.testing.assert_close(y, layer.o_proj(out.transpose(1, 2).flatten(2)), **CLOSE)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "opt", "bert"])
def test_it_starts_as_the_base_bit_for_bit_and_its_gates_have_a_gradient(name):
    model = tiny(name)
    ad.attach(model, "llama-adapter", p=3)
    assert torch.equal(logits(model), logits(tiny(name)))
    model(input_ids=IDS).logits.square().sum().backward()
    for adapter in ad.adapters(model)["default"].adapters.values():
        assert adapter.g.grad.all() and not adapter.P.grad.any()
    with torch.no_grad():
        adapter.g.fill_(0.1)
    model.zero_grad()
    model(input_ids=IDS).logits.square().sum().backward()
    assert adapter.P.grad.any()


def test_t5_and_images_have_it_too():
    for name, more in (
        ("t5", {"input_ids": IDS, "decoder_input_ids": IDS}),
        ("vit", {"pixel_values": picture("vit")}),
        ("clip", {"pixel_values": picture("clip")}),
    ):
        model = adapted(name)
        with torch.no_grad():
            assert not torch.allclose(model(**more)[0], tiny(name)(**more)[0])


@pytest.mark.parametrize("name", ["llama", "mistral", "opt", "qwen3"])
def test_the_cache_makes_no_difference(name):
    model = adapted(name).float()
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    want = model.generate(IDS, use_cache=False, **how)
    assert torch.equal(model.generate(IDS, **how), want)
    assert torch.equal(model.generate(IDS, cache_implementation="static", **how), want)


def test_the_keys_and_values_of_the_prompts_pass_through_other_adapters():
    model = tiny("llama")
    ad.attach(model, "lora", "lora", targets=["k", "v"], r=2)
    shake_named(model, "lora")
    ad.attach(model, "llama-adapter", "prompts", p=3, seed=0)
    shake_named(model, "prompts")
    both = logits(model)
    ad.merge(model, "lora")
    torch.testing.assert_close(logits(model), both, **CLOSE)


def shake_named(model, name):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in ad.parameters_of(model, name).values():
            value.add_(0.4 * torch.randn(value.shape, generator=generator, dtype=value.dtype))


@pytest.mark.parametrize(
    ("name", "message"), [("gpt2", "one fused map; use prefix-tuning"), ("gptj", "attention interface")]
)
def test_an_attention_it_cannot_enter_is_refused(name, message):
    with pytest.raises(HostError, match=message):
        ad.attach(tiny(name), "llama-adapter")


def test_counts_are_the_papers():
    assert (
        ad.plan(llama2_7b(), "llama-adapter", layers="-30:").trainable == 30 * (10 * 4096 + 32) == 1_229_760
    )
    assert ad.plan(llama3_8b(), "llama-adapter").trainable == 32 * (10 * 4096 + 32), (
        "as wide as the input, whatever the groups"
    )
