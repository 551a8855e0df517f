"""DivControl's factorised layers (arXiv:2507.23620)."""

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import HostError, MergeError, MethodError, StateError
from tests.methods.helpers import adapted, batch, linear, shake

TINY = dict(tailors=3, active=2, text=5, hidden=4)
E1, E2 = batch(2, 5)


def tailor(a, k):
    """The component matrix of one tailor."""
    rows = slice(a.genes + k * a.size, a.genes + (k + 1) * a.size)
    return a.U[:, rows] @ torch.diag(a.S[rows]) @ a.V[rows]


def learngenes(a):
    return a.U[:, : a.genes] @ torch.diag(a.S[: a.genes]) @ a.V[: a.genes]


def alpha(model, e):
    """The gate's weights of every tailor, by its definition."""
    logits = ad.adapters(model)["default"].shared(e.float()).double()
    kept = logits.topk(2).indices
    return torch.zeros(3).double().index_put((kept,), logits[kept].softmax(0)).detach()


@pytest.mark.parametrize("layer", [nn.Linear(12, 20), nn.Linear(20, 12, bias=False), nn.Conv2d(4, 14, 3)])
def test_all_components_at_weight_one_are_the_layer(layer):
    x = batch(3, 4, 6, 6) if isinstance(layer, nn.Conv2d) else batch(3, 5, layer.in_features)
    before = layer.double()(x)
    model, a = adapted(layer, ad.DivControl(**TINY))
    assert a.genes + 3 * a.size == min(a.host.fan_in, a.host.fan_out) and torch.equal(
        a.S.sort(descending=True)[0], a.S
    )
    with ad.steer(gate=torch.ones(3)):
        torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize("rescale", [False, True])
def test_forward_and_merge_are_the_equation(rescale):
    layer, x = linear(), batch(3, 5, 12)
    model, a = adapted(layer, ad.DivControl(**TINY, rescale=rescale))
    shake(model)
    W = layer._parameters["weight"].detach().clone()
    for e in (E1, E2):
        weights = alpha(model, e) * (2 if rescale else 1)
        mixed = learngenes(a) + sum(weights[k] * tailor(a, k) for k in range(3))
        with ad.steer(instruction=e):
            torch.testing.assert_close(model(x), x @ mixed.T + layer.bias, rtol=1e-6, atol=1e-6)
            ad.merge(model)
            torch.testing.assert_close(layer._parameters["weight"], mixed, rtol=1e-6, atol=1e-6)
        ad.unmerge(model)
        assert torch.equal(layer._parameters["weight"], W)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(12, 20), batch(4, 12)),
        (nn.Linear(12, 20), batch(4, 5, 12)),
        (nn.Conv2d(4, 14, 3), batch(4, 4, 5, 5)),
    ],
)
def test_each_sample_has_its_own_instruction(layer, x):
    model, _ = adapted(layer, ad.DivControl(**TINY))
    shake(model)
    instructions = batch(4, 5)
    with ad.steer(instruction=instructions):
        together = model(x)
        with pytest.raises(MergeError, match="instruction is steered per sample"):
            ad.merge(model)
    for i, e in enumerate(instructions):
        with ad.steer(instruction=e):
            torch.testing.assert_close(together[i], model(x[i : i + 1])[0], rtol=1e-6, atol=1e-6)


