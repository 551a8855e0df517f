"""What is foretold of a training: counted against the real step, by the device, and what is suggested where it does not fit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.cli import main
from adaptome.compare import advice as module
from adaptome.compare.advice import advise, changed
from adaptome.compare.devices import DEVICES, Device, named_device, this_device
from adaptome.compare.measured import measured_steps
from adaptome.compare.shapes import Data, Shapes, known_optimizer, size
from adaptome.compare.work import Counted, Operation, Work
from adaptome.core.errors import ModelError, RecipeError
from adaptome.memory import footprint
from adaptome.recipe import MethodSection, load_recipe
from adaptome.training.building import attach, base_model
from tests.training.test_runs import SMALL, animals, tokenizers  # noqa: F401

SLOW = Device("slow", 2**40, 1e9, {"float32": 1e9, "bfloat16": 4e9}, "made up", 0.0, 1.0, 1.0, 0)


@pytest.fixture
def recipe(tmp_path, tokenizers):  # noqa: F811
    content = {
        "model": {"from_config": {"model_type": "bert", "vocab_size": 20, **SMALL}, "tokenizer": tokenizers["words"]},
        "task": "text-classification",
        "data": {"train": animals(tmp_path), "validation_fraction": 0.2},
        "training": {"epochs": 2, "batch_size": 8, "device": "cpu"},
        "methods": ["lora"],
        "output": str(tmp_path / "out"),
    }  # fmt: skip
    return lambda *changes: load_recipe(content, changes)


def real(recipe, data):
    model, _, also = base_model(recipe, data.task, data.processor)
    attach(recipe, data.task, model, also)
    return model.train()


@pytest.mark.parametrize(
    "changes", [(), ("methods=[dora]",), ("training.gradient_checkpointing=true",), ("methods=[series, bitfit]",)]
)  # fmt: skip
def test_the_count_on_shapes_is_that_of_the_real_step(recipe, changes):
    """Bytes of the same batch through the model with its weights, on the CPU's own kernels, dropout among them."""
    wanted = recipe(*changes)
    data = Data(wanted)
    shapes = Shapes(wanted, data, wanted.methods)
    batch = shapes.batches()[0]
    found = shapes.counted(batch, this_device(), 0)
    model = real(wanted, data)
    if wanted.training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    step = footprint(model, batch, fused=False, padded=not batch["attention_mask"].all())
    assert found.memory.activations == step.saved > 0 and found.memory.gradients == step.gradients
    everything = [*model.parameters(), *model.buffers()]
    assert found.memory.weights + found.memory.adapter == sum(
        t.numel() * t.element_size() for t in everything
    )
    assert found.memory.optimizer == 2 * found.memory.gradients
    assert found.trainable == ad.trainable(model).count
    assert found.memory.logits == 8 * 2 * 4


def test_more_batches_in_a_step_keep_their_gradients(recipe):
    one, two = recipe(), recipe("training.gradient_accumulation=2")
    data = Data(one)
    counts = []
    for wanted in (one, two):
        shapes = Shapes(wanted, data, wanted.methods)
        counts.append(shapes.counted(shapes.batches()[0], SLOW, 0))
    assert counts[1].memory.step == counts[0].memory.step + counts[0].memory.gradients


def test_autocast_keeps_activations_in_half_as_many_bytes(recipe):
    whole, half = recipe(), recipe("training.bf16=true")
    data = Data(whole)
    kept = []
    for wanted in (whole, half):
        shapes = Shapes(wanted, data, wanted.methods)
        batch = shapes.batches()[0]
        kept.append(shapes.counted(batch, SLOW, 0).memory)
    model = real(half, data)
    with torch.autocast("cpu", torch.bfloat16):
        saved = footprint(model, batch, padded=not batch["attention_mask"].all()).saved
    # transformers makes a mask for fake tensors even where nothing is padded
    assert saved <= kept[1].activations < 1.02 * saved
    assert kept[1].weights == kept[0].weights and kept[1].activations != kept[0].activations


