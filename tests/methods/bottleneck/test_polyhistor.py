"""Polyhistor: adapters generated from task embeddings (arXiv:2210.03265)."""

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import HostError, MethodError, StateError
from adaptome.forms.generated import product
from adaptome.methods.bottleneck.polyhistor_plain import plain
from tests.methods.helpers import batch, shake

TASKS = ("segment", "edges", "normals")
SMALL = dict(tasks=TASKS, k=5, r=2)
KINDS = {
    "polyhistor": {},
    "polyhistor-lite": {},
    "hyperformer": {"decompose": False},
    "scaled": {"decompose": False, "scale_kernels": True},
}
PLACES = ["o", "down"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def method(kind, **settings):
    return ad.get_method(
        kind if kind in ad.list_methods() else "polyhistor", **{**SMALL, **KINDS[kind], **settings}
    )


def swin(widths=4, embed=16, drop=0.0):
    """A SwinModel with stages of 16, 32, 64, ... channels."""
    from transformers import SwinConfig, SwinModel

    torch.manual_seed(0)
    config = SwinConfig(
        image_size=32, patch_size=2, embed_dim=embed, depths=[1] * widths, num_heads=[2] * widths, window_size=2, drop_path_rate=drop
    )  # fmt: skip
    return SwinModel(config, add_pooling_layer=False).double().eval()


def adapted(kind, model=None, **settings):
    model = swin() if model is None else model
    ad.attach(model, method(kind, **settings), seed=0)
    return model


IMAGES = batch(3, 3, 32, 32)


def output(model, task, images=IMAGES):
    with ad.steer(task=task):
        return model(images).last_hidden_state


@pytest.mark.parametrize("s", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(3, 6), (6, 3)])
@pytest.mark.parametrize("inner", [None, 2])
def test_the_product_with_a_scaled_template_is_krons(s, shape, inner):
    torch.manual_seed(0)
    made = [shape] if inner is None else [(shape[0], inner), (inner, shape[1])]
    leaves = [
        torch.randn(s, s).double().requires_grad_(),
        *(torch.randn(m).double().requires_grad_() for m in made),
    ]
    K, factors, x = leaves[0], leaves[1:], torch.randn(2, 5, s * shape[1]).double().requires_grad_()
    W = torch.kron(K, torch.linalg.multi_dot(factors) if inner else factors[0])
    weights = torch.randn(2, 5, s * shape[0]).double()
    fast, dense = product(x, K, factors), x @ W.T
    torch.testing.assert_close(fast, dense, rtol=1e-10, atol=1e-10)
    ours, truth = (torch.autograd.grad((y * weights).sum(), [x, *leaves]) for y in (fast, dense))
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


