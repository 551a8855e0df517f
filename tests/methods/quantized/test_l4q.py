"""L4Q against an explicit straight-through computation; its starts, memory, export and counts."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import adaptome as ad
from adaptome.methods.quantized.l4q import LEAST, pack, steps
from adaptome.quantization.layers import PackedLinear


def layer(fan_in=72, out=40, dtype=torch.float64, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(fan_in, out)).to(dtype)
    ad.attach(model, "l4q", targets="0", seed=1, **{"r": 3, "bits": 4, "group": 32, **settings})
    return model, model[0].adaptome["default"]


def by_hand(W, A, B, d, b, scale, bits, group):
    """W' and its rounding, one entry after another's group, by the equations."""
    half = 2 ** (bits - 1)
    g = torch.arange(W.shape[1]) // group
    Wc = W + scale * B @ A
    w = (Wc - b[:, g]) / d[:, g]
    q = w.clamp(-half, half - 1).round()
    return w, q, q * d[:, g] + b[:, g], g


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("clip", [False, True])
def test_the_backward_is_the_papers(bits, clip):
    model, a = layer(bits=bits)
    with torch.no_grad():
        a.B.normal_(std=0.02 if clip else 0.002)
        a.b.normal_(std=0.001)
        a.d.mul_(0.5 if clip else 1.3)
    W, half = model[0]._parameters["weight"].detach(), 2 ** (bits - 1)
    w, q, made, g = by_hand(W, a.A, a.B, a.d, a.b, 16 / 3, bits, 32)
    x = torch.randn(2, 5, 72, dtype=torch.float64, requires_grad=True)
    y, grad = model(x), torch.randn(2, 5, 40, dtype=torch.float64)
    assert_close(y, x @ made.T + model[0]._parameters["bias"])
    y.backward(grad)
    G = torch.einsum("bto,bti->oi", grad, x).detach()
    M = ((w >= -half) & (w <= half - 1)).double()
    assert bool((M == 0).any()) is clip
    h = torch.where(w < -half, -half, torch.where(w > half - 1, half - 1, q - w))
    groups = lambda t: torch.zeros(40, 3).double().index_add(1, g, t)  # noqa: E731
    tight = {"rtol": 1e-9, "atol": 1e-9}
    assert_close(x.grad, grad @ made, **tight)
    assert_close(a.A.grad, 16 / 3 * a.B.T @ (G * M), **tight)
    assert_close(a.B.grad, 16 / 3 * (G * M) @ a.A.T, **tight)
    assert_close(a.d.grad, groups(G * h).detach(), **tight)
    assert_close(a.b.grad, groups(G * (1 - M)), **tight)
    assert bool(a.b.grad.any()) is clip  # offsets feel clipped weights alone


def test_the_one_node_is_the_plain_path():
    model, a = layer()
    with torch.no_grad():
        a.B.normal_(std=0.05)
        a.d.mul_(0.7)
    x = torch.randn(4, 72, dtype=torch.float64)
    found = torch.autograd.grad(model(x).square().sum(), list(a.parameters()))
    W = a.weight(model[0]._parameters["weight"].detach())
    y = x @ W.T + model[0]._parameters["bias"]
    for ours, theirs in zip(found, torch.autograd.grad(y.square().sum(), list(a.parameters())), strict=True):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_it_starts_at_the_rounded_weight_and_many_bits_are_the_base():
    model, a = layer()
    W = model[0]._parameters["weight"].detach()
    made = by_hand(W, a.A, torch.zeros_like(a.B), *steps(W, 4, 32, "l4q"), 1.0, 4, 32)[2]
    x = torch.randn(5, 72, dtype=torch.float64)
    assert_close(model(x), x @ made.T + model[0]._parameters["bias"])
    fine, _ = layer(bits=16)
    with ad.disabled(fine):
        base = fine(x)
    assert_close(fine(x), base, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("init", "clips"), [("l4q", False), ("asymmetric", False), ("lsq+", True)])
def test_what_each_start_clips(init, clips):
    W = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    W[:, ::40] *= 4
    d, b = steps(W, 4, 64, init)
    w = (W.unflatten(1, (2, 64)) - b[..., None]) / d[..., None]
    outside = (w < -8 - 1e-4) | (w > 7 + 1e-4)
    assert bool(outside.any()) is clips
    if init == "l4q":
        low, high = W.unflatten(1, (2, 64)).amin(-1), W.unflatten(1, (2, 64)).amax(-1)
        assert_close(d, torch.maximum((low / -8).abs(), (high / 7).abs()))
        assert not b.any()


def test_packing_reproduces_the_training_forward_to_the_bit(tmp_path):
    for dtype in (torch.float32, torch.bfloat16):
        model, a = layer(dtype=dtype)
        with torch.no_grad():
            a.B.normal_(std=0.05)
            a.b.normal_(std=0.01)
            a.d.mul_(0.8)
        x = torch.randn(6, 72).to(dtype)
        before = model(x)
        report = ad.pack(model)
        assert type(model[0]) is PackedLinear and set(model.state_dict()) == {"0.weight", "0.bias"}
        assert torch.equal(model(x), before)
        codes = model[0].form.codes(model[0].weight, 72).int() - 8
        assert codes.min() >= -8 and codes.max() <= 7
        assert report.layers[0].after == model[0].weight.numel()


def test_a_packed_model_saves_and_loads(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=40, tie_word_embeddings=False
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    ad.attach(model, "l4q", r=2, group=16)
    tokens = torch.randint(40, (2, 9))
    model(input_ids=tokens, labels=tokens).loss.backward()
    ad.check_gradients(model)
    logits = model(tokens).logits
    ad.pack(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(ad.load_quantized(tmp_path, dtype=torch.float32)(tokens).logits, logits)


def test_what_cannot_be_packed_is_told():
    model, _ = layer(bits=12)
    with pytest.raises(ad.errors.MethodError, match="bits = 12"):
        pack(model)
    ad.attach(model, "lora", "other", targets="0")
    with pytest.raises(ad.errors.StateError, match=r"\['other'\] are attached too"):
        pack(model)
    lora = nn.Sequential(nn.Linear(8, 8))
    ad.attach(lora, "lora", targets="0")
    with pytest.raises(ad.errors.StateError, match="is a lora"):
        pack(lora)


def test_only_the_input_is_kept_for_the_backward():
    model = nn.Sequential(nn.Linear(256, 192), nn.Linear(192, 224))
    ad.attach(model, "l4q", targets=["0", "1"], r=4, group=64)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def kept(run):
        found = {}
        note = lambda t: found.setdefault(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) and t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            run()
        return sum(size for pointer, size in found.items() if pointer not in own)

    x = torch.randn(8, 256, requires_grad=True)
    ours = kept(lambda: model(x))
    assert ours == 4 * 8 * (256 + 192)
    a = model[0].adaptome["default"]
    naive = kept(lambda: x @ a.weight(model[0]._parameters["weight"].detach()).T)
    assert naive > 4 * 192 * 256 * 2


def test_training_keeps_the_steps_positive_and_the_base_as_it_was():
    model, a = layer(dtype=torch.float32)
    W, before = model[0]._parameters["weight"], model[0]._parameters["weight"].clone()
    optimizer = torch.optim.SGD(a.parameters(), lr=50.0)
    x = torch.randn(16, 72)
    for step in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        assert W.grad is None
        optimizer.step()
        ad.on_step(model, step + 1, 3)
        assert a.d.min() >= a.least > 0
    assert a.least == pytest.approx(LEAST * float(steps(before, 4, 32, "l4q")[0].max()))
    assert torch.equal(W, before)


def test_lsqs_scale_is_on_the_gradient_of_the_steps_alone():
    gradients = []
    for scaled in (False, True):
        model, a = layer(lsq_grad_scale=scaled)
        x = torch.ones(3, 72, dtype=torch.float64)
        y = model(x)
        y.square().sum().backward()
        gradients.append((y.detach(), a.d.grad, a.B.grad))
    (y, d, B), (z, e, C) = gradients
    assert_close(y, z)
    assert_close(B, C)
    assert_close(e, d / (32 * 7) ** 0.5)


@pytest.mark.parametrize(
    ("name", "settings", "lora", "groups"),
    [
        ("llama-2-7b", {"r": 4}, 9_994_240, 50_593_792),
        ("llama-2-13b", {"r": 4}, 15_646_720, 99_123_200),
        ("mistral-7b", {"r": 8}, 20_971_520, 54_525_952),
    ],
)
def test_counts_are_the_papers(name, settings, lora, groups):
    from adaptome import architectures

    model = architectures.build(name)
    assert ad.plan(model, "l4q", **settings).trainable == lora + 2 * groups
    assert ad.plan(model, "l4q", train_bias=False, **settings).trainable == lora + groups


def test_a_resumed_run_takes_the_same_step(tmp_path):
    model, a = layer(dtype=torch.float32)
    fresh = copy.deepcopy(model)
    ad.detach(fresh)
    with torch.no_grad():
        a.B.normal_(std=0.05)
        a.d.mul_(0.9)
    ad.save(model, tmp_path / "a")
    ad.load(fresh, tmp_path / "a")
    x = torch.randn(5, 72)
    assert torch.equal(model(x), fresh(x))
