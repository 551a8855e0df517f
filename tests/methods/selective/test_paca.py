"""PaCA against full fine-tuning of the same columns (arXiv:2503.01905)."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

import adaptome as ad
from tests.methods.helpers import adapted, batch, linear, llama, llama2_7b, llama3_8b, shake


def conv1d_layer():
    torch.manual_seed(0)
    return Conv1D(20, 12)


def dense(layer):
    """The layer's weight [out, in] and bias in float64."""
    W = layer.weight.detach().double()
    return (
        W.T if isinstance(layer, Conv1D) else W
    ), None if layer.bias is None else layer.bias.detach().double()


@pytest.mark.parametrize("shape", [(5, 12), (3, 5, 12), (2, 3, 4, 12), (12,)])
@pytest.mark.parametrize(
    "make", [linear, lambda: linear(bias=False), conv1d_layer], ids=["bias", "no-bias", "Conv1D"]
)
def test_gradients_are_the_columns_of_full_fine_tuning(make, shape):
    if make is conv1d_layer and len(shape) == 1:
        shape = (1, 12)
    layer, x = make(), batch(*shape).requires_grad_()
    W, b = dense(layer)
    model, a = adapted(layer, ad.PaCA(r=4, alpha=6.0))
    assert torch.equal(model(x), nn.functional.linear(x, W, b)) or isinstance(layer, Conv1D)
    shake(model)
    full = W.clone()
    full[:, a.I] += 1.5 * a.P.detach()
    full.requires_grad_()
    z = x.detach().clone().requires_grad_()
    expected = nn.functional.linear(z, full, b)
    torch.testing.assert_close(model(x), expected)
    g = batch(*expected.shape)
    expected.backward(g)
    model(x).backward(g)
    torch.testing.assert_close(a.P.grad / 1.5, full.grad[:, a.I])
    torch.testing.assert_close(x.grad, z.grad)


def test_its_backward_is_right_by_finite_differences():
    model, a = adapted(linear(6, 5), ad.PaCA(r=2))
    shake(model)
    assert torch.autograd.gradcheck(
        lambda x, P: torch.func.functional_call(model, {"0.adaptome.default.P": P}, x),
        (batch(3, 6).requires_grad_(), a.P),
    )


@pytest.mark.parametrize(
    "conv",
    [
        lambda: nn.Conv2d(6, 10, (3, 2), stride=2, padding=1),
        lambda: nn.Conv2d(6, 10, 3, padding="same", padding_mode="reflect"),
        lambda: nn.Conv2d(8, 12, 2, groups=2, dilation=2, bias=False),
        lambda: nn.Conv1d(6, 10, 3, padding=1),
        lambda: nn.Conv3d(4, 6, 2),
    ],
)
def test_convolutions_by_input_channel(conv):
    torch.manual_seed(0)
    layer = conv()
    size = [6] * len(layer.kernel_size)
    x = batch(2, layer.in_channels, *size).requires_grad_()
    plain = conv().double()
    plain.load_state_dict(layer.state_dict())
    model, a = adapted(layer, ad.PaCA(r=3, alpha=6.0))
    shake(model)
    with torch.no_grad():
        plain.weight[:, a.I] += 2.0 * a.P.view(layer.out_channels, 3, *layer.kernel_size)
    z = x.detach().clone().requires_grad_()
    expected, got = plain(z), model(x)
    torch.testing.assert_close(got, expected)
    g = batch(*expected.shape)
    expected.backward(g)
    got.backward(g)
    torch.testing.assert_close(x.grad, z.grad)
    torch.testing.assert_close(
        a.P.grad.view(layer.out_channels, 3, *layer.kernel_size) / 2, plain.weight.grad[:, a.I]
    )


def saved_numbers(run, model):
    """Numbers that autograd keeps for the backward, the model's own tensors left out."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (
            kept.__setitem__(t.data_ptr(), t.numel()) if t.untyped_storage().data_ptr() not in own else None,
            t,
        )[1],
        lambda t: t,
    ):
        y = run()
    return sum(kept.values()), y


@pytest.mark.parametrize("make", [lambda: linear(64, 48), lambda: Conv1D(48, 64)])
def test_only_the_selected_activations_are_saved(make):
    model, _ = adapted(make(), ad.PaCA(r=4))
    x = batch(10, 64).requires_grad_()
    assert saved_numbers(lambda: model(x), model)[0] == 10 * 4


def products(method):
    """Matrix products of one layer's training step, the input's gradient included."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            packet = function.overloadpacket
            self.seen += packet in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
            return function(*args, **(kwargs or {}))

    model, _ = adapted(linear(), method)
    x = batch(7, 12).requires_grad_()
    with Counter() as counter:
        model(x).sum().backward()
    return counter.seen


def test_a_step_has_five_products_where_lora_has_eight():
    # the frozen layer's two and three of r columns: a copy of W with new columns, for three in all, would cost more than those
    assert products(ad.PaCA(r=4)) == 5 and products(ad.LoRA(r=4)) == 8


