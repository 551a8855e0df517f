"""AdaLoRA: budget, importance, penalty, resuming (arXiv:2303.10512)."""

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import MethodError
from tests.methods.helpers import adapted, batch, linear, llama2_7b, shake


def two(method, seed=0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 6)).double()
    ad.attach(model, method, targets=["0", "2"], seed=seed)
    return model, list(ad.adapters(model)["default"].adapters.values())


def train(model, first, last, total, lr=0.3):
    """Plain SGD steps `first`..`last` - 1; gradients are cleared before the schedule, as trainers do."""
    optimizer = torch.optim.SGD(ad.parameters_of(model).values(), lr=lr)
    ad.on_step(model, first, total)
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 12, generator=generator, dtype=torch.float64)
        (model(x).square().mean() + ad.penalty(model)).backward()
        optimizer.step()
        optimizer.zero_grad()
        ad.on_step(model, step + 1, total)


def test_forward_is_the_three_factors():
    layer, x = linear(), batch(3, 5, 12)
    W, b = layer.weight.detach().double(), layer.bias.detach().double()
    model, a = adapted(layer, ad.AdaLoRA(r=4, alpha=3.0))
    assert torch.equal(model(x), nn.functional.linear(x, W, b)) and a.E.shape == (6,)
    shake(model)
    torch.testing.assert_close(model(x), x @ (W + 0.5 * a.P @ torch.diag(a.E) @ a.Q).T + b)


def test_the_penalty_is_the_papers():
    model, adapters = two(ad.AdaLoRA(r=2, orthogonal=0.7))
    shake(model)
    terms = [
        torch.linalg.norm(M @ M.T - torch.eye(3), "fro") ** 2
        for a in adapters
        for M in (a.Q.detach(), a.P.detach().T)
    ]
    torch.testing.assert_close(ad.penalty(model), 0.7 * sum(terms) / 4, rtol=1e-6, atol=1e-9)
    assert ad.penalty(two(ad.AdaLoRA(orthogonal=0.0))[0]) is None


def test_the_number_of_triplets_follows_the_cubic_schedule():
    method = ad.AdaLoRA(r=4, init_r=8, start=0.1, settled=0.3, interval=3)
    model, adapters = two(method)
    total, seen = 40, {}
    for step in range(total):
        train(model, step, step + 1, total)
        seen[step + 1] = (
            sum(int(a.kept.sum()) for a in adapters),
            sum(int((a.E != 0).sum()) for a in adapters),
        )
    # n = 2 layers, ti = 4, T - tf = 28
    for step, (kept, alive) in seen.items():
        last = step if step >= 28 else step - step % 3  # multiples of the interval
        if step < 6:
            expected = 16
        elif last >= 28:
            expected = 8
        else:
            expected = int(8 + 8 * (1 - (last - 4) / 24) ** 3)
        assert kept == expected, step
        if last == step or step >= 28:
            assert alive == expected, step
    assert seen[28][0] == 8 and seen[10][0] == int(8 + 8 * (1 - 5 / 24) ** 3)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_importance_is_the_averaged_sensitivity_times_uncertainty(set_to_none):
    """Of the weight after the step and the step's gradient, as the authors' loop reads them."""
    method = ad.AdaLoRA(r=2, init_r=3, beta1=0.8, beta2=0.6, orthogonal=0.0, start=0.9, settled=0.0)
    model, a = adapted(linear(), method)
    shake(model)
    model.train()
    optimizer = torch.optim.SGD(ad.parameters_of(model).values(), lr=0.1)
    ad.on_step(model, 0, 100)
    I = {n: torch.zeros_like(p) for n, p in a.named_parameters()}
    U = {n: torch.zeros_like(p) for n, p in a.named_parameters()}
    for step in range(1, 4):
        for part in batch(6, 12).chunk(2):  # two micro-batches: the gradient is their sum
            model(part * step).square().mean().backward()
        optimizer.step()
        for n, p in a.named_parameters():
            now = (p * p.grad).abs().detach()
            I[n] = 0.8 * I[n] + 0.2 * now
            U[n] = 0.6 * U[n] + 0.4 * (now - I[n]).abs()
        optimizer.zero_grad(set_to_none=set_to_none)
        ad.on_step(model, step, 100)
    s = {n: I[n] * U[n] for n in I}
    expected = s["E"] + s["P"].mean(0) + s["Q"].mean(1)
    assert a.importance().dtype == torch.float64
    torch.testing.assert_close(a.importance(), expected, rtol=1e-12, atol=0)