@every_kind
def test_the_output_is_the_equation(kind):
    """Written from the paper's equations for one layer among others of other widths."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(7, 8), nn.Linear(7, 24)]).double()
    ad.attach(model, method(kind), targets=["0", "1"])
    shake(model)
    own = {k.removeprefix("shared."): p for k, p in ad.parameters_of(model).items()}
    v, x, s, w, n = own["v.edges"], batch(2, 5, 7), 3, 24, 6
    scaled = method(kind).scale_kernels

    def matrix(which, rows, columns):
        made = [p @ v for k, p in own.items() if k.startswith(f"layers.1.{which}.H")]
        a, b = (rows // s, columns // s) if scaled else (rows, columns)
        T = made[0].view(a, 2) @ made[1].view(2, b) if len(made) == 2 else made[0].view(a, b)
        return torch.kron(own[f"layers.1.{which}.K"], T) if scaled else T

    D, U = matrix(0, n, w), matrix(1, w, n)
    z = x @ model[1].weight.T + model[1].bias
    expected = z + torch.nn.functional.gelu(z @ D.T + own["1.d"]) @ U.T + own["1.u"]
    with ad.steer(task="edges"):
        torch.testing.assert_close(model[1](x), expected)


@every_kind
def test_it_fits_every_stage_of_a_hierarchical_model(kind):
    model = adapted(kind)
    hosts = [a.host for a in ad.adapters(model)["default"].adapters.values()]
    assert [h.fan_out for h in hosts] == [w for w in (16, 32, 64, 128) for _ in range(2)]
    shake(model)
    assert output(model, "edges").isfinite().all()


@every_kind
def test_every_task_starts_as_the_base_and_parts_after_a_step(kind):
    model = adapted(kind)
    with ad.disabled(model):
        frozen = model(IMAGES).last_hidden_state
    for task in TASKS:
        assert torch.equal(output(model, task), frozen)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    output(model, "edges").square().mean().backward()
    optimizer.step()
    seen = [frozen, *(output(model, task) for task in TASKS)]
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


@every_kind
def test_gradients_reach_embeddings_hypernetworks_and_kernels_of_the_steered_task(kind):
    model = adapted(kind)
    shake(model)
    output(model, "edges").square().sum().backward()
    others = {f"shared.v.{task}" for task in TASKS} - {"shared.v.edges"}
    for key, p in ad.parameters_of(model).items():
        assert (p.grad is None) if key in others else p.grad.any(), key
    assert all(p.grad is None for k, p in model.named_parameters() if "adaptome" not in k)


@every_kind
def test_samples_of_several_tasks_share_a_batch(kind):
    """Windows are rows of their own: each must get its sample's matrices, and gradients must be those of separate passes."""
    model = adapted(kind)
    shake(model)
    parameters, weights = ad.parameters_of(model), batch(3, 4, 128)
    numbers = [2, 0, 2]
    folded = output(model, torch.tensor(numbers))
    apart = torch.cat([output(model, TASKS[t], IMAGES[i : i + 1]) for i, t in enumerate(numbers)])
    torch.testing.assert_close(folded, apart)
    ours, truth = (
        torch.autograd.grad((y * weights).sum(), list(parameters.values()), allow_unused=True)
        for y in (folded, apart)
    )
    for key, a, b in zip(parameters, ours, truth, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, msg=key)
    assert not ours[list(parameters).index("shared.v.edges")].any()


def test_steering_errors_say_what_is_missing():
    model = adapted("polyhistor-lite")
    with pytest.raises(StateError, match="task"):
        model(IMAGES)
    with pytest.raises(StateError, match="no task 'edge'.*Did you mean 'edges'"):
        output(model, "edge")
    with pytest.raises(StateError, match="steered for 7 samples"):
        output(model, torch.zeros(7, dtype=torch.long))
    for number in (-1, 3):
        with pytest.raises(StateError, match=f"no task number {number}; the 3 tasks are numbered from 0"):
            output(model, torch.tensor([0, 1, number]))
    with pytest.raises(StateError, match="steered as torch.float32"):
        output(model, torch.zeros(3))


def test_settings_of_the_hypernetworks_are_one_and_widths_divide():
    with pytest.raises(MethodError, match="cannot differ between layers"):
        ad.attach(swin(), method("polyhistor"), per_layer={"*.layers.0.*": {"r": 3}})
    with pytest.raises(HostError, match="width 16 does not divide by rho = 5"):
        ad.attach(swin(), method("polyhistor", rho=5))
    with pytest.raises(MethodError, match="needs tasks"):
        ad.Polyhistor(tasks=())


# -- counts at full size -------------------------------------------------------------------------------------------


def swin_t(width=96):
    from transformers import SwinConfig, SwinModel

    with torch.device("meta"):
        return SwinModel(SwinConfig(embed_dim=width), add_pooling_layer=False)


STAGES = {f"*.layers.{i}.*": {"size": 24 * 2**i} for i in range(4)}
ADAPTER = dict(targets=PLACES, bias=True, activation="gelu", per_layer=STAGES)
NORMS = 24_768


def test_adapter_baselines_are_the_papers():
    shared, own = swin_t(), swin_t()
    assert ad.attach(shared, "series", train="norms", **ADAPTER).trainable == 2_192_352  # paper: 2.20M
    for task in ("semseg", "human_parts", "sal", "normals"):
        ad.attach(own, "series", task, train="norms" if task == "semseg" else (), **ADAPTER)
    assert ad.trainable(own).count == 8_695_104  # paper: 8.69M