def test_the_gate_is_one_for_all_layers_and_keeps_the_largest():
    model = nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 16)).double()
    ad.attach(model, "divcontrol", targets="*", **TINY)
    attachment = ad.adapters(model)["default"]
    x, mean = batch(4, 12), (E1 + E2) / 2
    outputs = []
    for e in (E1, E2, mean):
        with ad.steer(instruction=e):
            outputs.append(model(x))
    assert outputs[2].isfinite().all() and not any(torch.allclose(outputs[2], y) for y in outputs[:2])
    for e in (E1, E2, mean):
        with ad.steer(instruction=e):
            gates = [a.gate() for a in attachment.adapters.values()]
        (share, chosen), (other, also) = gates
        assert torch.equal(share, other) and torch.equal(chosen, also) and len(set(chosen.tolist())) == 2
        torch.testing.assert_close(share.sum(), torch.tensor(1.0).double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(alpha(model, e)[chosen], share, rtol=1e-6, atol=1e-6)
    assert sum(k.startswith("shared.") for k in ad.parameters_of(model)) == 4


def test_gradients_reach_the_gate_the_learngenes_and_active_tailors_alone():
    model, a = adapted(linear(), ad.DivControl(**TINY))
    with ad.steer(instruction=E1):
        chosen = set(a.gate()[1].tolist())
        model(batch(4, 12)).square().sum().backward()
    rows = {k: slice(a.genes + k * a.size, a.genes + (k + 1) * a.size) for k in range(3)}
    for k, of in rows.items():
        reached = [a.S.grad[of], a.V.grad[of], a.U.grad[:, of]]
        assert all(bool((g != 0).all()) == (k in chosen) for g in reached)
        assert k in chosen or not any(g.any() for g in reached)
    assert (a.S.grad[: a.genes] != 0).all()
    assert all(
        p.grad is not None and p.grad.any()
        for p in ad.adapters(model)["default"].shared.parameters()
        if p.shape != (3,)
    )


def test_a_new_tailor_beside_it_changes_nothing_of_the_old():
    layer, x = linear(), batch(4, 12)
    model, _ = adapted(layer, ad.DivControl(**TINY))
    shake(model)
    with ad.steer(instruction=E1):
        old = model(x)
        ad.set_trainable(model, "default", False)
        ad.attach(model, "lora", "new", targets="0", r=2)
        torch.testing.assert_close(model(x), old)  # starts at nothing
        before = {k: v.detach().clone() for k, v in ad.parameters_of(model).items()}
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
        assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == 2 * (12 + 20)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        both = model(x)
        assert not torch.allclose(both, old)
        ad.merge(model)
        torch.testing.assert_close(model(x), both, rtol=1e-6, atol=1e-6)
        ad.unmerge(model)
        ad.activate(model, "default")
        assert torch.equal(model(x), old)
    assert all(torch.equal(v, before[k]) for k, v in ad.parameters_of(model).items())


def test_what_comes_before_it_stays():
    layer, x = linear(), batch(4, 12)
    model = nn.Sequential(layer).double().eval()
    ad.attach(model, "lora", "inner", targets="0", r=2)
    with torch.no_grad():
        ad.parameters_of(model, "inner")["0.B"].normal_()
    added = model(x) - layer.frozen_forward(x)
    ad.attach(model, "divcontrol", "outer", targets="0", **TINY)
    with ad.steer(instruction=E1):
        both = model(x)
        ad.activate(model, "outer")
        torch.testing.assert_close(both, model(x) + added)
        ad.activate(model, ["inner", "outer"])
        ad.merge(model)
        torch.testing.assert_close(model(x), both, rtol=1e-6, atol=1e-6)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model, _ = adapted(linear(), ad.DivControl(**TINY))
    shake(model)
    ad.save(model, tmp_path / "a")
    other = nn.Sequential(linear()).double().eval()
    ad.load(other, tmp_path / "a")
    with ad.steer(instruction=E2):
        assert torch.equal(other(batch(4, 12)), model(batch(4, 12)))


def test_it_compiles_with_one_instruction_and_with_several():
    model, _ = adapted(linear(), ad.DivControl(**TINY))
    shake(model)
    compiled, x = torch.compile(model, backend="eager", fullgraph=True), batch(4, 12)
    for facts in (
        {"instruction": E1},
        {"instruction": E2},
        {"instruction": batch(4, 5)},
        {"gate": torch.ones(3)},
    ):
        with ad.steer(**facts):
            torch.testing.assert_close(compiled(x), model(x))


def test_what_does_not_fit_is_told():
    with pytest.raises(HostError, match="r = 13 is above its rank, 12"):
        adapted(linear(), ad.DivControl(r=13, tailors=2, active=1))
    with pytest.raises(HostError, match="12 components are too few for 16 tailors"):
        adapted(linear(), "divcontrol")
    with pytest.raises(HostError, match="in groups"):
        adapted(nn.Conv2d(4, 8, 3, groups=2), ad.DivControl(**TINY))
    with pytest.raises(MethodError, match="active = 3 is above tailors = 2"):
        ad.DivControl(tailors=2, active=3)
    model, _ = adapted(linear(), ad.DivControl(**TINY))
    with pytest.raises(StateError, match="needs to know 'instruction'"):
        model(batch(4, 12))
    with ad.steer(gate=torch.ones(4)), pytest.raises(StateError, match="4 weights for 3 tailors"):
        model(batch(4, 12))


def pixart(attentions: int = 1) -> nn.Module:
    """The maps of 13 blocks of PixArt's ControlNet on the meta device."""

    def block():
        maps = [nn.Linear(1152, 1152) for _ in range(4 * attentions)]
        return nn.ModuleList([*maps, nn.Linear(1152, 4608), nn.Linear(4608, 1152)])

    with torch.device("meta"):
        return nn.ModuleList(block() for _ in range(13))


def test_counts_are_the_sheets():
    targets = "re:\\d+\\.\\d+"
    plan = ad.plan(pixart(2), "divcontrol", targets=targets)
    factors, singular = 13 * (8 * 2 * 1152**2 + 2 * (4608 + 1152) * 1152), 13 * 10 * 1152
    assert factors == 448_561_152
    assert sum(e.parameters for e in plan.entries) == factors + singular
    assert plan.shared == 4097 * 256 + 257 * 16
    host_groups = ad.DivControl()
    assert (576 // 16, 576 // 16 * host_groups.active) == (36, 288)
    # a new tailor of 36 components, as a LoRA of that rank
    assert ad.plan(pixart(2), "lora", r=36, targets=targets).trainable == 14_017_536
    assert ad.plan(pixart(1), "lora", r=52, targets=targets).trainable == 14_017_536
