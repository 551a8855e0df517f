"""Omni-LoRA in its three layouts (arXiv:2511.07253)."""

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import MethodError, StateError
from tests.core.models import IDS, llama, run
from tests.methods.helpers import adapted, batch, linear, shake

TASKS = ("audio", "video", "audiovisual")


@pytest.mark.parametrize("layout", ["S", "T", "ST"])
@pytest.mark.parametrize("task", TASKS)
def test_forward_and_merge_are_the_equation(layout, task):
    layer, x = linear(), batch(3, 5, 12)
    W, b = layer.weight.detach().double().clone(), layer.bias.detach().double()
    model, a = adapted(layer, ad.OmniLoRA(layout=layout, r=3, alpha=6.0))
    shake(model)
    delta = torch.zeros_like(W)
    for branch in {"S": ["shared"], "T": [task], "ST": [task, "shared"]}[layout]:
        delta = delta + 2.0 * a.B[branch] @ a.A[branch]
    with ad.steer(task=task):
        torch.testing.assert_close(model(x), x @ (W + delta).T + b)
        ad.merge(model)
        torch.testing.assert_close(layer._parameters["weight"], W + delta)
        torch.testing.assert_close(model(x), x @ (W + delta).T + b)
    ad.unmerge(model)
    assert torch.equal(layer._parameters["weight"], W)


@pytest.mark.parametrize("layout", ["S", "T", "ST"])
@pytest.mark.parametrize("init", ["down-zero", "kaiming", "gaussian"])
def test_every_task_starts_as_the_frozen_model(layout, init):
    model = llama()
    before = run(model)
    ad.attach(model, "omni-lora", layout=layout, r=2, init=init)
    for task in TASKS:
        with ad.steer(task=task):
            assert torch.equal(run(model), before)
    a = next(iter(ad.adapters(model)["default"].adapters.values()))
    branch = next(iter(a.A))
    assert bool(a.A[branch].any()) == (init != "down-zero") and bool(a.B[branch].any()) == (
        init == "down-zero"
    )


@pytest.mark.parametrize(("layout", "others"), [("T", set()), ("ST", {"shared"})])
def test_a_task_trains_its_own_branches(layout, others):
    model = llama()
    ad.attach(model, "omni-lora", layout=layout, r=2)
    shake(model)

    def reached():
        return {
            k.rsplit(".", 1)[1]
            for k, p in ad.parameters_of(model).items()
            if p.grad is not None and p.grad.any()
        }

    with ad.steer(task="audio"):
        model(IDS).logits.square().sum().backward()
    ad.check_gradients(model)
    assert reached() == {"audio"} | others
    untouched = {k.rsplit(".", 1)[1] for k, p in ad.parameters_of(model).items() if p.grad is None}
    assert untouched == {"video", "audiovisual"}
    for task in TASKS[1:]:
        with ad.steer(task=task):
            model(IDS).logits.square().sum().backward()
    assert reached() == set(TASKS) | others


def test_st_without_one_part_is_the_other_layout():
    x = batch(4, 12)
    st, a = adapted(linear(), ad.OmniLoRA(r=3))
    shake(st)
    s, b = adapted(linear(), ad.OmniLoRA(r=3, layout="S"))
    t, c = adapted(linear(), ad.OmniLoRA(r=3, layout="T"))
    with torch.no_grad():
        b.A["shared"].copy_(a.A["shared"])
        b.B["shared"].copy_(a.B["shared"])
        for task in TASKS:
            c.A[task].copy_(a.A[task])
            c.B[task].copy_(a.B[task])
    base = x @ a.host.weight().T + a.host.layer.bias
    with ad.steer(task="video"):
        torch.testing.assert_close(st(x) - (t(x) - base), s(x))
        with torch.no_grad():
            a.B["shared"].zero_()
        torch.testing.assert_close(st(x), t(x))


def test_a_reduction_is_a_share_of_the_width():
    method = ad.OmniLoRA(layout="S", reduction=4, alpha=4.0)
    model, a = adapted(linear(), method)
    assert a.A["shared"].shape == (3, 12) and a.scale == 1.0
    assert method.sized(5).rank(a.host) == 5


def test_export_holds_the_steered_task(tmp_path):
    model, _ = adapted(linear(), ad.OmniLoRA(r=3))
    shake(model)
    with ad.steer(task="video"):
        report, expected = ad.export(model, tmp_path / "out"), model(batch(4, 12))
    assert report.rank == 6 and report.worst == 0.0
    other = nn.Sequential(linear()).double()
    ad.load(other, tmp_path / "out")
    torch.testing.assert_close(other(batch(4, 12)), expected, rtol=1e-5, atol=1e-5)


def test_it_compiles_and_switches_tasks():
    model, _ = adapted(linear(), ad.OmniLoRA(r=3))
    shake(model)
    compiled, x = torch.compile(model, backend="eager", fullgraph=True), batch(4, 12)
    for task in (*TASKS, "audio"):
        with ad.steer(task=task):
            torch.testing.assert_close(compiled(x), model(x))


def test_missing_and_unknown_tasks_are_told():
    model, _ = adapted(linear(), ad.OmniLoRA(r=3))
    with pytest.raises(StateError, match=r"needs to know 'task'.*steer\(task=\.\.\.\)"):
        model(batch(4, 12))
    with ad.steer(task="vidoe"), pytest.raises(StateError, match="Did you mean 'video'"):
        model(batch(4, 12))
    for tasks in (["a", "a"], ["shared"], ["a.b"], []):
        with pytest.raises(MethodError, match="tasks"):
            ad.OmniLoRA(tasks=tasks)


@pytest.mark.parametrize("sizes", [{}, {"reduction": 32, "alpha": 4.0}])
@pytest.mark.parametrize(("layout", "count"), [("S", 6_815_744), ("T", 20_447_232), ("ST", 27_262_976)])
def test_counts_are_the_sheets(layout, count, sizes):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert ad.plan(model, ad.OmniLoRA(layout=layout, **sizes)).trainable == count