def test_lite_and_hyperformer_counts():
    """Lite: 394,344 and the embeddings; with biases 0.41M as in the paper. HyperFormer's weights: 69,009,408."""
    count = {k: ad.plan(swin_t(), "polyhistor-lite", bias=k, train="norms").trainable for k in (False, True)}
    assert count == {False: 394_344 + 4 * 32, True: 394_344 + 4 * 32 + 2 * 5_520}
    assert round(count[True] / 1e6, 2) == 0.41
    direct = ad.plan(swin_t(), "polyhistor", decompose=False, bias=False)
    assert direct.trainable == 69_009_408 + 4 * 32
    decomposed = ad.plan(swin_t(), "polyhistor", bias=False)
    assert decomposed.trainable == 22_080 * 32 * 9 + 4 * 32
    assert ad.plan(swin_t(), "polyhistor", train="norms").trainable == 6_394_976  # paper: 6.41M


@every_kind
def test_a_further_task_costs_its_embedding(kind):
    sizes = [ad.plan(swin(), method(kind, tasks=TASKS + more)).trainable for more in ((), ("depth",))]
    assert sizes[1] - sizes[0] == SMALL["k"]


def test_growth_with_the_width_of_a_stage():
    """Twice as wide: four times a direct hypernetwork's parameters, while of Lite's only K grows."""

    def parts(kind, width):
        model = nn.ModuleList([nn.Linear(4, 16), nn.Linear(4, width)])
        ad.attach(model, method(kind, bias=False), targets=["0", "1"])
        own = {k: p.numel() for k, p in ad.parameters_of(model).items() if k.startswith("shared.layers.1.")}
        kernels = sum(n for k, n in own.items() if k.endswith("K"))
        return sum(own.values()) - kernels, kernels

    direct, lite = (
        [parts(kind, width) for width in (64, 128)] for kind in ("hyperformer", "polyhistor-lite")
    )
    assert direct[1] == (4 * direct[0][0], 0)
    assert lite[0] == (lite[1][0], 2 * 4**2) and lite[1][1] == 2 * 8**2


# -- one task's adapters alone -------------------------------------------------------------------------------------


@every_kind
def test_plain_adapters_reproduce_the_hypernetworks_outputs_without_them(kind, tmp_path):
    model = swin()
    ad.attach(model, method(kind), train="norms", seed=0)
    shake(model)
    expected = output(model, "normals").detach()
    plan = plain(model, "normals")
    assert plan.method == "series" and not [k for k, _ in model.named_parameters() if "adaptome_shared" in k]
    torch.testing.assert_close(model(IMAGES).last_hidden_state, expected, rtol=1e-12, atol=1e-12)
    ad.save(model, tmp_path / "normals")
    other = swin()
    ad.load(other, tmp_path / "normals")
    assert torch.equal(other(IMAGES).last_hidden_state, model(IMAGES).last_hidden_state)


def test_plain_keeps_strength_and_the_order_of_adapters():
    model = adapted("polyhistor-lite")
    shake(model)
    ad.attach(model, "series", "around", size=4, seed=1)
    with torch.no_grad():
        for p in ad.parameters_of(model, "around").values():
            p.add_(0.3)
    ad.activate(model, ["default", "around"], weights={"default": 0.5, "around": 0.7})
    expected = output(model, "edges").detach()
    plain(model, "edges")
    assert ad.active(model) == ["default", "around"]
    torch.testing.assert_close(model(IMAGES).last_hidden_state, expected, rtol=1e-12, atol=1e-12)


def test_plain_refuses_other_methods_and_tasks():
    model = adapted("polyhistor-lite")
    ad.attach(model, "lora", "other", targets="o")
    with pytest.raises(MethodError, match="'other' is lora"):
        plain(model, "edges", "other")
    with pytest.raises(StateError, match="no task 'depth'"):
        plain(model, "depth")
    assert ad.adapters(model).keys() == {"default", "other"}
