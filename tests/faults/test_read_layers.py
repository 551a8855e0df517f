"""Layers that a model uses otherwise than by calling them: their weights go to another function, on some ways or on all."""

from __future__ import annotations

import pytest
import torch
import transformers as T
from torch import Tensor, nn
from torch.nn import functional as F

import adaptome as ad
from adaptome.core.errors import HostError, MergeError
from adaptome.core.reading import weights_read
from adaptome.core.targets import resolve
from tests.core.models import move
from tests.grid.sites import small

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 32}
LLM = {**SIZE, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
MAMBA = {
    "mamba_d_state": 4,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
BUILD = {
    "wavlm": lambda: T.WavLMForCTC(T.WavLMConfig(
        **LLM | {"vocab_size": 8}, conv_dim=(8, 8), conv_kernel=(4, 4), conv_stride=(2, 2), num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, num_feat_extract_layers=2)),
    "mamba": lambda: T.MambaForCausalLM(T.MambaConfig(**SIZE, state_size=4)),
    "mamba2": lambda: T.Mamba2ForCausalLM(T.Mamba2Config(**SIZE, state_size=4, num_heads=4, head_dim=8, n_groups=2)),
    "falcon-h1": lambda: T.FalconH1ForCausalLM(T.FalconH1Config(**LLM, **MAMBA, mamba_d_ssm=32)),
    "bamba": lambda: T.BambaForCausalLM(T.BambaConfig(**LLM, **MAMBA, attn_layer_indices=[1])),
    "jamba": lambda: T.JambaForCausalLM(T.JambaConfig(**LLM, attn_layer_period=2, attn_layer_offset=1, num_experts=2)),
    "lfm2": lambda: T.Lfm2ForCausalLM(T.Lfm2Config(**LLM, layer_types=["conv", "full_attention"])),
    "qwen3-next": lambda: T.Qwen3NextForCausalLM(T.Qwen3NextConfig(
        **LLM, head_dim=8, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8, shared_expert_intermediate_size=8, linear_num_key_heads=2,
        linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"])),
}  # fmt: skip
READ = {
    "wavlm": {"q_proj", "k_proj", "v_proj", "out_proj"},
    "mamba": {"conv1d", "x_proj", "dt_proj", "out_proj"},
    "mamba2": {"conv1d", "norm", "out_proj"},
    "falcon-h1": {"conv1d", "out_proj"},
    "bamba": {"conv1d", "norm", "out_proj"},
    "jamba": {"conv1d", "dt_proj"},
    "lfm2": {"conv"},
    "qwen3-next": {"conv1d"},
}
IDS = torch.randint(3, 32, (2, 7), generator=torch.Generator().manual_seed(0))
WAVES = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return BUILD[name]().eval()


def logits(model: nn.Module) -> Tensor:
    return model(WAVES if model.config.model_type == "wavlm" else IDS).logits


@pytest.mark.parametrize("name", BUILD)
def test_they_are_known_by_the_code_of_their_classes(name):
    found = resolve(build(name), ["re:.*"])
    assert {m.path.rpartition(".")[2] for m in found if m.read} == READ[name]


def test_looking_at_a_weights_type_is_no_reading():
    t5 = T.models.t5.modeling_t5
    assert not weights_read(t5.T5DenseActDense) and not weights_read(t5.T5Attention)
    assert not weights_read(T.models.bert.modeling_bert.BertSelfAttention)


@pytest.mark.parametrize("method", ["lora", "dora", "ssf", "paca"])
@pytest.mark.parametrize("name, role", [(name, role) for name in BUILD for role in ("all-linear", "convs") if (name, role) != ("wavlm", "convs")])  # fmt: skip
def test_adapters_on_them_train_and_merge_to_the_same_model(name, role, method):
    model = build(name)
    before = logits(model).detach()
    paths = [m.path for m in resolve(model, role) if m.parameter is None]
    ad.attach(model, method, targets=[f"={path}" for path in paths], seed=1)
    torch.testing.assert_close(logits(model), before)
    logits(model).square().sum().backward()
    ad.check_gradients(model)
    move(model)
    adapted = logits(model).detach()
    report = ad.merge(model)
    assert report.model is not None and report.model < 1e-4
    torch.testing.assert_close(logits(model), adapted, rtol=1e-3, atol=1e-4)
    assert (adapted - before).abs().max() > 1e-6
    ad.detach(model)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "falcon-h1", "lfm2"])
def test_generating_with_a_cache_takes_the_other_way_with_the_same_adapter(name):
    model = build(name)
    ad.attach(model, "lora", targets="convs")
    move(model, std=1.0)
    kwargs = {
        "max_new_tokens": 6,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
        "pad_token_id": 0,
    }
    cached = model.generate(IDS, **kwargs)
    whole = model(cached.sequences[:, :-1]).logits[:, IDS.shape[1] - 1 :]
    torch.testing.assert_close(torch.stack(cached.logits, 1), whole, rtol=1e-3, atol=1e-4)


def test_what_wraps_calls_is_refused_there_and_kept_out_of_its_defaults():
    model = build("wavlm")
    with pytest.raises(
        HostError, match=r"(?s)the model reads .*q_proj\.weight instead of calling.*such as lora, or exclude="
    ):
        ad.attach(model, "series", targets="q", size=4)
    plan = ad.attach(model, "houlsby", size=4)
    assert {entry.path.rpartition(".")[2] for entry in plan.entries} == {"output_dense"}
    logits(model).sum().backward()
    ad.check_gradients(model)


class Layers(nn.Module):
    """A layer that is called, or whose weight is read."""

    def __init__(self, kind: str):
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        made = {
            "linear": lambda: nn.Linear(16, 24),
            "conv": lambda: nn.Conv1d(16, 24, 3),
            "embedding": lambda: nn.Embedding(12, 24),
        }
        self.layer = made[kind]()


class Calls(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).tanh()


class Reads(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.read(x).tanh()

    def read(self, x: Tensor) -> Tensor:
        if self.kind == "embedding":
            return F.embedding(x, self.layer.weight)
        return (F.linear if self.kind == "linear" else F.conv1d)(x, self.layer.weight, self.layer.bias)


INPUTS = {
    "linear": torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)),
    "conv": torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(1)),
    "embedding": torch.arange(10).view(2, 5),
}
CASES = [
    (kind, name)
    for kind in INPUTS
    for name, cls in ad.list_methods().items()
    if cls.merge == "exact" and small(name).admits(ad.core.hosts.host_of(Layers(kind).layer, "layer")) is None
]


