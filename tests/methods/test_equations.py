"""The methods that other libraries have too against their equations, written out again in float64 from the papers; and counts at full size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import adaptome as ad
from adaptome.core.errors import HostError, MergeError, MethodError

from .helpers import adapted, batch, linear, llama2_7b, roberta, shake

OUT, IN = 20, 12
close = torch.testing.assert_close
eye = torch.eye


# -- the new weight and bias of each, entry by entry -------------------------------------------------------------


def hra(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    product = eye(IN).double()
    for u in a.U.T:
        product = product @ (eye(IN) - 2 * torch.outer(u, u) / u.dot(u))
    return W @ product, b


def hra_gram_schmidt(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    found: list[Tensor] = []
    for u in a.U.T:
        for v in found:
            u = u - v.dot(u) * v
        found.append(u / u.norm())
    return W @ (eye(IN) - 2 * sum(torch.outer(u, u) for u in found)), b


def c3a(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    size = a.w.shape[-1]
    rows = [
        [a.w[o // size, i // size, (i % size - o % size) % size] / IN for i in range(IN)] for o in range(OUT)
    ]
    return W + torch.stack([torch.stack(row) for row in rows]), b


def waveft(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """By the inverse transform of the whole grid: each half spread to every second place, filtered, and cut."""
    root = 3**0.5
    low = torch.tensor([1 + root, 3 + root, 3 - root, 1 - root], dtype=torch.float64) / (4 * 2**0.5)
    high = low.flip(0) * torch.tensor([1.0, -1.0, 1.0, -1.0])

    def synthesis(size: int, filter: Tensor) -> Tensor:
        half = (size + 2) // 2
        matrix = torch.zeros(2 * half + 2, half, dtype=torch.float64)
        for j in range(half):
            matrix[2 * j : 2 * j + 4, j] = filter
        return matrix[2 : 2 + size]

    cells = torch.randperm(OUT * IN, generator=torch.Generator().manual_seed(777))[: len(a.c)]
    S = torch.zeros(OUT + 2, IN + 2, dtype=torch.float64)
    S = S.index_put((cells // IN + 1, cells % IN + 1), a.c)
    top, left = (OUT + 2) // 2, (IN + 2) // 2
    parts = {
        (low, low): S[:top, :left], (high, low): S[:top, left:], (low, high): S[top:, :left], (high, high): S[top:, left:]
    }  # fmt: skip
    dW = sum(
        synthesis(OUT, rows) @ band @ synthesis(IN, columns).T for (rows, columns), band in parts.items()
    )
    return W + a.scale * dW, b


def miss(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return W + torch.stack([a.D[:, i % a.D.shape[1]] for i in range(IN)], 1), b


def mini(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    rows, r = a.D.shape
    return W + torch.stack([torch.stack([a.D[o % rows, i % r] for i in range(IN)]) for o in range(OUT)]), b


def bat(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    after, r = W.clone(), a.D.shape[-1]
    for p in range(OUT // r):
        for q in range(IN // r):
            block = slice(p * r, p * r + r), slice(q * r, q * r + r)
            after[block] = W[block] + (W[block] + eye(r)) @ a.D[p]
    return after, b


def gralora(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    k, r = a.A.shape[:2]
    o, i, s = OUT // k, IN // k, r // k
    after = W.clone()
    for j in range(k):
        for n in range(k):
            update = a.B[j][:, n * s : n * s + s] @ a.A[n][j * s : j * s + s]
            after[j * o : j * o + o, n * i : n * i + i] += a.scale * update
    return after + a.scale * a.B_all @ a.A_all, b


def road(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    g, variant, R = a.g, a.variant, torch.zeros(OUT, OUT, dtype=torch.float64)
    for group in range(OUT // g):
        for p in range(g // 2):
            first, second = group * g + p, group * g + g // 2 + p
            for row, other, sign in ((first, second, -1), (second, first, 1)):
                one = two = group * g // 2 + p if variant == 1 else row
                if variant == 4:
                    one, two = 2 * group * g + row % g, 2 * group * g + g + row % g
                R[row, row] = a.a[one] * a.t[one].cos()
                R[row, other] = sign * a.a[two] * a.t[two].sin()
    return R @ W, R @ b


def shira(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    after = W.clone()
    for place, value in zip(a.index.tolist(), a.values, strict=True):
        after[place // IN, place % IN] += value
    return after, b


def hira(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return W + W * (a.B @ a.A), b


def delora(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    pairs = zip(a.A, a.B.T, strict=True)
    total = sum(torch.outer(v, u) / (v.norm() * u.norm()) for u, v in pairs)
    return W + a.lambda_ / len(a.A) * total * W.norm(dim=0), b


def tinylora(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    U, S, Vh = torch.linalg.svd(W)
    r = a.P.shape[-1]
    R = sum(v * P for v, P in zip(a.shared.v[0], a.P.double(), strict=True))
    root = S[:r].sqrt()
    return W + (U[:, :r] * root) @ R @ (root[:, None] * Vh[:r]), b


def psoft(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    r = a.r
    Q, upper = torch.zeros(r, r, dtype=torch.float64), iter(a.Q)
    for i in range(r):
        for j in range(i + 1, r):
            value = next(upper)
            Q[i, j], Q[j, i] = value, -value
    R = a.b.diag() @ (eye(r) + Q) @ torch.linalg.inv(eye(r) - Q) @ a.a.diag()
    U, S, Vh = torch.linalg.svd(W)
    return W + U[:, :r] * S[:r] @ (R - eye(r)) @ Vh[:r], b


def peanut(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h0 = torch.tanh(a.A @ W)
    h1 = torch.tanh(a.E[0] @ h0)
    h2 = torch.tanh(a.E[1] @ h1)
    g1 = h1 + torch.tanh(a.D[0] @ h2)
    return W + a.scale * a.B @ (h0 + torch.tanh(a.D[1] @ g1)), b


def glora(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    A, B, C, D, E = (a.terms[k]() for k in "ABCDE")
    return W + W * A + B, b + b * D[:, 0] + E[:, 0] + W @ C[:, 0]


def glora_matrix(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return W @ (eye(IN) + a.terms["A"]()) + a.terms["B"](), b


def vb_lora(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    def piece(logits: Tensor) -> Tensor:
        best = sorted(range(len(logits)), key=lambda j: -logits[j].item())[: a.top_k]
        weights = torch.stack([logits[j].exp() for j in best])
        return sum(w * a.shared.vectors[j] for w, j in zip(weights / weights.sum(), best, strict=True))

    A = torch.stack([torch.cat([piece(logits) for logits in row]) for row in a.A])
    columns = range(a.B.shape[1])
    B = torch.stack([torch.cat([piece(logits) for logits in a.B[:, k]]) for k in columns], 1)
    return W + B @ A, b


def uni_lora(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    places = torch.cat([a.a.flatten(), a.b.flatten()])
    P = F.one_hot(places, len(a.shared.theta)).double()
    P = P / P.norm(dim=0).clamp_min(1)  # columns of length one
    vector = P @ a.shared.theta
    A, B = vector[: a.a.numel()].view(a.a.shape), vector[a.a.numel() :].view(a.b.shape)
    return W + B @ A, b


def pvera(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    r = a.r
    A, B = a.shared.A[:r, :IN].double(), a.shared.B[:OUT].double()
    return W + a.b.diag() @ B @ a.d[:r].diag() @ A, b


def deft(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return W - a.P @ a.P.clamp_min(0).T @ W + a.scale * a.P @ a.R, b


def deft_removed(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    # the projection on P's columns, by the normal equations
    return W - a.P @ torch.linalg.inv(a.P.T @ a.P) @ a.P.T @ W, b


def osf(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    k = a.K.shape[1]
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    strong = U[:, :k] * S[:k] @ Vh[:k]
    left = (eye(OUT) - U[:, :k] @ U[:, :k].T) @ a.U
    right = a.V @ (eye(IN) - Vh[:k].T @ Vh[:k])
    return strong + left @ a.s.diag() @ right, b


def poly(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    splits, skills, r = a.A.shape[:3]
    z = torch.sigmoid(a.z[1])
    A, B = [], []
    for q in range(splits):
        w = z[q] / z[q].sum()
        A.append(sum(w[s] * a.A[q, s] for s in range(skills)))
        B.append(sum(w[s] * a.B[q, s] for s in range(skills)))
    return W + torch.cat(B) @ torch.cat(A, 1) / r, b


def t_lora(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    full, least = a.method.r, a.method.r_min
    left = (1 - 250 / 1000) ** 2  # the timestep and the power below
    m = torch.zeros(full, dtype=torch.float64)
    m[: least + math.floor((full - least) * left)] = 1
    _, S, Vh = torch.linalg.svd(W)
    U = torch.linalg.svd(W)[0]
    start = U[:, :full] * (S[:full] * m) @ Vh[:full]
    return W + a.scale * (a.B * (a.d * m) @ a.A - start), b


def trainable_tokens(a: Any, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    after = W.clone()
    for row, values in zip((7, 2), a.shared.D[0], strict=True):
        after[row] += values
    return after, b


CASES: dict[str, tuple[Callable[..., Any], ad.Method]] = {
    "hra": (hra, ad.get_method("hra", r=4)),
    "hra-gram-schmidt": (hra_gram_schmidt, ad.get_method("hra", r=3, gram_schmidt=True)),
    "c3a": (c3a, ad.get_method("c3a", size=4)),
    "c3a-common": (c3a, ad.get_method("c3a")),
    "waveft": (waveft, ad.get_method("waveft", n=30, moments=2, alpha=3.0)),
    "miss": (miss, ad.get_method("miss", r=5)),
    "miss-mini": (mini, ad.get_method("miss", r=5, form="mini", rows=4)),
    "miss-bat": (bat, ad.get_method("miss", r=4, form="bat")),
    "gralora": (gralora, ad.get_method("gralora", r=8, k=4, hybrid_r=3, alpha=5.0)),
    **{f"road-{v}": (road, ad.get_method("road", variant=v, size=4)) for v in (1, 2, 4)},
    "shira": (shira, ad.get_method("shira", r=2)),
    "hira": (hira, ad.get_method("hira", r=3)),
    "delora": (delora, ad.get_method("delora", r=3, strength=2.0)),
    "tinylora": (tinylora, ad.get_method("tinylora", r=3, n=5)),
    "psoft": (psoft, ad.get_method("psoft", r=4)),
    "peanut": (peanut, ad.get_method("peanut", r=3, depth=2, scale=0.7, activation="tanh")),
    "glora": (glora, ad.get_method("glora", r=2, C="lora")),
    "glora-rows": (glora, ad.get_method("glora", A="vector", B="vector", D="constant", E="constant")),
    "glora-matrix": (glora_matrix, ad.get_method("glora", r=2, product="matrix", C="none", D="none", E="none")),
    "vb-lora": (vb_lora, ad.get_method("vb-lora", r=2, size=4, bank=9, top_k=3)),
    "uni-lora": (uni_lora, ad.get_method("uni-lora", r=2, n=30)),
    "pvera": (pvera, ad.get_method("pvera", r=3)),
    "deft": (deft, ad.get_method("deft", r=3, scale=2.0)),
    "deft-removed": (deft_removed, ad.get_method("deft", r=3, projection="qr", fill=False)),
    "osf": (osf, ad.get_method("osf", rank=5)),
    "poly": (poly, ad.get_method("poly", tasks=("a", "b"), r=2, skills=3, splits=2)),
    "t-lora": (t_lora, ad.get_method("t-lora", r=6, r_min=2, power=2.0, start="weight", which="first", scale=0.5)),
    "trainable-tokens": (trainable_tokens, ad.get_method("trainable-tokens", ids=(7, 2))),
}  # fmt: skip


@pytest.fixture(autouse=True)
def steered():
    with ad.steer(task="b", timestep=250):
        yield


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_the_equation(case):
    expected, method = CASES[case]
    model, adapter = adapted(linear(IN, OUT), method)
    shake(model)
    x = batch(3, 5, IN).requires_grad_()
    W, b = (model[0]._parameters[name].detach() for name in ("weight", "bias"))
    wanted = F.linear(x, *expected(adapter, W, b))
    y = model(x)
    assert not torch.allclose(y, F.linear(x, W, b), atol=1e-3)
    close(y, wanted, rtol=1e-9, atol=1e-9)
    trained = [x, *ad.parameters_of(model).values()]
    push = batch(*y.shape)
    for mine, other in zip(
        torch.autograd.grad(y, trained, push), torch.autograd.grad(wanted, trained, push), strict=True
    ):
        close(mine, other, rtol=1e-7, atol=1e-9)


FULL = [
    (ad.get_method("hra", r=32), 8_388_608),
    (ad.get_method("c3a", size=4096), 64 * 4096),
    (ad.get_method("waveft"), 165_888),
    (ad.get_method("miss"), 8_388_608),
    (ad.get_method("miss", form="mini", rows=16), 64 * 32 * 16),
    (ad.get_method("gralora", r=64), 33_554_432),
    (ad.get_method("road"), 262_144),
    (ad.get_method("shira", r=64), 33_554_432),
    (ad.get_method("hira"), 16_777_216),
    (ad.get_method("delora"), 4_194_368),
    (ad.get_method("tinylora", n=13, tie=1.0), 13),
    (ad.get_method("tinylora"), 4_096),
    (ad.get_method("psoft"), 35_840),
    (ad.get_method("peanut"), 16_777_216),
    (ad.get_method("uni-lora"), 524_288),
    (ad.get_method("vb-lora", size=256), 2_162_688),
    (ad.get_method("pvera"), 294_912),
    (ad.get_method("deft"), 4_194_304),
    (ad.get_method("lily"), 9_445_376),
]


@pytest.mark.parametrize(("method", "count"), FULL, ids=[m.name for m, _ in FULL])
def test_the_count_of_llama_2_7b(method, count):
    assert ad.plan(llama2_7b(), method, targets=["q", "v"]).trainable == count


ROBERTA = [(ad.get_method("c3a", size=768), 18_432), (ad.get_method("c3a", size=128), 110_592)]


@pytest.mark.parametrize(("method", "count"), ROBERTA)
def test_the_count_of_roberta(method, count):
    assert ad.plan(roberta(), method, targets=["q", "v"]).trainable == count


# -- what is their own ---------------------------------------------------------------------------------------------


def test_reflections_start_in_pairs_and_keep_lengths():
    model, adapter = adapted(linear(IN, OUT), ad.HRA(r=4, orthogonality=0.5))
    assert torch.equal(adapter.U[:, 0], adapter.U[:, 1]) and not torch.equal(adapter.U[:, 1], adapter.U[:, 2])
    shake(model)
    W = model[0]._parameters["weight"]
    close(adapter.weight(W).norm(dim=1), W.norm(dim=1))
    U = adapter.U / adapter.U.norm(dim=0)
    found = ad.HRA(r=4, orthogonality=0.5).penalty({"0": adapter}, None)
    close(found, 0.5 * (eye(4) - U.T @ U).square().sum())
    with pytest.raises(MethodError, match="r = 3 is odd.*Take 4"):
        ad.HRA(r=3)
    with pytest.raises(HostError, match="r = 14 directions cannot be orthonormal among its 12 inputs"):
        adapted(linear(IN, OUT), ad.HRA(r=14, gram_schmidt=True))


def test_blocks_of_c3a_are_as_wide_as_the_sides_allow():
    for sides, width in (((768, 3072), 256), ((40, 60), 20), ((7, 9), 1)):
        plan = ad.plan(nn.Linear(*sides), "c3a", targets="=")
        assert plan.trainable == sides[0] * sides[1] // width


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (ad.get_method("c3a", size=8), "size = 8 does not divide both its sides, 12 and 20"),
        (ad.get_method("gralora", r=6, k=3), "k = 3 does not divide both its sides, 12 and 20"),
        (ad.get_method("road", size=8), "size = 8 does not divide its 20 outputs"),
        (ad.get_method("miss", r=13), "r = 13 is above its 12 inputs"),
        (ad.get_method("miss", r=5, form="bat"), "needs r = 5 to divide both its sides, 12 and 20"),
        (ad.get_method("osf", rank=12), "rank = 12 keeps all of its 12 singular directions"),
        (ad.get_method("trainable-tokens", ids=(3, 3)), "names a token twice"),
        (ad.get_method("trainable-tokens", ids=(3, 20)), "are not all among its 20 rows"),
        (ad.get_method("vb-lora", size=8), "size = 8 does not divide both its sides"),
        (ad.get_method("poly", splits=8), "splits = 8 does not divide both its sides"),
    ],
)
def test_what_does_not_fit_is_refused(method, words):
    with pytest.raises(HostError, match=words):
        adapted(linear(IN, OUT), method)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("gralora", {"r": 6, "k": 4}, "r = 6 does not divide by k = 4"),
        ("road", {"size": 3}, "size = 3 is odd"),
        ("glora", {"A": "none", "B": "none"}, "both 'none'"),
        ("glora", {"A": "vector", "product": "matrix"}, "needs A='lora'"),
        ("vb-lora", {"top_k": 9, "bank": 8}, "top_k = 9 is above bank = 8"),
        ("t-lora", {"r": 4, "r_min": 5}, "r_min = 5 is above r = 4"),
        ("poly", {"tasks": ("a", "a")}, "must be different names"),
    ],
)
def test_settings_that_contradict_are_refused(name, settings, words):
    with pytest.raises(MethodError, match=words):
        ad.get_method(name, **settings)


def test_noise_is_drawn_in_training_alone():
    model, adapter = adapted(linear(IN, OUT), ad.PVeRA(r=3))
    shake(model)
    x = batch(5, IN)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    # with no variance it is the mean
    adapter.shared.A[3:] = 1.0
    with torch.no_grad():
        adapter.d[3:] = -1e4 * torch.sign(x.sum(1)[0])
    close(model(x[:1]), model.eval()(x[:1]))


def test_skills_are_drawn_in_training_and_mixed_by_sample():
    model, _ = adapted(linear(IN, OUT), ad.Poly(tasks=("a", "b"), r=2))
    shake(model)
    x = batch(3, 5, IN)
    with ad.steer(task=["a", "b", "a"]):
        mixed = model(x)
        with pytest.raises(MergeError, match="no one weight"):
            ad.merge(model)
    for row, task in enumerate(("a", "b", "a")):
        with ad.steer(task=task):
            close(model(x)[row], mixed[row])
    assert not torch.equal(model.train()(x), model(x))


def test_rank_follows_the_timestep_of_every_sample():
    for layer, x in ((linear(IN, OUT), batch(3, 5, IN)), (nn.Conv2d(4, 6, 3, groups=2), batch(3, 4, 5, 5))):
        model, adapter = adapted(layer, ad.get_method("t-lora", r=4, r_min=1))
        assert adapter.method.rank(torch.tensor([0, 250, 1000])).tolist() == [4, 3, 1]
        shake(model)
        with ad.steer(timestep=torch.tensor([0, 250, 999])):
            mixed = model(x)
            with pytest.raises(MergeError, match="timestep is steered per sample"):
                ad.merge(model)
        for row, t in enumerate((0, 250, 999)):
            with ad.steer(timestep=t):
                close(model(x)[row], mixed[row])


def test_neighbours_share_and_outputs_do_not_hang_on_the_batch():
    class Four(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(*[nn.Linear(8, 8) for _ in range(4)])

    model = Four().double()
    ad.attach(model, "lily", r=2, stride=2, experts=3, targets=["0", "1", "2", "3"])
    shared = ad.adapters(model)["default"].shared
    assert len(shared.A) == 2 and len(shared.B) == 1 and len(shared.G) == 4
    shake(model)
    x = batch(3, 5, 8)
    close(model(x)[:1], model(x[:1]))
    close(model(x[:, 0])[:1], model(x[:1, 0]))
    layer = model[1]
    [B] = shared.B.values()
    A = next(iter(shared.A.values()))
    z = x @ A.T
    p = (z @ shared.G[1].T).softmax(-1).mean(1)
    update = torch.stack([z[i] @ sum(p[i, e] * B[e] for e in range(3)).T for i in range(3)])
    close(layer(x), F.linear(x, layer.weight, layer.bias) + update)


def test_a_bank_and_one_vector_serve_all_layers():
    for method, count in (
        (ad.VBLoRA(r=2, size=4, bank=9), 36 + 2 * (32 + 40) // 4 * 9),
        (ad.UniLoRA(n=50), 50),
    ):
        model = nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 20))
        assert ad.attach(model, method, targets=["0", "1"], seed=0).trainable == count
        one, two = ad.adapters(model)["default"].adapters.values()
        assert one.shared is two.shared and not torch.equal(one.factors()[1], two.factors()[1])


def test_what_is_trained_stays_out_of_the_strong_directions():
    model, adapter = adapted(linear(IN, OUT), ad.OSF(rank=4))
    shake(model)
    W = model[0]._parameters["weight"].detach()
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    after = adapter.changed("weight", W)
    close(U[:, :4].T @ after, S[:4, None] * Vh[:4])
    close(after @ Vh[:4].T, U[:, :4] * S[:4])


def test_a_shrunk_subspace_is_gone():
    model, adapter = adapted(linear(IN, OUT), ad.DEFT(r=3, projection="qr", fill=False))
    W = model[0]._parameters["weight"].detach()
    assert (torch.linalg.qr(adapter.P)[0].T @ adapter.weight(W)).abs().max() < 1e-12
