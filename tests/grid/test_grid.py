"""What every registered method promises, on every kind of host it admits. A new method is covered by being registered."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.adapter import Adapted, WeightAdapter
from adaptome.core.errors import HostError, MergeError
from adaptome.forms.delta import Delta
from adaptome.forms.low_rank import LowRank
from adaptome.forms.reparametrization import Reparametrization

from .covering import cases_of, each, pairs
from .sites import (
    DTYPES,
    SITES,
    adapted,
    admitted,
    bits,
    example,
    fresh,
    move,
    refused,
    run,
    small,
    tolerance,
)

#: without those that need others on the model first; their own tests have what is promised here
METHODS = [name for name, cls in ad.list_methods().items() if not cls.needs]
CASES = [(m, s) for m in METHODS for s in SITES if admitted(m, s)]
REFUSED = [(m, s) for m in METHODS for s in SITES if refused(m, s)]
MERGED = [(m, s) for m, s in CASES if ad.list_methods()[m].merge == "exact"]

on_every_host = pytest.mark.parametrize(("method", "site"), CASES)
on_each_host = cases_of("method site", CASES, each)
on_every_host_in_some_dtype = cases_of(
    "method site dtype", [(*case, dtype) for case in CASES for dtype in DTYPES.values()], pairs
)


def everywhere_on(model: nn.Module, name: str = "default") -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in ad.parameters_of(model, name).items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_every_method_has_a_host_in_the_grid():
    assert {m for m, _ in CASES} == set(METHODS)


@cases_of("method site", REFUSED, each)
def test_a_host_it_does_not_admit_is_refused_and_nothing_is_changed(method, site):
    model, before = fresh(site), bits(fresh(site))
    with pytest.raises(HostError, match=f"{method} cannot be put on"):
        ad.attach(model, small(method), targets=SITES[site].targets)
    assert equal(bits(model), before)
    assert not any(isinstance(m, Adapted) for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


@on_every_host_in_some_dtype
def test_it_starts_as_the_base_or_says_that_it_does_not(method, site, dtype):
    x = example(site, dtype)
    before, after = run(fresh(site, dtype), x), run(adapted(method, site, dtype, moved=False), x)
    assert after.dtype == before.dtype
    if small(method).identity_at_init:
        torch.testing.assert_close(after, before, **tolerance(dtype))
    else:
        assert not torch.allclose(after, before)


@on_every_host_in_some_dtype
def test_gradients_reach_what_it_declares_and_nothing_else(method, site, dtype):
    model = adapted(method, site, dtype, moved=False).train()
    declared = {id(p) for p in ad.parameters_of(model).values() if p.requires_grad}
    assert declared == {id(p) for p in model.parameters() if p.requires_grad}
    output = model(example(site, dtype))
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype))
    ad.check_gradients(model)
    attachment = ad.adapters(model)["default"]
    for path, adapter in attachment.adapters.items():
        own = [p for p in adapter.parameters() if p.requires_grad]
        assert not own or any(p.grad is not None and p.grad.any() for p in own), (
            f"{path} cannot leave its start"
        )
    for name, parameter in model.named_parameters():
        if id(parameter) in declared:
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
        else:
            assert parameter.grad is None, name


@cases_of(
    "method site half", [(*case, half) for case in CASES for half in ("autocast", "adapters", "base")], pairs
)
def test_it_trains_in_mixed_precision(method, site, half):
    """Under autocast; with adapters in half precision on a full-precision base; and the other way round."""
    model = fresh(site, torch.bfloat16 if half == "base" else torch.float32)
    kept = torch.bfloat16 if half == "adapters" else torch.float32
    ad.attach(model, small(method), targets=SITES[site].targets, seed=3, dtype=kept)
    move(model)
    x = example(site, torch.bfloat16 if half == "base" else torch.float32)
    for facts in small(method).example_facts():
        with ad.steer(**facts), torch.autocast("cpu", torch.bfloat16, enabled=half == "autocast"):
            loss = model.train()(x).float().square().mean()
        loss.backward()
    trained = [p.grad for p in ad.parameters_of(model).values() if p.requires_grad]
    assert torch.isfinite(loss) and all(g is None or torch.isfinite(g).all() for g in trained)
    assert not trained or any(g is not None and g.any() for g in trained)


@pytest.mark.parametrize("method", [m for m, s in CASES if s == "linear"])
def test_away_from_its_start_every_trained_tensor_has_a_gradient(method):
    model = adapted(method, "linear")
    for facts in small(method).example_facts():
        with ad.steer(**facts):
            model(example("linear")).square().sum().backward()
    dead = [
        k
        for k, p in ad.parameters_of(model).items()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert not dead


@on_every_host
def test_the_formula_is_the_count(method, site):
    model = fresh(site)
    planned = ad.plan(model, small(method), targets=SITES[site].targets)
    made = ad.attach(model, small(method), targets=SITES[site].targets)
    attachment = ad.adapters(model)["default"]
    for entry in made.entries:
        own = sum(p.numel() for p in attachment.adapters[entry.path].parameters() if p.requires_grad)
        assert own == entry.parameters, entry
    assert planned.entries == made.entries and planned.shared == made.shared
    assert ad.trainable(model).count == made.trainable
    assert ad.trainable(model).total == made.total


@cases_of("method site dtype", [(*case, dtype) for case in MERGED for dtype in DTYPES.values()], pairs)
def test_merging_equals_the_forward_and_unmerging_gives_the_bits_back(method, site, dtype):
    model, x = adapted(method, site, dtype), example(site, dtype)
    before, base, objects = run(model, x), bits(model), dict(model.named_parameters())
    assert not torch.equal(before, run(fresh(site, dtype), x)), "the adapter does nothing"
    report = ad.merge(model)
    assert set(report.differences) and report.worst <= (1e-4 if dtype == torch.float32 else 6e-2)
    torch.testing.assert_close(run(model, x), before, **tolerance(dtype))
    assert not equal(bits(model), base)
    ad.unmerge(model)
    assert equal(bits(model), base)
    assert all(value is objects[name] for name, value in model.named_parameters())
    assert torch.equal(run(model, x), before)


@cases_of("method site", MERGED, each)
def test_a_model_merged_for_good_is_a_plain_one(method, site):
    model, x = adapted(method, site), example(site)
    before = run(model, x)
    report = ad.merge(model, keep=False)
    torch.testing.assert_close(run(model, x), before, **tolerance(torch.float32))
    assert not any(isinstance(m, Adapted) for m in model.modules())
    assert model.state_dict().keys() == fresh(site).state_dict().keys() | set(report.created)


@pytest.mark.parametrize(("method", "site"), [c for c in CASES if c not in MERGED])
def test_what_has_no_merged_form_says_so(method, site):
    model, x = adapted(method, site), example(site)
    before, base = run(model, x), bits(model)
    with pytest.raises(MergeError, match=f"{method} on .* changes activations"):
        ad.merge(model)
    assert equal(bits(model), base) and torch.equal(run(model, x), before)


@on_every_host_in_some_dtype
def test_a_saved_adapter_loads_bit_for_bit_into_a_fresh_base(method, site, dtype, tmp_path):
    model, x = adapted(method, site, dtype), example(site, dtype)
    ad.save(model, tmp_path / "a")
    other = fresh(site, dtype)
    report = ad.load(other, tmp_path / "a", trainable=True)
    assert equal(everywhere_on(other), everywhere_on(model))
    assert torch.equal(run(other, x), run(model, x))
    assert report.method == method and report.base == "structure and weights"
    assert ad.trainable(other).names == ad.trainable(model).names


@on_each_host
def test_copies_and_pickles_are_whole_and_independent(method, site):
    model, x = adapted(method, site), example(site)
    before = run(model, x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(other, x), before)
        move(other, seed=9)
        assert not torch.equal(run(other, x), before)
        ad.detach(other)
        assert torch.equal(run(other, x), run(fresh(site), x))
    assert torch.equal(run(model, x), before)


@on_each_host
def test_disabled_is_the_base_and_strength_scales_the_effect(method, site):
    model, x = adapted(method, site), example(site)
    base, before = run(fresh(site), x), run(model, x)
    with ad.disabled(model):
        assert torch.equal(run(model, x), base)
    assert torch.equal(run(model, x), before)
    ad.activate(model, [])
    assert torch.equal(run(model, x), base)
    ad.activate(model, "default", weights={"default": 0.0})
    torch.testing.assert_close(run(model, x), base, **tolerance(torch.float32))
    ad.activate(model, "default", weights={"default": 0.5})
    half = run(model, x)
    assert not torch.allclose(half, base) and not torch.allclose(half, before)
    if (method, site) in MERGED:
        ad.merge(model)
        torch.testing.assert_close(run(model, x), half, **tolerance(torch.float32))
        ad.unmerge(model)
    ad.activate(model, "default")
    assert torch.equal(run(model, x), before)


@on_each_host
def test_detaching_leaves_no_trace(method, site):
    model, other, x = fresh(site).train(), fresh(site).train(), example(site)
    next(model.parameters()).requires_grad_(False)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    objects = {n: id(p) for n, p in model.named_parameters()}
    ad.attach(model, small(method), targets=SITES[site].targets)
    move(model)
    run(model, x)
    ad.detach(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in other.modules()]
    assert [set(vars(m)) for m in model.modules()] == [set(vars(m)) for m in other.modules()]
    assert [m.training for m in model.modules()] == [m.training for m in other.modules()]
    assert {n: id(p) for n, p in model.named_parameters()} == objects
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained
    assert equal(bits(model), bits(fresh(site)))


@on_each_host
def test_a_seed_gives_the_same_adapter_and_leaves_the_generators_alone(method, site):
    made = []
    for noise in (0, 1):
        model = fresh(site)
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        ad.attach(model, small(method), targets=SITES[site].targets, seed=3)
        assert torch.equal(torch.get_rng_state(), state)
        made.append(everywhere_on(model))
    assert equal(*made)
    torch.manual_seed(0)
    one, two = fresh(site), fresh(site)
    ad.attach(one, small(method), targets=SITES[site].targets)
    torch.manual_seed(0)
    ad.attach(two, small(method), targets=SITES[site].targets)
    assert equal(everywhere_on(one), everywhere_on(two))


def first_site(*methods: str) -> str | None:
    """The first place that all of them admit."""
    return next((s for s in SITES if all(admitted(m, s) for m in methods)), None)


@pytest.mark.parametrize("method", METHODS)
def test_it_compiles_without_a_graph_break(method):
    site = first_site(method)
    assert site
    torch._dynamo.reset()
    model, x = adapted(method, site), example(site)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(run(compiled, x), run(model, x), **tolerance(torch.float32))
    with ad.disabled(model):
        torch.testing.assert_close(run(compiled, x), run(fresh(site), x), **tolerance(torch.float32))


def weight_level(method: str) -> bool:
    return any(
        isinstance(a, WeightAdapter)
        for s in SITES if admitted(method, s)
        for a in ad.adapters(adapted(method, s, moved=False))["default"].adapters.values()
    )  # fmt: skip


WEIGHT_LEVEL = [m for m in METHODS if weight_level(m)]
TWO = [(a, b, s) for a in WEIGHT_LEVEL for b in WEIGHT_LEVEL for s in [first_site(a, b)] if s]


@functools.cache
def form(method: str) -> tuple[object, ...]:
    """What decides how others meet it: the base of its adapter, and whether it only adds."""
    adapter = next(
        a
        for a in ad.adapters(adapted(method, first_site(method), moved=False))["default"].adapters.values()
        if isinstance(a, WeightAdapter)
    )
    bases = (LowRank, Delta, Reparametrization)
    return next((b for b in bases if isinstance(adapter, b)), None), adapter.additive


def forms(case):
    """Every method inside and outside every form."""
    inner, outer, _ = case
    return (inner, form(outer)), (form(inner), outer)


@cases_of("inner outer site", TWO, forms)
def test_any_two_on_one_layer_merge_to_their_forward(inner, outer, site):
    model, x = fresh(site), example(site)
    for number, (name, method) in enumerate((("inner", inner), ("outer", outer))):
        ad.attach(model, small(method), name, targets=SITES[site].targets, seed=number)
        move(model, name, seed=number)
    both = run(model, x)
    assert ad.merge(model).worst <= 1e-4
    torch.testing.assert_close(run(model, x), both, **tolerance(torch.float32))
    ad.unmerge(model)
    ad.merge(model, "inner")
    torch.testing.assert_close(run(model, x), both, **tolerance(torch.float32))
    ad.unmerge(model)
    assert torch.equal(run(model, x), both)
    ad.activate(model, "outer")
    alone = run(model, x)
    ad.detach(model, "inner")
    assert torch.equal(run(model, x), alone)


@pytest.mark.parametrize("method", WEIGHT_LEVEL)
def test_it_says_truly_whether_it_only_adds(method):
    site = first_site(method)
    adapters = ad.adapters(adapted(method, site))["default"].adapters.values()
    added = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        for adapter in adapters:
            for name in adapter.changes:
                like = adapter.host.canonical(adapter.host.stored_or_zeros(name))
                value = torch.randn(like.shape, generator=generator)
                added.append((adapter.changed(name, value) - value).detach())
    half = len(added) // 2
    same = all(torch.allclose(a, b, atol=1e-4) for a, b in zip(added[:half], added[half:], strict=True))
    assert {a.additive for a in adapters} == {same}


@pytest.mark.parametrize("method", METHODS)
def test_its_export_as_lora_is_as_it_says(method, tmp_path):
    targets = "second" if admitted(method, "linear") else SITES[first_site(method)].targets
    model = fresh("linear" if targets == "second" else first_site(method))
    ad.attach(model, small(method), targets=targets, seed=3)
    move(model)
    said = ad.list_methods()[method].export
    if said == "none":
        with pytest.raises(MergeError):
            ad.export(model, tmp_path / "out", rank=16)
        return
    assert ad.export(model, tmp_path / "out", rank=None if said == "low-rank" else 20).worst < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_an_activation_adapter_beside_it_leaves_its_merge_exact(method):
    site = first_site(method, "series") if method in WEIGHT_LEVEL else None
    if site is None:
        return  # nothing to merge, or no place takes both
    model, x = fresh(site), example(site)
    ad.attach(model, small("series"), "series", targets=SITES[site].targets)
    move(model, "series", seed=1)
    ad.attach(model, small(method), "weights", targets=SITES[site].targets)
    move(model, "weights", seed=2)
    both = run(model, x)
    ad.merge(model, "weights")
    torch.testing.assert_close(run(model, x), both, **tolerance(torch.float32))
