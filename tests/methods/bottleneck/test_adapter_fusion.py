"""AdapterFusion (arXiv:2005.00247) on adapters attached before, and how it lives beside them."""

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F

import adaptome as ad
from adaptome.core.errors import BaseMismatchError, CheckpointError, HostError, StateError
from tests.methods.bottleneck.models import FAMILIES, family, inputs, run

NAMES = ("qa", "nli", "cola")


def shaken(model, name, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in ad.parameters_of(model, name).values():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    ad.set_trainable(model, name, False)


def skilled(kind="bert"):
    """A model with three adapters, of different methods and sizes, frozen."""
    model = family(kind)
    for seed, (name, method) in enumerate(zip(NAMES, ("pfeiffer", "series", "compacter"), strict=True)):
        ad.attach(model, method, name, targets="down", size=4 * (1 + seed), seed=seed)
        shaken(model, name, seed)
    return model


def fused(kind="bert", move=True):
    model = skilled(kind)
    ad.attach(model, "adapter-fusion", "fused", adapters=NAMES, seed=9)
    if move:
        with torch.no_grad():
            for p in ad.parameters_of(model, "fused").values():
                p.add_(0.3 * torch.randn_like(p, generator=None))
    return model


def effects(model, path, z):
    """What every fused adapter adds to z, by attaching it alone to the bare layer."""
    found = []
    for name in NAMES:
        a = ad.adapters(model)[name].adapters[path]
        found.append(a(lambda *args: z, torch.zeros(0)) - z)
    return torch.stack(found)


@pytest.mark.parametrize("kind", ["bert", "vit", "gpt2"])
def test_it_is_attention_over_what_the_adapters_add(kind):
    torch.manual_seed(1)
    model, base = fused(kind), family(kind)
    hooks = []
    for path, fusion in ad.adapters(model)["fused"].adapters.items():

        def behind(module, args, z, path=path, fusion=fusion):
            made = effects(model, path, z)
            q, k = z @ fusion.Q.T, made @ fusion.K.T
            w = (q * k).sum(-1).softmax(0)
            return z + ((w[..., None] * made).sum(0)) @ fusion.V.T

        hooks.append(base.get_submodule(path).register_forward_hook(behind))
    torch.testing.assert_close(run(model, kind), run(base, kind), rtol=1e-9, atol=1e-9)
    seen = run(model, kind)
    ad.activate(model, "fused")  # whether the others are active or not
    assert torch.equal(run(model, kind), seen)


def test_it_starts_near_the_mean_of_the_adapters():
    model, base = fused(move=False), family("bert")
    for path in ad.adapters(model)["fused"].adapters:
        base.get_submodule(path).register_forward_hook(
            lambda module, args, z, path=path: z + effects(model, path, z).mean(0)
        )
    seen, wanted = run(model, "bert"), run(base, "bert")
    assert (seen - wanted).norm() < 0.05 * wanted.norm()
    a = next(iter(ad.adapters(model)["fused"].adapters.values()))
    assert (
        torch.equal(a.V.detach(), torch.eye(16, dtype=torch.float64))
        and abs(float(a.Q.detach().std()) - 0.02) < 0.005
    )


def test_it_trains_alone():
    model = fused().train()
    trained = {k for k, p in model.named_parameters() if p.requires_grad}
    assert trained == {k for k in trained if ".fused." in k} and len(trained) == 6
    model(**inputs("bert")).last_hidden_state.square().sum().backward()
    ad.check_gradients(model)
    assert all(p.grad.any() for p in ad.parameters_of(model, "fused").values())


def test_activating_disabling_and_strength():
    torch.manual_seed(1)
    model, plain = fused(), skilled()
    base = family("bert")
    whole = run(model, "bert")
    ad.activate(model, ["qa"])
    ad.activate(plain, ["qa"])
    assert torch.equal(run(model, "bert"), run(plain, "bert"))
    with ad.disabled(model):
        assert torch.equal(run(model, "bert"), run(base, "bert"))
    ad.activate(model, "fused", weights={"fused": 0.0})
    torch.testing.assert_close(run(model, "bert"), run(base, "bert"), rtol=1e-12, atol=1e-12)
    ad.activate(model, [*NAMES, "fused"])
    assert torch.equal(run(model, "bert"), whole)
    ad.detach(model, "fused")
    ad.activate(plain, list(NAMES))
    assert torch.equal(run(model, "bert"), run(plain, "bert"))


def test_other_adapters_go_on_beneath_it():
    model, plain = fused(), fused()
    for m in (model, plain):
        ad.adapters(m)  # same adapters in both
    ad.attach(model, "lora", "low", targets="down", r=2, seed=0)
    with torch.no_grad():
        for p in ad.parameters_of(model, "low").values():
            p.add_(0.1)
    both = run(model, "bert")
    ad.merge(model, "low")
    torch.testing.assert_close(run(model, "bert"), both, rtol=1e-9, atol=1e-9)
    ad.unmerge(model)
    ad.activate(model, [*NAMES, "fused"])
    assert not torch.allclose(run(model, "bert"), both)


def test_it_is_saved_without_the_adapters_and_loaded_onto_them(tmp_path):
    torch.manual_seed(1)
    model = fused()
    for name in (*NAMES, "fused"):
        ad.save(model, tmp_path / name, name)
    other = family("bert")
    with pytest.raises((CheckpointError, BaseMismatchError), match="no adapter called 'qa' is on it"):
        ad.load(other, tmp_path / "fused", "fused")
    assert ad.adapters(other) == {}
    for name in (*NAMES, "fused"):
        ad.load(other, tmp_path / name, name)
    assert torch.equal(run(other, "bert"), run(model, "bert"))
    report = ad.load(family_with(NAMES, tmp_path), tmp_path / "fused", "again")
    assert report.tensors == 6


def family_with(names, folder):
    model = family("bert")
    for name in names:
        ad.load(model, folder / name, name)
    return model


def test_copies_and_pickles_use_their_own_adapters():
    torch.manual_seed(1)
    model = fused()
    before = run(model, "bert")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(other, "bert"), before)
        shaken(other, "qa", 5)
        assert not torch.equal(run(other, "bert"), before)
    assert torch.equal(run(model, "bert"), before)