def test_nf4_takes_four_and_a_half_bits_a_number(recipe):
    wanted = recipe("model.from_config.hidden_size=128", "model.quantization.scheme=nf4")
    shapes = Shapes(wanted, Data(wanted), wanted.methods)
    packed = [m for m in shapes.model.modules() if type(m).__name__.endswith("PackedLinear")]
    assert packed
    for layer in packed:
        assert layer.weight.numel() * 8 == layer.out_features * (-(-layer.in_features // 2) * 8 + -(-layer.in_features // 64) * 32)  # fmt: skip
    assert shapes.counted(shapes.batches()[0], SLOW, 0).memory.activations > 0


def test_operations_are_held_up_by_arithmetic_or_by_memory():
    model, x = nn.Linear(30, 50, bias=False), torch.randn(20, 30)
    with Counted() as counted:
        y = model(x)
        counted.turn()
        (y + 1).sum().backward()
    work = counted.work()
    assert work.flops == 2 * 2 * 20 * 30 * 50  # forward, and the weight's gradient
    assert work.operations[0].moved == 4 * (20 * 30 + 30 * 50 + 20 * 50)
    two = Work((Operation(10**9, 8, "float32"), Operation(0, 2 * 10**9, "float32"), Operation(4 * 10**9, 8, "bfloat16")), 1)  # fmt: skip
    assert two.seconds(SLOW) == pytest.approx(1 + 2 + 1) and two.forward_seconds(SLOW) == pytest.approx(1)
    half = Device("half", 1, 1e9, {"float32": 1e9}, "made up", 0.5, 0.5, 0.5, 0, "cpu")
    assert two.seconds(half) == pytest.approx(2 + 4 + 8 + 3 * 0.5)  # no unit for bfloat16
    assert two.seconds(half, at_best=True) == pytest.approx(1 + 2 + 4)


def test_attention_counts_its_products():
    q, k, v = (torch.randn(2, 4, n, 8, requires_grad=True) for n in (6, 10, 10))
    with Counted() as counted:
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        counted.turn()
        out.sum().backward()
    one = 2 * 2 * 4 * 6 * 10 * 8
    assert counted.work().flops == 2 * one + 5 * one


def test_a_case_tells_steps_time_and_verdict(recipe, monkeypatch):
    monkeypatch.setattr(module, "named_device", lambda name: SLOW)
    wanted = recipe("training.gradient_accumulation=2")
    rows = Data(wanted).rows("train")
    [case] = advise(wanted, device="slow").cases
    assert case.steps == 2 * math.ceil(math.ceil(rows / 8) / 2) and case.seconds == pytest.approx(
        case.steps * case.step_seconds
    )
    assert case.verdict == "fits" and case.measured == 0 and case.at_best <= case.step_seconds
    assert 0 < case.evaluating < case.seconds
    parts = case.memory
    assert (
        parts.total
        == parts.weights + parts.adapter + parts.optimizer + parts.step + parts.libraries + parts.pieces
    )


@pytest.mark.slow
def test_what_does_not_fit_is_told_what_would(recipe, monkeypatch):
    wanted = recipe()
    [roomy] = advise(wanted, device="h100-80g").cases
    small = Device(
        "small", int(0.8 * (roomy.memory.total - roomy.memory.libraries)), 1e9, SLOW.rates, "made up", taken=0
    )
    monkeypatch.setattr(module, "named_device", lambda name: small)
    [case] = advise(wanted, device="small").cases
    assert case.verdict == "does not fit"
    smaller = next(c for c in case.changes if "training.batch_size" in c.settings)
    batch, parts = smaller.settings["training.batch_size"], smaller.settings["training.gradient_accumulation"]
    assert batch < 8 and batch * parts == 8
    for change in case.changes:
        assert change.total <= small.memory
        [again] = advise(changed(wanted, change.settings), device="small").cases
        assert again.memory.total == change.total and again.verdict != "does not fit"


def test_real_steps_correct_time_and_memory(recipe):
    wanted = recipe("training.gradient_accumulation=2")
    found = measured_steps(wanted, [MethodSection(name="lora")], 2)
    assert len(found.steps) == 2 and all(seconds > 0 for _, seconds in found.steps)
    sizes = [size(batch) for batch in Shapes(wanted, Data(wanted), wanted.methods).batches()]
    assert found.largest <= max(sizes) and all(held <= 2 * max(sizes) for held, _ in found.steps)
    assert found.peak > 2**27  # libraries and all
    times = iter([found])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "measured_steps", lambda *given: next(times))
        [case] = advise(wanted, steps=2).cases
    assert case.measured == 2 and case.memory.total == pytest.approx(found.peak, rel=0.2)
    fastest, slowest = (f(seconds for _, seconds in found.steps) for f in (min, max))
    assert fastest / 3 < case.step_seconds < 3 * slowest


def test_devices_are_whole_and_unknown_ones_name_the_nearest():
    for name, device in DEVICES.items():
        assert device.name == name and f"-{device.memory / 2**30:.0f}g" in name and device.source
        assert device.rates["float32"] < device.rates["float16"]
    here = this_device()
    assert here.memory > 2**28 and here.bandwidth > 1e8 and here.rates["float32"] > 1e8 and here.launch > 0
    with pytest.raises(ModelError, match="h100-80g"):
        named_device("h100")


@pytest.mark.parametrize(
    ("changes", "given", "error", "told"),
    [
        (("methods=[]",), {}, RecipeError, "--methods"),
        ((), {"precisions": ["fp8"]}, RecipeError, "there is no precision 'fp8'"),
        ((), {"device": "a100"}, ModelError, "Known: h200-141g"),
        (("training.optimizer=galore_adamw",), {"device": "t4-16g"}, RecipeError, "galore_adamw"),
    ],
)
def test_what_cannot_be_foretold_is_said(recipe, changes, given, error, told):
    with pytest.raises(error, match=told):
        advise(recipe(*changes), **given)


def test_optimizers_of_transformers_are_known():
    assert [known_optimizer(n) for n in ("adamw_torch", "adamw_bnb_8bit", "paged_adamw_32bit", "lion_32bit", "sgd")] == ["adamw", "adamw-8bit", "adamw", "lion", "sgd"]  # fmt: skip


def test_the_command_shows_a_table_and_json(recipe, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe().to_yaml(), encoding="utf-8")
    words = [
        "advise",
        str(path),
        "--methods",
        "lora,bitfit",
        "--precision",
        "fp32,mixed",
        "--device",
        "t4-16g",
    ]

    def command(*given):
        with pytest.raises(SystemExit) as stopped:
            main(list(given))
        return stopped.value.code or 0, capsys.readouterr().out

    code, shown = command(*words)
    assert (
        code == 0 and "fits" in shown and "bitfit" in shown and "T4" in shown and "nothing was run" in shown
    )
    code, shown = command(*words, "--json")
    cases = json.loads(shown)["cases"]
    assert code == 0 and [(c["label"], c["precision"]) for c in cases] == [("lora", "fp32"), ("lora", "mixed"), ("bitfit", "fp32"), ("bitfit", "mixed")]  # fmt: skip
    code, shown = command("advise", "--devices")
    assert code == 0 and "h100-80g" in shown and "989" in shown
    assert not Path(recipe().output.folder).exists()


def test_a_large_model_is_advised_on_without_weights_or_data(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["advise", "guanaco-qlora", "model.name=llama-3.2-1b", "method.layers=[0]", "--device", "l4-24g", "--length", "64", "--json"])  # fmt: skip
    assert not stopped.value.code
    [case] = json.loads(capsys.readouterr().out)["cases"]
    assert case["verdict"] == "fits" and 0.9 * 2**30 < case["memory"]["weights"] < 1.1 * 2**30


def test_a_language_model_of_a_folder_is_foretold_without_its_weights(tmp_path):
    """Its head is not new: no weight is looked for."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from adaptome.compare.foretold import foretold_memory
    from adaptome.tasks.byte_tokenizer import byte_tokenizer

    config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, vocab_size=258)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "train.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n' * 3)  # fmt: skip
    content = {
        "model": {"name": str(tmp_path / "base"), "quantization": {"scheme": "nf4"}},
        "task": {"name": "dialogue", "chat_template": "human-assistant", "max_length": 64},
        "data": {"train": str(tmp_path / "train.jsonl"), "validation_fraction": 0},
        "method": {"name": "lora", "r": 4, "targets": "all-linear"},
        "training": {"batch_size": 1, "device": "cpu"},
    }
    found = foretold_memory(load_recipe(content))
    numbers = 4 * 64 * 64 + 3 * 64 * 128
    assert found.weights == pytest.approx(numbers * 4.5 / 8 + (2 * 258 + 3) * 64 * 4, rel=0.01)
    assert found.adapter == found.gradients == 4 * 4 * (4 * 2 * 64 + 3 * (64 + 128))
    assert found.total == sum(
        (found.weights, found.adapter, found.optimizer, found.step, found.libraries, found.pieces)
    )
