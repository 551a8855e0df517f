"""Bottlenecks in every place of every kind of model: the equations of arXiv:2312.03694 and 1902.00751, written out with hooks on the base."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import adaptome as ad
from adaptome.core.errors import HostError, MethodError, StateError, TargetError
from adaptome.core.targets import resolve
from tests.grid.sites import fresh
from tests.methods.bottleneck.models import FAMILIES, family, inputs, run
from tests.methods.helpers import checkpointing, shake

SMALL = {"size": 3, "activation": "gelu", "scale": 0.5}
METHODS = {
    "pfeiffer": {"size": 3},
    "adaptformer": {"size": 3},
    "conformer-adapter": {"size": 3, "kernel": 3},
    "convpass": {"size": 3, "dims": 1},
    "soft-moa": {"size": 3, "adapters": 2},
}


def network(t, h):
    """`U gelu(D h + d) + u`, half of it."""
    return 0.5 * (F.gelu(h @ t["D"].T + t["d"]) @ t["U"].T + t["u"])


def tensors(model, path, name="default"):
    adapter = ad.adapters(model)[name].adapters[path]
    return {k: v.detach() for k, v in adapter.named_parameters()}


def paths(model, role):
    return [m.path for m in resolve(model, role)]


def expected_beside(base, name, model, first, last):
    """The base, with what the network makes of each first map's input added to the last map's output, by hooks."""
    held, hooks = {}, []
    for one, two in zip(paths(base, first), paths(base, last), strict=True):
        t = tensors(model, one)

        def read(module, args, two=two, t=t):
            held[two] = network(t, args[0])

        def add(module, args, output, two=two):
            return output + held[two]

        hooks += [
            base.get_submodule(one).register_forward_pre_hook(read),
            base.get_submodule(two).register_forward_hook(add),
        ]
    y = run(base, name)
    for hook in hooks:
        hook.remove()
    return y


@pytest.mark.parametrize("name", FAMILIES)
def test_beside_a_sublayer_the_network_reads_its_input_and_adds_to_its_output(name):
    base, model = family(name), family(name)
    for first, last in (("up", "down"), ("q", "o")):
        ad.attach(model, "adaptformer", targets=[first, last], **SMALL)
        torch.testing.assert_close(run(model, name), run(base, name), rtol=1e-12, atol=1e-12)
        shake(model)
        seen = run(model, name)
        assert not torch.allclose(seen, run(base, name))
        torch.testing.assert_close(
            seen, expected_beside(base, name, model, first, last), rtol=1e-10, atol=1e-10
        )
        ad.detach(model)


@pytest.mark.parametrize("name", FAMILIES)
def test_houlsby_adds_behind_both_sublayers_before_the_sum(name):
    base, model = family(name), family(name)
    ad.attach(model, "houlsby", **SMALL)
    torch.testing.assert_close(run(model, name), run(base, name), rtol=1e-12, atol=1e-12)
    shake(model)
    seen, hooks = run(model, name), []
    assert len(ad.adapters(model)["default"].adapters) == len(paths(base, ["o", "down"])) == 4
    for path in paths(base, ["o", "down"]):

        def behind(module, args, z, t=tensors(model, path)):  # noqa: B008
            return z + network(t, z)

        hooks.append(base.get_submodule(path).register_forward_hook(behind))
    torch.testing.assert_close(seen, run(base, name), rtol=1e-10, atol=1e-10)


def test_in_a_post_norm_block_the_norm_sees_the_sum_of_all_three():
    """BERT's layer written out: LN(a + MLP(a) + A(a)), with a the normalised sum after its attention."""
    base, model = family("bert"), family("bert")
    ad.attach(model, "adaptformer", layers=1, **SMALL)
    shake(model)
    with torch.no_grad():
        h = base(**inputs("bert"), output_hidden_states=True).hidden_states[1]
        block = base.encoder.layer[1]
        a = block.attention(h)[0]
        inner = block.output.dense(F.gelu(block.intermediate.dense(a)))
        t = tensors(model, "encoder.layer.1.intermediate.dense")
        y = block.output.LayerNorm(a + inner + network(t, a))
    torch.testing.assert_close(run(model, "bert"), y, rtol=1e-10, atol=1e-10)


# -- the grid of AST-PETL ------------------------------------------------------------------------------------------

GRID = [
    (part, form, place)
    for part in ("attention-blocks", "mlp-blocks")
    for form in ("series", "parallel")
    for place in ("before", "after")
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("part", "form", "place"), GRID)
def test_all_eight_placements_that_keep_the_stream_start_as_the_base(part, form, place, method):
    base, model = family("ast"), family("ast")
    ad.attach(model, method, targets=part, form=form, place=place, **METHODS[method])
    torch.testing.assert_close(run(model, "ast"), run(base, "ast"), rtol=1e-12, atol=1e-12)
    shake(model)
    assert not torch.allclose(run(model, "ast"), run(base, "ast"))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("part", "form", "place"), GRID)
