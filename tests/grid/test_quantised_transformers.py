"""Models that transformers loads quantised: adapted, trained, saved, loaded and merged as any other."""

import pytest
import torch

import adaptome as ad
from adaptome.core import packed
from adaptome.core.adapter import Adapted

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

TOKENS = torch.randint(96, (2, 11), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny Llama on disk, in full precision."""
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=96, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _bnb(**settings):
    def make():
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
        return transformers.BitsAndBytesConfig(**settings)

    return make


def _torchao():
    ao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    return transformers.TorchAoConfig(ao.Int8WeightOnlyConfig())


QUANTISERS = {
    "nf4": _bnb(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "nf4-nested-bf16": _bnb(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    ),
    "int8": _bnb(load_in_8bit=True),
    "torchao-int8": _torchao,
}


@pytest.fixture(params=QUANTISERS)
def load(request, checkpoint):
    dtype = torch.bfloat16 if request.param.endswith("bf16") else torch.float32

    def fresh():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint, quantization_config=QUANTISERS[request.param](), dtype=dtype, device_map="cpu"
        )
        return model.train()

    return fresh


def train(model, steps=6):
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        optimiser.zero_grad()
        loss.backward()
        ad.check_gradients(model)
        optimiser.step()
        losses.append(loss.item())
    return losses


def weights(model):
    """The dense weight of every packed layer."""
    return {n: packed.dense(m) for n, m in model.named_modules() if packed.is_packed(m)}


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_trains_after_a_generation_and_leaves_the_base_alone(load, method):
    model = load()
    model.eval().generate(TOKENS[:, :4], max_new_tokens=2, do_sample=False)  # may change bitsandbytes' layout
    plan = ad.attach(model.train(), method)
    assert (
        sum(packed.is_packed(m) and isinstance(m, Adapted) for m in model.modules()) == len(plan.entries) > 0
    )
    before = weights(model)
    losses = train(model)
    model.eval().generate(TOKENS[:, :4], max_new_tokens=2, do_sample=False)
    losses += train(model.train(), 2)
    assert losses[-1] < losses[0]
    after = weights(model)
    assert before.keys() == after.keys() and all(torch.equal(after[n], before[n]) for n in before)


def test_gradients_pass_layers_that_have_no_adapter(load):
    """The first block's adapter learns through the whole packed model, after an evaluation as before it."""
    model = load()
    ad.attach(model, "lora", targets="q", layers=0, seed=0)
    found = []
    for _ in range(2):
        model.train()
        model.zero_grad()
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        found.append([p.grad.clone() for p in ad.parameters_of(model).values()])
        with torch.no_grad():
            model.eval()(input_ids=TOKENS)
    assert any(g.abs().max() > 0 for g in found[0])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_gradient_checkpointing_trains(load):
    model = load()
    ad.attach(model, "dora", seed=0)
    model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    losses = train(model)
    assert losses[-1] < losses[0]


def test_saved_adapters_and_bases_load_again(load, tmp_path):
    model, other = load(), load()
    ad.attach(model, "lora", targets="attention")
    train(model, 2)
    expected = model(input_ids=TOKENS).logits
    ad.save(model, tmp_path / "adapter")
    ad.load(other, tmp_path / "adapter")
    assert torch.equal(other.train()(input_ids=TOKENS).logits, expected)
    model.save_pretrained(tmp_path / "base")  # the base as always, without a trace of the adapter
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", device_map="cpu").train()
    ad.load(again, tmp_path / "adapter")
    assert torch.equal(again.train()(input_ids=TOKENS).logits, expected)


def test_merging_and_unmerging(load):
    model = load()
    ad.attach(model, "lora", targets="all-linear")
    train(model, 3)
    before, expected = weights(model), model(input_ids=TOKENS).logits
    report = ad.merge(model, requantise=True, tolerance=float("inf"))
    assert set(report.requantised) == set(before)
    assert "requantisation error" in str(report)
    assert (model(input_ids=TOKENS).logits - expected).norm() / expected.norm() < 0.5
    ad.unmerge(model)
    assert torch.equal(model(input_ids=TOKENS).logits, expected)
    after = weights(model)
    assert all(torch.equal(after[n], before[n]) for n in before)


def test_the_trainer_trains_evaluates_and_resumes(load, tmp_path):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from adaptome.training.trainer import AdaptomeTrainer

    rows = [{"input_ids": t, "labels": t} for t in TOKENS.repeat(8, 1)]

    def trainer():
        model = load()
        ad.attach(model, "lora", seed=0)
        arguments = transformers.TrainingArguments(
            str(tmp_path / "run"), max_steps=6, per_device_train_batch_size=2, learning_rate=1e-2, save_steps=3,
            eval_strategy="steps", eval_steps=2, logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        return AdaptomeTrainer(model, arguments, train_dataset=rows, eval_dataset=rows[:4])

    whole = trainer()
    whole.train()
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    again = trainer()
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    for a, b in zip(*(ad.parameters_of(t.model).values() for t in (whole, again)), strict=True):
        assert torch.equal(a, b)
