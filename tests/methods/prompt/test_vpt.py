"""VPT: tokens among patches (arXiv:2203.12119, 2312.03694, 2210.03265)."""

import pytest
import torch
from transformers import ASTConfig, ASTModel, SwinConfig, SwinModel, ViTConfig, ViTModel

import adaptome as ad
from adaptome.core.errors import HostError, MethodError, StateError
from adaptome.core.hosts import host_of
from adaptome.core.targets import resolve
from tests.methods.helpers import shake
from tests.methods.prompt.models import IMAGES, picture, tiny

P = 3
CLOSE = {"rtol": 1e-6, "atol": 1e-6}
STACKS = {
    "vit": "layers",
    "deit": "layers",
    "clip": "encoder.layers",
    "dinov2": "encoder.layer",
    "ast": "layers",
}


def with_tokens(name, **settings):
    model = tiny(name)
    ad.attach(model, "vpt", p=P, seed=0, **settings)
    shake(model, 0.5)
    return model


def vectors(model):
    return [a.P.detach() for a in ad.adapters(model)["default"].adapters.values() if a.P is not None]


def run(model, name, **more):
    with torch.no_grad():
        return model(picture(name), **more)


def by_hand(model, name, prompts, deep, drop=0):
    """The blocks of an unadapted model, one after the other; `drop` leaves a token out for good."""
    stack = model.get_submodule(STACKS[name])
    states = []
    stack[0].register_forward_pre_hook(lambda m, args: states.append(args[0]))
    final = []
    stack[-1].register_forward_hook(lambda m, args, out: final.append(out))
    run(model, name)
    x, count = states[0], states[0].shape[1]
    stack[0]._forward_pre_hooks.clear()
    stack[-1]._forward_hooks.clear()
    kept = [i for i in range(count) if not drop or i != drop]
    x = x[:, kept]
    with torch.no_grad():
        for number, block in enumerate(stack):
            if deep or number == 0:
                own = prompts[number if deep else 0].expand(2, -1, -1)
                x = torch.cat([x[:, :1], own, x[:, 1:]], 1)
            y = block(x, *[None] * (name == "clip"))
            x = y[0] if isinstance(y, tuple) else y
            if deep or number == len(stack) - 1:
                x = torch.cat([x[:, :1], x[:, 1 + P :]], 1)
    return x, final[0], kept


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("deep", [True, False])
def test_it_is_the_equation_in_every_kind_of_vision_model(name, deep):
    model, base = with_tokens(name, deep=deep), tiny(name)
    prompts, caught = vectors(model), []
    assert len(prompts) == (2 if deep else 1)
    want, before, _ = by_hand(base, name, prompts, deep)
    model.get_submodule(STACKS[name])[-1].register_forward_hook(lambda m, args, out: caught.append(out))
    out = run(model, name, output_hidden_states=True)
    seen = caught[0][0] if isinstance(caught[0], tuple) else caught[0]
    torch.testing.assert_close(seen, want, **CLOSE)
    assert seen.shape == before.shape and not torch.allclose(seen, before)
    lengths = {h.shape[1] for h in out.hidden_states}
    assert lengths == ({want.shape[1]} if deep else {want.shape[1], want.shape[1] + P})


@pytest.mark.parametrize("deep", [True, False])
def test_a_dropped_token_is_seen_by_none_and_keeps_its_place(deep):
    model, base = with_tokens("ast", deep=deep, drop=1), tiny("ast")
    want, _, kept = by_hand(base, "ast", vectors(model), deep, drop=1)
    caught, entering = [], []
    stack = model.get_submodule("layers")
    stack[-1].register_forward_hook(lambda m, args, out: caught.append(out))
    stack[0].register_forward_pre_hook(lambda m, args: entering.append(args[0]))
    run(model, "ast")
    torch.testing.assert_close(caught[0][:, kept], want, **CLOSE)
    assert torch.equal(caught[0][:, 1], entering[0][:, 1])


def test_only_the_named_blocks_have_tokens():
    deep = with_tokens("vit", layers=1)
    assert len(vectors(deep)) == 1
    shallow = with_tokens("vit", deep=False, layers="0:1")
    out = run(shallow, "vit", output_hidden_states=True)
    assert len({h.shape[1] for h in out.hidden_states}) == 1, "they leave after block 0"
    with pytest.raises(MethodError, match=r"before block 0.*the targets are \[1\]"):
        ad.attach(tiny("vit"), "vpt", deep=False, layers=1)


