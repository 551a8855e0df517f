"""Prefix tuning: every architecture's attention with trained keys and values (arXiv:2101.00190, 2110.07602, 2304.01933, 2312.03694)."""

import copy
import pickle
import warnings

import pytest
import torch
from transformers import ASTConfig, ASTModel, DynamicCache

import adaptome as ad
from adaptome.core.errors import HostError, MethodError, StateError
from tests.methods.helpers import llama, llama2_7b, llama3_8b, shake
from tests.methods.prompt.models import DECODERS, ENCODERS, IDS, IMAGES, TWO_SIDED, picture, tiny

P = 3
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
SINGLE = {
    "rtol": 1e-5,
    "atol": 1e-5,
}  # some attentions take their softmax, and all rotations their angles, in float32


def prefixed(name, *, dtype=torch.float64, **settings):
    model = tiny(name, dtype)
    ad.attach(model, "prefix-tuning", p=P, seed=0, **settings)
    shake(model, 0.5)
    return model


def pairs(model):
    return list(ad.adapters(model)["default"].adapters.values())


def logits(model, ids=IDS, **more):
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


# -- the equation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in DECODERS if n not in ("bloom", "mistral")])
@pytest.mark.parametrize("how", ["eager", "sdpa"])
def test_a_decoder_equals_its_base_with_the_prefix_in_its_cache(name, how):
    model, base = prefixed(name), tiny(name)
    if name != "gptj":
        model.set_attn_implementation(how)
    cache = DynamicCache()
    for number, pair in enumerate(pairs(model)):
        cache.update(
            *(value[None].repeat(2, 1, 1, 1) for value in (pair.K.detach(), pair.V.detach())), number
        )
    ones, places = torch.ones(2, P + 7, dtype=torch.long), torch.arange(7)[None].repeat(2, 1)
    want = logits(base, past_key_values=cache, attention_mask=ones, position_ids=places)
    torch.testing.assert_close(logits(model, use_cache=False), want, **(CLOSE if how == "sdpa" else SINGLE))
    assert not torch.allclose(want, logits(base))


