"""LLM-Adapters (Hu et al. 2023, arXiv:2304.01933): its placements, its counts and its arithmetic, model by model."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import MergeError, TargetError
from tests.methods.helpers import adapted, batch, linear, llama, shake

#: the insertion types of the source, on the layers it puts them on
TYPES = {
    "before": ("series", {"place": "before"}, ["gate", "up"]),
    "after": ("series", {"place": "after"}, ["down"]),
    "parallel": ("parallel", {}, ["up", "down"]),
}


def tiny(family: str = "llama") -> nn.Module:
    """A model of two blocks, hidden 32."""
    import transformers as t

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
    gpt = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64}
    config = {
        "llama": lambda: t.LlamaConfig(intermediate_size=48, **small),
        "bloom": lambda: t.BloomConfig(hidden_size=32, n_layer=2, n_head=2, vocab_size=64),
        "opt": lambda: t.OPTConfig(ffn_dim=48, word_embed_proj_dim=32, **small),
        "gptj": lambda: t.GPTJConfig(rotary_dim=8, **gpt),
        "gpt_neo": lambda: t.GPTNeoConfig(
            hidden_size=32, num_layers=2, num_heads=2, vocab_size=64, attention_types=[[["global"], 2]]
        ),
    }[family]()
    torch.manual_seed(0)
    return t.AutoModelForCausalLM.from_config(config).eval()


IDS = torch.arange(24).view(2, 12) % 64


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


# -- names and counts ----------------------------------------------------------------------------------------------

#: family -> role -> the names the source lists for it
NAMES = {
    "llama": {"q": {"q_proj"}, "v": {"v_proj"}, "up": {"up_proj"}, "gate": {"gate_proj"}, "down": {"down_proj"}, "o": {"o_proj"}},
    "bloom": {"q": {"query_key_value"}, "up": {"dense_h_to_4h"}, "down": {"dense_4h_to_h"}, "o": {"dense"}},
    "opt": {"q": {"q_proj"}, "k": {"k_proj"}, "up": {"fc1"}, "down": {"fc2"}, "o": {"out_proj"}},
    "gptj": {"q": {"q_proj"}, "v": {"v_proj"}, "up": {"fc_in"}, "down": {"fc_out"}, "o": {"out_proj"}},
    "gpt_neo": {"q": {"q_proj"}, "v": {"v_proj"}, "up": {"c_fc"}, "down": {"c_proj"}, "o": {"out_proj"}},
}  # fmt: skip


@pytest.mark.parametrize("family", NAMES)
def test_roles_find_what_the_source_lists_by_name(family):
    model = tiny(family)
    for role, names in NAMES[family].items():
        made = ad.plan(model, "lora", targets=role)
        assert {entry.path.rpartition(".")[2] for entry in made.entries} == names, role
        assert len(made.entries) == 2


def test_a_name_of_another_family_is_refused_with_the_candidates():
    with pytest.raises(TargetError, match=r"query_key_value.*BloomForCausalLM|BloomForCausalLM") as found:
        ad.plan(tiny("bloom"), "series", targets=["down_proj"])
    assert "dense_4h_to_h" in str(found.value) or "down" in str(found.value)


@functools.cache
def full(size: str) -> nn.Module:
    return llama(4096, 11008, 32, 32, 32) if size == "7B" else llama(5120, 13824, 40, 40, 40)


LORA = ["q", "k", "v", "up", "down"]
BEFORE = {"*.gate_proj": {"place": "before"}, "*.up_proj": {"place": "before"}}
#: what the paper's table and its code's presets train, b = 256, r = 32
COUNTS = [
    ("lora", {"r": 32}, LORA, {}, {"7B": 56_098_816, "13B": 87_818_240}),
    ("series", {"size": 256}, ["down"], {}, {"7B": 67_108_864, "13B": 104_857_600}),
    ("parallel", {"size": 256}, ["up", "down"], {}, {"7B": 247_463_936, "13B": 387_973_120}),
    # the code's default preset: before gate and up, after down (the "200M" of its table)
    ("series", {"size": 256}, ["gate", "up", "down"], BEFORE, {"7B": 201_326_592}),
    # the command it publishes for series
    ("series", {"size": 256, "place": "before"}, ["gate", "up"], {}, {"7B": 134_217_728}),
]
SHARES = {56_098_816: 0.83, 67_108_864: 0.99, 247_463_936: 3.54, 201_326_592: 2.90, 87_818_240: 0.67, 104_857_600: 0.80, 387_973_120: 2.89}  # fmt: skip
BASES = {"7B": 6_738_415_616, "13B": 13_015_864_320}


@pytest.mark.parametrize(("method", "settings", "targets", "per_layer", "counts"), COUNTS)
def test_counts_at_full_size_are_the_papers(method, settings, targets, per_layer, counts):
    for size, count in counts.items():
        made = ad.plan(full(size), method, targets=targets, per_layer=per_layer, **settings)
        assert made.trainable == count and made.base == BASES[size]
        if count in SHARES:
            assert round(100 * count / (made.base + count), 2) == SHARES[count]


@pytest.mark.skipif("prefix-tuning" not in ad.list_methods(), reason="prefix tuning is not there")
def test_counts_of_the_prefix_are_the_papers():
    for size, p, count in (("7B", 10, 2_621_440), ("7B", 30, 7_864_320), ("13B", 10, 4_096_000)):
        assert ad.plan(full(size), "prefix-tuning", p=p).trainable == count


def test_counts_of_the_other_families_follow_their_widths():
    """BLOOMz-7B1 (d 4096, MLP 16384, 30 blocks), GPT-J-6B (d 4096, MLP 16384, 28), OPT-6.7B (d 4096, MLP 16384, 32)."""
    import transformers as t

    with torch.device("meta"):
        models = {
            30: t.AutoModelForCausalLM.from_config(t.BloomConfig(hidden_size=4096, n_layer=30, n_head=32, vocab_size=250880)),
            28: t.AutoModelForCausalLM.from_config(t.GPTJConfig()),
            32: t.AutoModelForCausalLM.from_config(
                t.OPTConfig(hidden_size=4096, ffn_dim=16384, num_hidden_layers=32, num_attention_heads=32, word_embed_proj_dim=4096)
            ),
        }  # fmt: skip
    d, m, b, r = 4096, 16384, 256, 32
    for blocks, model in models.items():
        assert ad.plan(model, "series", targets="down", size=b).trainable == blocks * 2 * d * b
        assert ad.plan(model, "parallel", targets=["up", "down"], size=b).trainable == blocks * 2 * b * (
            d + m
        )
        qkv = r * 4 * d if blocks == 30 else 3 * r * 2 * d  # BLOOM fuses them
        lora = ad.plan(model, "lora", targets=["qkv", "up", "down"], r=r)
        assert lora.trainable == blocks * (qkv + 2 * r * (d + m))


# -- the start -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_it_starts_as_the_base_to_the_bit_or_near_it_as_the_sources_did(kind):
    method, settings, targets = TYPES[kind]
    base = logits(tiny())
    model = tiny()
    ad.attach(model, method, targets=targets, seed=0, **settings)
    assert torch.equal(logits(model), base)
    ad.detach(model)
    ad.attach(model, method, targets=targets, seed=0, init="bert", **settings)
    apart = float((logits(model) - base).abs().max())
    assert 0 < apart < 0.1


@pytest.mark.parametrize("family", NAMES)
def test_every_family_trains_and_comes_back(family):
    """Series at down, parallel at up and down, LoRA at attention and MLP: no layer is out of the gradient's reach."""
    model = tiny(family)
    base = logits(model)
    for name, method, targets in (
        ("a", "series", "down"), ("b", "parallel", ["up", "down"]), ("c", "lora", ["qkv", "up", "down"]),
    ):  # fmt: skip
        ad.attach(model, method, name, targets=targets, seed=0)
    assert torch.equal(logits(model), base)
    model(input_ids=IDS, labels=IDS).loss.backward()
    ad.check_gradients(model)
    with torch.no_grad():
        for name in "abc":
            for parameter in ad.parameters_of(model, name).values():
                parameter.add_(0.1)
    assert not torch.allclose(logits(model), base)
    with ad.disabled(model):
        assert torch.equal(logits(model), base)


