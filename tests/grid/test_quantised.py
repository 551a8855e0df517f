"""Every registered method on every quantised base, against the same method on the dense weights that the base stands for."""

import copy
import dataclasses
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import adaptome as ad
from adaptome.core import packed
from adaptome.core.adapter import Adapted
from adaptome.core.hosts import host_of
from adaptome.forms.reparametrization import Reparametrization
from adaptome.quantization.checkpoints import layer_of
from adaptome.quantization.stored import from_gptq
from tests.stored_layers import gptq_layer

from .covering import cases_of, each

IN, HIDDEN, OUT = 64, 128, 96


class Network(nn.Module):
    """Two layers to quantise and one to keep; the widths all differ."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(48, IN)
        self.up_proj = nn.Linear(IN, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN)
        self.down_proj = nn.Linear(HIDDEN, OUT, bias=False)

    def forward(self, x):
        return self.down_proj(self.norm(self.up_proj(torch.tanh(self.embed(x)))))


LAYERS = ["up_proj", "down_proj"]


def _bnb(make):
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

    def quantise(model):
        for name in LAYERS:
            old = model.get_submodule(name)
            new = make(bnb.nn, old.in_features, old.out_features, old.bias is not None)
            new.load_state_dict(old.state_dict())
            model.add_module(name, new.to("cpu"))

    return quantise


def _four_bit(nested):
    return lambda: _bnb(
        lambda nn4, i, o, bias: nn4.Linear4bit(i, o, bias=bias, quant_type="nf4", compress_statistics=nested)
    )


def _eight_bit():
    return _bnb(lambda nn8, i, o, bias: nn8.Linear8bitLt(i, o, bias=bias, has_fp16_weights=False))


def _torchao(config):
    def make():
        ao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
        return lambda model: ao.quantize_(model, config(ao), filter_fn=lambda _, name: name in LAYERS)

    return make


def _aware():
    """torchao's layers for quantisation-aware training."""
    ao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    qat = pytest.importorskip("torchao.quantization.qat", reason="torchao has no quantisation-aware training")
    weights = qat.IntxFakeQuantizeConfig(torch.int4, group_size=32)
    config = qat.QATConfig(weight_config=weights, step="prepare")
    return lambda model: ao.quantize_(model, config, filter_fn=lambda _, name: name in LAYERS)


def _gptq():
    """Layers of a GPTQ file with act-order, whose columns lie in another order than the inputs."""

    def quantise(model):
        for name in LAYERS:
            old = model.get_submodule(name)
            bias = None if old.bias is None else old.bias.detach()
            tensors, _ = gptq_layer(old.in_features, old.out_features, 4, 32, mixed=True)
            rows = from_gptq(*tensors.values(), 4, 32, 1)
            model.set_submodule(name, layer_of(rows, old.in_features, bias))

    return quantise


def _own(scheme, **settings):
    return lambda: lambda model: ad.quantize(model, scheme, targets=LAYERS, **settings)


#: base -> what makes the function that quantises LAYERS of a network
BASES = {
    "bnb-nf4": _four_bit(False),
    "bnb-nf4-nested": _four_bit(True),
    "bnb-int8": _eight_bit,
    "torchao-int8": _torchao(lambda ao: ao.Int8WeightOnlyConfig()),
    "torchao-int4": _torchao(
        lambda ao: ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(32))
    ),
    "own-uniform": _own("uniform", bits=5, group=24),
    "own-sketch": _own("sketch", bits=4, tables=2),
    "gptq-act-order": _gptq,
    "torchao-qat": _aware,
}
METHODS = [
    name
    for name, method in ad.list_methods().items()
    if method.admits_packed and {"linear", "module"} & set(method.hosts)
]
METHODS_ON_BASES = [(m, b) for m in METHODS for b in BASES]
on_each_base = cases_of("method base", METHODS_ON_BASES, each, indirect=["base"])
# what hangs on how a base keeps its weights: every method on several of them
on_several_bases = cases_of("method base", METHODS_ON_BASES, each, times=3, indirect=["base"])


@pytest.fixture(params=BASES)
def base(request):
    """A quantised network in training mode, where no library quantises the activations as well."""
    torch.manual_seed(0)
    model = Network()
    BASES[request.param]()(model)
    return model.train()


def dense_twin(base):
    """The same network with plain layers that hold the dequantised weights."""
    twin = Network().train()
    for name, module in base.named_children():
        if name == "adaptome_shared":
            continue
        own = twin.get_submodule(name)
        if name not in LAYERS:
            own.load_state_dict(module.state_dict())
            continue
        own.weight.data = packed.dense(module)
        if module.bias is not None:  # a merge may have made one
            own.bias = nn.Parameter(module.bias.data.clone())
    return twin