def attend(q, k, v, hidden=None, bias=0.0, scale=None):
    """Softmax attention in full: q [b, h, q, w], k and v [b, h, k, w], hidden [q, k] true where a key is not seen."""
    scores = torch.einsum("bhqw,bhkw->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale) + bias
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    return torch.einsum("bhqk,bhkw->bhqw", scores.softmax(-1), v)


def by_heads(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


@pytest.mark.parametrize(
    ("name", "path"),
    [("vit", "layers.0.attention"), ("ast", "layers.1.attention"), ("clip", "encoder.layers.0.self_attn")],
)
def test_a_vision_attention_is_the_equation_and_the_prefix_stands_after_the_first_token(name, path):
    model = prefixed(name)
    layer = model.get_submodule(path)
    pair, maps = layer.adaptome["default"], dict(layer.named_children())
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    q, k, v = (by_heads(maps[f"{part}_proj"](x), 4) for part in "qkv")
    K, V = (value.expand(2, -1, -1, -1) for value in (pair.K, pair.V))
    # [k_CLS, K, k_rest], as AST-PETL writes it; among keys the order makes no difference
    out = attend(q, torch.cat([k[:, :, :1], K, k[:, :, 1:]], 2), torch.cat([v[:, :, :1], V, v[:, :, 1:]], 2))
    out = maps["o_proj" if "o_proj" in maps else "out_proj"](out.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x)[0], out, **CLOSE)
    model.set_attn_implementation("eager")
    y, weights = layer(x)
    torch.testing.assert_close(y, out, **SINGLE)
    assert weights.shape == (2, 4, 5, 5 + P), "queries stay, keys grow"


def test_bloom_is_the_equation_with_the_prefix_at_the_first_tokens_distance():
    layer = prefixed("bloom").transformer.h[0].self_attention
    pair, x = layer.adaptome["default"], torch.randn(2, 5, 16, dtype=torch.float64)
    slopes = torch.tensor([2 ** (-8 * (h + 1) / 4) for h in range(4)], dtype=torch.float64)
    alibi = (slopes[:, None] * torch.arange(5)).repeat(2, 1).unsqueeze(1)
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    mask = torch.zeros(1, 1, 5, 5, dtype=torch.float64).masked_fill(hidden, torch.finfo(torch.float64).min)
    y = layer(x, residual=torch.zeros_like(x), alibi=alibi, attention_mask=mask)[0]
    q, k, v = layer.query_key_value(x).view(2, 5, 4, 3, 4).permute(3, 0, 2, 1, 4)
    k, v = (torch.cat([own.expand(2, -1, -1, -1), value], 2) for own, value in ((pair.K, k), (pair.V, v)))
    bias = torch.cat([torch.zeros(4, P), slopes[:, None] * torch.arange(5)], 1)[None, :, None]
    out = attend(q, k, v, torch.cat([torch.zeros(5, P, dtype=torch.bool), hidden], 1), bias)
    torch.testing.assert_close(y, layer.dense(out.transpose(1, 2).flatten(2)), **SINGLE)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_t5_is_the_equation_without_a_position_bias_on_the_prefix(side):
    model = prefixed("t5")
    layer = getattr(model, side).block[0].layer[0].SelfAttention
    pair, x = layer.adaptome["default"], torch.randn(1, 5, 16, dtype=torch.float64)
    causal = side == "decoder"
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1) if causal else torch.zeros(5, 5, dtype=torch.bool)
    y, position_bias = layer(x)[:2]
    q, k, v = (by_heads(getattr(layer, part)(x), 4) for part in "qkv")
    k, v = torch.cat([pair.K[None], k], 2), torch.cat([pair.V[None], v], 2)
    bias = torch.cat([torch.zeros(1, 4, 5, P), position_bias], -1)
    out = attend(q, k, v, torch.cat([torch.zeros(5, P, dtype=torch.bool), hidden], 1), bias, scale=1.0)
    torch.testing.assert_close(y, layer.o(out.transpose(1, 2).flatten(2)), **CLOSE)


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS, *TWO_SIDED, *IMAGES])
def test_every_kind_runs_trains_and_is_the_same_by_both_kernels(name):
    model = prefixed(name)
    more = (
        {"pixel_values" if name not in ("ast",) else "input_values": picture(name)}
        if name in IMAGES
        else {"input_ids": IDS}
    )
    if name in TWO_SIDED:
        more["decoder_input_ids"] = IDS
    first = model(**more)[0]
    first.square().sum().backward()
    ad.check_gradients(model)
    assert all(p.grad is not None and p.grad.any() for p in ad.parameters_of(model).values())
    with torch.no_grad():
        with ad.disabled(model):
            assert not torch.allclose(model(**more)[0], first)
        if name not in ("gptj", "bloom"):
            model.set_attn_implementation("eager")
        torch.testing.assert_close(model(**more)[0], first, **SINGLE)
    assert not any(type(m.config).__name__ == "StandIn" for m in model.modules() if hasattr(m, "config"))


def test_a_padded_token_is_not_seen_and_a_prefix_is():
    model = prefixed("bert")
    mask = torch.ones_like(IDS)
    mask[1, 4:] = 0
    changed = IDS.clone()
    changed[1, 4:] = 7
    one, two = logits(model, attention_mask=mask), logits(model, changed, attention_mask=mask)
    torch.testing.assert_close(one, two, **CLOSE)