@pytest.mark.parametrize("kind, method", CASES)
def test_every_method_that_changes_weights_gives_what_calling_gives(kind, method):
    results = []
    with ad.steer(**small(method).example_facts()[0]):
        for cls in (Calls, Reads):
            model = cls(kind).eval()
            ad.attach(model, small(method), targets="=layer", seed=2)
            move(model, std=0.1)
            y = model(INPUTS[kind])
            y.square().sum().backward()
            results.append(
                (y.detach(), {k: p.grad for k, p in ad.parameters_of(model).items() if p.grad is not None})
            )
    (called, gradients), (read, others) = results
    torch.testing.assert_close(read, called, rtol=1e-4, atol=1e-5)
    assert gradients and gradients.keys() == others.keys()
    for key in gradients:
        torch.testing.assert_close(others[key], gradients[key], rtol=1e-3, atol=1e-4)


class Hidden(Layers):
    """Reads it in a way that its code does not show."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, dict(self.named_modules())["layer"]._parameters["weight"])


def test_a_merge_that_changes_the_model_is_refused_and_undone():
    model, x = Hidden("linear").eval(), INPUTS["linear"]
    before = model(x)
    ad.attach(model, "lora", targets="=layer")
    move(model)
    assert torch.equal(model(x), before)
    with pytest.raises(MergeError, match="used otherwise than by calling them"):
        ad.merge(model, inputs={"x": x})
    with pytest.raises(MergeError, match="used otherwise than by calling them"):
        ad.merge(model, inputs=x)
    assert torch.equal(model(x), before) and not ad.adapters(model)["default"].merged
    assert ad.merge(model, inputs=False).model is None  # the layers alone
    ad.unmerge(model)
    assert ad.merge(model, inputs=x, tolerance=float("inf")).model > 0.01


def test_a_model_whose_inputs_are_known_is_compared_by_itself():
    model = build("mamba2")
    ad.attach(model, "lora", targets="all-linear")
    move(model)
    assert "the model's output: differs by" in str(ad.merge(model))