def attach(model, method, layers=LAYERS):
    wanted = [n for n in layers if ad.get_method(method).admits(host_of(model.get_submodule(n), n)) is None]
    if not wanted:
        pytest.skip(f"{method} admits no quantised linear layer")
    ad.attach(model, method, targets=wanted, seed=1)
    return model


def shake(model, seed=2, name="default"):
    """Move every trained number off its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in ad.parameters_of(model, name).values():
            value.add_(0.05 * torch.randn(value.shape, generator=generator))
    return model


def run(model, x):
    torch.manual_seed(5)  # for methods with dropout
    return model(x)


def infer(model, x):
    """In evaluation mode, where no method draws anything."""
    with torch.no_grad():
        y = model.eval()(x)
    model.train()
    return y


def bits(model):
    """Every byte of the base, the statistics of the packed weights included."""
    found = {}
    for name, module in model.named_modules():
        if ".adaptome" in f".{name}":
            continue
        for key, value in module._parameters.items():
            if value is None:
                continue
            inner = value.__tensor_flatten__()[0] if hasattr(value, "__tensor_flatten__") else ()
            tensors = {k: getattr(value, k) for k in inner} or {"": value.data}
            state = getattr(value, "quant_state", None)
            tensors |= state.as_dict(packed=True) if state is not None else {}
            scales = getattr(value, "SCB", None)
            if hasattr(value, "SCB"):
                tensors["SCB"] = scales if scales is not None else module.state.SCB
            found |= {
                f"{name}.{key}.{k}": v.clone() for k, v in tensors.items() if isinstance(v, torch.Tensor)
            }
    return found


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]), key


X = torch.randn(7, 3, 48, generator=torch.Generator().manual_seed(3))


@on_each_base
def test_starts_as_the_base(base, method):
    before = run(base, X)
    attach(base, method)
    if ad.list_methods()[method].identity_at_init:
        assert_close(run(base, X), before, rtol=1e-4, atol=1e-5)
    with ad.disabled(base):
        assert torch.equal(run(base, X), before)


@on_several_bases
def test_forward_and_gradients_are_those_of_the_dense_weights(base, method):
    twin = attach(dense_twin(base), method)
    shake(attach(base, method))
    shake(twin)
    results = []
    for model in (base, twin):
        y = run(model, X)
        y.square().mean().backward()
        assert all(p.grad is None for n, p in model.named_parameters() if not p.requires_grad)
        results.append((y, {n: p.grad for n, p in ad.parameters_of(model).items()}))
    (y, gradients), (expected, expected_gradients) = results
    assert_close(y, expected, rtol=1e-3, atol=1e-4)
    assert gradients.keys() == expected_gradients.keys() and gradients
    for name, gradient in gradients.items():
        assert_close(gradient, expected_gradients[name], rtol=2e-3, atol=2e-5)
    ad.check_gradients(base)


@on_each_base
def test_training_lowers_the_loss_and_leaves_the_base_alone(base, method):
    attach(base, method)
    before = bits(base)
    optimiser = torch.optim.Adam(list(ad.parameters_of(base).values()), lr=3e-3)
    target, losses = torch.randn(7, 3, OUT, generator=torch.Generator().manual_seed(4)), []
    for step in range(8):
        if step == 4:  # an evaluation in between must not disturb the training
            base.eval()
            with torch.no_grad():
                run(base, X)
            base.train()
        loss = (run(base, X) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        ad.check_gradients(base)
        optimiser.step()
        ad.on_step(base, step + 1, 8)
        losses.append(loss.item())
    assert losses[-1] < losses[3] < losses[0]
    assert_same_bits(bits(base), before)


@on_several_bases
def test_merging_requantises_tells_the_error_and_comes_back(base, method):
    shake(attach(base, method))
    before, adapted, inferred = bits(base), run(base, X), infer(base, X)
    if ad.list_methods()[method].merge == "none":
        with pytest.raises(ad.errors.MergeError, match="cannot be merged"):
            ad.merge(base, requantise=True)
        return
    changed = {
        n: any(
            base.get_submodule(n)._host.parameter in a.changes
            for a in base.get_submodule(n).adaptome.values()
        )
        for n in LAYERS
        if isinstance(base.get_submodule(n), Adapted)
    }
    if any(changed.values()):
        with pytest.raises(ad.errors.MergeError, match="requantise=True"):
            ad.merge(base)
        assert_same_bits(bits(base), before)
    report = ad.merge(base, requantise=any(changed.values()), tolerance=float("inf"))
    assert set(report.requantised) == {n for n, weight in changed.items() if weight}
    assert all(0 < error < 0.15 for error in report.requantised.values())
    assert (infer(base, X) - inferred).norm() / inferred.norm() < 0.25
    assert_close(run(base, X), run(dense_twin(base), X), rtol=1e-3, atol=1e-4)  # what is stored is what runs
    ad.unmerge(base)
    assert_same_bits(bits(base), before)
    assert torch.equal(run(base, X), adapted)


@on_each_base
def test_saved_adapters_load_on_the_quantised_and_on_the_dense_base(base, method, tmp_path):
    fresh, twin = copy.deepcopy(base), dense_twin(base)
    expected = run(shake(attach(base, method)), X)
    ad.save(base, tmp_path / "adapter")
    ad.load(fresh, tmp_path / "adapter")
    assert torch.equal(run(fresh, X), expected)
    # the twin's weights are the dequantised ones, which a dense base's are not as a rule
    check = not ad.adapters(base)["default"].method.factorises()
    # in quantisation-aware training the base's own weights are not the rounded ones
    check = check and not hasattr(base.up_proj, "weight_fake_quantizer")
    ad.load(twin, tmp_path / "adapter", check_base=check)
    assert_close(run(twin, X), expected, rtol=1e-3, atol=1e-4)


@on_each_base
def test_detaching_restores_everything(base, method):
    before, classes, output = bits(base), [type(m) for m in base.modules()], run(base, X)
    keys, parameters = list(base.state_dict()), list(base.parameters())
    shake(attach(base, method))
    run(base, X)
    ad.detach(base)
    assert [type(m) for m in base.modules()] == classes
    assert list(base.state_dict()) == keys
    assert all(a is b for a, b in zip(parameters, base.parameters(), strict=True))
    assert_same_bits(bits(base), before)
    assert torch.equal(run(base, X), output)


# -- what holds for the mechanism, shown with its forwards: fast (lora), fast but reading the weight (dora), dense (rows) -----


@dataclasses.dataclass(frozen=True)
class Rows(ad.Method):
    """W' = diag(1 + g) W, read as a weight: no fast form, so a packed layer runs with the dense W'."""

    name = "rows"

    def parameters(self, host):
        return host.fan_out

    def adapter(self, host, shared=None):
        return RowsAdapter(host)


class RowsAdapter(Reparametrization):
    def __init__(self, host):
        super().__init__(host)
        self.g = nn.Parameter(torch.zeros(host.fan_out))

    def weight(self, W):
        return (1 + self.g.to(W.dtype))[:, None] * W


def stack(model, methods):
    """Attach methods one around the other, each moved off its start."""
    for number, method in enumerate(methods):
        targets = ["up_proj"] if method == "bitfit" else LAYERS
        ad.attach(model, method, name=f"{number}", targets=targets, seed=number)
        generator = torch.Generator().manual_seed(number)
        for value in ad.parameters_of(model, f"{number}").values():
            value.data.add_(0.05 * torch.randn(value.shape, generator=generator))
    return model


STACKS = {
    "lora": ("lora",),
    "dora": ("dora",),
    "rows": (Rows(),),
    "lora-rows": ("lora", Rows()),
    "rows-dora": (Rows(), "dora"),
    "lora-dora-bitfit": ("lora", "dora", "bitfit"),
}
over_stacks = pytest.mark.parametrize("methods", STACKS.values(), ids=STACKS)


@over_stacks
def test_stacks_equal_the_stack_on_the_dense_weights(base, methods):
    twin = stack(dense_twin(base), methods)
    stack(base, methods)
    found = []
    for model in (base, twin):
        y = run(model, X)
        y.square().mean().backward()
        found.append((y, [p.grad for n in ad.active(model) for p in ad.parameters_of(model, n).values()]))
    assert_close(found[0][0], found[1][0], rtol=1e-3, atol=1e-4)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert_close(a, b, rtol=2e-3, atol=2e-5)


@over_stacks
def test_merged_stacks_come_back(base, methods):
    stack(base, methods)
    before, adapted = bits(base), run(base, X)
    report = ad.merge(base, requantise=True, tolerance=float("inf"))
    assert set(report.requantised) == set(LAYERS)
    assert (run(base, X) - adapted).norm() / adapted.norm() < 0.25
    ad.unmerge(base)
    assert_same_bits(bits(base), before)
    assert torch.equal(run(base, X), adapted)


def test_a_merge_that_would_lose_the_adapter_is_refused(base):
    if getattr(getattr(base.up_proj, "form", None), "kind", "") == "sketch":
        pytest.skip("a sketch's values are free, and follow a part of even a small change")
    """A change below the quantisation step vanishes, or drowns, when the merged weight is quantised again."""
    attach(base, "lora", LAYERS[:1])
    weight, generator = packed.dense(base.up_proj), torch.Generator().manual_seed(1)
    adapter = base.up_proj.adaptome["default"]

    def change(share):
        adapter.A.data = torch.randn(adapter.A.shape, generator=generator)
        adapter.B.data = torch.randn(adapter.B.shape, generator=generator)
        adapter.B.data *= share * weight.norm() / adapter.delta().norm()

    change(2e-3)
    before, adapted = bits(base), run(base, X)
    with pytest.raises(ad.errors.MergeError, match="would lose the adapters.*\n.*full-precision base"):
        ad.merge(base, requantise=True)
    assert_same_bits(bits(base), before)
    assert torch.equal(run(base, X), adapted)
    assert ad.active(base) == ["default"]
    report = ad.merge(base, requantise=True, tolerance=float("inf"))
    assert report.lost["up_proj"] > 0.9
    assert "change lost" in str(report)
    ad.unmerge(base)
    change(0.5)
    meant = weight + adapter.delta()
    report = ad.merge(base, requantise=True)
    assert report.lost["up_proj"] < 0.5
    assert_close(
        report.lost["up_proj"],
        ((packed.dense(base.up_proj) - meant).norm() / adapter.delta().norm()).item(),
        rtol=1e-3,
        atol=0,
    )


def test_a_second_merge_is_as_the_first(base):
    """8-bit statistics wander between parameter and layer at every forward: no order of verbs may mix them up."""
    attach(base, "lora")
    before = bits(base)
    shake(base)
    outputs = []
    for evaluate in (False, True, False):
        ad.merge(base, requantise=True, tolerance=float("inf"))
        if evaluate:
            run(base, X)
        outputs.append(run(base, X))
        ad.unmerge(base)
        if evaluate:
            run(base, X)
        assert_same_bits(bits(base), before)
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


def test_a_merge_that_is_kept_leaves_a_plain_quantised_model(base):
    classes = [type(m) for m in base.modules()]
    shake(attach(base, "lora"))
    report = ad.merge(base, keep=False, requantise=True, tolerance=float("inf"))
    assert report.requantised and [type(m) for m in base.modules()] == classes
    assert all(packed.is_packed(base.get_submodule(n)) for n in LAYERS)
    assert_close(run(base, X), run(dense_twin(base), X), rtol=1e-3, atol=1e-4)


@over_stacks
def test_copies_run_alone(base, methods):
    expected = run(stack(base, methods), X)
    other = copy.deepcopy(base)
    assert torch.equal(run(other, X), expected)
    shake(other, name="0")
    assert not torch.equal(run(other, X), expected)
    assert torch.equal(run(base, X), expected)


def test_pickled_models_run(base):
    if "extra_repr" in base.up_proj.__dict__:
        with pytest.raises((AttributeError, pickle.PicklingError)):
            pickle.dumps(base)
        pytest.skip(
            "torchao puts a partial on the layers it quantises, which cannot be pickled, adapted or not"
        )
    shake(attach(base, "lora"))
    other = pickle.loads(pickle.dumps(base))
    assert torch.equal(run(other, X), run(base, X))


@over_stacks
def test_autocast_trains(base, methods):
    stack(base, methods)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = run(base, X)
    assert (y.float() - run(base, X)).norm() / y.float().norm() < 0.05
    y.float().square().mean().backward()
    ad.check_gradients(base)
    trained = [p for n in ad.active(base) for p in ad.parameters_of(base, n).values()]
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == torch.float32 for p in trained)


@over_stacks
def test_gradient_checkpointing_changes_nothing(base, methods):
    stack(base, methods)
    found = []
    for recompute in (False, True):
        base.zero_grad()
        y = checkpoint(base, X, use_reentrant=False) if recompute else base(X)
        y.square().mean().backward()
        found.append([p.grad.clone() for n in ad.active(base) for p in ad.parameters_of(base, n).values()])
    for a, b in zip(*found, strict=True):
        assert_close(a, b)


def test_no_dense_weight_waits_for_the_backward(base, monkeypatch):
    """Training on a packed base must not hold every layer's dense weight: it is made again in the backward."""
    stack(base, [Rows()])
    alive = weakref.WeakSet()
    dense = packed.dense

    def watched(*args, **kwargs):
        weight = dense(*args, **kwargs)
        alive.add(weight)
        return weight

    monkeypatch.setattr(packed, "dense", watched)
    loss = run(base, X).square().mean()
    gc.collect()
    assert len(alive) == 0
    loss.backward()
    ad.check_gradients(base)


@pytest.mark.parametrize("base", ["bnb-nf4-nested", "bnb-int8", "torchao-int4"], indirect=True)
@pytest.mark.parametrize("name", ["lora", "rows-dora", "lora-dora-bitfit"])
def test_compiled_models_give_the_same_without_a_break(base, name):
    expected = run(stack(base, STACKS[name]), X)
    torch._dynamo.reset()  # one forward, many models: not what the limit on recompiling is for
    compiled = torch.compile(base, backend="aot_eager", fullgraph=True)
    y = run(compiled, X)
    assert_close(y, expected, rtol=1e-4, atol=1e-5)
    y.square().mean().backward()
    ad.check_gradients(base)