def test_a_run_zeroes_what_pefts_zeroes():
    """A whole run beside PEFT's, with clipped gradients: the same triplets are zero after every step."""
    import peft

    method = ad.AdaLoRA(r=2, init_r=4, alpha=4.0, orthogonal=0.0, start=0.15, settled=0.25, interval=4)
    model, adapters = two(method, seed=3)
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 6)).double()
    config = peft.AdaLoraConfig(
        target_modules=["0", "2"], init_r=4, target_r=2, lora_alpha=4, tinit=6, tfinal=10, deltaT=4, total_step=40, orth_reg_weight=0.0,
    )  # fmt: skip
    theirs = peft.get_peft_model(base, config)
    layers = [theirs.base_model.model[0], theirs.base_model.model[2]]
    for a, layer in zip(adapters, layers, strict=True):
        a.scale = 4 / (4 + 1e-5)  # as PEFT divides
        for ours, name in (("Q", "lora_A"), ("P", "lora_B"), ("E", "lora_E")):
            place = getattr(layer, name)
            place["default"] = nn.Parameter(getattr(a, ours).detach().clone().view(place["default"].shape))
    trained = [
        p for name, p in theirs.named_parameters() if "lora_" in name
    ]  # PEFT's ranknum would train too
    runs = (model, ad.parameters_of(model).values()), (theirs, trained)
    optimizers = [torch.optim.Adam(parameters, lr=0.05) for _, parameters in runs]
    ad.on_step(model, 0, 40)
    zeros = set()
    for step in range(1, 41):
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        for (net, _), optimizer in zip(runs, optimizers, strict=True):
            (net(x) - x[:, :6]).square().mean().backward()
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.05)
            optimizer.step()
        theirs.base_model.update_and_allocate(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        ad.on_step(model, step, 40)
        for a, layer in zip(adapters, layers, strict=True):
            E = layer.lora_E["default"].flatten()
            assert ((a.E == 0) == (E == 0)).all(), step
            torch.testing.assert_close(a.E, E, rtol=1e-5, atol=1e-8)
        zeros.add(int(sum((a.E == 0).sum() for a in adapters)))
    assert len(zeros) > 3 and max(zeros) == 4


def test_the_most_important_triplets_of_all_layers_stay():
    model, (a, b) = two(ad.AdaLoRA(r=1, init_r=3, start=0.0, settled=0.5, interval=1))
    shake(model)
    a.I_E.copy_(torch.tensor([0.9, 0.1, 0.8]))
    a.U_E.fill_(1.0)
    b.I_E.copy_(torch.tensor([0.2, 0.3, 0.1]))
    b.U_E.fill_(1.0)
    ad.on_step(model, 5, 10)
    assert a.kept.tolist() == [True, False, True] and b.kept.tolist() == [False] * 3
    assert (a.E != 0).tolist() == [True, False, True] and not b.E.any()
    with torch.no_grad():
        b.E.fill_(1.0)  # an optimiser's momentum moves what was pruned
    ad.on_step(model, 8, 10)
    assert not b.E.any()


@pytest.mark.parametrize("at", [7, 19, 33])
def test_a_resumed_run_ends_bit_equal(at, tmp_path):
    method = ad.AdaLoRA(r=2, init_r=4, start=0.1, settled=0.3, interval=4)
    whole, _ = two(method)
    train(whole, 0, 40, 40)
    model, _ = two(method)
    train(model, 0, at, 40)
    ad.save(model, tmp_path / "a")
    torch.manual_seed(0)
    other = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 6)).double()
    ad.load(other, tmp_path / "a", trainable=True)
    train(other, at, 40, 40)
    for key, value in ad.parameters_of(whole).items():
        assert torch.equal(value, ad.parameters_of(other)[key]), key


def test_importance_does_not_need_step_zero_and_copies_watch_their_own():
    import copy

    model, a = adapted(linear(), ad.AdaLoRA(r=2))
    shake(model)
    other = copy.deepcopy(model).train()
    b = next(iter(ad.adapters(other)["default"].adapters.values()))
    other(batch(4, 12)).sum().backward()
    ad.on_step(other, 1, 10)
    assert b.I_Q.any() and not a.I_Q.any()


def test_unfit_settings_are_refused():
    with pytest.raises(MethodError, match="init_r = 3 is below r = 4"):
        ad.AdaLoRA(r=4, init_r=3)
    with pytest.raises(MethodError, match="leave no steps"):
        ad.AdaLoRA(start=0.6, settled=0.4)


def test_count_is_the_papers():
    assert ad.plan(llama2_7b(), ad.AdaLoRA(r=8), targets=["q", "v"]).trainable == 6_292_224