def test_every_placement_is_its_equation(part, form, place, residual):
    base, model = family("ast"), family("ast")
    ad.attach(model, "pfeiffer", targets=part, form=form, place=place, residual=residual, layers=0, **SMALL)
    shake(model)
    (path,) = ad.adapters(model)["default"].adapters
    t, block = tensors(model, path), base.get_submodule(path)

    def bend(h):
        return network(t, h) + (h if residual else 0)

    def around(module, args, output):
        z = output[0] if isinstance(output, tuple) else output
        source = bend(args[0]) if place == "before" else bend(z)
        y = source if form == "series" else z + source
        return (y, *output[1:]) if isinstance(output, tuple) else y

    if form == "series" and place == "before":
        block.register_forward_pre_hook(lambda module, args: (bend(args[0]), *args[1:]))
    else:
        block.register_forward_hook(around)
    torch.testing.assert_close(run(model, "ast"), run(base, "ast"), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("form", "place", "residual"), [
    ("series", "before", False), ("series", "after", False), ("parallel", "before", True), ("parallel", "after", True),
])  # fmt: skip
def test_without_the_stream_a_zero_start_is_not_the_base(form, place, residual):
    """A release's fault: in series in front, without the residual, the sub-layer is fed A(x) alone."""
    base, model = family("ast"), family("ast")
    ad.attach(model, "pfeiffer", targets="mlp-blocks", form=form, place=place, residual=residual, size=3)
    assert not torch.allclose(run(model, "ast"), run(base, "ast"))


# -- a start from which everything can move ------------------------------------------------------------------------


def gradients(model, name="ast"):
    torch.manual_seed(0)
    y = model.train()(**inputs(name)).last_hidden_state
    y.backward(torch.randn_like(y))
    return {k: p.grad for k, p in ad.parameters_of(model).items()}


def test_two_zero_matrices_are_dead():
    """The release's start: neither matrix ever gets a gradient, the output's bias alone does."""
    model = family("ast")
    ad.attach(model, "pfeiffer", size=3)
    with torch.no_grad():
        for parameter in ad.parameters_of(model).values():
            parameter.zero_()
    for key, grad in gradients(model).items():
        assert bool(grad.any()) == key.endswith(".u"), key


@pytest.mark.parametrize("method", [*METHODS, "houlsby", "compacter", "series", "parallel"])
def test_no_method_starts_dead(method):
    settings = METHODS.get(method, {"size": 4})
    model = family("ast")
    ad.attach(model, method, seed=0, **settings)
    first = gradients(model)
    assert any(g.any() for k, g in first.items() if k.rpartition(".")[2] in ("U", "S_up"))
    with torch.no_grad():
        for key, parameter in ad.parameters_of(model).items():
            parameter.sub_(first[key])
            parameter.grad = None
    for key, grad in gradients(model).items():
        assert grad is not None and grad.any(), f"{key} gets no gradient after one step"


# -- pairs of maps -------------------------------------------------------------------------------------------------


def test_a_map_without_its_partner_is_refused():
    for targets, wanted in (
        ("down", "('up', 'down')"),
        ("up", "('up', 'down')"),
        (["q", "up", "down"], "('q', 'o')"),
    ):
        with pytest.raises(TargetError, match="has no partner") as caught:
            ad.attach(family("bert"), "adaptformer", targets=targets)
        assert wanted in str(caught.value)
    with pytest.raises(
        HostError, match="adaptformer cannot be put on .*key: it runs beside a whole sub-layer"
    ):
        ad.attach(family("bert"), "adaptformer", targets="attention")


def test_mixtures_of_experts_are_adapted_as_whole_modules():
    with pytest.raises(HostError, match="adaptformer cannot be put on"):
        ad.attach(fresh("experts"), "adaptformer", targets=["layer.experts.gate_up_proj"])
    model, x = fresh("experts"), torch.randn(2, 5, 16)
    before = model(x)
    ad.attach(model, "adaptformer", targets="layer", **SMALL)
    shake(model)
    torch.testing.assert_close(model(x), before + network(tensors(model, "layer"), x))


