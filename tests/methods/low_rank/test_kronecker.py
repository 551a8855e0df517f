"""LoKr and DiffuseKronA against torch.kron, PEFT and the counts of the papers (arXiv:2402.17412)."""

import copy

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.architectures import build
from adaptome.core.errors import HostError
from adaptome.core.hosts import host_of
from adaptome.methods.low_rank.lokr import divisors
from tests.methods.helpers import adapted, batch, linear, llama2_7b, shake

SHAPES = [(24, 40, 4, 3), (24, 40, 8, 24), (16, 36, 36, 2), (13, 7, 1, 13), (64, 32, 2, 64)]


def krona(fan_in, fan_out, a1, a2, scale=1.0, bias=True):
    layer = linear(fan_in, fan_out, bias)
    model, a = adapted(layer, ad.DiffuseKronA(a1=a1, a2=a2, scale=scale))
    return layer, model, a


@pytest.mark.parametrize(("fan_in", "fan_out", "a1", "a2"), SHAPES)
@pytest.mark.parametrize("lead", [(5,), (2, 3), (2, 3, 4)])
def test_forward_merge_and_gradients_are_torchs_kron(fan_in, fan_out, a1, a2, lead):
    layer, model, a = krona(fan_in, fan_out, a1, a2, scale=0.7)
    W, bias, x = layer._parameters["weight"], layer.bias, batch(*lead, fan_in).requires_grad_()
    assert torch.equal(model(x), nn.functional.linear(x, W, bias))
    shake(model)
    expected = nn.functional.linear(x, W + 0.7 * torch.kron(a.A, a.B), bias)
    torch.testing.assert_close(model(x), expected)
    wanted = [x, a.A, a.B]
    torch.testing.assert_close(
        torch.autograd.grad(model(x).square().sum(), wanted),
        torch.autograd.grad(expected.square().sum(), wanted),
    )
    ad.merge(model)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("conv", [
    nn.Conv2d(6, 8, (3, 2), stride=2, padding=(1, 0)),
    nn.Conv2d(6, 8, 3, padding="same", padding_mode="circular", dilation=2),
    nn.Conv1d(6, 8, 3, padding=1),
    nn.Conv3d(6, 8, 2),
    nn.Conv2d(12, 8, 3, groups=2),
])  # fmt: skip
@pytest.mark.parametrize("method", [ad.DiffuseKronA(a1=4, a2=3), ad.LoKr(r=1, factor=2)])
def test_convolutions_of_every_kind(conv, method):
    x = batch(2, conv.in_channels, *[8] * len(conv.kernel_size))
    conv, plain = copy.deepcopy(conv), copy.deepcopy(conv).double()
    model, a = adapted(conv, method)
    before = model(x)
    shake(model)
    C, D = a.pair()
    changed = plain.weight + a.scale * torch.kron(C, D).view(plain.weight.shape)
    torch.testing.assert_close(before, plain(x))
    plain.weight.data.copy_(changed.detach())
    torch.testing.assert_close(model(x), plain(x))
    if conv.groups == 1:
        torch.testing.assert_close(model(x[0]), plain(x[0]))


def test_embeddings_are_outer_products():
    table = nn.Embedding(12, 10)
    model, a = adapted(table, ad.DiffuseKronA(a1=5, a2=3))
    shake(model)
    ids = torch.tensor([[3, 11, 0], [3, 3, 7]])
    torch.testing.assert_close(model(ids), (table._parameters["weight"] + torch.kron(a.A, a.B).T)[ids])


def test_first_gradient_is_the_zero_factors():
    _, model, a = krona(24, 40, 4, 3)
    model(batch(5, 24)).square().sum().backward()
    assert a.B.grad.any() and not a.A.grad.any()
    with torch.no_grad():
        a.B -= 0.1 * a.B.grad
    model.zero_grad()
    model(batch(5, 24)).square().sum().backward()
    assert a.B.grad.any() and a.A.grad.any()


def test_neither_direction_makes_or_keeps_the_full_matrix():
    from torch.utils._python_dispatch import TorchDispatchMode

    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made.extend(
                t.numel()
                for t in (out if isinstance(out, (tuple, list)) else [out])
                if isinstance(t, torch.Tensor)
            )
            return out

    _, model, a = krona(60, 56, 8, 4, bias=False)
    shake(model)
    x = batch(2, 60)
    with Watch():
        a.product(x).sum().backward()
    assert max(made) < 60 * 56 and a.A.grad.any()


def test_sides_that_do_not_divide_are_refused_or_the_nearest_taken():
    layer = nn.Sequential(nn.Linear(20, 30))
    with pytest.raises(HostError, match="a1 = 64 does not divide 30; the nearest divisor is 30"):
        ad.attach(layer, "diffusekrona", a1=64, targets="0")
    with pytest.raises(HostError, match="a2 = 6 does not divide 20; the nearest divisor is 5"):
        ad.attach(layer, "diffusekrona", a1=3, a2=6, targets="0")
    ad.attach(layer, "diffusekrona", a1=7, a2=6, nearest=True, targets="0")
    assert ad.adapters(layer)["default"].adapters["0"].A.shape == (6, 5)


def test_each_projection_has_its_own_shape():
    model = nn.ModuleDict({"k": nn.Linear(16, 24), "q": nn.Linear(16, 24), "v": nn.Linear(16, 24)})
    ad.attach(model, ad.DiffuseKronA(a1=4, a2=2), targets=["k", "v"], per_layer={"k": {"a1": 8, "a2": 4}})
    found = ad.adapters(model)["default"].adapters
    assert {path: tuple(a.A.shape) for path, a in found.items()} == {"k": (8, 4), "v": (4, 2)}


