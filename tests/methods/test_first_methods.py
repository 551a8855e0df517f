"""The first methods against their equations, written out again in float64 from the papers; and their counts at full size."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import adaptome as ad
from adaptome.core.errors import HostError, MethodError, TargetError
from adaptome.forms.dropped import keep

torch.set_num_threads(1)
OUT, IN, R = 10, 6, 3


class Layer(nn.Module):
    """One layer of each kind that a test needs; everything double."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        torch.manual_seed(0)
        self.layer = layer.double()
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def linear(bias: bool = True) -> Layer:
    return Layer(nn.Linear(IN, OUT, bias=bias))


def on(model: nn.Module, method: ad.Method | str, **options) -> dict[str, Tensor]:
    """Attach, draw the trained tensors, and return copies of them by their last name."""
    options.setdefault("targets", "layer")
    ad.attach(model, method, seed=1, **options)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in ad.parameters_of(model).values():
            parameter.copy_(torch.randn_like(parameter))
    return {k.rpartition(".")[2]: p for k, p in ad.parameters_of(model).items()}


def start(model: nn.Module, method: ad.Method) -> dict[str, Tensor]:
    ad.attach(model, method, targets="layer", seed=1)
    return {k.rpartition(".")[2]: p.detach() for k, p in ad.parameters_of(model).items()}


close = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def both_gradients(model: nn.Module, x: Tensor, expected: Tensor, trained: dict[str, Tensor]) -> None:
    """Outputs and gradients are those of the dense expression."""
    y = model(x)
    close(y, expected)
    torch.manual_seed(3)
    push = torch.randn_like(y)
    found = torch.autograd.grad(y, list(trained.values()), push)
    wanted = torch.autograd.grad(expected, list(trained.values()), push)
    for name, a, b in zip(trained, found, wanted, strict=True):
        close(a, b, msg=lambda m, n=name: f"gradient of {n}: {m}")


# -- LoRA ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rslora", "scale"), [(False, 5.0 / 3), (True, 5.0 / 3**0.5)])
def test_lora_is_its_equation(rslora, scale):
    model, x = linear(), torch.randn(2, 4, IN).double()
    t = on(model, ad.LoRA(r=R, alpha=5.0, rslora=rslora))
    assert t["A"].shape == (R, IN) and t["B"].shape == (OUT, R)
    W, b = model.layer._parameters["weight"], model.layer._parameters["bias"]
    both_gradients(model, x, x @ (W + scale * t["B"] @ t["A"]).T + b, t)


