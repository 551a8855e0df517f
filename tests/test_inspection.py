"""`inspect` tells trainable numbers and memory from shapes alone, and says what it does not know."""

import json
import time

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

import adaptome as ad
from adaptome.architectures import build
from adaptome.core.errors import HostError, MethodError, ModelError, TargetError
from adaptome.core.example_inputs import example_inputs
from adaptome.inspection import inspect
from adaptome.memory import scalar
from tests.grid.sites import small

# One of every kind of input; the sizes are made small by hand, the layout is the architecture's own.
SMALL = {
    "llama-3.2-1b": {"num_hidden_layers": 1, "vocab_size": 50},
    "bert-base": {"num_hidden_layers": 1},
    "t5-base": {"num_layers": 1, "num_decoder_layers": 1},
    "swin-t": {"depths": [1, 1, 1, 1]},
    "clip-vit-b-16": {},
    "dinov2-b": {"num_hidden_layers": 1, "image_size": 56},
    "ast-base": {"num_hidden_layers": 1},
    "whisper-large-v3": {"encoder_layers": 1, "decoder_layers": 1},
    "blip2-qformer": {"num_hidden_layers": 2},
    "sd-1.5-unet": {},
}

BERT = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 96,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
TOWER = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}
VIT = TOWER | {"image_size": 32, "patch_size": 8}
DINO = {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 4, "image_size": 56}
GPT2 = {"n_layer": 2, "n_embd": 48, "n_head": 4, "vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2}


def really_saved(model, inputs):
    """Bytes that autograd keeps on the CPU, counted without adaptome: distinct storages that are not the model's."""
    given = [value for value in inputs.values() if isinstance(value, torch.Tensor)]
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers(), *given]}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scalar(model(**inputs))
    return sum(kept.values())


def test_llama_with_lora_is_the_papers_count():
    start = time.perf_counter()
    found = inspect("llama-2-7b", "lora", r=64, targets=["q", "v"], batch=4, length=512, dtype="bf16")
    assert time.perf_counter() - start < 30
    assert found.trainable == 33_554_432
    assert found.total == 6_738_415_616 + 33_554_432
    assert [(r.role, r.module, r.layers, r.shape, r.parameters) for r in found.rows] == [
        ("q", "q_proj", 32, (4096, 4096), 16_777_216),
        ("v", "v_proj", 32, (4096, 4096), 16_777_216),
    ]
    memory = found.memory
    assert memory.weights == pytest.approx(2 * 6_738_415_616, rel=1e-6)  # and the rotary table
    assert memory.adapter == memory.gradients == 4 * 33_554_432
    assert memory.optimizer == 2 * memory.gradients
    assert memory.peak > memory.weights + memory.adapter + memory.optimizer + memory.activations


def test_checkpointing_takes_less_memory():
    options = {"targets": "attention", "batch": 2, "dtype": "bf16"}
    model = build("llama-3.1-70b", num_hidden_layers=8)
    kept = inspect(model, "lora", **options)
    again = inspect(model, "lora", gradient_checkpointing=True, **options)
    assert again.memory.activations < kept.memory.activations / 2
    assert again.memory.peak < kept.memory.peak


@pytest.mark.parametrize("name", SMALL)
def test_every_kind_of_input_is_known(name):
    model = build(name, **SMALL[name])
    found = inspect(model, "lora", targets="attention", batch=2, length=16)
    assert found.note == ""
    assert found.memory.activations > 0
    assert found.memory.gradients == 4 * found.trainable
    twice = inspect(model, "lora", targets="attention", batch=4, length=16)
    assert 1.4 < twice.memory.activations / found.memory.activations <= 2.01


def candidates():
    """A language model, and for methods that it does not admit a vision model, one with a head, and a pair of towers."""
    yield build("bert-base", meta=False, **BERT)
    yield build("dinov2-b", meta=False, **DINO)
    yield ViTForImageClassification(ViTConfig(**VIT))
    yield build("clip-vit-b-16", meta=False, text_config=TOWER | {"vocab_size": 96}, vision_config=VIT)


def fits(model, method):
    try:
        ad.plan(model, method)
    except (HostError, TargetError):
        return False
    return True