def test_other_adapters_nest_around_and_beneath_and_strength_scales():
    base, model = family("bert"), family("bert")
    ad.attach(model, "lora", "low", targets=["up", "down"], r=2, seed=1)
    ad.attach(model, "adaptformer", **SMALL)
    ad.attach(model, "series", "behind", size=3, seed=2)
    for name in ("low", "default", "behind"):
        with torch.no_grad():
            for p in ad.parameters_of(model, name).values():
                p.add_(0.2)
    both = run(model, "bert")
    ad.merge(model, "low")
    torch.testing.assert_close(run(model, "bert"), both, rtol=1e-9, atol=1e-9)
    ad.unmerge(model)
    ad.activate(model, ["low", "default", "behind"], weights={"behind": 0.5, "default": 0.0})
    quiet = run(model, "bert")
    ad.activate(model, ["low", "behind"], weights={"behind": 0.5})
    torch.testing.assert_close(run(model, "bert"), quiet, rtol=1e-12, atol=1e-12)
    ad.detach(model)
    assert torch.equal(run(model, "bert"), run(base, "bert"))


def test_copies_and_pickles_after_a_training_forward_are_whole():
    model = family("opt")
    ad.attach(model, "adaptformer", **SMALL)
    shake(model)
    before = run(model, "opt")
    model(**inputs("opt")).last_hidden_state.sum().backward()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(other, "opt"), before)
        shake(other, seed=4)
        assert not torch.equal(run(other, "opt"), before) and torch.equal(run(model, "opt"), before)


def test_a_saved_pair_loads_bit_for_bit(tmp_path):
    model, other = family("bert"), family("bert")
    ad.attach(model, "adaptformer", **SMALL)
    shake(model)
    ad.save(model, tmp_path / "a")
    ad.load(other, tmp_path / "a")
    assert torch.equal(run(other, "bert"), run(model, "bert"))


def test_checkpointed_blocks_give_the_same_gradients():
    found = []
    for checkpointed in (False, True):
        model = family("bert")
        ad.attach(model, "adaptformer", seed=1, **SMALL)
        shake(model)
        if checkpointed:
            checkpointing(model)({"use_reentrant": False})
        model.config.hidden_dropout_prob = 0.0
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        found.append(gradients(model, "bert"))
    for key in found[0]:
        torch.testing.assert_close(found[0][key], found[1][key])


def test_it_compiles_whole():
    torch._dynamo.reset()
    model = family("bert")
    ad.attach(model, "adaptformer", **SMALL)
    shake(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(run(compiled, "bert"), run(model, "bert"), rtol=1e-9, atol=1e-9)


def test_a_last_map_that_runs_alone_says_what_is_missing():
    model = family("bert")
    ad.attach(model, "adaptformer", **SMALL)
    with pytest.raises(StateError, match=r"was run without encoder\.layer\.0\.intermediate\.dense"):
        model.encoder.layer[0].output.dense(torch.zeros(1, 24, dtype=torch.float64))


# -- AdapterDrop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pfeiffer", "adaptformer"])
def test_dropped_blocks_run_as_the_base(method):
    model, without = family("bert"), family("bert")
    ad.attach(model, method, seed=1, size=3)
    ad.attach(without, method, seed=1, size=3, layers="1:")
    shake(model)
    with torch.no_grad():
        for key, value in ad.parameters_of(without).items():
            value.copy_(ad.parameters_of(model)[key])
    whole = run(model, "bert")
    with ad.steer(drop=1):
        assert torch.equal(run(model, "bert"), run(without, "bert"))
    with ad.steer(drop=2):
        assert torch.equal(run(model, "bert"), run(family("bert"), "bert"))
    assert torch.equal(run(model, "bert"), whole) and not torch.allclose(whole, run(without, "bert"))


def test_training_drops_a_number_of_blocks_drawn_for_each_step():
    model = family("bert")
    ad.attach(model, "pfeiffer", size=3, drop=1)
    draws = []
    for step in range(40):
        ad.on_step(model, step, 40)
        model.zero_grad()
        found = gradients(model, "bert")
        ad.check_gradients(model)  # those that a draw leaves out may idle
        idle = [i for i in (0, 1) if all(g is None for k, g in found.items() if f"layer.{i}." in k)]
        assert idle == list(range(len(idle)))  # the first ones
        draws.append(len(idle))
    assert set(draws) == {0, 1} and draws[:5] == [ad.Pfeiffer(drop=1).drawn(s) for s in range(5)]
    model.eval()
    whole = run(model, "bert")
    ad.on_step(model, 0, 40)
    assert torch.equal(run(model, "bert"), whole)  # inference drops what is steered, nothing that was drawn


# -- LLM-Adapters, arXiv:2304.01933 ------------------------------------------------------------------------------

THREE = [
    ("series", "after", ["up", "down"]),
    ("series", "before", ["gate", "up"]),
    ("parallel", None, ["up", "down"]),
    ("adaptformer", None, ["up", "down"]),
]


@pytest.mark.parametrize(("method", "place", "targets"), THREE)
def test_a_zero_start_is_the_base_bit_for_bit_and_a_random_one_near_it(method, place, targets):
    base, model = family("llama").float(), family("llama").float()
    where = {} if place is None else {"place": place}
    ad.attach(model, method, targets=targets, size=3, **where)
    assert torch.equal(run(model, "llama"), run(base, "llama"))
    ad.detach(model)
    ad.attach(model, method, targets=targets, size=3, init="bert", seed=0, **where)
    apart = (run(model, "llama") - run(base, "llama")).abs().max()
    assert 0 < apart < 0.1
    with ad.disabled(model):
        assert torch.equal(run(model, "llama"), run(base, "llama"))


@pytest.mark.parametrize(("method", "place"), [("series", "before"), ("series", "after"), ("parallel", None)])
def test_without_its_bend_it_is_a_changed_weight(method, place):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9)).double()
    W, b = (p.detach().clone() for p in model.parameters())
    where = {} if place is None else {"place": place}
    ad.attach(model, method, targets="0", size=3, activation="identity", scale=0.5, **where)
    shake(model)
    t = tensors(model, "0")
    change, x = 0.5 * t["U"] @ t["D"], torch.randn(4, 6, dtype=torch.float64)
    merged = {
        "before": lambda: F.linear(x, W + W @ change, b),
        "after": lambda: F.linear(x, W + change @ W, b + change @ b),
        None: lambda: F.linear(x, W + change, b),
    }[place]()
    torch.testing.assert_close(model(x), merged, rtol=1e-10, atol=1e-10)


