"""SketchTune: gradients against autograd through an index, frozen codes, tasks switched by tables, counts."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import adaptome as ad
from adaptome.quantization.layers import PackedLinear

X = torch.randn(300, 48, generator=torch.Generator().manual_seed(0))


def sketched(tables=2, bits=4, dtype=torch.float32):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 24, bias=False)).to(dtype)
    ad.quantize(model, "sketch", targets=["0", "2"], bits=bits, tables=tables, batches=[X.to(dtype)])
    return model


def attach(model, name="default"):
    ad.attach(model, "sketchtune", name, targets=["0", "2"])
    return model


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("tables", [1, 2, 4])
def test_forward_and_gradients_are_those_of_the_index(bits, tables):
    model = attach(sketched(tables, bits, torch.float64))
    layer = model[0]
    a = layer.adaptome["default"]
    a.T.data = a.T.data.double() + 0.01 * torch.randn(a.T.shape).double()
    C = layer.form.codes(layer._parameters["weight"], 48).long()
    T = a.T.detach().clone().requires_grad_()
    W = T[torch.arange(32)[:, None], torch.arange(48) // (48 // tables), C]
    x = torch.randn(2, 5, 48).double().requires_grad_()
    expected = x @ W.T + layer._parameters["bias"]
    y, g = layer(x), torch.randn(2, 5, 32).double()
    assert_close(y, expected, rtol=1e-10, atol=1e-10)
    found = torch.autograd.grad(y, (x, a.T), g)
    wanted = torch.autograd.grad(expected, (x, T), g)
    for ours, theirs in zip(found, wanted, strict=True):
        assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    used = torch.zeros(32, tables, 2**bits).scatter_add(
        2, C.view(32, tables, -1), torch.ones(32, tables, 48 // tables)
    )
    assert torch.equal(found[1] != 0, used > 0)  # what owns no code gets nothing, all else something


def test_it_starts_as_the_sketch_and_trains_tables_alone():
    model = sketched()
    before, y = copy.deepcopy(model.state_dict()), model(X)
    attach(model)
    assert_close(model(X), y, rtol=0, atol=1e-6)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(15):
        loss = (model(X) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    ad.check_gradients(model)
    assert losses[-1] < 0.9 * losses[0]
    assert set(ad.parameters_of(model)) == {"0.T", "2.T"}
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value)


def test_every_entry_that_owns_a_code_is_reached_and_no_other():
    """Through the whole model, in training: entries without a code get a gradient of exactly 0 and stay to the bit."""
    model = attach(sketched(tables=4, bits=3))  # 12 and 8 columns a table, 8 entries
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    before = {name: T.detach().clone() for name, T in ad.parameters_of(model).items()}
    for _ in range(3):
        optimizer.zero_grad()
        (model(X) - 1).square().mean().backward()
        for index in (0, 2):
            layer = model[index]
            T, C = (
                layer.adaptome["default"].T,
                layer.form.codes(layer._parameters["weight"], layer.in_features),
            )
            counts = torch.zeros(T.shape).scatter_add(2, C.long().view(*T.shape[:2], -1), torch.ones(*T.shape[:2], C.shape[1] // 4))  # fmt: skip
            assert index or ((counts == 0).any() and (counts > 1).any())
            assert torch.equal(T.grad != 0, counts > 0)
        optimizer.step()
    for name, T in ad.parameters_of(model).items():
        assert torch.equal(T[T.grad == 0], before[name][T.grad == 0])
        assert (T[T.grad != 0] != before[name][T.grad != 0]).all()


def test_tables_alone_are_saved_and_switch_tasks(tmp_path):
    model, fresh = attach(sketched()), sketched()
    outputs = {}
    for task in ("a", "b"):
        with torch.no_grad():
            for value in ad.parameters_of(model).values():
                value.add_(0.02 * torch.randn(value.shape))
        outputs[task] = model(X)
        ad.save(model, tmp_path / task)
        ad.load(fresh, tmp_path / task, name=task)
    size = (tmp_path / "a" / "adapter.safetensors").stat().st_size
    assert size < 4 * 2 * 16 * (32 + 24) + 1000
    for task, output in outputs.items():
        ad.activate(fresh, task)
        assert torch.equal(fresh(X), output)


def test_merging_writes_the_tables_and_keeps_the_codes():
    model = attach(sketched())
    with torch.no_grad():
        for value in ad.parameters_of(model).values():
            value.add_(0.2 * torch.randn(value.shape))  # far enough for values to cross
    codes = model[0].form.codes(model[0]._parameters["weight"], 48)
    y = model(X)
    with pytest.raises(ad.errors.MergeError, match="requantise=True"):
        ad.merge(model)
    report = ad.merge(model, requantise=True, keep=False)
    assert max(report.requantised.values()) < 1e-3  # float16 tables
    assert type(model[0]) is PackedLinear and torch.equal(model[0].form.codes(model[0].weight, 48), codes)
    assert_close(model(X), y, rtol=0, atol=5e-3)


def test_nothing_dense_is_kept_for_the_backward():
    model = attach(sketched())
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        model(X[:5].requires_grad_())
    dense = {(32, 48), (24, 32)}
    assert saved and not any(t.is_floating_point() and tuple(t.shape) in dense for t in saved)


@pytest.mark.parametrize("form", ["strength", "beside lora", "compiled", "bfloat16"])
def test_it_composes(form):
    model, x = attach(sketched()), X[:7]
    with torch.no_grad():
        for value in ad.parameters_of(model).values():
            value.add_(0.05 * torch.randn(value.shape))
    if form == "strength":
        y = model[0](x)
        ad.activate(model, "default", weights={"default": 0.5})
        with ad.disabled(model):
            base = model[0](x)
        assert_close(model[0](x), (y + base) / 2)
    elif form == "beside lora":
        ad.attach(model, "lora", "other", targets=["0"], r=2)
        with torch.no_grad():
            model[0].adaptome["other"].B.normal_()
        y = model(x)
        ad.merge(model, requantise=True, tolerance=float("inf"))
        assert (
            model(x) - y
        ).norm() < 0.2 * y.norm()  # 16 values a table hold a sum of two changes only nearly
    elif form == "compiled":
        y = torch.compile(model, backend="eager", fullgraph=True)(x)
        assert_close(y, model(x))
    else:
        assert model.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16


def test_other_layers_are_refused():
    with pytest.raises(ad.errors.HostError, match=r"ad.quantize\(model, 'sketch'\)"):
        ad.attach(nn.Sequential(nn.Linear(8, 8)), "sketchtune", targets="0")


@pytest.mark.parametrize(
    ("name", "tables", "count"),
    [
        ("llama-2-7b", 1, 21_757_952), ("llama-2-7b", 4, 87_031_808), ("llama-2-7b", 8, 174_063_616),
        ("llama-2-13b", 2, 68_157_440), ("llama-3-8b", 4, 88_080_384),
    ],
)  # fmt: skip
def test_counts_are_the_papers(name, tables, count):
    from adaptome import architectures

    model = architectures.build(name)
    ad.quantize(model, "sketch", tables=tables)
    assert ad.plan(model, "sketchtune").trainable == count