@pytest.mark.parametrize("method", sorted(n for n, cls in ad.list_methods().items() if not cls.needs))
def test_every_method_is_inspected_as_it_trains(method):
    chosen, model = small(method), next(m for m in candidates() if fits(m, small(method)))
    model.train()
    found = inspect(model, chosen, batch=3, length=20)
    plan = ad.attach(model, chosen, seed=0)
    inputs = example_inputs(model, 3, 20, device="cpu")
    assert found.trainable == plan.trainable
    assert sum(row.parameters for row in found.rows) == plan.trainable
    with ad.steer(**chosen.example_facts()[0]):
        assert found.memory.activations == pytest.approx(really_saved(model, inputs), rel=0.1)


def test_a_model_is_not_changed_and_may_be_adapted_already():
    model = build("gpt2", meta=False, **GPT2)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    inspect(model, "lora", gradient_checkpointing=True, dtype="bf16")
    assert ad.adapters(model) == {}
    names = ("is_activation_checkpointing", "is_gradient_checkpointing")  # transformers renamed it after 5.20
    assert not any(getattr(model, name, False) for name in names)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    plan = ad.attach(model, "lora", r=2)
    assert inspect(model).trainable == plan.trainable


def test_full_fine_tuning_lists_every_parameter():
    found = inspect("gpt2", batch=1, length=8)
    assert found.trainable == found.total == 124_439_808 == sum(row.parameters for row in found.rows)
    assert found.percent == 100
    assert found.memory.adapter == 0
    assert found.memory.optimizer == 2 * found.memory.gradients == 8 * 124_439_808


def test_heads_are_counted():
    model = build("bert-base", task="text-classification", num_labels=3)
    found = inspect(model, "lora", train="classifier", length=8)
    head = [row for row in found.rows if row.role == "head"]
    assert [(row.module, row.parameters) for row in head] == [("classifier", 768 * 3 + 3)]


def test_it_prints_and_is_json():
    found = inspect(build("gpt2", meta=False, **GPT2), "lora", batch=2, length=8, optimizer="sgd")
    text = str(found)
    assert "c_attn" in text and "activations" in text and f"{found.trainable:,} of {found.total:,}" in text
    data = json.loads(json.dumps(found.to_dict()))
    assert data["memory"]["optimizer"] == 0
    assert data["setup"] == {
        "batch": 2,
        "length": 8,
        "dtype": "fp32",
        "optimizer": "sgd",
        "gradient_checkpointing": False,
    }
    assert data["rows"][0]["shape"] == list(found.rows[0].shape)


def test_own_modules_take_own_inputs():
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    found = inspect(
        model, "lora", targets=["0", "2"], r=2, inputs={"input": torch.zeros(11, 5, device="meta")}
    )
    assert found.trainable == 2 * (5 + 7) + 2 * (7 + 3)
    with pytest.raises(ModelError, match=r"inputs of Sequential are not known"):
        inspect(model, "lora", targets=["0", "2"])


def test_a_forward_that_asks_for_values_is_told_and_still_counted():
    class Sparse(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = torch.nn.Linear(5, 7)

        def forward(self, x):
            return self.proj(x[: int(x.sum().item())])

    found = inspect(Sparse(), "lora", targets="proj", inputs={"x": torch.zeros(11, 5, device="meta")})
    assert found.trainable == 8 * (5 + 7)
    assert found.memory is None
    assert "asks for values" in found.note


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "lora", "optimizer": "adagrad"}, ModelError, "Known: adamw, adam"),
        ({"method": "lora", "dtype": "bf17"}, ModelError, "Did you mean 'bf16'?"),
        ({"method": "lora", "batch": 0}, ModelError, "at least 1"),
        ({"targets": "q"}, ModelError, "belong to a method"),
        ({"method": "lorra"}, MethodError, "lora"),
        ({"method": "lora", "rank": 3}, MethodError, "rank"),
        ({"method": "lora", "targets": "q_proj"}, TargetError, "q_proj"),
    ],
)
def test_a_bad_request_is_told(options, error, message):
    with pytest.raises(error) as caught:
        inspect("gpt2", **options)
    assert message in str(caught.value)