@pytest.mark.parametrize("groups", [1, 2])
def test_lora_on_a_convolution_is_the_convolution_with_the_sum(groups):
    model, x = (
        Layer(nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=groups)),
        torch.randn(2, 4, 5, 7).double(),
    )
    t = on(model, ad.LoRA(r=R, alpha=R))
    W = model.layer._parameters["weight"] + (t["B"] @ t["A"]).view(6, 4 // groups, 3, 2)
    both_gradients(model, x, F.conv2d(x, W, model.layer.bias, stride=2, padding=1, groups=groups), t)


def test_lora_on_an_embedding_is_the_lookup_in_the_sum():
    model, ids = Layer(nn.Embedding(7, 5)), torch.tensor([[1, 6, 1], [0, 2, 3]])
    t = on(model, ad.LoRA(r=R, alpha=R))
    both_gradients(model, ids, (model.layer._parameters["weight"] + (t["B"] @ t["A"]).T)[ids], t)


def test_lora_starts_as_written():
    bound = IN**-0.5
    t = start(Layer(nn.Linear(IN, 4000)), ad.LoRA(r=200))
    assert not t["B"].any() and t["A"].abs().max() <= bound
    assert abs(float(t["A"].std()) - bound / 3**0.5) < 0.01
    t = start(linear(), ad.LoRA(r=500, init="gaussian"))
    assert not t["B"].any() and abs(float(t["A"].std()) * 500 - 1) < 0.05
    t = start(Layer(nn.Embedding(300, 40)), ad.LoRA(r=50))
    assert not t["A"].any() and abs(float(t["B"].std()) - 1) < 0.05


@pytest.mark.parametrize("shape", [(OUT, IN), (IN, OUT)])
def test_pissa_starts_from_the_leading_singular_triplets(shape):
    model = Layer(nn.Linear(shape[1], shape[0]))
    W = model.layer.weight.detach().clone()
    t = start(model, ad.LoRA(r=R, alpha=6.0, init="pissa"))
    U, S, Vh = torch.linalg.svd(W)
    close(2.0 * t["B"] @ t["A"], U[:, :R] * S[:R] @ Vh[:R])
    close(t["A"] @ t["A"].T, t["B"].T @ t["B"])  # the square root of S on either side
    assert torch.equal(model.layer._parameters["weight"], W)


def test_olora_starts_from_the_qr_factors():
    model = linear()
    W = model.layer.weight.detach().clone()
    t = start(model, ad.LoRA(r=R, alpha=R, init="olora"))
    Q, upper = torch.linalg.qr(W)
    close(t["B"], Q[:, :R])
    close(t["A"], upper[:R])


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_starts_from_the_weight_trains_the_difference(init, tmp_path):
    model, x = linear(), torch.randn(4, IN).double()
    W = model.layer.weight.detach().clone()
    first = {k: v.clone() for k, v in start(model, ad.LoRA(r=R, alpha=R, init=init)).items()}
    close(model(x), F.linear(x, W, model.layer.bias))
    t = {k.rpartition(".")[2]: p for k, p in ad.parameters_of(model).items()}
    with torch.no_grad():
        for parameter in t.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    both_gradients(model, x, F.linear(x, W + t["B"] @ t["A"] - first["B"] @ first["A"], model.layer.bias), t)
    ad.save(model, tmp_path / "a")
    other = linear()
    ad.load(other, tmp_path / "a")
    close(other(x), model(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_starts_from_the_weight_starts_as_the_base_in_low_precision(init, dtype):
    model, x = linear().float(), torch.randn(4, IN)
    before = model(x)
    ad.attach(model, ad.LoRA(r=R, init=init), targets="layer", dtype=dtype)
    torch.testing.assert_close(model(x), before, rtol=1e-3, atol=1e-3)


def test_pissa_beyond_the_rank_is_refused():
    with pytest.raises(HostError, match="r = 7 is above the rank of layer, 6"):
        ad.attach(linear(), ad.LoRA(r=7, init="pissa"), targets="layer")


def test_dropout_acts_on_the_adapters_input_in_training_alone():
    model, x = linear(), torch.randn(4, IN).double()
    t = on(model, ad.LoRA(r=R, alpha=R, dropout=0.5))
    base = F.linear(x, model.layer._parameters["weight"], model.layer.bias)
    torch.manual_seed(7)
    mask, scale = keep(x, 0.5)
    dropped = x * mask * scale
    torch.manual_seed(7)
    close(model.train()(x), base + dropped @ t["A"].T @ t["B"].T)
    close(model.eval()(x), base + x @ t["A"].T @ t["B"].T)


def two() -> nn.Module:
    return nn.ModuleDict({"left": nn.Linear(IN, OUT), "right": nn.Linear(OUT, IN)})


def test_settings_by_layer():
    model = two()
    made = ad.attach(
        model, "lora", r=2, targets=["left", "right"], per_layer={"*": {"alpha": 4.0}, "right": {"r": 5}}
    )
    assert [e.parameters for e in made.entries] == [2 * 16, 5 * 16]
    adapters = ad.adapters(model)["default"].adapters
    assert adapters["left"].scale == 2.0 and adapters["right"].scale == 4 / 5
    with pytest.raises(TargetError, match="matches none of the 1 targets"):
        ad.attach(two(), "lora", targets="left", per_layer={"right": {"r": 5}})
    with pytest.raises(MethodError, match="no setting 'rank'"):
        ad.attach(two(), "lora", targets="left", per_layer={"left": {"rank": 5}})


# -- DoRA ----------------------------------------------------------------------------------------------------------


def dora(W: Tensor, t: dict[str, Tensor], s: float) -> Tensor:
    V = W + s * t["B"] @ t["A"]
    return t["m"][:, None] * V / V.norm(dim=1, keepdim=True).detach()


@pytest.mark.parametrize("bias", [True, False])
def test_dora_is_its_equation(bias):
    model, x = linear(bias), torch.randn(2, 4, IN).double()
    t = on(model, ad.DoRA(r=R, alpha=5.0))
    W, b = model.layer._parameters["weight"], model.layer._parameters["bias"]
    both_gradients(model, x, F.linear(x, dora(W, t, 5.0 / 3), b), t)


def test_dora_on_a_convolution_has_one_norm_per_filter():
    model, x = Layer(nn.Conv1d(4, 6, 3)), torch.randn(2, 4, 9).double()
    t = on(model, ad.DoRA(r=R, alpha=R))
    W = model.layer._parameters["weight"]
    both_gradients(model, x, F.conv1d(x, dora(W.flatten(1), t, 1.0).view(W.shape), model.layer.bias), t)


def test_dora_starts_with_the_norms_of_the_rows():
    model = linear()
    close(start(model, ad.DoRA(r=R))["m"], model.layer._parameters["weight"].norm(dim=1))


# -- IA3, BitFit, norm tuning --------------------------------------------------------------------------------------


def test_ia3_scales_the_output_or_the_input():
    model, x = linear(), torch.randn(2, IN).double()
    t = on(model, ad.IA3(side="output"))
    base = F.linear(x, model.layer._parameters["weight"], model.layer._parameters["bias"])
    both_gradients(model, x, t["l"] * base, t)
    model = linear()
    t = on(model, ad.IA3(side="input"))
    both_gradients(model, x, F.linear(t["l"] * x, model.layer._parameters["weight"], model.layer.bias), t)


def test_ia3_scales_the_input_of_the_mlps_last_map_alone():
    made = ad.plan(meta_llama(layers=1), "ia3")
    assert {e.role: e.parameters for e in made.entries} == {"k": 4096, "v": 4096, "down": 11008}


def test_bitfit_and_norm_tuning_train_offsets():
    model, x = linear(), torch.randn(2, IN).double()
    t = on(model, ad.BitFit())
    assert list(t) == ["bias"]
    W, b = model.layer._parameters["weight"], model.layer._parameters["bias"]
    both_gradients(model, x, F.linear(x, W, b + t["bias"]), t)
    norm = Layer(nn.LayerNorm(IN))
    t = on(norm, ad.NormTuning())
    w, b = norm.layer._parameters["weight"], norm.layer._parameters["bias"]
    both_gradients(norm, x, F.layer_norm(x, (IN,), w + t["weight"], b + t["bias"]), t)
    assert ad.plan(Layer(nn.LayerNorm(IN)), ad.NormTuning(bias=False), targets="layer").trainable == IN
    with pytest.raises(HostError, match="it has no bias"):
        ad.attach(linear(False), "bitfit", targets="layer")


# -- bottlenecks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["relu", "gelu", "silu", "tanh", "sigmoid", "identity"])
@pytest.mark.parametrize("place", ["after", "before", "parallel"])
def test_bottlenecks_are_their_equations(place, act):
    f = {
        "relu": F.relu,
        "gelu": F.gelu,
        "silu": F.silu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "identity": lambda h: h,
    }[act]
    settings = {"size": 4, "activation": act, "scale": "learned", "bias": True}
    method = ad.Parallel(**settings) if place == "parallel" else ad.Series(place=place, **settings)
    model, x = linear(), torch.randn(3, IN).double()
    t = on(model, method)

    def bypass(h: Tensor) -> Tensor:
        return t["s"] * (f(h @ t["D"].T + t["d"]) @ t["U"].T + t["u"])

    def layer(h: Tensor) -> Tensor:
        return F.linear(h, model.layer.weight, model.layer.bias)

    expected = {
        "after": lambda: layer(x) + bypass(layer(x)),
        "before": lambda: layer(x + bypass(x)),
        "parallel": lambda: layer(x) + bypass(x),
    }[place]()
    both_gradients(model, x, expected, t)


def test_bottlenecks_start_as_the_base_or_as_bert_did():
    t = start(linear(), ad.Series(size=50))
    assert not t["U"].any() and t["D"].any()
    t = start(Layer(nn.Linear(IN, 300)), ad.Parallel(size=300, init="bert"))
    assert abs(float(t["U"].std()) - 0.02) < 0.001 and abs(float(t["D"].std()) - 0.02) < 0.002


# -- counts at full size, on the meta device -----------------------------------------------------------------------


@functools.cache
def meta_llama(layers: int = 32) -> nn.Module:
    """LLaMA-2-7B without its weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=32,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


@functools.cache
def meta_vit() -> nn.Module:
    from transformers import ViTConfig, ViTModel

    with torch.device("meta"):
        return ViTModel(ViTConfig(), add_pooling_layer=False)


COUNTS = [
    ("lora", {"r": 8}, ["q", "v"], 4_194_304),
    ("lora", {"r": 64}, ["q", "v"], 33_554_432),
    ("lora", {"r": 16}, "all-linear", 39_976_960),
    ("dora", {"r": 8}, ["q", "v"], 4_456_448),
    ("ia3", {}, None, 614_400),
    ("norm-tuning", {}, None, 266_240),
    ("series", {"size": 256}, "down", 67_108_864),
    ("parallel", {"size": 256}, ["up", "down"], 247_463_936),
]


@pytest.mark.parametrize(("method", "settings", "targets", "count"), COUNTS)
def test_counts_on_llama_2_7b(method, settings, targets, count):
    made = ad.plan(meta_llama(), method, targets=targets, **settings)
    assert made.trainable == count
    assert made.base == 6_738_415_616


def test_bitfit_on_models_with_and_without_biases():
    assert ad.plan(meta_vit(), "bitfit").trainable == 102_912
    with pytest.raises(TargetError, match="biases"):
        ad.plan(meta_llama(), "bitfit")