# -- sizes ---------------------------------------------------------------------------------------------------------


def test_a_reduction_gives_the_size_of_each_width():
    model = family("swin")
    plan = ad.plan(model, "pfeiffer", reduction=4)
    assert [e.parameters for e in plan.entries] == [2 * d * (d // 4) + d // 4 + d for d in (16, 32)]
    assert ad.plan(model, "pfeiffer", reduction=1000).entries[0].parameters == 2 * 16 + 1 + 16  # never none
    fitted = ad.plan(model, "pfeiffer", reduction=4, budget=1000)
    assert fitted.settings["reduction"] == 0 and fitted.budget.setting == "size"
    with pytest.raises(MethodError, match="reduction"):
        ad.Pfeiffer(reduction=-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_low_precision_base_keeps_its_type(dtype):
    model = family("vit").to(dtype)
    ad.attach(model, "adaptformer", size=3)
    assert {p.dtype for p in ad.parameters_of(model).values()} == {torch.float32}
    with torch.no_grad():
        assert model(pixel_values=inputs("vit")["pixel_values"].to(dtype)).last_hidden_state.dtype == dtype


@pytest.fixture
def alone_in_a_group():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_dropping_under_ddp_needs_its_search_for_unused_parameters(alone_in_a_group):
    wrap = torch.nn.parallel.DistributedDataParallel
    model = family("bert")
    ad.attach(model, "pfeiffer", size=3, drop=1)
    shake(model)
    model.train()
    with pytest.raises(StateError, match=r"(?s)AdapterDrop, drop=.* find_unused_parameters=True\)"):
        wrap(model)(**inputs("bert"))
    wrapped = wrap(model, find_unused_parameters=True)
    for step in range(6):
        ad.on_step(model, step, 6)
        wrapped(**inputs("bert")).last_hidden_state.sum().backward()
    with torch.no_grad():
        wrap(model.eval())(**inputs("bert"))


@pytest.mark.parametrize("init", ["zero", "linear"])
def test_an_activation_behind_the_up_projection_in_front_of_every_block(init):
    """PeftCD's adapter: x + GELU(U GELU(D x + d) + u), then the block."""
    model, base = family("vit"), family("vit")
    before = run(base, "vit")
    ad.attach(
        model, "series", targets="blocks", size=3, activation="gelu", outer="gelu", bias=True, place="before", init=init, seed=0
    )  # fmt: skip
    if init == "zero":
        torch.testing.assert_close(run(model, "vit"), before)
        model(**inputs("vit")).last_hidden_state.square().sum().backward()
        assert all(p.grad.any() for n, p in ad.parameters_of(model).items() if n.endswith((".U", ".u")))
    else:
        t = tensors(model, paths(model, "blocks")[0])
        assert all(
            0 < v.abs().max() <= len_**-0.5
            for v, len_ in ((t["U"], 3), (t["u"], 3), (t["d"], t["D"].shape[1]))
        )
    shake(model)
    for path in paths(base, "blocks"):
        t = tensors(model, path)

        def read(module, args, t=t):
            x = args[0]
            return x + F.gelu(F.gelu(x @ t["D"].T + t["d"]) @ t["U"].T + t["u"]), *args[1:]

        base.get_submodule(path).register_forward_pre_hook(read)
    torch.testing.assert_close(run(model, "vit"), run(base, "vit"))
