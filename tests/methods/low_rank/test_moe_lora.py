"""MoE-LoRA: routing, balance, preconditioning (arXiv:2502.15828, arXiv:2101.03961)."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import adaptome as ad
from adaptome.core.errors import MergeError, MethodError
from tests.methods.helpers import adapted, batch, linear, llama2_7b, shake


def by_hand(a, x, top_k, scale):
    """sum_e g_e s B_e A_e x, token by token."""
    rows = []
    for token in x.reshape(-1, x.shape[-1]):
        logits = a.G @ token
        chosen = sorted(range(len(logits)), key=lambda e: -float(logits[e].detach()))[:top_k]
        weights = torch.exp(logits[chosen]) / torch.exp(logits[chosen]).sum()
        rows.append(sum(w * scale * a.B[e] @ (a.A[e] @ token) for w, e in zip(weights, chosen, strict=True)))
    return torch.stack(rows).view(*x.shape[:-1], -1)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_every_token_gets_its_experts(top_k):
    layer, x = linear(), batch(3, 5, 12)
    W, b = layer.weight.detach().double(), layer.bias.detach().double()
    model, a = adapted(layer, ad.MoELoRA(r=3, experts=4, top_k=top_k, alpha=6.0))
    assert torch.equal(model(x), nn.functional.linear(x, W, b))
    shake(model, 1.0)
    torch.testing.assert_close(model(x), x @ W.T + b + by_hand(a, x, top_k, 2.0))
    target = batch(3, 5, 20)
    (model(x) * target).sum().backward()
    grads = {n: p.grad.clone() for n, p in a.named_parameters()}
    a.zero_grad()
    (by_hand(a, x, top_k, 2.0) * target).sum().backward()
    for n, p in a.named_parameters():
        torch.testing.assert_close(
            grads[n], p.grad if p.grad is not None else torch.zeros_like(p), rtol=1e-7, atol=1e-9
        )


def test_one_expert_is_lora():
    x = batch(4, 12)
    model, a = adapted(linear(), ad.MoELoRA(r=3, experts=1, top_k=1, alpha=6.0))
    shake(model)
    other, b = adapted(linear(), ad.LoRA(r=3, alpha=6.0))
    with torch.no_grad():
        b.A.copy_(a.A[0])
        b.B.copy_(a.B[0])
    torch.testing.assert_close(model(x), other(x))


def test_the_balance_is_one_when_even_and_the_number_of_experts_when_one_takes_all():
    model, a = adapted(linear(), ad.MoELoRA(r=2, experts=4, top_k=1, balance=1.0))
    model.train()
    with torch.no_grad():
        a.G.zero_()
        a.G[:, :4] = 100 * torch.eye(4)
    even = torch.zeros(8, 12, dtype=torch.float64)
    even[torch.arange(8), torch.arange(8) % 4] = 1.0
    model(even)
    torch.testing.assert_close(ad.penalty(model), torch.tensor(1.0, dtype=torch.float64))
    one = torch.zeros(8, 12, dtype=torch.float64)
    one[:, 2] = 1.0
    model(one)
    torch.testing.assert_close(ad.penalty(model), torch.tensor(4.0, dtype=torch.float64))
    assert ad.penalty(model) is None  # told once
    with torch.no_grad():
        model(one)
    assert ad.penalty(model) is None


def test_the_balance_is_the_formula_averages_over_layers_and_trains_the_router():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12)).double()
    ad.attach(model, ad.MoELoRA(r=2, experts=3, top_k=2, balance=0.5), targets=["0", "1"], seed=0)
    shake(model)
    x, expected = batch(2, 5, 12), []
    inputs = [x, model[0](x).detach()]
    adapters = list(ad.adapters(model)["default"].adapters.values())
    for a, h in zip(adapters, inputs, strict=True):
        p = (h.flatten(0, 1) @ a.G.T).softmax(-1)
        f = torch.zeros(3, dtype=torch.float64)
        for row in p:
            f[row.topk(2).indices] += 1 / 2 / len(p)
        expected.append(3 * (f * p.mean(0)).sum())
    model.train()
    model(x)
    penalty = ad.penalty(model)
    torch.testing.assert_close(penalty, 0.5 * sum(expected) / 2)
    penalty.backward()
    assert adapters[0].G.grad.any() and adapters[1].G.grad.any()


def test_the_balance_survives_checkpointing_and_copies_leave_it_out():
    model, a = adapted(linear(), ad.MoELoRA(r=2, balance=1.0))
    shake(model)
    model.train()
    x = batch(6, 12)
    gradients = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        a.zero_grad()
        y = run(x)
        (y.square().sum() + ad.penalty(model)).backward()
        gradients.append({n: p.grad.clone() for n, p in a.named_parameters()})
    torch.testing.assert_close(*gradients)
    model(x)
    other = copy.deepcopy(model)
    assert ad.penalty(other) is None and ad.penalty(model) is not None


def test_preconditioned_gradients_are_the_formula():
    x = batch(8, 12)
    gradients = []
    for riemann in (False, True):
        model, a = adapted(linear(), ad.MoELoRA(r=3, experts=2, top_k=2, riemann=riemann, delta=0.1))
        shake(model)
        model(x).square().sum().backward()
        gradients.append((a.A.grad, a.B.grad, a.G.grad))
    (dA, dB, dG), (pA, pB, pG) = gradients
    eye = 0.1 * torch.eye(3, dtype=torch.float64)
    for e in range(2):
        A, B = a.A[e].detach(), a.B[e].detach()
        torch.testing.assert_close(pA[e], torch.linalg.inv(B.T @ B + eye) @ dA[e])
        torch.testing.assert_close(pB[e], dB[e] @ torch.linalg.inv(A @ A.T + eye))
    torch.testing.assert_close(pG, dG)


def test_a_preconditioned_step_does_not_depend_on_the_split_of_the_product():
    x, moved = batch(8, 12), []
    for c in (1.0, 5.0):
        model, a = adapted(linear(), ad.MoELoRA(r=3, experts=2, top_k=2, riemann=True, delta=1e-12))
        shake(model)
        with torch.no_grad():
            a.A.mul_(c)
            a.B.div_(c)
        before = (a.B @ a.A).detach()
        model(x).square().sum().backward()
        with torch.no_grad():
            first_order = a.B.grad @ a.A + a.B @ a.A.grad
        moved.append((before, first_order))
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("riemann", [False, True])
@pytest.mark.parametrize(("rescale", "power"), [("none", 1.0), ("sqrt", 0.5), ("inverse", 0.0)])
def test_rescaled_gradients_of_the_experts_are_token_by_token_the_formula(rescale, power, riemann):
    x, target = batch(3, 5, 12).requires_grad_(), batch(3, 5, 20)
    settings = dict(r=3, experts=4, top_k=2, alpha=6.0, riemann=riemann, delta=0.1)
    model, a = adapted(linear(), ad.MoELoRA(**settings, rescale=rescale))
    plain, b = adapted(linear(), ad.MoELoRA(**settings))
    shake(model, 1.0)
    shake(plain, 1.0)
    torch.testing.assert_close(model(x), plain(x))
    (model(x) * target).sum().backward()
    dx, x.grad = x.grad, None
    (plain(x) * target).sum().backward()
    torch.testing.assert_close(dx, x.grad)  # neither the input's nor the router's gradient changes
    torch.testing.assert_close(a.G.grad, b.G.grad)
    dA, dB = torch.zeros_like(a.A), torch.zeros_like(a.B)
    for token, dy in zip(x.detach().reshape(-1, 12), target.reshape(-1, 20), strict=True):
        logits = a.G.detach() @ token
        chosen = logits.topk(2).indices
        for e, g in zip(chosen, logits[chosen].softmax(0), strict=True):
            A, B = a.A[e].detach(), a.B[e].detach()
            # the gradient of 2 g B A x, divided by g^(1 - power)
            dA[e] += g**power * 2 * torch.outer(B.T @ dy, token)
            dB[e] += g**power * 2 * torch.outer(dy, A @ token)
    if riemann:
        eye = 0.1 * torch.eye(3, dtype=torch.float64)
        A, B = a.A.detach(), a.B.detach()
        dA, dB = torch.linalg.inv(B.mT @ B + eye) @ dA, dB @ torch.linalg.inv(A @ A.mT + eye)
    torch.testing.assert_close(a.A.grad, dA)
    torch.testing.assert_close(a.B.grad, dB)


@pytest.mark.parametrize("rescale", ["sqrt", "inverse"])
def test_rescaling_compiles_checkpoints_and_runs_in_half_precision(rescale):
    model, a = adapted(linear(), ad.MoELoRA(r=3, riemann=True, rescale=rescale, balance=0.0))
    shake(model)
    x, found = batch(6, 12), []
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for run in (model, compiled, lambda x: checkpoint(model, x, use_reentrant=False)):
        a.zero_grad()
        run(x).square().sum().backward()
        found.append({n: p.grad.clone() for n, p in a.named_parameters()})
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])
    a.zero_grad()
    expected, half = model(x), model.to(torch.bfloat16)
    y = half(x.bfloat16())
    y.float().square().sum().backward()
    torch.testing.assert_close(y.double(), expected, rtol=0.1, atol=0.3)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in a.parameters())


def test_a_rescaled_step_moves_the_output_by_the_gate_and_a_plain_one_by_its_square():
    x, moved = batch(1, 12), {}
    for rescale in ("none", "inverse"):
        model, a = adapted(
            linear(), ad.MoELoRA(r=3, experts=2, top_k=2, riemann=True, delta=1e-12, rescale=rescale)
        )
        shake(model)
        model(x).sum().backward()
        g = a.gates(x)[0][0]
        with torch.no_grad():  # of every expert, the first order of what a step does to g B A x
            moved[rescale] = g[:, None] * ((a.B.grad @ a.A + a.B @ a.A.grad) @ x[0])
    torch.testing.assert_close(moved["none"], g.detach()[:, None] * moved["inverse"])


def test_what_it_cannot_do_is_said():
    model, _ = adapted(linear(), ad.MoELoRA())
    with pytest.raises(MergeError, match="moe-lora on 0 changes activations"):
        ad.merge(model)
    with pytest.raises(MethodError, match="top_k = 3 is above experts = 2"):
        ad.MoELoRA(experts=2, top_k=3)


def test_count():
    assert ad.plan(llama2_7b(), ad.MoELoRA(r=8, experts=4), targets=["q", "v"]).trainable == 17_825_792


def test_under_autocast_tokens_are_routed_as_without_it():
    model, a = adapted(linear(), ad.MoELoRA(r=2, experts=4, top_k=1))
    model.float()
    with torch.no_grad():
        a.G.copy_(1.0 + torch.arange(4)[:, None] * 1e-4)  # bfloat16 tells none of them apart
    x = torch.rand(9, 12) + 0.5
    with torch.autocast("cpu", torch.bfloat16):
        g, p = a.gates(x)
    assert g.argmax(-1).eq(3).all() and p.dtype == torch.float32
    torch.testing.assert_close((g, p), a.gates(x))