# -- generating ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DECODERS, *TWO_SIDED])
def test_the_cache_makes_no_difference(name):
    model, mask = prefixed(name, dtype=torch.float32), torch.ones_like(IDS)
    mask[0, :3] = 0
    how = {"max_new_tokens": 7, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    want = model.generate(IDS, attention_mask=mask, use_cache=False, **how)
    assert torch.equal(model.generate(IDS, attention_mask=mask, **how), want)
    assert torch.equal(model.generate(IDS, attention_mask=mask, cache_implementation="static", **how), want)
    beams = model.generate(IDS, attention_mask=mask, num_beams=3, **how)
    assert torch.equal(beams, model.generate(IDS, attention_mask=mask, num_beams=3, use_cache=False, **how))
    if name in DECODERS:  # left padding changes nothing either
        with ad.disabled(model):
            assert not torch.equal(model.generate(IDS, attention_mask=mask, **how), want)
        assert torch.equal(model.generate(IDS[:1, 3:], **how), want[:1, 3:])


def test_the_cache_holds_tokens_alone():
    cache = DynamicCache()
    logits(prefixed("llama"), past_key_values=cache)
    assert cache.get_seq_length() == 7


def test_the_prefix_stays_in_a_sliding_window():
    model = prefixed("mistral")
    layer, hidden = model.model.layers[0].self_attn, torch.ones(7, 7, dtype=torch.bool)
    seen = hidden.tril() & hidden.triu(-2)  # a window of 3
    caught = []
    handle = layer.register_forward_hook(
        lambda m, args, kwargs, out: caught.append((kwargs, out[0])), with_kwargs=True
    )
    logits(model, use_cache=False)
    handle.remove()
    (more, y), pair = caught[0], layer.adaptome["default"]
    x = more["hidden_states"]
    from transformers.models.mistral.modeling_mistral import apply_rotary_pos_emb

    q, k = apply_rotary_pos_emb(
        by_heads(layer.q_proj(x), 4), by_heads(layer.k_proj(x), 2), *more["position_embeddings"]
    )
    k, v = (
        torch.cat([own.expand(2, -1, -1, -1), value], 2).repeat_interleave(2, 1)
        for own, value in ((pair.K, k), (pair.V, by_heads(layer.v_proj(x), 2)))
    )
    out = attend(q, k, v, torch.cat([torch.zeros(7, P, dtype=torch.bool), ~seen], 1))
    torch.testing.assert_close(y, layer.o_proj(out.transpose(1, 2).flatten(2)), **CLOSE)


def test_every_packed_sequence_sees_the_prefix():
    model = prefixed("llama")
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    packed = logits(model, IDS[:1], position_ids=places, use_cache=False)
    apart = [logits(model, part, use_cache=False) for part in (IDS[:1, :4], IDS[:1, 4:])]
    torch.testing.assert_close(packed, torch.cat(apart, 1), **CLOSE)


@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_a_share_of_the_effect_beside_a_cache(name):
    """An attention whose prefix enters by what stands in for its cache has no share beside one."""
    model = prefixed(name)
    ad.activate(model, "default", weights={"default": 0.5})
    plain = logits(model, use_cache=False)
    if name == "llama":
        torch.testing.assert_close(
            logits(model, past_key_values=DynamicCache(), use_cache=True), plain, **CLOSE
        )
        return
    with pytest.raises(StateError, match="use_cache=False"):
        logits(model, past_key_values=DynamicCache(), use_cache=True)


def test_kernels_with_masks_of_their_own_are_refused():
    model = prefixed("llama", dtype=torch.float32)
    model.set_attn_implementation("flex_attention")
    layer, x = model.model.layers[0].self_attn, torch.randn(1, 5, 16)
    with pytest.raises(HostError, match="set_attn_implementation\\('sdpa'\\)"):
        layer(x, position_embeddings=model.model.rotary_emb(x, torch.arange(5)[None]))


# -- together ------------------------------------------------------------------------------------------------------


def test_two_prefixes_are_one_long_one():
    model, other = prefixed("llama"), tiny("llama")
    ad.attach(model, "prefix-tuning", "second", p=2, seed=1)
    ad.attach(other, "prefix-tuning", p=P + 2)
    for a, b, both in zip(
        pairs(model), ad.adapters(model)["second"].adapters.values(), pairs(other), strict=True
    ):
        both.K.data, both.V.data = torch.cat([b.K, a.K], 1), torch.cat([b.V, a.V], 1)
    torch.testing.assert_close(logits(model), logits(other), **CLOSE)
    ad.activate(model, "second")
    ad.detach(other)
    ad.detach(model)
    assert torch.equal(logits(model), logits(other))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    grads = []
    for on in (False, True):
        model = prefixed("llama").train()
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        grads.append([p.grad for p in ad.parameters_of(model).values()])
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two, **CLOSE)