def test_what_it_cannot_fuse_is_refused():
    model = skilled()
    ad.attach(model, "lora", "low", targets="down")
    ad.attach(model, "series", "front", targets="down", place="before", size=2)
    for names, words in (
        ((), "adapters is empty"),
        (("qa", "absent"), "no adapter called 'absent' is on it"),
        (("qa", "low"), "'low' is not a bottleneck that reads the layer's output"),
        (("qa", "front"), "'front' is not a bottleneck that reads the layer's output"),
    ):
        with pytest.raises(HostError, match=f"adapter-fusion cannot be put on .*{words}"):
            ad.attach(model, "adapter-fusion", "fused", adapters=names)
    with pytest.raises(HostError, match="no adapter called 'qa'"):
        ad.attach(model, "adapter-fusion", "fused", adapters=NAMES, targets="o")


def test_a_fused_adapter_that_is_gone_is_missed():
    model = fused()
    ad.detach(model, "nli")
    with pytest.raises(
        StateError, match=r"fuses \['qa', 'nli', 'cola'\], of which only \['cola', 'qa'\] are on the layer"
    ):
        run(model, "bert")


def test_dropped_blocks_run_as_the_base():
    model = fused()
    with ad.steer(drop=2):
        assert torch.equal(run(model, "bert"), run(family("bert"), "bert"))


def test_it_compiles_whole():
    torch._dynamo.reset()
    model = fused()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(run(compiled, "bert"), run(model, "bert"), rtol=1e-9, atol=1e-9)


def test_the_softmax_needs_no_key_bias():
    """It would add the same to every score: so there is none, as in the paper."""
    scores, shift = torch.randn(3, 4), torch.randn(3, 1)
    torch.testing.assert_close(F.softmax(scores + shift, -1), F.softmax(scores, -1))
    assert set(dict(next(iter(ad.adapters(fused())["fused"].adapters.values())).named_parameters())) == {
        "Q",
        "K",
        "V",
    }
    assert "bert" in FAMILIES
