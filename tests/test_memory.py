"""The memory counted on the meta device is what real tensors take."""

import copy
import gc

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.architectures import build
from adaptome.core.example_inputs import example_inputs
from adaptome.memory import footprint, optimizer_bytes, scalar, shadow
from tests.methods.helpers import checkpointing

TINY = {
    "llama-3.2-1b": {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 80, "vocab_size": 96, "head_dim": 12,
                         "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False},
    "gpt2": {"n_layer": 2, "n_embd": 48, "n_head": 4, "vocab_size": 96, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
                 "bos_token_id": 1, "eos_token_id": 2, "use_cache": False},
    "bert-base": {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4, "vocab_size": 96,
                      "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "deberta-v3-base": {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4,
                            "vocab_size": 96, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "t5-base": {"num_layers": 2, "num_decoder_layers": 2, "d_model": 48, "d_kv": 12, "d_ff": 80, "num_heads": 4, "vocab_size": 96,
                    "dropout_rate": 0.0, "use_cache": False},
    "vit-b-16": {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4, "image_size": 64},
}  # fmt: skip
METHODS = ["lora", "dora", "ia3", "series", "bitfit", "norm-tuning"]


def tiny(name):
    torch.manual_seed(0)
    return build(name, meta=False, **TINY[name]).train()


def really_saved(model, inputs):
    """Bytes that autograd keeps on the CPU, counted without adaptome: distinct storages that are not the model's."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers(), *inputs.values()]}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scalar(model(**inputs))
    return sum(kept.values())


def real_peak(model, inputs):
    """The CPU allocator's peak over forward and backward, from torch's profiler.

    Garbage of earlier tests must not be freed meanwhile: it would be taken off the peak.
    """
    gc.collect()
    gc.disable()
    try:
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            scalar(model(**inputs)).backward()
    finally:
        gc.enable()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", TINY)
def test_saved_bytes_equal_the_real_ones(name, method):
    model = tiny(name)
    if method == "bitfit" and name in ("llama-3.2-1b", "t5-base"):
        pytest.skip("no biases")
    ad.attach(model, method, seed=0)
    inputs = example_inputs(model, 3, 20, device="cpu")
    on_meta = {key: value.to("meta") for key, value in inputs.items()}
    assert footprint(shadow(model), on_meta).saved == really_saved(model, inputs) > 0


@pytest.mark.parametrize("name", TINY)
def test_saved_bytes_of_the_whole_model(name):
    model = tiny(name)
    inputs = example_inputs(model, 2, 33, device="cpu")
    on_meta = {key: value.to("meta") for key, value in inputs.items()}
    assert footprint(shadow(model), on_meta).saved == pytest.approx(really_saved(model, inputs), rel=0.1)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("name", ["llama-3.2-1b", "bert-base", "vit-b-16"])
def test_peak_is_the_allocators(name, recomputed):
    model = tiny(name)
    ad.attach(model, "lora", targets="all-linear", seed=0)
    if recomputed:
        checkpointing(model)({"use_reentrant": False})
    inputs = example_inputs(model, 16, 64, device="cpu")
    on_meta = {key: value.to("meta") for key, value in inputs.items()}
    counted = footprint(shadow(model), on_meta)
    really = real_peak(model, inputs)
    assert counted.peak == pytest.approx(really, rel=0.1)
    assert counted.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


def test_the_real_step_counts_the_same_as_the_shadow():
    model = tiny("gpt2")
    inputs = example_inputs(model, 2, 9, device="cpu")
    on_meta = {key: value.to("meta") for key, value in inputs.items()}
    assert footprint(model, inputs) == footprint(shadow(model), on_meta)
    assert all(p.grad is None for p in model.parameters())


def test_by_hand():
    model = nn.Sequential(nn.Linear(5, 7, bias=False), nn.Tanh(), nn.Linear(7, 3, bias=False))
    model[0].weight.requires_grad_(False)
    found = footprint(shadow(model), {"input": torch.zeros(11, 5, device="meta")})
    assert (
        found.saved == 11 * 7 * 4
    )  # the second layer's input; the first is frozen, so nothing for it or tanh
    assert found.gradients == 7 * 3 * 4
    model[0].weight.requires_grad_(True)  # tanh keeps its output, which is the same storage
    assert footprint(shadow(model), {"input": torch.zeros(11, 5, device="meta")}).saved == 11 * 7 * 4


def test_checkpointing_keeps_less_and_a_frozen_model_nothing():
    model = tiny("bert-base")
    ad.attach(model, "lora", seed=0)
    inputs = example_inputs(model, 4, 32)
    full = footprint(shadow(model), inputs)
    checkpointing(model)({"use_reentrant": False})
    assert footprint(shadow(model), inputs).saved < full.saved / 2
    frozen = tiny("bert-base").requires_grad_(False)
    assert footprint(shadow(frozen), inputs).saved == footprint(shadow(frozen), inputs).gradients == 0


def test_attention_and_dropout_are_a_gpus():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))
            self.dropout = nn.Dropout(0.1)

        def forward(self, x):  # [2, 3, 16, 8]
            return self.dropout(x * self.scale)

    found = footprint(shadow(Net()), {"x": torch.zeros(2, 3, 16, 8, device="meta")})
    assert found.saved == 2 * 3 * 16 * 8  # one byte an element: the mask; x itself is an input

    class Attention(Net):
        def forward(self, x):
            y = x * self.scale
            return nn.functional.scaled_dot_product_attention(y, y, y)

    found = footprint(shadow(Attention()), {"x": torch.zeros(2, 3, 16, 8, device="meta")})
    assert (
        found.saved == 2 * 3 * 16 * (8 + 8 + 1) * 4
    )  # y, the output and a log-sum a row; no [16, 16] probabilities


def test_a_shadow_takes_no_memory_and_keeps_ties():
    model = build("gpt2", meta=False, **TINY["gpt2"])
    before = copy.deepcopy(model.state_dict())
    twin = shadow(model, torch.bfloat16)
    assert all(t.is_meta for t in [*twin.parameters(), *twin.buffers()])
    assert twin.lm_head.weight is twin.transformer.wte.weight
    assert {p.dtype for p in twin.parameters()} == {torch.bfloat16}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_optimizer_state_equals_torchs():
    parameters = [nn.Parameter(torch.ones(64, 65)), nn.Parameter(torch.ones(7))]
    made = {
        "adamw": torch.optim.AdamW(parameters),
        "sgd": torch.optim.SGD(parameters),
        "sgd-momentum": torch.optim.SGD(parameters, momentum=0.9),
    }
    for name, optimizer in made.items():
        for p in parameters:
            p.grad = torch.ones_like(p)
        optimizer.step()
        tensors = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t) and t.dim()]
        assert optimizer_bytes(parameters, name) == sum(t.nbytes for t in tensors)
    assert optimizer_bytes(parameters, "adafactor") == 4 * (64 + 65 + 7)
    assert optimizer_bytes(parameters, "adamw-8bit") == 2 * (4160 + 4 * 17) + 2 * 4 * 7


def test_a_bottleneck_in_float32_is_counted_on_shapes_alone():
    model = nn.Sequential(nn.Linear(16, 24))
    ad.attach(model, "series", targets="*", size=4, precision="float32")
    assert footprint(shadow(model), {"input": torch.zeros(2, 16, device="meta")}).saved > 0