def test_bf16_keeps_its_type_and_an_error_inside_leaves_the_config():
    model = prefixed("llama", dtype=torch.bfloat16)
    assert logits(model).dtype == torch.bfloat16
    assert pairs(model)[0].K.dtype == torch.float32
    layer = model.model.layers[0].self_attn
    config = layer.config
    with pytest.raises(Exception, match="mat|shape|dimension|size"):
        layer(torch.randn(1, 2, 5))
    assert layer.config is config


def test_copies_and_pickles_use_their_own_prefix():
    model = prefixed("bert")
    before = logits(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other), before)
        shake(other, 1.0, seed=8)
        assert not torch.allclose(logits(other), before)
    assert torch.equal(logits(model), before)


def test_latent_and_foreign_attentions_are_refused_when_it_is_attached():
    from transformers import DebertaV2Config, DebertaV2Model, DeepseekV3Config, DeepseekV3Model

    size = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    latent = DeepseekV3Model(
        DeepseekV3Config(**size, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4, first_k_dense_replace=1)
    )  # fmt: skip
    with pytest.raises(HostError, match="latents; use prompt-tuning"):
        ad.attach(latent, "prefix-tuning")
    with pytest.raises(
        HostError, match="does not compute its attention by transformers' attention interface"
    ):
        ad.attach(DebertaV2Model(DebertaV2Config(**size)), "prefix-tuning")


# -- starts and the MLP --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral"])
def test_started_from_words_it_is_the_model_with_the_words_before_the_text(name):
    model, words = tiny(name), [9, 4, 12]
    if name == "mistral":
        model.config.sliding_window = None
        model = type(model)(model.config).double().eval()
    base = copy.deepcopy(model)
    ad.attach(model, "prefix-tuning", p=3)
    with pytest.raises(MethodError, match="p=2"):
        ad.prompt_from(model, [3, 4])
    ad.prompt_from(model, words)
    want = logits(base, torch.cat([torch.tensor([words] * 2), IDS], 1))[:, 3:]
    torch.testing.assert_close(logits(model), want, **SINGLE)


def test_where_it_cannot_start_from_words_it_says_so():
    model = tiny("bart")
    ad.attach(model, "prefix-tuning", p=3)
    with pytest.raises(StateError, match="reads two texts"):
        ad.prompt_from(model, [1, 2, 3])
    with pytest.raises(StateError, match="no tokenizer"):
        ad.prompt_from(model, "a b c")
    model = tiny("llama")
    ad.attach(model, "lora")
    with pytest.raises(StateError, match="no start from text"):
        ad.prompt_from(model, [1])
    ad.attach(model, "prefix-tuning", "mlp", hidden=8)
    with pytest.raises(MethodError, match="hidden=0"):
        ad.prompt_from(model, [1], name="mlp")


def test_the_mlp_is_the_equation_and_goes_without_a_trace():
    model = prefixed("llama", hidden=6)
    trunk = ad.adapters(model)["default"].shared
    middle = torch.tanh(trunk.E @ trunk.W.T + trunk.b)
    for pair in pairs(model):
        made = (middle @ pair.U.T + pair.u).view(P, 2, 2, 4)
        torch.testing.assert_close(pair.values()[0], made[:, 0].transpose(0, 1))
        torch.testing.assert_close(pair.values()[1], made[:, 1].transpose(0, 1))
    plan = ad.plan(tiny("llama"), "prefix-tuning", p=P, hidden=6)
    assert plan.trainable == ad.trainable(model).count == 6 * (P + 6 + 1) + 2 * 16 * 7
    model(input_ids=IDS).logits.square().sum().backward()
    assert all(p.grad.any() for p in ad.parameters_of(model).values())
    ad.attach(model, "lora", "other", targets="q")
    before = logits(model)
    ad.plain_prompt(model)
    assert ad.active(model) == ["default", "other"] and ad.adapters(model)["default"].shared is None
    assert {k.rpartition(".")[2] for k in ad.parameters_of(model)} == {"K", "V"}
    torch.testing.assert_close(logits(model), before, **CLOSE)
    with pytest.raises(StateError, match="no network makes"):
        ad.plain_prompt(model)


def test_the_mlp_is_saved_whole(tmp_path):
    model, other = prefixed("bert", hidden=4), tiny("bert")
    ad.save(model, tmp_path / "a")
    ad.load(other, tmp_path / "a")
    assert torch.equal(logits(other), logits(model))