def test_a_model_saves_less_than_with_lora_and_less_the_fewer_columns():
    from transformers import LlamaConfig, LlamaForCausalLM

    def saved(method):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                vocab_size=32,
            )
        )
        if method is not None:
            ad.attach(model, method)
        ids = torch.arange(24).view(2, 12) % 32
        embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
        return saved_numbers(lambda: model(inputs_embeds=embeds).logits, model)[0]

    floor = saved(ad.PaCA(r=1)) - 24 * 14
    few, many, lora = saved(ad.PaCA(r=2)), saved(ad.PaCA(r=8)), saved(ad.LoRA(r=8))
    assert few == floor + 24 * 14 * 2 and many == floor + 24 * 14 * 8 and many < lora


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_base_is_never_touched_and_evaluation_sees_every_step(dtype):
    model = nn.Sequential(linear(), nn.Linear(20, 6)).to(dtype)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = batch(4, 12).to(dtype)
    base = model(x)
    ad.attach(model, ad.PaCA(r=3, alpha=6.0), targets=["0", "1"])
    assert torch.equal(model(x), base)
    optimizer = torch.optim.AdamW(ad.parameters_of(model).values(), lr=0.1)
    for step in range(3):
        for part in x.chunk(2):  # accumulation, half of it with gradient checkpointing
            (checkpoint(model, part, use_reentrant=False) if step else model(part)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
        h = x.float()
        for name, a in ad.adapters(model)["default"].adapters.items():
            W = before[f"{name}.weight"].float().clone()
            W[:, a.I] += 2.0 * a.P.detach()
            h = h @ W.T + before[f"{name}.bias"].float()
        torch.testing.assert_close(
            model(x).float(),
            h,
            rtol=2e-2 if dtype is torch.bfloat16 else 1e-5,
            atol=1e-1 if dtype is torch.bfloat16 else 1e-5,
        )


def test_no_gradient_is_made_for_an_input_that_needs_none():
    model, a = adapted(linear(), ad.PaCA(r=3))
    x = batch(4, 12)
    model(x).sum().backward()
    assert x.grad is None and a.P.grad.any()


def test_compiled_and_under_autocast_the_gradients_are_the_same():
    layer, x = linear(), batch(4, 12).float()
    model = nn.Sequential(layer)
    ad.attach(model, ad.PaCA(r=3), targets="0", seed=0)
    a = ad.adapters(model)["default"].adapters["0"]
    gradients = []
    for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        z = x.clone().requires_grad_()
        a.P.grad = None
        run(z).square().sum().backward()
        gradients.append((a.P.grad.clone(), z.grad))
    torch.testing.assert_close(*gradients)
    z, a.P.grad = x.clone().requires_grad_(), None
    with torch.autocast("cpu", torch.bfloat16):
        y = model(z)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    torch.testing.assert_close((a.P.grad, z.grad), gradients[0], rtol=0.1, atol=0.1)


def test_two_with_overlapping_columns_add_up_and_the_frozen_layer_may_be_trained_by_others():
    layer, x = linear(), batch(4, 12)
    W, b = dense(layer)
    model, one = adapted(layer, ad.PaCA(r=9, alpha=9.0))
    ad.attach(model, ad.PaCA(r=8, alpha=8.0), "two", targets="0")
    two = ad.adapters(model)["two"].adapters["0"]
    assert set(one.I.tolist()) & set(two.I.tolist())
    shake(model)
    with torch.no_grad():
        two.P.normal_()
    for a in (one, two):
        W = W.index_add(1, a.I, a.P.detach())
    torch.testing.assert_close(model(x), x @ W.T + b)
    ad.merge(model)
    torch.testing.assert_close(model(x), x @ W.T + b)
    ad.detach(model)
    model[0].weight.requires_grad_(True)  # a user who trains the base as well gets its gradient
    ad.attach(model, ad.PaCA(r=2), targets="0")
    model[0]._parameters["weight"].requires_grad_(True)
    model(x).sum().backward()
    assert model[0]._parameters["weight"].grad.any()


def test_indices_follow_the_seed_and_are_saved(tmp_path):
    chosen = [adapted(linear(64, 8), ad.PaCA(r=16), seed=seed)[1].I for seed in (0, 0, 1)]
    assert torch.equal(chosen[0], chosen[1]) and not torch.equal(chosen[0], chosen[2])
    assert len(chosen[0].unique()) == 16
    model, a = adapted(linear(64, 8), ad.PaCA(r=16), seed=0)
    ad.save(model, tmp_path / "a")
    from safetensors.torch import load_file

    assert torch.equal(load_file(tmp_path / "a" / "adapter.safetensors")["0.I"], a.I)


def test_columns_by_norm():
    layer = linear(30, 8)
    norms = layer.weight.detach().norm(dim=0)
    assert (
        adapted(layer, ad.PaCA(r=5, selection="largest"))[1].I.tolist()
        == norms.topk(5).indices.sort().values.tolist()
    )
    layer = linear(30, 8)
    smallest = norms.topk(5, largest=False).indices.sort().values.tolist()
    assert adapted(layer, ad.PaCA(r=5, selection="smallest"))[1].I.tolist() == smallest


def test_as_lora_it_selects_rows_of_the_identity(tmp_path):
    model, a = adapted(linear(), ad.PaCA(r=3, alpha=6.0))
    shake(model)
    report, expected = ad.export(model, tmp_path / "out"), model(batch(4, 12))
    assert report.rank == 3 and report.worst == 0.0
    other = nn.Sequential(linear()).double()
    ad.load(other, tmp_path / "out")
    torch.testing.assert_close(other(batch(4, 12)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "r", "count"),
    [
        (llama2_7b, 8, 10_878_976),
        (llama2_7b, 16, 21_757_952),
        (llama2_7b, 64, 87_031_808),
        (lambda: llama(5120, 13824, 40, 40, 40), 8, 17_039_360),
        (llama3_8b, 8, 11_010_048),
        (llama3_8b, 64, 88_080_384),
        (lambda: llama(8192, 28672, 80, 64, 8, 128256), 16, 107_479_040),
    ],
)
def test_counts_are_the_papers(make, r, count):
    assert ad.plan(make(), ad.PaCA(r=r)).trainable == count
