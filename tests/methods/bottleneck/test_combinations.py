"""MAM (arXiv:2110.04366) and UniPELT (arXiv:2110.07577): parts of several methods at once."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import adaptome as ad
from adaptome.architectures import build
from adaptome.core.errors import HostError
from tests.methods.bottleneck.models import FAMILIES, family, inputs, run
from tests.methods.helpers import shake


@pytest.mark.parametrize("name", FAMILIES)
def test_mam_is_prefix_tuning_and_a_scaled_bottleneck_beside_the_mlp(name):
    model, both = family(name), family(name)
    ad.attach(model, "mam", size=3, p=2, seed=1)
    shake(model)
    ad.attach(both, "prefix-tuning", "prefix", p=2)
    ad.attach(both, "adaptformer", "beside", size=3, scale=4.0)
    mine = ad.parameters_of(model)
    parts = {**ad.parameters_of(both, "prefix"), **ad.parameters_of(both, "beside")}
    assert mine.keys() == parts.keys()
    with torch.no_grad():
        for key, value in parts.items():
            value.copy_(mine[key])
    assert torch.equal(run(model, name), run(both, name))
    assert not torch.allclose(run(model, name), run(family(name), name))


def test_mam_with_an_mlp_for_the_prefix_saves_and_loads(tmp_path):
    model, other = family("bert"), family("bert")
    plan = ad.attach(model, "mam", size=3, p=2, hidden=5)
    assert plan.shared == 5 * (2 + 5 + 1) == ad.plan(family("bert"), "prefix-tuning", p=2, hidden=5).shared
    shake(model)
    ad.save(model, tmp_path / "a")
    ad.load(other, tmp_path / "a")
    assert torch.equal(run(other, "bert"), run(model, "bert"))


def gate(t, h):
    """mean over tokens of sigmoid(w . h + c)."""
    return torch.sigmoid(h @ t["gate.w"].T + t["gate.c"]).mean(1, keepdim=True)


def test_unipelt_is_its_equation():
    """BERT's first block by hand, every part with its gate."""
    base, model = family("bert"), family("bert")
    ad.attach(model, "unipelt", size=3, r=2, p=2, alpha=6.0, layers=0)
    shake(model)
    parts = {
        path.removeprefix("encoder.layer.0."): {k: v.detach() for k, v in a.named_parameters()}
        for path, a in ad.adapters(model)["default"].adapters.items()
    }
    assert set(parts) == {"attention", "attention.self.query", "attention.self.value", "output.dense"}
    with torch.no_grad():
        h, block = base.embeddings(**inputs("bert")), base.encoder.layer[0]
        own = block.attention.self

        def low(t, map):
            return map(h) + gate(t, h) * 3.0 * (h @ t["A"].T @ t["B"].T)

        def split(x):
            return x.view(2, -1, 2, 8).transpose(1, 2)

        q, v = low(parts["attention.self.query"], own.query), low(parts["attention.self.value"], own.value)
        t = parts["attention"]
        opened = gate(t, h)[..., None]
        K = torch.cat([opened * t["K"], split(own.key(h))], 2)
        V = torch.cat([opened * t["V"], split(v)], 2)
        w = (split(q) @ K.mT / 8**0.5).softmax(-1)
        context = (w @ V).transpose(1, 2).flatten(2)
        a = block.attention.output.LayerNorm(block.attention.output.dense(context) + h)
        z = block.output.dense(F.gelu(block.intermediate.dense(a)))
        t = parts["output.dense"]
        z = z + gate(t, z) * (F.relu(z @ t["D"].T + t["d"]) @ t["U"].T + t["u"])
        y = base.encoder.layer[1](block.output.LayerNorm(z + a))
    y = y[0] if isinstance(y, tuple) else y
    torch.testing.assert_close(run(model, "bert"), y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["roberta", "vit", "ast", "swin", "gpt-j", "bloom"])
def test_unipelt_trains_every_part(name):
    model = family(name).train()
    ad.attach(model, "unipelt", size=3, r=2, p=2)
    shake(model, 0.1)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model(**inputs(name)).last_hidden_state.square().sum().backward()
    ad.check_gradients(model)
    assert all(p.grad is not None and p.grad.any() for p in ad.parameters_of(model).values())


def test_its_gates_start_near_a_half_and_read_each_sample():
    model = family("bert")
    ad.attach(model, "unipelt", size=3, r=2, p=2)
    seen = []
    for a in ad.adapters(model)["default"].adapters.values():
        a.gate.register_forward_hook(lambda module, args, output: seen.append(output))
    run(model, "bert")
    assert len(seen) == 8 and all(g.shape == (2, 1, 1) for g in seen)
    assert all((g - 0.5).abs().max() < 0.15 for g in seen)
    shake(model)
    seen.clear()
    run(model, "bert")
    assert all(not torch.allclose(g[0], g[1]) for g in seen)


def test_counts_and_refusals():
    roberta = build("roberta-base", task="features")
    d, layers = 768, 12
    prefix = 2 * 30 * d
    assert ad.plan(roberta, "mam").trainable == layers * (prefix + 2 * d * 512 + 512 + d) == 10_005_504
    unipelt = 2 * 10 * d + d + 1 + 2 * (8 * 2 * d + d + 1) + 2 * d * 48 + 48 + d + d + 1
    assert ad.plan(roberta, "unipelt").trainable == layers * unipelt == 1_410_672
    for method, words in (("mam", "it runs beside a whole sub-layer"), ("unipelt", "its parts sit on")):
        with pytest.raises(HostError, match=f"{method} cannot be put on .*key: {words}"):
            ad.plan(roberta, method, targets="k")