# -- algebra -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.5, "learned"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", TYPES)
def test_without_a_nonlinearity_it_is_a_product_or_a_sum_of_matrices(kind, bias, scale):
    """before: W (I + s U D); after: (I + s U D) (W, bias); parallel: W + s U D."""
    method, settings, _ = TYPES[kind]
    chosen = ad.get_method(method, size=5, activation="identity", scale=scale, **settings)
    model, adapter = adapted(linear(12, 20, bias=bias), chosen)
    shake(model)
    W, b = model[0].weight, model[0].bias
    s, UD = adapter.s, adapter.U @ adapter.D
    expected = {
        "before": lambda: (W @ (torch.eye(12) + s * UD), b),
        "after": lambda: ((torch.eye(20) + s * UD) @ W, None if b is None else (torch.eye(20) + s * UD) @ b),
        "parallel": lambda: (W + s * UD, b),
    }[kind]()
    x = batch(3, 4, 12)
    assert torch.allclose(model(x), nn.functional.linear(x, *expected), atol=1e-12)


@pytest.mark.parametrize("kind", TYPES)
def test_only_the_adapters_own_tensors_get_gradients(kind):
    method, settings, targets = TYPES[kind]
    model = tiny()
    base = logits(model)
    ad.attach(model, method, targets=targets, scale="learned", init="bert", seed=0, **settings)
    model(input_ids=IDS, labels=IDS).loss.backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    assert {name.rpartition(".")[2] for name in trained} == {"D", "U", "s"}
    assert len(trained) == 3 * 2 * len(targets)
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if n in trained)
    with ad.disabled(model):
        assert torch.equal(logits(model), base)
    with pytest.raises(MergeError, match="changes activations"):
        ad.merge(model)