def test_a_budget_finds_the_length():
    plan = ad.plan(tiny("llama"), "prefix-tuning", budget=2 * 2 * 2 * 4 * 11)
    assert plan.settings["p"] == 11 and plan.trainable == 2 * 2 * 2 * 4 * 11


# -- counts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "p", "count"),
    [
        (llama2_7b, 30, 7_864_320),  # the survey, and the 0.11 % of papers on LoRA's relatives
        (llama2_7b, 10, 2_621_440),  # LLM-Adapters
        (lambda: llama(5120, 13824, 40, 40, 40), 10, 4_096_000),  # the same, 13B
        (llama3_8b, 30, 2 * 32 * 30 * 8 * 128),  # the heads of keys and values, not of queries
    ],
)  # fmt: skip
def test_counts_are_the_papers(model, p, count):
    assert ad.plan(model(), "prefix-tuning", p=p).trainable == count


def test_ast_splits_its_tokens_between_keys_and_values():
    with torch.device("meta"):
        model = ASTModel(ASTConfig())
    assert ad.plan(model, "prefix-tuning", p=24 // 2).trainable == 221_184


# -- LAE's form ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train_scale", [False, True])
@pytest.mark.parametrize("how", ["eager", "sdpa"])
def test_a_compensated_prefix_weighs_one_beside_the_tokens(train_scale, how):
    model = prefixed("vit", compensate=True, train_scale=train_scale)
    model.set_attn_implementation(how)
    layer = model.get_submodule("layers.0.attention")
    pair, maps = layer.adaptome["default"], dict(layer.named_children())
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    q, k, v = (by_heads(maps[f"{part}_proj"](x), 4) for part in "qkv")
    K, V = (value.expand(2, -1, -1, -1) for value in (pair.K, pair.V))
    if train_scale:
        assert pair.s.shape == (2,) and not torch.equal(pair.s, torch.ones(2))
        K, V = pair.s[0] * K, pair.s[1] * V
    a = (torch.cat([K, k], 2) @ q.mT).mT.mul(0.5).softmax(-1)
    share = a[..., :P].sum(-1, keepdim=True)
    out = a[..., P:] @ v + (a[..., :P] / share) @ V
    out = maps["o_proj" if "o_proj" in maps else "out_proj"](out.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x)[0], out, **(CLOSE if how == "sdpa" else SINGLE))


@pytest.mark.parametrize("name", ["llama", "gpt2", "vit"])
def test_compensated_prefixes_train_in_decoders_with_grouped_heads_too(name, tmp_path):
    model = prefixed(name, compensate=True, train_scale=True)
    more = {"pixel_values": picture(name)} if name in IMAGES else {"input_ids": IDS}
    model(**more)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in ad.parameters_of(model).values())
    assert (
        sum(p.numel() for p in ad.parameters_of(model).values())
        == ad.adapters(model)["default"].plan.trainable
    )
    ad.save(model, tmp_path / "a")
    other = tiny(name, torch.float64)
    ad.load(other, tmp_path / "a")
    assert torch.equal(other(**more)[0], model(**more)[0])


def test_scales_go_into_the_prefix():
    model = prefixed("llama", train_scale=True)
    before = logits(model)
    ad.plain_prompt(model)
    torch.testing.assert_close(logits(model), before, **CLOSE)
    assert not any(name.endswith(".s") for name in ad.parameters_of(model))


def test_a_compensated_prefix_is_refused_where_scores_have_a_way_of_their_own():
    with pytest.raises(HostError, match="compensate=False"):
        ad.attach(tiny("gptj", torch.float64), "prefix-tuning", compensate=True)


def test_laes_counts():
    from transformers import ViTConfig, ViTModel

    with torch.device("meta"):
        vit = ViTModel(ViTConfig())
    prefix = ad.PrefixTuning(p=10, train_scale=True, compensate=True)
    assert ad.plan(vit, prefix, layers="0:5").trainable == 76_810
    lora = ad.LoRA(r=5, alpha=5.0, train_scale=True)
    assert ad.plan(vit, lora, targets=["k", "v"], layers="0:5").trainable == 76_810
