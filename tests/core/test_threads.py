"""Threads that run one model at once, each with facts of its own: nobody's forward disturbs another's."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.steer import KEY
from tests.core.models import llama, move

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
#: method, targets and settings; the two threads' facts
CASES = [
    ("prefix-tuning", None, {"p": 2}, {}, {}), ("llama-adapter", None, {"p": 2}, {}, {}), ("unipelt", None, {"p": 2}, {}, {}),
    ("lst", None, {"reduction": 4}, {}, {}), ("adaptformer", ("up", "down"), {"size": 3}, {}, {}), ("mam", None, {"size": 3, "p": 2}, {}, {}),
    ("dylora", "all-linear", {"r": 4}, {"rank": 1}, {"rank": 4}), ("pfeiffer", "mlp-blocks", {"size": 3}, {"drop": 0}, {"drop": 1}),
    ("polyhistor", "attention-blocks", {"tasks": ("a", "b")}, {"task": "a"}, {"task": "b"}),
]  # fmt: skip


def at_once(*calls):
    """The results of functions that start together, each in its own thread."""
    barrier = threading.Barrier(len(calls), timeout=60)

    def start(call):
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [found.result() for found in [pool.submit(start, call) for call in calls]]


def dawdle(model: nn.Module) -> None:
    """Let other threads run in the midst of every attention and MLP."""
    for block in model.model.layers:
        for module in (block.self_attn.q_proj, block.self_attn.o_proj, block.mlp.up_proj):
            module.register_forward_hook(lambda *_: time.sleep(0.003))


@pytest.mark.parametrize(
    ("method", "targets", "options", "one", "other"),
    CASES,
    ids=[f"{m}-{t or 'default'}" for m, t, *_ in CASES],
)
def test_threads_run_one_model(method, targets, options, one, other):
    model = llama()
    ad.attach(model, method, targets=targets, seed=1, **options)
    move(model)
    dawdle(model)

    def call(ids, facts):
        def logits():
            with torch.no_grad(), ad.steer(**facts):
                return model(ids, use_cache=False).logits

        return logits

    calls = [call(TOKENS, one), call(TOKENS.flip(0)[:, :4], other)]
    expected = [f() for f in calls]
    for _ in range(3):
        for found, wanted in zip(at_once(*calls), expected, strict=True):
            assert torch.equal(found, wanted)
    assert type(model.model.layers[0].self_attn.config).__name__ == "LlamaConfig"
    assert not any("forward" in vars(block) for block in model.model.layers)


def test_facts_are_of_the_thread_that_entered_them():
    entered, left = threading.Barrier(2, timeout=60), threading.Barrier(2, timeout=60)

    def inside(task):
        with ad.steer(task=task):
            entered.wait()
            found = ad.steered("task")
            left.wait()
        return found, ad.steered("task")

    with ad.steer(task="main"):
        assert at_once(lambda: inside("a"), lambda: inside("b")) == [("a", None), ("b", None)]
        assert ad.steered("task") == "main"


def test_threads_merge_tokens_of_one_model():
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes)).eval()
    ad.attach(model, "pyra", r=3, seed=1)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda *_: time.sleep(0.001))
    pictures = [torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]

    def call(x):
        def states():
            with torch.no_grad():
                return model(x).last_hidden_state

        return states

    calls = [call(x) for x in pictures]
    expected = [f() for f in calls]
    for found, wanted in zip(at_once(*calls), expected, strict=True):
        assert torch.equal(found, wanted)


def test_a_compiled_model_follows_the_facts_of_its_thread():
    torch._dynamo.reset()
    model = llama(layers=1)
    ad.attach(model, "dylora", r=4, targets="q", seed=1)
    move(model)
    layer = model.model.layers[0].self_attn.q_proj
    compiled, x = torch.compile(layer, backend="eager", fullgraph=True), torch.randn(3, 16)
    expected = {}
    for rank in (1, 4):
        with torch.no_grad(), ad.steer(rank=rank):
            expected[rank] = layer(x)
            torch.testing.assert_close(compiled(x), expected[rank])

    def at(rank):
        with torch.no_grad(), ad.steer(rank=rank):
            return compiled(x)

    for _ in range(3):
        found = at_once(lambda: at(1), lambda: at(4))
        torch.testing.assert_close(found, [expected[1], expected[4]])


def test_a_thread_of_autograd_knows_what_its_caller_knows():
    """It is handed the caller's mapping under a key before anything is asked for; a thread of another caller has its own."""

    def handed(facts):
        torch._C._stash_obj_in_tls(KEY, facts)
        with ad.steer(quality=1):
            inside = ad.steered("task"), ad.steered("quality")
        torch._C._stash_obj_in_tls(KEY, {})
        return inside, ad.steered("task")

    assert at_once(lambda: handed({"task": "a"}), lambda: handed({})) == [(("a", 1), None), ((None, 1), None)]


# -- gradient checkpointing ------------------------------------------------------------------------------------------


def steered_gradients(inside: bool, **checkpointing) -> list[torch.Tensor]:
    """Gradients of a step at rank 1 of 4, its backward inside the context or after it."""
    model = llama(layers=1)
    ad.attach(model, "dylora", r=4, targets="q", seed=1)
    move(model)
    if checkpointing:
        model.gradient_checkpointing_enable(checkpointing)
        model.train()
        model.enable_input_require_grads()
    with ad.steer(rank=1):
        loss = model(TOKENS, labels=TOKENS, use_cache=False).loss
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    return [p.grad for p in ad.parameters_of(model).values()]


def test_a_repeated_forward_knows_the_facts_of_the_first():
    expected = steered_gradients(True)
    ways = [
        (False, {"use_reentrant": False, "context_fn": ad.steered_again}),
        (True, {"use_reentrant": False, "context_fn": ad.steered_again}),
        (True, {"use_reentrant": False}),
        (True, {"use_reentrant": True}),
    ]
    for inside, checkpointing in ways:
        torch.testing.assert_close(steered_gradients(inside, **checkpointing), expected, rtol=1e-4, atol=1e-7)


def test_a_backward_in_another_thread_knows_them_too():
    """The facts come with the forward, whatever holds where the backward runs."""
    expected = steered_gradients(True)
    model = llama(layers=1)
    ad.attach(model, "dylora", r=4, targets="q", seed=1)
    move(model)
    model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": ad.steered_again})
    model.train()
    model.enable_input_require_grads()
    with ad.steer(rank=1):
        loss = model(TOKENS, labels=TOKENS, use_cache=False).loss
    at_once(loss.backward)
    torch.testing.assert_close(
        [p.grad for p in ad.parameters_of(model).values()], expected, rtol=1e-4, atol=1e-7
    )
