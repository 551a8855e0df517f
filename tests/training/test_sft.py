"""TRL's SFTTrainer over adapters: same checkpoints, exact resume, nothing sent, dtypes kept."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast, TrainerCallback

import adaptome as ad
from adaptome.core.errors import TrainingError
from adaptome.training.checkpoint import checkpoints, verify
from tests.training.killable import model_of

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *"abcdefghij "])}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def trainer_of(folder, tokenizer, model=None, callbacks=(), **settings):
    from adaptome.training.sft import AdaptomeSFTTrainer, SFTConfig

    rows = [{"prompt": "abc"[: 1 + i % 3], "completion": " " + "defghij"[: 2 + i % 4]} for i in range(20)]
    own = {
        "output_dir": str(folder), "num_train_epochs": 2, "per_device_train_batch_size": 2, "save_steps": 3,
        "gradient_accumulation_steps": 2, "learning_rate": 0.02, "max_length": 16, "bf16": False, "use_cpu": True,
        "report_to": [], "disable_tqdm": True, "gradient_checkpointing": False, "logging_steps": 1,
    }  # fmt: skip
    return AdaptomeSFTTrainer(
        model or model_of("llama"),
        SFTConfig(**own | settings),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


class Interrupt(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize("packing", [False, True])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, tokenizer, packing):
    settings = {"packing": packing, "packing_strategy": "wrapped", "save_steps": 2 if packing else 3}
    settings |= {"gradient_accumulation_steps": 1} if packing else {}
    whole = trainer_of(tmp_path / "whole", tokenizer, **settings)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path / "cut", tokenizer, callbacks=[Interrupt()], **settings).train()
    again = trainer_of(tmp_path / "cut", tokenizer, **settings)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == whole.state.global_step > 5
    for name, value in ad.parameters_of(whole.model).items():
        assert torch.equal(value, ad.parameters_of(again.model)[name])
    for _, path in checkpoints(tmp_path / "cut"):
        verify(path)
        assert sorted(p.name for p in (path / "adapters").iterdir()) == ["default"]


def test_nothing_is_sent_anywhere(tmp_path, tokenizer, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("sent")

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", refuse)
    trainer_of(tmp_path, tokenizer)


def test_adapters_on_a_quantised_base_keep_their_dtype(tmp_path, tokenizer):
    model = model_of("llama")
    model.is_loaded_in_4bit = True  # what TRL goes by; the layers are plain
    trainer = trainer_of(tmp_path, tokenizer, model, max_steps=2)
    assert {p.dtype for p in ad.parameters_of(model).values()} == {torch.float32}
    model.is_loaded_in_4bit = False  # accelerate would look for the device it was loaded on
    before = {name: p.detach().clone() for name, p in ad.parameters_of(model).items()}
    trainer.train()
    assert any(not torch.equal(p, before[name]) for name, p in ad.parameters_of(model).items())


def test_a_models_name_is_refused(tmp_path, tokenizer):
    with pytest.raises(TrainingError, match="attach an adapter"):
        trainer_of(tmp_path, tokenizer, "some/model")


def test_examples_that_nothing_is_learned_from_are_counted_and_refused_when_there_are_no_others(
    tmp_path, tokenizer
):
    from adaptome.core.errors import DataError

    assert trainer_of(tmp_path / "a", tokenizer).notes == []
    few = trainer_of(tmp_path / "b", tokenizer, max_length=3)
    assert few.notes == [
        "6 of 20 examples of train were left out: their prompts fill all 3 tokens (task.max_length)."
    ]
    with pytest.raises(
        DataError, match=r"every example of train is longer than 1 tokens .*\n.*task\.max_length"
    ):
        trainer_of(tmp_path / "c", tokenizer, max_length=1)