def test_it_starts_in_the_papers_range():
    model = tiny("vit")
    ad.attach(model, "vpt", p=200)
    bound = (6 / (3 * 8**2 + 16)) ** 0.5
    drawn = torch.cat(vectors(model))
    assert drawn.abs().max() <= bound and drawn.abs().max() > 0.98 * bound
    assert abs(float(drawn.std()) - bound / 3**0.5) < 0.01 * bound


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        ("swin", "blocks", "arranges its tokens in a grid.*use prefix-tuning"),
        ("llama", "blocks", "is causal"),
        ("vit", "attention-blocks", "the blocks of a vision"),
    ],
)
def test_where_tokens_have_no_place_it_says_so(name, targets, message):
    with pytest.raises(HostError, match=message):
        ad.attach(tiny(name), "vpt", targets=targets)


def test_a_mask_is_refused_when_it_comes():
    model = tiny("bert")
    ad.attach(model, "vpt")
    with pytest.raises(HostError, match="a mask or packed"):
        model(input_ids=torch.ones(2, 4).long(), attention_mask=torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]))


def test_shallow_tokens_have_no_mixture_with_the_base():
    model = with_tokens("vit", deep=False)
    ad.activate(model, "default", weights={"default": 0.5})
    with pytest.raises(StateError, match="deep=False makes the sequence longer"):
        run(model, "vit")


@pytest.mark.parametrize("deep", [True, False])
def test_gradients_reach_them_also_under_checkpointing(deep):
    grads = []
    for on in (False, True):
        model = with_tokens("vit", deep=deep).train()
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(picture("vit")).last_hidden_state.square().sum().backward()
        ad.check_gradients(model)
        grads.append([p.grad for p in ad.parameters_of(model).values()])
    for one, two in zip(*grads, strict=True):
        assert one.any()
        torch.testing.assert_close(one, two, **CLOSE)


def test_two_of_them_nest():
    model = with_tokens("vit")
    ad.attach(model, "vpt", "second", p=2, seed=5)
    both = run(model, "vit").last_hidden_state
    ad.activate(model, "second")
    second = run(model, "vit").last_hidden_state
    ad.activate(model, "default")
    first = run(model, "vit").last_hidden_state
    assert both.shape == first.shape == second.shape
    assert not torch.allclose(both, first) and not torch.allclose(both, second)
    ad.detach(model, "second")
    assert torch.equal(run(model, "vit").last_hidden_state, first)


def test_counts_are_the_papers():
    with torch.device("meta"):
        vit, ast, swin = ViTModel(ViTConfig()), ASTModel(ASTConfig()), SwinModel(SwinConfig())
    assert ad.plan(vit, "vpt", p=10).trainable == 92_160
    assert ad.plan(vit, "vpt", p=10, deep=False).trainable == 7_680
    assert ad.plan(ast, "vpt", p=25, drop=1).trainable == 230_400
    # Polyhistor's table has 0.88 M and 0.02 M for four tasks on Swin-T, which 50 tokens give; VPT itself is refused there
    hosts = [host_of(m.module, m.path, m.parameter, m.role, m.layer) for m in resolve(swin, "blocks")]
    assert 4 * sum(ad.get_method("vpt", p=50).parameters(host) for host in hosts) == 883_200
    assert 4 * 50 * hosts[0].width == 19_200


def test_swin_has_prefix_tuning_instead():
    assert "swin" in IMAGES
    model = tiny("swin")
    ad.attach(model, "prefix-tuning", p=2)
    shake(model, 0.5)
    assert not torch.allclose(
        run(model, "swin").last_hidden_state, run(tiny("swin"), "swin").last_hidden_state
    )


def test_shallow_tokens_are_saved_and_leave_no_trace(tmp_path):
    model, other = with_tokens("vit", deep=False), tiny("vit")
    ad.save(model, tmp_path / "a")
    ad.load(other, tmp_path / "a")
    assert torch.equal(run(other, "vit").last_hidden_state, run(model, "vit").last_hidden_state)
    ad.detach(other)
    assert [type(m) for m in other.modules()] == [type(m) for m in tiny("vit").modules()]
    assert torch.equal(run(other, "vit").last_hidden_state, run(tiny("vit"), "vit").last_hidden_state)
