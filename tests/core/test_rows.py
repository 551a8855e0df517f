"""Another adapter for every row of one batch: in generation, beside other adapters, in threads, in training; and what is refused."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import HostError, StateError
from adaptome.core.steer import steered

from .models import IDS, Net, bert, llama, move, run

NAMES = ("style", "domain", "prefix")


def served(model: nn.Module) -> nn.Module:
    """Three adapters of different methods, ranks and places."""
    ad.attach(model, "lora", "style", targets=["q", "v", "down"], r=3)
    ad.attach(model, "mos", "domain", targets="all-linear", r=2)
    ad.attach(model, "prefix-tuning", "prefix", p=3)
    for seed, name in enumerate(NAMES):
        move(model, name, seed)
    return model


def prompts() -> torch.Tensor:
    return torch.tensor([[1, 5, 19, 2], [7, 7, 2, 3], [9, 4, 4, 30], [1, 5, 19, 2], [8, 1, 0, 3]])


ORDER = ("style", None, "domain", "prefix", "style")


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_generation_with_cache_and_beams_gives_what_each_adapter_gives_alone(how):
    model = served(llama()).double()
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": 31, **how}
    each = how.get("num_return_sequences", 1)
    with ad.per_row(model, ORDER):
        made = model.generate(prompts(), attention_mask=torch.ones(5, 4), **how)
    seen = set()
    for i, name in enumerate(ORDER):
        ad.activate(model, [name] if name else [])
        alone = model.generate(prompts()[i : i + 1], attention_mask=torch.ones(1, 4), **how)
        seen.add(tuple(alone[0].tolist()))
        for k in range(each):
            length = min(alone.shape[1], made.shape[1])
            assert torch.equal(made[i * each + k, :length], alone[k, :length])
            assert not made[i * each + k, length:].any() and not alone[k, length:].any()
    assert len(seen) > 3  # the adapters do make a difference


def test_a_layer_runs_once_for_adapters_that_add_to_its_output():
    model = Net()
    calls = []
    model.wide.register_forward_hook(lambda *_: None)
    base = nn.Linear.forward

    class Counted(nn.Linear):
        def forward(self, x):
            calls.append(len(x))
            return base(self, x)

    model.wide.__class__ = Counted
    ad.attach(model, "lora", "a", targets="wide", r=2)
    ad.attach(model, "ia3", "b", targets="wide")
    with torch.no_grad(), ad.per_row(model, ["a", "b"]):
        model(IDS)
    assert calls == [2]


@pytest.mark.parametrize("tokens", [2, 20])
@pytest.mark.parametrize("order", ["abc", "bca", "aabc", "cabcab"])
def test_factors_of_different_ranks_run_batched_or_by_group(order, tokens):
    """Few tokens with an adapter of its own for every row, and many; sorted rows and others."""
    layer = nn.Linear(16, 12).double()
    for k, name in enumerate("abc"):
        ad.attach(layer, "lora", name, targets="=", r=k + 1)
        move(layer, name, k)
    x = torch.randn(len(order), tokens, 16, dtype=torch.float64)
    with ad.per_row(layer, list(order)):
        made = layer(x)
    for i, name in enumerate(order):
        ad.activate(layer, name)
        torch.testing.assert_close(made[i], layer(x)[i], rtol=0, atol=1e-12)


def test_one_rows_overflow_does_not_reach_another():
    layer = nn.Linear(4, 4)
    for name in ("fine", "broken"):
        ad.attach(layer, "lora", name, targets="=", r=1)
    with torch.no_grad():
        ad.parameters_of(layer, "broken")["A"].fill_(float("inf"))
        for tokens in (1, 20):
            with ad.per_row(layer, ["fine", "broken"]):
                made = layer(torch.ones(2, tokens, 4))
            assert torch.isfinite(made[0]).all() and not torch.isfinite(made[1]).all()


def test_gradients_are_those_of_each_alone():
    model = Net().double()
    for seed, (name, method) in enumerate({"a": "lora", "b": "dora"}.items()):
        ad.attach(model, method, name, targets=["wide", "narrow"], r=2)
        move(model, name, seed)
    ad.activate(model, ["a", "b"])  # both ask for gradients
    with ad.per_row(model, ["b", "a"]):
        model(IDS).square().sum().backward()
    together = {n: {k: p.grad.clone() for k, p in ad.parameters_of(model, n).items()} for n in "ab"}
    model.zero_grad()
    for i, name in enumerate("ba"):
        ad.activate(model, name)
        model(IDS[i : i + 1]).square().sum().backward()
        for key, parameter in ad.parameters_of(model, name).items():
            torch.testing.assert_close(parameter.grad, together[name][key])
            assert parameter.grad.any()


def test_what_changes_within_the_block_is_seen():
    model = Net()
    ad.attach(model, "lora", "a", targets="wide", r=2)
    ad.attach(model, "lora", "b", targets="wide", r=2)
    with torch.no_grad(), ad.per_row(model, ["a", "b"]):
        before = model(IDS)
        move(model, "b")
        after = model(IDS)
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])


def test_heads_go_with_their_adapter():
    model = bert()
    for seed, name in enumerate(("a", "b")):
        ad.attach(model, "lora", name, targets="attention", train="classifier", r=2)
        move(model, name, seed)
    alone = {}
    for name in ("a", "b", None):
        ad.activate(model, [name] if name else [])
        alone[name] = run(model)
    with ad.per_row(model, ["b", "a"]):
        made = run(model)
    torch.testing.assert_close(made, torch.stack([alone["b"][0], alone["a"][1]]))
    assert not torch.allclose(alone["a"], alone["b"])


def test_windows_and_facts_of_a_sample_go_with_it():
    """A layer that sees four rows of each sample, and a method that reads a fact of each."""

    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 5)

        def forward(self, x):
            return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    model = Windows().double()
    for seed, name in enumerate(("a", "b")):
        ad.attach(model, "petalface", name, targets="layer", r=2)
        move(model, name, seed)
    x, quality = torch.randn(3, 4, 6, dtype=torch.float64), torch.tensor([0.1, 0.9, 0.4])
    with torch.no_grad(), ad.steer(quality=quality):
        with ad.per_row(model, ["a", "b", "a"]):
            made = model(x)
        for i, name in enumerate("aba"):
            ad.activate(model, name)
            torch.testing.assert_close(made[i], model(x)[i])


def test_threads_serve_rows_of_their_own():
    model = served(llama()).double()
    orders = [ORDER, ORDER[::-1], (None, "domain", None, "style", "style")]
    with torch.no_grad():
        expected = []
        for order in orders:
            with ad.per_row(model, order):
                expected.append(run(model, prompts()))
        ad.activate(model, "domain")
        expected.append(run(model, prompts()))
        made: list[list[torch.Tensor]] = [[] for _ in range(4)]

        def serve(k: int) -> None:
            for _ in range(8):
                if k == 3:
                    made[k].append(run(model, prompts()))
                    continue
                with ad.per_row(model, orders[k]):
                    made[k].append(run(model, prompts()))

        threads = [threading.Thread(target=serve, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for k in range(4):
        assert len(made[k]) == 8
        for output in made[k]:
            torch.testing.assert_close(output, expected[k], rtol=0, atol=1e-12)


def test_gradient_checkpointing_runs_again_with_the_same_rows():
    model = llama().double().train()
    for seed, name in enumerate(("a", "b")):
        ad.attach(model, "lora", name, targets="attention", r=2)
        move(model, name, seed)
    ad.activate(model, ["a", "b"])

    def grads() -> list[torch.Tensor]:
        model.zero_grad()
        with ad.per_row(model, ["a", "b"]):
            loss = model(input_ids=IDS).logits.square().mean()
        loss.backward()  # outside of the block
        return [p.grad.clone() for n in "ab" for p in ad.parameters_of(model, n).values()]

    plain = grads()
    model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": ad.steered_again})
    for a, b in zip(plain, grads(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_packed_layer_runs_changed_weights_by_row_and_again_in_the_backward():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    ad.quantize(model, "nf4")
    for seed, name in enumerate(("a", "b")):
        ad.attach(model, "hra", name, targets="0", r=2)
        move(model, name, seed)
    x = torch.randn(2, 64)
    ad.activate(model, ["a", "b"])
    with ad.per_row(model, ["b", "a"]):
        made = model(x)
    made.sum().backward()
    together = {n: [p.grad.clone() for p in ad.parameters_of(model, n).values()] for n in "ab"}
    for i, name in enumerate("ba"):
        model.zero_grad()
        ad.activate(model, name)
        alone = model(x[i : i + 1])
        torch.testing.assert_close(alone[0], made[i])
        alone.sum().backward()
        for p, grad in zip(ad.parameters_of(model, name).values(), together[name], strict=True):
            torch.testing.assert_close(p.grad, grad)


def test_a_row_may_have_several():
    model = Net().double()
    ad.attach(model, "lora", "inner", targets="wide", r=2)
    ad.attach(model, "ssf", "outer", targets="wide")
    for seed, name in enumerate(("inner", "outer")):
        move(model, name, seed)
    both = run(model)
    ad.activate(model, "outer")
    one = run(model)
    with ad.per_row(model, [["inner", "outer"], "outer"]):
        torch.testing.assert_close(run(model), torch.stack([both[0], one[1]]), rtol=0, atol=1e-12)


def test_fusion_goes_with_the_adapters_that_it_fuses():
    model = bert().double()
    for seed, name in enumerate(("a", "b")):
        ad.attach(model, "pfeiffer", name, targets="down", size=3)
        move(model, name, seed)
    ad.attach(model, "adapter-fusion", "fusion", adapters=("a", "b"), targets="down")
    move(model, "fusion")
    fused = run(model)
    ad.activate(model, "a")
    alone = run(model)
    with ad.per_row(model, ["a", ["a", "b", "fusion"]]):
        torch.testing.assert_close(run(model), torch.stack([alone[0], fused[1]]), rtol=0, atol=1e-12)


def test_two_models_may_have_rows_at_once_and_the_context_ends():
    teacher, student = Net(0), Net(1)
    for model in (teacher, student):
        ad.attach(model, "lora", "a", targets="wide", r=2)
        move(model, "a")
        ad.activate(model, [])
    base = run(teacher), run(student)
    with ad.per_row(teacher, ["a", None]), ad.per_row(student, [None, "a"]):
        made = run(teacher), run(student)
    for model, (with_, without), row in zip(
        (teacher, student), zip(made, base, strict=True), (0, 1), strict=True
    ):
        assert torch.equal(with_[1 - row], without[1 - row]) and not torch.allclose(with_[row], without[row])
        assert torch.equal(run(model), without)
    assert steered("per_row") is None


def test_what_cannot_be_is_refused_and_nothing_changes():
    model = Net()
    ad.attach(model, "lora", "a", targets=["wide", "embed"], r=2)
    with pytest.raises(StateError, match="no adapter is called 'b'"), ad.per_row(model, ["b"]):
        pass
    with pytest.raises(StateError, match="a list"), ad.per_row(model, "a"):
        pass
    with (
        pytest.raises(StateError, match=r"3 samples, but embed sees 2 rows"),
        ad.per_row(model, ["a", None, "a"]),
    ):
        model(IDS)
    ad.merge(model, "a")
    with pytest.raises(StateError, match="ad.unmerge"), ad.per_row(model, ["a", None]):
        pass
    second = nn.TransformerEncoderLayer(8, 2, 16)
    ad.attach(second, "lora", "a", targets="linear1", r=2)
    with pytest.raises(StateError, match="batch_first=False"), ad.per_row(second, ["a"]):
        pass
    tied = llama(tie=True)
    ad.attach(tied, "lora", "head", targets="lm_head", r=2)
    read = any(a.host.read for a in ad.adapters(tied)["head"].adapters.values())
    if read:
        with pytest.raises(HostError, match="instead of calling"), ad.per_row(tied, ["head"]):
            pass


def test_an_attentions_input_cannot_be_changed_for_some_rows():
    """Its masks and caches are of the whole batch."""
    model = llama()
    for name in ("a", "b"):
        ad.attach(model, "houlsby", name, targets="mlp-blocks", size=2)
        move(model, name)
    with ad.per_row(model, ["a", "b"]):
        run(model)
    ad.detach(model)
    for name in ("a", "b"):
        ad.attach(model, "series", name, targets="attention-blocks", place="before", size=2)
        move(model, name)
    with ad.per_row(model, ["a", "b"]), pytest.raises(HostError, match="takes in"):
        run(model)
