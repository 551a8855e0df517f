"""The mechanism holds under what others do to a model: compiling, checkpointing, generating, autocast, offloading, wrapping, saving."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.adapter import Adapted
from adaptome.core.errors import HostError, StateError, TargetError
from tests.core.models import IDS, Net, llama, move, run

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
#: one method for each way of acting: beside the layer, on its weight, around a block, on a norm, on the embedding
WAYS = [
    ("lora", "attention"), ("dora", "all-linear"), ("series", "blocks"), ("parallel", "mlp-blocks"), ("norm-tuning", "norms"),
    ("ia3", ["k", "v", "down"]), ("lora", "embeddings"), ("dora", "embeddings"),
]  # fmt: skip
every_way = pytest.mark.parametrize(("method", "targets"), WAYS, ids=[f"{m}-{t}" for m, t in WAYS])


def adapted(method: str, targets, **options) -> nn.Module:
    model = llama()
    ad.attach(model, method, targets=targets, seed=1, **options)
    move(model)
    return model


def gradients(model: nn.Module) -> list[torch.Tensor]:
    model.train()
    model(TOKENS, labels=TOKENS).loss.backward()
    return [p.grad for p in ad.parameters_of(model).values()]


# -- compiling -----------------------------------------------------------------------------------------------------


def test_it_compiles_to_machine_code():
    torch._dynamo.reset()
    model = Net()
    ad.attach(model, "lora", r=2, targets="wide")
    ad.attach(model, "norm-tuning", "n")
    move(model)
    compiled = torch.compile(model, backend="inductor", fullgraph=True)
    torch.testing.assert_close(run(compiled, IDS), run(model, IDS), rtol=1e-4, atol=1e-5)


def test_it_compiles_in_one_graph_and_follows_the_verbs():
    torch._dynamo.reset()
    model = Net()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    base = run(compiled, IDS)
    ad.attach(compiled, "lora", r=2, targets="wide", train=["classifier"])
    ad.attach(model, "dora", "d", r=2, targets="narrow")
    ad.attach(model, "norm-tuning", "n")
    for name in ad.adapters(model):
        move(model, name)
    for names in (["default", "d", "n"], ["n"], ["d", "default"], []):
        ad.activate(model, names)
        torch.testing.assert_close(run(compiled, IDS), run(model, IDS), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run(compiled, IDS), base)
    ad.activate(model, ["default", "d", "n"])
    expected = run(model, IDS)
    with ad.disabled(compiled):
        torch.testing.assert_close(run(compiled, IDS), base)
    ad.merge(compiled)
    torch.testing.assert_close(run(compiled, IDS), expected, rtol=1e-4, atol=1e-5)
    ad.detach(compiled)
    torch.testing.assert_close(run(compiled, IDS), base)


def test_a_compiled_model_trains_to_the_same_gradients():
    torch._dynamo.reset()
    model = adapted("dora", "attention")
    other = copy.deepcopy(model)
    gradients(model)
    compiled = torch.compile(other, backend="aot_eager")
    compiled.train()
    compiled(TOKENS, labels=TOKENS).loss.backward()
    for a, b in zip(ad.parameters_of(model).values(), ad.parameters_of(other).values(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def test_names_do_not_depend_on_compiling(tmp_path):
    model = llama()
    compiled = torch.compile(model, backend="eager")
    planned = ad.plan(compiled, "lora", r=2, targets="q")
    made = ad.attach(compiled, "lora", r=2, targets="q")
    assert made.entries == planned.entries and made.entries[0].path == "model.layers.0.self_attn.q_proj"
    ad.save(compiled, tmp_path / "a")
    ad.load(llama(), tmp_path / "a")
    ad.load(torch.compile(llama(), backend="eager"), tmp_path / "a")


# -- gradient checkpointing, generation, autocast ------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [True, False])
@every_way
def test_gradient_checkpointing_gives_the_same_gradients(method, targets, use_reentrant):
    expected = gradients(adapted(method, targets))
    model = adapted(method, targets)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = gradients(model)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@every_way
def test_generating_with_and_without_cache_gives_the_same(method, targets):
    model = adapted(method, targets)
    asked = {
        "max_new_tokens": 6,
        "do_sample": False,
        "pad_token_id": 0,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    cached, plain = (
        model.generate(TOKENS, use_cache=True, **asked),
        model.generate(TOKENS, use_cache=False, **asked),
    )
    assert torch.equal(cached.sequences, plain.sequences)
    assert not torch.allclose(cached.logits[0], llama().generate(TOKENS, **asked).logits[0], atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_way
def test_autocast_runs_and_trains(method, targets, dtype):
    model = adapted(method, targets)
    exact = run(model, TOKENS)
    with torch.autocast("cpu", dtype=dtype):
        low = run(model, TOKENS)
        found = gradients(model)
    assert float((low - exact).abs().max() / exact.abs().max()) < 0.05
    assert all(g is not None and g.dtype == torch.float32 and torch.isfinite(g).all() for g in found)


# -- accelerate's hooks --------------------------------------------------------------------------------------------


def offload(model: nn.Module, how: str, folder: Path) -> nn.Module:
    from accelerate import cpu_offload, dispatch_model

    if how == "cpu_offload":
        return cpu_offload(model, execution_device=torch.device("cpu"))
    places = {
        "model.embed_tokens": "cpu",
        "model.layers": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "disk",
    }
    return dispatch_model(model, places, offload_dir=folder, main_device="cpu", force_hooks=True)


@pytest.mark.parametrize("order", ["hooks first", "adapters first"])
@pytest.mark.parametrize("how", ["cpu_offload", "dispatch"])
@every_way
def test_hooks_of_accelerate_do_not_bypass_it(method, targets, how, order, tmp_path):
    expected = run(adapted(method, targets), TOKENS)
    if order == "hooks first":
        model = offload(llama(), how, tmp_path)
        ad.attach(model, method, targets=targets, seed=1)
        move(model)
    else:
        model = offload(adapted(method, targets), how, tmp_path)
    assert torch.equal(run(model, TOKENS), expected)
    with ad.disabled(model):
        torch.testing.assert_close(run(model, TOKENS), run(llama(), TOKENS))
    ad.save(model, tmp_path / "a")
    other = llama()
    ad.load(other, tmp_path / "a")
    assert torch.equal(run(other, TOKENS), expected)


@pytest.mark.parametrize("order", ["detach first", "hooks go first"])
def test_hooks_and_adapters_can_go_in_either_order(order, tmp_path):
    from accelerate.hooks import remove_hook_from_module

    model, base = llama(), llama()
    offload(model, "cpu_offload", tmp_path)
    ad.attach(model, "lora", targets="attention", seed=1)
    move(model)
    steps = [lambda: ad.detach(model), lambda: remove_hook_from_module(model, recurse=True)]
    for step in steps if order == "detach first" else reversed(steps):
        step()
    assert not any(isinstance(m, Adapted) for m in model.modules())
    model.to_empty(device="cpu")
    model.load_state_dict(base.state_dict())
    for mine, theirs in zip(model.modules(), base.modules(), strict=True):
        if "inv_freq" in mine._buffers:
            mine._buffers.update({k: v.clone() for k, v in theirs._buffers.items()})
    torch.testing.assert_close(run(model, TOKENS), run(base, TOKENS))


def doubled(self, x):
    return 2 * nn.Linear.forward(self, x)


def test_a_forward_that_others_put_on_the_layer_stays_inside_and_comes_back():
    import types

    model = Net()
    model.wide.forward = types.MethodType(doubled, model.wide)
    base, put = run(model), model.wide.__dict__["forward"]
    ad.attach(model, "lora", r=2, targets="wide")
    torch.testing.assert_close(run(model), base)
    ad.detach(model)
    assert model.wide.__dict__["forward"] is put
    other = Net()
    ad.attach(other, "lora", r=2, targets="wide")
    other.wide.forward = types.MethodType(doubled, other.wide)
    ad.detach(other)
    torch.testing.assert_close(run(other), base)


# -- tied weights --------------------------------------------------------------------------------------------------


def reloaded(model: nn.Module, folder: Path) -> nn.Module:
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder)


@pytest.mark.parametrize("target", ["model.embed_tokens", "lm_head"])
def test_merging_one_of_two_tied_layers_unties_them_and_says_so(target, tmp_path):
    model = llama(tie=True)
    ad.attach(model, "lora", r=4, targets=target)
    move(model)
    before = run(model, TOKENS)
    report = ad.merge(model)
    assert report.untied == (target,) and report.to_dict()["untied"] == [target]
    assert model.config.tie_word_embeddings is False
    torch.testing.assert_close(run(model, TOKENS), before)
    torch.testing.assert_close(run(reloaded(model, tmp_path), TOKENS), before)
    ad.unmerge(model)
    assert model.config.tie_word_embeddings is True
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(run(model, TOKENS), before)


@pytest.mark.parametrize("keep", [True, False])
def test_tied_layers_merged_apart_stay_apart_when_saved(keep, tmp_path):
    model = llama(tie=True)
    ad.attach(model, "lora", r=4, targets=["model.embed_tokens", "lm_head"])
    move(model)
    before = run(model, TOKENS)
    assert set(ad.merge(model, keep=keep).untied) == {"model.embed_tokens", "lm_head"}
    torch.testing.assert_close(run(reloaded(model, tmp_path), TOKENS), before)


def test_a_tied_head_trained_whole_is_counted_once_and_stays_tied(tmp_path):
    model = llama(tie=True)
    made = ad.attach(model, "lora", r=4, targets="q", train=["lm_head"])
    assert sum(made.heads.values()) == 32 * 16
    assert (
        ad.trainable(model).count
        == made.trainable
        == sum(p.numel() for p in ad.parameters_of(model).values())
    )
    assert ad.trainable(model).total == made.total
    move(model)
    before = run(model, TOKENS)
    ad.save(model, tmp_path / "a")
    other = llama(tie=True)
    ad.load(other, tmp_path / "a")
    assert torch.equal(run(other, TOKENS), before)
    report = ad.merge(model, keep=False)
    assert report.untied == () and model.lm_head.weight is model.model.embed_tokens.weight
    torch.testing.assert_close(run(reloaded(model, tmp_path / "b"), TOKENS), before)


@pytest.mark.parametrize("tie", [True, False])
def test_rows_of_resized_embeddings_train_and_the_others_keep_their_bits(tie, tmp_path):
    def resized():
        model = llama(tie)
        torch.manual_seed(1)
        model.resize_token_embeddings(36, mean_resizing=False)
        return model

    model = resized()
    ids = torch.tensor([[33, 1, 35, 2], [32, 34, 31, 0]])
    base = run(model, ids)
    made = ad.attach(model, "lora", r=4, targets="q", train=["embed_tokens[32:]"])
    assert sum(made.heads.values()) == 4 * 16
    torch.testing.assert_close(run(model, ids), base)
    model(ids, labels=ids).loss.backward()
    rows = [p for k, p in ad.parameters_of(model).items() if k.endswith("embed_tokens.weight")]
    assert rows[0].shape == (4, 16) and rows[0].grad.abs().sum(1).all()
    move(model)
    before = run(model, ids)
    if not tie:
        assert not torch.allclose(before[0, 0], base[0, 0])
    ad.save(model, tmp_path / "a")
    other = resized()
    ad.load(other, tmp_path / "a")
    assert torch.equal(run(other, ids), before)
    old = model.model.embed_tokens.weight.detach().clone()
    ad.merge(model)
    torch.testing.assert_close(run(model, ids), before)
    assert torch.equal(model.model.embed_tokens.weight[:32], old[:32])
    with pytest.raises(TargetError, match=r"rows 30 to 99 of model.embed_tokens, which has 36"):
        ad.plan(model, "lora", train=["embed_tokens[30:99]"])


# -- models in other modules ---------------------------------------------------------------------------------------


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize(
    "wrap", [Wrapper, lambda m: Wrapper(Wrapper(m)), lambda m: torch.compile(m, backend="eager")]
)
def test_the_verbs_find_the_model_inside_a_wrapper(wrap, tmp_path):
    model = Net()
    ad.attach(model, "lora", r=2, targets="wide")
    move(model)
    wrapped, before = wrap(model), run(model)
    assert ad.active(wrapped) == ["default"]
    torch.testing.assert_close(run(wrapped), before)  # compiled, the update is a node of its own
    ad.save(wrapped, tmp_path / "a")
    assert ad.load(wrapped, tmp_path / "a", "again").base == "structure and weights"
    ad.detach(wrapped, "again")
    with ad.disabled(wrapped):
        assert torch.equal(run(wrapped), run(Net()))
    ad.merge(wrapped)
    ad.unmerge(wrapped)
    assert list(ad.parameters_of(wrapped)) == ["wide.A", "wide.B"]
    ad.attach(wrapped, "ia3", "second", targets="narrow")
    ad.detach(wrapped)
    assert not ad.adapters(wrapped) and torch.equal(run(wrapped), run(Net()))


def test_two_adapted_models_in_one_wrapper_ask_which():
    both = nn.ModuleList([Net(), Net()])
    for model in both:
        ad.attach(model, "lora", targets="wide")
    with pytest.raises(StateError, match="2 modules inside this ModuleList carry adapters"):
        ad.active(both)


# -- torch's own attention -----------------------------------------------------------------------------------------


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 2).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("method", "targets"),
    [
        ("lora", "linear1"), ("series", "linear2"), ("dora", "linear1"), ("norm-tuning", "norm1"), ("series", "self_attn"),
        ("lora", "self_attn.in_proj_weight"), ("dora", "self_attn.out_proj.weight"), ("series", "re:layers.1"),
    ],
)  # fmt: skip
def test_the_fast_path_of_torchs_encoder_does_not_bypass_it(method, targets):
    model, x = encoder(), torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    plain = [run(model, x), model(x, src_key_padding_mask=padding).detach()]
    ad.attach(model, method, targets=targets, seed=1)
    move(model)
    model = copy.deepcopy(model)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        slow, slow_masked = run(model, x), model(x, src_key_padding_mask=padding).detach()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert not torch.allclose(slow, plain[0], atol=1e-3)
    torch.testing.assert_close(run(model, x), slow, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(x).detach(), slow, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        masked = model(x, src_key_padding_mask=padding)
    torch.testing.assert_close(masked[~padding], slow_masked[~padding], rtol=1e-4, atol=1e-5)
    ad.detach(model)
    assert [sorted(vars(m)) for m in model.modules()] == [sorted(vars(m)) for m in encoder().modules()]
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert torch.equal(run(model, x), plain[0])


def test_the_output_map_of_torchs_attention_is_adapted_by_its_weight_alone():
    with pytest.raises(TargetError, match="torch uses its weight and never calls it"):
        ad.attach(encoder(), "lora", targets="out_proj")
    made = ad.attach(encoder(), "lora", r=2, targets="attention")
    assert {e.path.rpartition("self_attn.")[2] for e in made.entries} == {"in_proj_weight", "out_proj.weight"}


def test_a_vector_is_not_taken_for_a_matrix():
    with pytest.raises(HostError, match="lora cannot be put on wide.bias: .* this is a vector"):
        ad.attach(Net(), "lora", targets="wide.bias")


# -- the base on disk ----------------------------------------------------------------------------------------------


def test_save_pretrained_writes_the_base_as_always(tmp_path):
    from safetensors.torch import load_file

    model = llama()
    ad.attach(model, "lora", targets="attention", train=["lm_head"])
    move(model)
    ad.attach(model, "series", "s", targets="mlp-blocks")
    ad.attach(model, "dora", "d", targets="v")
    other = reloaded(model, tmp_path)
    stored, base = load_file(tmp_path / "model.safetensors"), llama().state_dict()
    assert stored.keys() == base.keys() and all(torch.equal(stored[k], base[k]) for k in base)
    assert torch.equal(run(other, TOKENS), run(llama(), TOKENS))
    assert not llama()._keys_to_ignore_on_save
    ad.detach(model)
    assert not model._keys_to_ignore_on_save


# -- batch norm ----------------------------------------------------------------------------------------------------


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)
    )


@pytest.mark.parametrize(("method", "targets"), [("lora", "convs"), ("norm-tuning", "norms")])
def test_the_statistics_of_a_frozen_batch_norm_stay(method, targets):
    model, x = convolutions().train(), torch.randn(4, 3, 6, 6)
    model[4].eval()
    before = {k: v.clone() for k, v in model.named_buffers()}
    ad.attach(model, method, targets=targets)
    for mode in (True, False, True):
        model.train(mode)
        model(x)
    copied = pickle.loads(pickle.dumps(model)).train()
    copied(x)
    for other in (model, copied):
        assert all(torch.equal(v, before[k]) for k, v in other.named_buffers())
    ad.merge(model)
    ad.detach(model)
    assert model[1].training and model[4].training, "the model was put in training mode after attaching"
    model(x)
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])


def test_detaching_gives_each_batch_norm_its_own_mode_back():
    model = convolutions().train()
    model[4].eval()
    ad.attach(model, "lora", targets="convs")
    ad.detach(model)
    assert [m.training for m in model] == [True, True, True, True, False]


# -- convolutions without a batch ----------------------------------------------------------------------------------


def test_an_unbatched_convolution_is_adapted_too():
    model, x = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1)), torch.randn(3, 6, 4)
    ad.attach(model, "lora", r=2, targets="0")
    move(model)
    torch.testing.assert_close(run(model, x), run(model, x[None])[0])