def test_the_rank_is_the_product_of_the_ranks():
    A, B = batch(64, 4), batch(20, 320)
    _, model, a = krona(1280, 1280, 64, 4)
    a.A.data.copy_(A), a.B.data.copy_(B)
    assert torch.linalg.matrix_rank(a.delta()) == 4 * 20


@pytest.mark.parametrize(
    ("r", "both", "init"), [(2, False, True), (8, False, "lycoris"), (2, True, True), (2, True, False)]
)
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_lokr_is_pefts_on_the_same_weights(r, both, init, kind):
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    make = (lambda: linear(48, 60)) if kind == "linear" else (lambda: nn.Conv2d(24, 36, 3))
    x = torch.randn(5, 48) if kind == "linear" else torch.randn(2, 24, 5, 5)
    config = peft.LoKrConfig(r=r, alpha=6, target_modules=["0"], init_weights=init, decompose_both=both)
    base = nn.Sequential(make())
    twin = nn.Sequential(make())
    twin.load_state_dict(base.state_dict())
    theirs = peft.get_peft_model(twin, config)
    ad.attach(
        base,
        ad.LoKr(r=r, alpha=6.0, decompose_both=both, init="d" if init == "lycoris" else "c"),
        targets="0",
    )
    keys = {"C": "w1", "Cb": "w1_a", "Ca": "w1_b", "D": "w2", "B": "w2_a", "A": "w2_b"}
    own = {k.split(".")[-1]: v for k, v in ad.parameters_of(base).items()}
    for name, value in own.items():
        peer = theirs.get_parameter(f"base_model.model.0.lokr_{keys[name]}.default")
        assert peer.numel() == value.numel()
        if init is not False:
            assert bool(peer.any()) == bool(value.any()), name
        torch.nn.init.normal_(peer)
        value.data.copy_(peer.view_as(value))
    torch.testing.assert_close(base(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_lokr_with_full_factors_is_diffusekrona():
    model, a = adapted(linear(24, 40), ad.LoKr(r=100, alpha=100.0, factor=4))
    other, b = adapted(linear(24, 40), ad.DiffuseKronA(a1=4, a2=4))
    shake(model)
    b.A.data.copy_(a.C), b.B.data.copy_(a.D)
    torch.testing.assert_close(model(batch(3, 24)), other(batch(3, 24)))


def test_divisors_are_the_nearest():
    assert [divisors(n) for n in (512, 4096, 11008, 127, 1)] == [
        (16, 32),
        (64, 64),
        (86, 128),
        (1, 127),
        (1, 1),
    ]
    assert divisors(512, 4) == (4, 128) and divisors(60, 8) == (6, 10) and divisors(7, 4) == (1, 7)


def test_lokrs_count_is_the_formula():
    plan = ad.plan(llama2_7b(), ad.LoKr(r=8), targets=["q", "v"])
    assert plan.trainable == 64 * (64 * 64 + 8 * (64 + 64)) == 327_680


#: width -> attention blocks of it; two of eight matrices read the text
SDXL, SD15 = ({640: 10, 1280: 60}, 2048), ({320: 5, 640: 5, 1280: 6}, 768)


def unet_count(blocks, text, method):
    def one(fan_in, fan_out):
        host = host_of(nn.Linear(fan_in, fan_out, device="meta"), "x")
        assert method.admits(host) is None
        return method.parameters(host)

    return sum(n * (6 * one(h, h) + 2 * one(text, h)) for h, n in blocks.items())


@pytest.mark.parametrize(
    ("unet", "a1", "a2", "count"),
    [
        (SDXL, 64, 4, 3_874_560), (SDXL, 64, 8, 2_152_320), (SDXL, 64, 16, 1_506_240), (SDXL, 64, 1, 14_960_640),
        (SDXL, 64, 2, 7_534_080), (SD15, 64, 4, 398_048), (SD15, 16, 16, 398_048), (SDXL, 16, 16, 3_874_560),
        (({320: 5, 640: 5, 1280: 6}, 1024), 64, 4, 423_008), (({320: 5, 640: 5, 1280: 6}, 1024), 64, 8, 260_656),
    ],
)  # fmt: skip
def test_counts_are_the_papers_and_only_the_product_counts(unet, a1, a2, count):
    assert unet_count(*unet, ad.DiffuseKronA(a1=a1, a2=a2)) == count


def test_the_counts_hold_on_a_real_unet_and_loras_are_the_papers():
    maps = ["*to_q", "*to_k", "*to_v", "*to_out.0"]
    for name, krona, lora in (("sd-1.5-unet", 398_048, 797_184), ("sdxl-unet", 3_874_560, 5_806_080)):
        unet = build(name)
        assert ad.plan(unet, ad.DiffuseKronA(a1=64, a2=4), targets=maps).trainable == krona
        assert ad.plan(unet, ad.LoRA(r=4), targets=maps).trainable == lora


def test_count_with_the_text_encoder():
    text = ad.DiffuseKronA(a1=64, a2=4).parameters(host_of(nn.Linear(768, 768, device="meta"), "x"))
    assert unet_count(*SD15, ad.DiffuseKronA(a1=64, a2=4)) + 48 * text == 520_928


def test_a_small_unet_starts_as_the_base_and_merges():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=24, sample_size=8, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=8,
    ).eval()  # fmt: skip
    arguments = (torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 5, 24))
    base = unet(*arguments).sample
    ad.attach(unet, ad.DiffuseKronA(a1=8, a2=4), targets=["*to_q", "*to_k", "*to_v", "*to_out.0"])
    assert torch.equal(unet(*arguments).sample, base)
    shake(unet)
    changed = unet(*arguments).sample
    assert not torch.allclose(changed, base)
    ad.merge(unet)
    torch.testing.assert_close(unet(*arguments).sample, changed, rtol=1e-3, atol=1e-4)
