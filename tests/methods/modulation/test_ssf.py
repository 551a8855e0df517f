"""SSF against its equation (arXiv:2210.08823), and the bias that its merge makes."""

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import HostError, MethodError
from tests.methods.helpers import adapted, batch, linear, shake


def layers():
    torch.manual_seed(0)
    return {
        "linear": (nn.Linear(12, 20), batch(3, 5, 12), (20,)),
        "linear without bias": (nn.Linear(12, 20, bias=False), batch(3, 5, 12), (20,)),
        "convolution": (nn.Conv2d(6, 10, 3, padding=1), batch(2, 6, 5, 4), (10, 1, 1)),
        "depth-wise": (nn.Conv2d(6, 6, 3, groups=6, bias=False), batch(2, 6, 5, 4), (6, 1, 1)),
        "layer norm": (nn.LayerNorm(12), batch(3, 5, 12), (12,)),
        "batch norm": (nn.BatchNorm2d(6), batch(2, 6, 5, 4), (6, 1, 1)),
        "batch norm over time": (nn.BatchNorm1d(6), batch(2, 6, 5), (6, 1)),
        "batch norm over rows": (nn.BatchNorm1d(6), batch(9, 6), (6,)),
        "group norm": (nn.GroupNorm(2, 6), batch(2, 6, 5), (6, 1)),
    }


@pytest.mark.parametrize("kind", layers())
def test_forward_is_the_equation_and_merging_folds_it(kind):
    layer, x, shape = layers()[kind]
    y = layer.double().eval()(x).detach()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    model, a = adapted(layer, "ssf")
    assert torch.equal(model(x), y)
    shake(model)
    gamma, beta = 1 + a.g.detach(), a.beta.detach()
    expected = y * gamma.view(shape) + beta.view(shape)
    torch.testing.assert_close(model(x), expected)
    report = ad.merge(model)
    W, b = before["weight"], before.get("bias", torch.zeros(len(gamma)))
    torch.testing.assert_close(layer._parameters["weight"], W * gamma.view(-1, *[1] * (W.dim() - 1)))
    torch.testing.assert_close(layer._parameters["bias"], b * gamma + beta)
    torch.testing.assert_close(model(x), expected)
    assert report.created == (() if "bias" in before else ("0.bias",))
    ad.unmerge(model)
    own = {k: v for k, v in layer.state_dict().items() if "adaptome" not in k}
    assert own.keys() == before.keys() and all(torch.equal(own[k], before[k]) for k in before)
    ad.detach(model)
    assert torch.equal(model(x), y)


@pytest.mark.parametrize(("scale", "shift"), [(True, False), (False, True)])
def test_scale_or_shift_alone(scale, shift):
    layer, x = linear(bias=False), batch(4, 12)
    model, a = adapted(layer, ad.SSF(scale=scale, shift=shift))
    assert ad.trainable(model).count == 20
    shake(model)
    y = x @ a.host.weight().T
    torch.testing.assert_close(model(x), y * (1 + a.g) if scale else y + a.beta)
    before = model(x)
    created = ad.merge(model).created
    torch.testing.assert_close(model(x), before)
    assert created == (("0.bias",) if shift else ())


def test_the_authors_start_is_near_the_identity_and_not_it():
    model, a = adapted(nn.Linear(12, 4000), ad.SSF(init="normal"))
    for vector in (a.g, a.beta):
        assert abs(vector.mean()) < 2e-3 and 0.018 < vector.std() < 0.022


def test_saved_numbers_are_the_vectors_and_load_bit_for_bit(tmp_path):
    model, a = adapted(linear(bias=False), "ssf")
    shake(model)
    ad.merge(model)  # the file does not depend on what is merged
    ad.save(model, tmp_path / "ssf")
    other = nn.Sequential(linear(bias=False)).double()
    ad.load(other, tmp_path / "ssf")
    assert sum(v.numel() for v in ad.parameters_of(other).values()) == 40
    ad.unmerge(model)
    assert torch.equal(other(batch(4, 12)), model(batch(4, 12)))


def test_a_bias_made_below_another_adapter_is_seen_by_it():
    x = batch(4, 12)
    for outer in ("dora", "ia3", "hydra", "lora", "randlora"):
        model, a = adapted(linear(bias=False), "ssf")
        ad.attach(model, outer, "outer", targets="0")
        shake(model)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in ad.parameters_of(model, "outer").values():
                p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        both = model(x)
        ad.merge(model)
        torch.testing.assert_close(model(x), both)
        ad.unmerge(model)
        assert torch.equal(model(x), both) and model[0]._parameters["bias"] is None


def test_what_has_no_place_for_a_shift_is_refused():
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    with pytest.raises(HostError, match="LlamaRMSNorm has no place for a bias.*shift=False"):
        adapted(LlamaRMSNorm(12), "ssf")
    model, a = adapted(LlamaRMSNorm(12), ad.SSF(shift=False))
    shake(model)
    before = model(batch(3, 12))
    ad.merge(model)
    torch.testing.assert_close(model(batch(3, 12)), before)
    with pytest.raises(MethodError, match="nothing would train"):
        ad.SSF(scale=False, shift=False)


def test_running_statistics_stay():
    model, _ = adapted(nn.BatchNorm2d(6), "ssf")
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    model.train()(batch(4, 6, 3, 3)).sum().backward()
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


def test_count_is_the_sheets():
    from transformers import ViTConfig, ViTModel

    with torch.device("meta"):
        vit = ViTModel(ViTConfig(), add_pooling_layer=False)
    blocks = ad.plan(vit, "ssf", targets=["all-linear", "norms"], exclude="layernorm")
    assert blocks.trainable == 12 * 2 * 11 * 768 == 202_752
    patch = ad.plan(vit, "ssf", targets=["all-linear", "norms", "convs"])
    assert patch.trainable == 205_824
