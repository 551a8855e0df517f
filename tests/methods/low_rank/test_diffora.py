"""DiffoRA: search, selection, sharing (arXiv:2502.08905, as reconstructed)."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import adaptome as ad
from adaptome.core.errors import MethodError
from adaptome.methods.low_rank.diffora import final
from adaptome.methods.low_rank.diffora_search import smallest_gram_eigenvalue
from tests.methods.helpers import adapted, batch, linear, roberta, shake


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x):
        return x + torch.tanh(self.one(x)) + torch.tanh(self.two(x)) - torch.tanh(self.three(x))


class Model(nn.Module):
    def __init__(self, blocks=2):
        super().__init__()
        self.layers = nn.ModuleList([Block() for _ in range(blocks)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def searched(seed=0, **settings):
    torch.manual_seed(0)
    model = Model().double()
    ad.attach(model, ad.DiffoRA(r=2, **settings), targets="layers.*.*", seed=seed)
    attachment = ad.adapters(model)["default"]
    return model, attachment.adapters, attachment.shared


def snapshot(model):
    return {k: v.detach().clone() for k, v in ad.parameters_of(model).items()}


def step(model, optimizer, number, total):
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(16, 12, generator=generator, dtype=torch.float64)
    y = model(x)
    y.square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    ad.on_step(model, number, total)


@pytest.mark.parametrize(("relaxation", "scaled"), [("softmax", True), ("softmax", False), ("sigmoid", True)])
def test_forward_is_the_gated_lora(relaxation, scaled):
    model, adapters, matrix = searched(relaxation=relaxation, scaled=scaled, alpha=3.0)
    x = batch(4, 12)
    plain = Model().double()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "adaptome" not in k})
    assert torch.equal(model(x), plain(x))
    shake(model)
    a = matrix.logits.detach().double().view(2, 3)
    gates = a.sigmoid() if relaxation == "sigmoid" else a.softmax(1) * (3 if scaled else 1)
    assert relaxation != "sigmoid" or ((gates > 0) & (gates < 1)).all()
    if relaxation == "softmax":
        torch.testing.assert_close(
            gates.sum(1), torch.full((2,), 3.0 if scaled else 1.0, dtype=torch.float64)
        )
    with torch.no_grad():
        for (name, adapter), g in zip(adapters.items(), gates.flatten(), strict=True):
            plain.get_submodule(name).weight += g * 1.5 * adapter.B @ adapter.A
    torch.testing.assert_close(model(x), plain(x))


def test_logits_have_no_gradient_at_the_start_and_one_after_a_step():
    model, adapters, matrix = searched()
    model(batch(8, 12)).square().sum().backward()
    assert not matrix.logits.grad.any()
    shake(model)
    matrix.logits.grad = None
    model(batch(8, 12)).square().sum().backward()
    assert matrix.logits.grad.all()
    value = matrix.logits.grad.clone()
    for i in range(6):  # finite differences
        values = []
        for move in (1e-5, -2e-5):
            with torch.no_grad():
                matrix.logits[i] += move
                values.append(float(model(batch(8, 12)).square().sum()))
        with torch.no_grad():
            matrix.logits[i] += 1e-5
        assert abs((values[0] - values[1]) / 2e-5 - float(value[i])) < 1e-4 * (1 + abs(float(value[i])))


def losses(model, number):
    """A training and a validation loss, of different batches."""
    x = torch.randn(2, 16, 12, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    return lambda: model(x[0]).square().mean(), lambda: (model(x[1]) - x[0]).square().mean()


def test_looking_ahead_is_the_gradient_of_an_unrolled_step():
    xi = 0.3
    model, adapters, matrix = searched(search=1.0, warmup=0.2, lookahead=xi, alpha=3.0)
    shake(model)
    ad.on_step(model, 8, 40)
    assert matrix.phase == "logits"
    train, validation = losses(model, 5)
    with ad.steer(train_loss=train):
        validation().backward()
    found = matrix.logits.grad.clone()
    assert all(p.grad is None for a in adapters.values() for p in a.parameters())
    # the same with plain tensors: W x + b + g (alpha / r) B A x, by hand
    a = matrix.logits.detach().double().requires_grad_()
    w = [p.detach().clone().requires_grad_() for adapter in adapters.values() for p in (adapter.A, adapter.B)]

    def plain(x, w, a):
        gates = (a.view(2, 3).softmax(1) * 3).flatten()
        for i, layer in enumerate(model.layers):
            linears, h = (layer.one, layer.two, layer.three), []
            for j, part in enumerate(linears):
                k = 3 * i + j
                W = part._parameters["weight"] + gates[k] * 1.5 * w[2 * k + 1] @ w[2 * k]
                h.append(torch.tanh(x @ W.T + part.bias))
            x = x + h[0] + h[1] - h[2]
        return x

    x = torch.randn(2, 16, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    steps = torch.autograd.grad(plain(x[0], w, a).square().mean(), w, create_graph=True)
    ahead = [p - xi * step for p, step in zip(w, steps, strict=True)]
    (unrolled,) = torch.autograd.grad((plain(x[1], ahead, a) - x[0]).square().mean(), a)
    torch.testing.assert_close(found.double(), unrolled, rtol=1e-5, atol=1e-7)
    (first,) = torch.autograd.grad((plain(x[1], w, a) - x[0]).square().mean(), a)
    (at_ahead,) = torch.autograd.grad((plain(x[1], [p.detach() for p in ahead], a) - x[0]).square().mean(), a)
    for other in (first, at_ahead):  # neither the first order nor it at the moved weights
        assert (found - other).norm() > 0.05 * unrolled.norm()


def test_looking_ahead_trains_logits_alone_and_needs_the_training_loss():
    model, adapters, matrix = searched(search=0.5, warmup=0.2, lookahead=0.05)
    shake(model)
    optimizer = torch.optim.SGD(ad.parameters_of(model).values(), lr=0.05)
    ad.on_step(model, 0, 40)
    for number in range(1, 12):
        before = snapshot(model)
        train, validation = losses(model, number)
        if matrix.phase == "logits":
            with pytest.raises(
                ad.errors.StateError, match="diffora with lookahead needs to know 'train_loss'"
            ):
                validation()
            assert matrix.phase == "logits"
        with ad.steer(train_loss=train):
            (validation if matrix.phase == "logits" else train)().backward()
        with torch.no_grad():  # evaluation in between asks for nothing and sees the adapters as they are
            validation()
        copy.deepcopy(model)
        optimizer.step()
        optimizer.zero_grad()
        logits = matrix.phase == "logits"
        ad.on_step(model, number, 40)
        moved = {k for k, v in snapshot(model).items() if not torch.equal(v, before[k])}
        assert moved == ({"shared.logits"} if logits else set(before) - {"shared.logits"})
    with pytest.raises(MethodError, match="two levels"):
        ad.DiffoRA(lookahead=0.1, bilevel=False)


class Attentive(Model):
    """Blocks whose first map makes queries of an attention; run again in the backward where `again`."""

    def __init__(self, fused, again):
        super().__init__()
        self.fused, self.again = fused, again

    def block(self, layer, x):
        q, k, v = layer.one(x), layer.two(x), layer.three(x)
        if self.fused:
            return x + F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + (q @ k.mT / 12**0.5).softmax(-1) @ v

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(self.block, layer, x, use_reentrant=False) if self.again else self.block(layer, x)
        return x


def test_looking_ahead_passes_fused_attention_and_refuses_checkpointing():
    found = []
    for fused, again in ((False, False), (True, False), (False, True)):
        torch.manual_seed(0)
        model = Attentive(fused, again).double()
        how = ad.DiffoRA(r=2, alpha=1.0, search=1.0, lookahead=0.3)
        ad.attach(model, how, targets="layers.*.*", seed=0)
        shake(model)
        ad.on_step(model, 10, 100)
        matrix, x = ad.adapters(model)["default"].shared, batch(2, 4, 6, 12)
        with ad.steer(train_loss=lambda model=model, x=x: model(x[0]).square().mean()):
            if again:
                with pytest.raises(
                    ad.errors.StateError, match="checkpointing would run the training step again"
                ):
                    model(x[1])
                continue
            model(x[1]).square().mean().backward()
        found.append(matrix.logits.grad)
    assert found[0].any()
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("to_none", [True, False])
def test_a_step_trains_adapters_or_logits_and_never_both(to_none):
    model, adapters, matrix = searched(search=0.5, warmup=0.2)
    optimizer = torch.optim.AdamW(ad.parameters_of(model).values(), lr=0.05, weight_decay=0.1)
    zero, optimizer.zero_grad = optimizer.zero_grad, lambda: zero(set_to_none=to_none)
    ad.on_step(model, 0, 40)
    trained = []
    for number in range(1, 12):
        before = snapshot(model)
        step(model, optimizer, number, 40)
        moved = {k for k, v in snapshot(model).items() if not torch.equal(v, before[k])}
        assert moved in ({"shared.logits"}, set(before) - {"shared.logits"})
        trained.append(len(moved) == 1)
    assert trained == [False] * 4 + [True, False] * 3 + [True]


@pytest.mark.parametrize(("ratio", "per_row"), [(1 / 3, 1), (0.5, 2), (1.0, 3)])
def test_discretising_keeps_the_largest_of_every_block(ratio, per_row):
    model, adapters, matrix = searched(ratio=ratio, search=0.25)
    with torch.no_grad():
        matrix.logits.copy_(torch.tensor([0.1, 0.3, 0.2, 9.0, 8.0, 8.5]))
    largest = [
        ["layers.0.two", "layers.0.three", "layers.0.one"],
        ["layers.1.one", "layers.1.three", "layers.1.two"],
    ]
    expected = {name for row in largest for name in row[:per_row]}
    assert set(final(model).selected) == expected
    with torch.no_grad():
        matrix.logits[:3] += 5.0  # a constant on a row changes nothing
    assert set(final(model).selected) == expected
    ad.on_step(model, 10, 40)
    assert bool(matrix.discrete) and set(final(model).selected) == expected
    shake(model)
    model(batch(4, 12)).square().sum().backward()
    for name, adapter in adapters.items():
        assert adapter.gate() == (name in expected) and adapter.B.grad.any() == (name in expected)
        assert torch.equal(adapter.delta().any(), torch.tensor(name in expected))
    assert matrix.logits.grad is None


def test_globally_the_largest_of_all():
    model, adapters, matrix = searched(ratio=0.5, scope="global", relaxation="sigmoid")
    with torch.no_grad():
        matrix.logits.copy_(torch.tensor([0.1, 0.3, 0.2, 9.0, 8.0, 8.5]))
    assert final(model).selected == ("layers.1.one", "layers.1.two", "layers.1.three")


def test_new_adapters_start_as_the_base_and_warm_ones_keep_the_function_of_the_selected():
    for warm in (False, True):
        model, adapters, matrix = searched(search=0.25, ratio=1.0, warm_start=warm)
        shake(model)
        before = model(batch(4, 12))
        ad.on_step(model, 10, 40)
        with ad.disabled(model):
            base = model(batch(4, 12))
        torch.testing.assert_close(model(batch(4, 12)), before if warm else base)


def test_final_is_lora_on_the_selected_modules():
    torch.manual_seed(0)
    model, other = Model().double(), Model().double()
    other.load_state_dict(model.state_dict())
    names = ["layers.0.two", "layers.1.one"]
    ad.attach(model, ad.DiffoRA(r=2, alpha=3.0, selected=tuple(names), sharing="none"), targets="layers.*.*")
    ad.attach(other, ad.LoRA(r=2, alpha=3.0), targets=names)
    ours, theirs = ad.parameters_of(model), ad.parameters_of(other)
    assert ours.keys() == theirs.keys()
    shake(model)
    with torch.no_grad():
        for key in ours:
            theirs[key].copy_(ours[key])
    assert torch.equal(model(batch(4, 12)), other(batch(4, 12)))


@pytest.mark.parametrize("sharing", ["shared_pair", "shared_B", "none"])
def test_final_starts_as_the_base_merges_and_exports_exactly(sharing, tmp_path):
    torch.manual_seed(0)
    model = Model().double()
    x = batch(4, 12)
    base = model(x)
    ad.attach(
        model, ad.DiffoRA(r=2, selected=("layers.0.two",), sharing=sharing), targets="layers.*.*", seed=0
    )
    assert torch.equal(model(x), base)
    shake(model)
    before = model(x)
    before.square().sum().backward()
    adapters = ad.adapters(model)["default"].adapters
    if sharing == "none":  # what is dropped has neither tensors nor an effect
        assert [n for n, a in adapters.items() if list(a.parameters())] == ["layers.0.two"]
    else:
        assert all(p.grad is not None and p.grad.any() for p in ad.parameters_of(model).values())
    assert ad.export(model, tmp_path / "peft").worst == 0  # a pair for every layer, shared ones repeated
    torch.manual_seed(0)
    other = Model().double()
    ad.load(other, tmp_path / "peft")
    torch.testing.assert_close(other(x), before, rtol=1e-5, atol=1e-5)
    ad.merge(model)
    torch.testing.assert_close(model(x), before)


def test_all_modules_selected_is_plain_lora():
    torch.manual_seed(0)
    model, other = Model().double(), Model().double()
    other.load_state_dict(model.state_dict())
    names = tuple(f"layers.{i}.{n}" for i in (0, 1) for n in ("one", "two", "three"))
    ad.attach(model, ad.DiffoRA(r=2, alpha=3.0, selected=names), targets="layers.*.*")
    ad.attach(other, ad.LoRA(r=2, alpha=3.0), targets="layers.*.*")
    ours, theirs = ad.parameters_of(model), ad.parameters_of(other)
    assert ours.keys() == theirs.keys()
    shake(model)
    with torch.no_grad():
        for key in ours:
            theirs[key].copy_(ours[key])
    assert torch.equal(model(batch(4, 12)), other(batch(4, 12)))


def test_modules_that_are_not_selected_share_one_pair():
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)).double()
    ad.attach(model, ad.DiffoRA(r=2, selected=("1",)), targets=["0", "1", "2"])
    adapters = ad.adapters(model)["default"].adapters
    (A0, B0), (A2, B2) = adapters["0"].factors(), adapters["2"].factors()
    assert A0 is A2 and B0 is B2 and adapters["1"].A is not A0
    assert len(ad.parameters_of(model)) == 4 and ad.trainable(model).count == 2 * 2 * 24
    shake(model)
    x = batch(4, 12)
    model(x).square().sum().backward()
    total = B0.grad.clone()
    parts = []
    for other in (adapters["0"], adapters["2"]):  # the gradient is the sum over the layers
        B0.grad = None
        held = tuple(t.detach() for t in (A0, B0))
        other.__dict__["factors"] = lambda held=held: held
        model(x).square().sum().backward()
        parts.append(B0.grad.clone())
        del other.__dict__["factors"]
    torch.testing.assert_close(parts[0] + parts[1], total)


def test_the_search_resumes_bit_equal(tmp_path):
    def run(model, first, last):
        optimizer = torch.optim.SGD(ad.parameters_of(model).values(), lr=0.1)
        ad.on_step(model, first, 30)
        for number in range(first + 1, last + 1):
            step(model, optimizer, number, 30)
        return model

    whole = run(searched(search=0.5)[0], 0, 30)
    again = run(searched(search=0.5)[0], 0, 30)
    assert final(again).selected == final(whole).selected  # a seed finds the same modules
    for at in (7, 15, 20):
        model = run(searched(search=0.5)[0], 0, at)
        ad.save(model, tmp_path / "a")
        ad.detach(model)
        ad.load(model, tmp_path / "a", trainable=True)
        run(model, at, 30)
        for key, value in ad.parameters_of(whole).items():
            assert torch.equal(value, ad.parameters_of(model)[key]), (at, key)


def test_the_gram_matrix_is_that_of_the_gradients():
    model, adapters, matrix = searched()
    shake(model)
    parameters = [p for a in adapters.values() for p in a.parameters()]
    x = batch(5, 12)
    rows = []
    for sample in x:
        model.zero_grad()
        model(sample[None]).sum().backward()
        rows.append(torch.cat([p.grad.flatten() for p in parameters]))
    J = torch.stack(rows)
    every = smallest_gram_eigenvalue(model(x).sum(1), parameters)
    assert abs(every - float(torch.linalg.eigvalsh(J @ J.T)[0])) < 1e-8
    assert every >= smallest_gram_eigenvalue(model(x).sum(1), parameters[:6]) - 1e-9


def test_unknown_modules_and_other_methods_are_refused():
    with pytest.raises(MethodError, match="'layers.0.too', which is not among"):
        ad.attach(Model(), ad.DiffoRA(selected=("layers.0.too",)), targets="layers.*.*")
    model, _ = adapted(linear(), ad.LoRA())
    with pytest.raises(MethodError, match="without a search"):
        final(model)


def test_counts_are_the_papers():
    base = roberta()
    all_of_them = ad.plan(base, ad.DiffoRA(r=8), targets="all-linear")
    assert all_of_them.trainable == 1_327_104 + 72
    names = [e.path for e in all_of_them.entries]
    attention = tuple(n for n in names if n.rsplit(".", 1)[1] in ("query", "key", "value"))
    assert (
        ad.plan(base, ad.DiffoRA(r=8, selected=attention, sharing="none"), targets="all-linear").trainable
        == 442_368
    )
    mixed = tuple(
        n
        for n in names
        if n.endswith(("query", "intermediate.dense"))
        or (n.endswith("output.dense") and "attention" not in n)
    )
    assert (
        ad.plan(base, ad.DiffoRA(r=8, selected=mixed, sharing="none"), targets="all-linear").trainable
        == 884_736
    )
    varied = tuple(
        n for i, n in enumerate(names) if (i + i // 6) % 2
    )  # no module is selected, or dropped, in every block
    shared = ad.plan(base, ad.DiffoRA(r=8, selected=varied), targets="all-linear")
    assert shared.shared == 110_592