def test_lora_merges():
    model = tiny()
    ad.attach(model, "lora", targets=LORA, seed=0)
    shake(model)
    before = logits(model)
    ad.merge(model)
    assert torch.allclose(logits(model), before, atol=1e-4)


# -- half-precision bases ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", TYPES)
def test_on_a_half_precision_base_the_adapter_stays_in_float32(kind, dtype):
    method, settings, targets = TYPES[kind]
    model = tiny().to(dtype)
    ad.attach(model, method, targets=targets, seed=0, **settings)
    shake(model, 0.05)
    assert {p.dtype for p in ad.parameters_of(model).values()} == {torch.float32}
    assert logits(model).dtype == dtype


@pytest.mark.parametrize("kind", TYPES)
def test_float32_arithmetic_rounds_once(kind):
    """As the source: the input to float32, the bypass in it, the result rounded before it is added; also under autocast."""
    method, settings, _ = TYPES[kind]
    exact = ad.get_method(method, size=8, precision="float32", **settings)
    model = nn.Sequential(linear(64, 64)).to(torch.bfloat16)
    ad.attach(model, exact, targets="0", seed=0)
    shake(model)
    rough = copy.deepcopy(model)
    next(iter(ad.adapters(rough)["default"].adapters.values())).precision = "input"
    adapter = next(iter(ad.adapters(model)["default"].adapters.values()))
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    layer = functools.partial(nn.functional.linear, weight=model[0].weight, bias=model[0].bias)

    def bypass(h: torch.Tensor) -> torch.Tensor:
        return (torch.tanh(h.float() @ adapter.D.T) @ adapter.U.T).to(torch.bfloat16)

    expected = {
        "before": lambda: layer(x + bypass(x)),
        "after": lambda: layer(x) + bypass(layer(x)),
        "parallel": lambda: layer(x) + bypass(x),
    }[kind]()
    with torch.no_grad():
        assert torch.equal(model(x), expected)
        assert not torch.equal(rough(x), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model(x), expected)
