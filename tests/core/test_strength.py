"""A share of an adapter's effect: the base runs once, so that a cache is filled once; where that cannot be, a cache is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import DynamicCache

import adaptome as ad
from adaptome.core import method as registry
from adaptome.core.adapter import Adapter, Frozen
from adaptome.core.errors import StateError
from adaptome.core.method import Method, register
from tests.core.models import llama, move

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
ASKED = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "output_logits": True, "return_dict_in_generate": True}  # fmt: skip
#: methods of activations that take their share themselves, on modules that a second run would give a second place in the cache
ONCE = [
    ("series", "attention-blocks", {"size": 3}), ("series", "blocks", {"size": 3}), ("parallel", "attention-blocks", {"size": 3}),
    ("parallel", "mlp-blocks", {"size": 3}), ("houlsby", "attention-blocks", {"size": 3}), ("pfeiffer", "mlp-blocks", {"size": 3}),
    ("pfeiffer", "attention-blocks", {"size": 3, "place": "before"}), ("adaptformer", ("up", "down"), {"size": 3}),
    ("compacter", "attention-blocks", {"size": 4}), ("soft-moa", "attention-blocks", {"size": 3, "routing": "dense"}), ("mam", None, {"size": 3, "p": 2}),
    ("prefix-tuning", None, {"p": 2}), ("llama-adapter", None, {"p": 2}), ("moe-lora", "q", {"r": 2}),
    ("polyhistor", "attention-blocks", {"tasks": ("a",)}), ("lst", None, {"attention": False, "reduction": 4}),
]  # fmt: skip
once = pytest.mark.parametrize(("method", "targets", "options"), ONCE, ids=[f"{m}-{t}" for m, t, _ in ONCE])


def adapted(method, targets=None, share=0.5, **options) -> nn.Module:
    model = llama()
    ad.attach(model, method, targets=targets, seed=1, **options)
    move(model)
    ad.activate(model, "default", weights={"default": share})
    return model


def logits(model: nn.Module, **more) -> torch.Tensor:
    with torch.no_grad(), ad.steer(task="a"):
        return model(TOKENS, **more).logits


def runs(model: nn.Module) -> list[int]:
    """How often one forward runs each of the first block's maps that the adapters themselves do not use."""
    maps = [model.model.layers[0].get_submodule(name) for name in ("self_attn.q_proj", "mlp.gate_proj")]
    counted = {m: [] for m in maps}
    hooks = [m.register_forward_hook(lambda m, *_: counted[m].append(1)) for m in maps]
    logits(model, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [len(found) for found in counted.values()]


@once
def test_the_base_runs_once(method, targets, options):
    assert runs(adapted(method, targets, **options)) == [1, 1]


@once
def test_generating_with_a_share_is_the_same_with_and_without_cache(method, targets, options):
    model = adapted(method, targets, **options)
    with ad.steer(task="a"):
        cached, plain = (model.generate(TOKENS, use_cache=use, **ASKED) for use in (True, False))
    assert torch.equal(cached.sequences, plain.sequences)
    for one, other in zip(cached.logits, plain.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@once
def test_a_share_runs_from_the_base_to_the_whole_effect(method, targets, options):
    none, whole = (adapted(method, targets, share, **options) for share in (0.0, 1.0))
    half = logits(adapted(method, targets, **options))
    torch.testing.assert_close(logits(none), llama()(TOKENS).logits.detach(), rtol=1e-5, atol=1e-6)
    assert all(not torch.allclose(half, logits(other), atol=1e-4) for other in (none, whole))


@pytest.mark.parametrize("method", ["prefix-tuning", "llama-adapter", "series"])
def test_a_share_mixes_what_the_module_puts_out(method):
    """On one module: the output is the base's, moved by the share towards the whole effect's."""
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(3))
    outputs = []
    for share in (0.0, 1.0, 0.25):
        model = adapted(method, "attention-blocks", share)
        places = torch.arange(5)[None]
        with torch.no_grad():
            layer = model.model.layers[0].self_attn
            outputs.append(layer(x, position_embeddings=model.model.rotary_emb(x, places))[0])
    torch.testing.assert_close(outputs[2], torch.lerp(outputs[0], outputs[1], 0.25), rtol=1e-5, atol=1e-6)


# -- adapters that leave their share to the core ---------------------------------------------------------------------


class Doubling(Adapter):
    """Runs the layer on twice its input."""

    def forward(self, frozen: Frozen, *args, **kwargs):
        if args:
            return frozen(2 * args[0], *args[1:], **kwargs)
        return frozen(**{**kwargs, "hidden_states": 2 * kwargs["hidden_states"]})


@pytest.fixture
def doubling(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @register("doubling", category="additive", merge="none", export="none", hosts=("linear", "module"))
    class Double(Method):
        """Doubling: twice the input."""

        def parameters(self, host) -> int:
            return 0

        def adapter(self, host, shared=None) -> Adapter:
            return Doubling(host)

    return Double()


def test_others_mix_two_runs_of_the_base(doubling):
    model = llama()
    layer, x = model.model.layers[0].mlp, torch.randn(2, 3, 16)
    base, twice = layer(x), layer(2 * x)
    ad.attach(model, doubling, targets="mlp-blocks")
    ad.activate(model, "default", weights={"default": 0.25})
    torch.testing.assert_close(layer(x), torch.lerp(base, twice, 0.25))


@pytest.mark.parametrize("targets", ["attention-blocks", "blocks"])
def test_two_runs_are_refused_beside_a_cache(doubling, targets):
    model = llama()
    ad.attach(model, doubling, targets=targets)
    logits(model, past_key_values=DynamicCache())
    ad.activate(model, "default", weights={"default": 0.25})
    logits(model, use_cache=False)
    cache = DynamicCache()
    with pytest.raises(
        StateError,
        match=r"weight 0.25 and a cache, which base and adapter would both fill.\n  Run it with use_cache=False",
    ):
        logits(model, past_key_values=cache)
    assert cache.get_seq_length() == 0


def test_a_cache_that_comes_by_position_is_refused_too(doubling):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=32, n_positions=32)).eval()
    ad.attach(model, doubling, targets="blocks")
    ad.activate(model, "default", weights={"default": 0.25})
    with pytest.raises(StateError, match="use_cache=False"):
        model(TOKENS, use_cache=True)
    model(TOKENS, use_cache=False)


def test_a_pooled_output_is_mixed_too():
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=32
    )
    for method, options in (("lst", {"reduction": 4}), ("prompt-tuning", {"p": 4})):
        torch.manual_seed(0)
        model = BertModel(config).eval()
        with torch.no_grad():
            base = model(TOKENS).pooler_output
        ad.attach(model, method, **options)
        move(model, std=2.0)
        with torch.no_grad():
            assert not torch.allclose(model(TOKENS).pooler_output, base, atol=1e-4)
            ad.activate(model, "default", weights={"default": 0.0})
            torch.testing.assert_close(model(TOKENS).pooler_output, base)
