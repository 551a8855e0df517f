"""A model of adaptome.peft in transformers' Trainer and TRL's SFTTrainer."""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, Trainer, TrainingArguments

from adaptome.peft import LoraConfig, PeftModel, get_peft_model

WORDS = ["[PAD]", "[EOS]", "the", "sea", "is", "blue", "and", "wide"]
SETTINGS = {
    "max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "report_to": [], "use_cpu": True, "disable_tqdm": True,
    "logging_steps": 1,
}  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=16,
        n_layer=1,
        n_head=2,
        vocab_size=len(WORDS),
        n_positions=16,
        eos_token_id=1,
        bos_token_id=1,
        tie_word_embeddings=False,
    )
    base = GPT2LMHeadModel(config)
    return get_peft_model(
        base, LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)
    )


def snapshot(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def only_the_adapter_moved(model, before):
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    return bool(moved) and all(".adaptome." in n for n in moved)


@pytest.mark.filterwarnings("ignore")
def test_trainer_trains_the_adapter_alone_and_resumes(model, tmp_path):
    rows = Dataset.from_dict(
        {"input_ids": [[2, 3, 4, 5, 1]] * 4, "labels": [[2, 3, 4, 5, 1]] * 4, "note": ["not the model's"] * 4}
    )
    before = snapshot(model)
    arguments = TrainingArguments(str(tmp_path / "run"), save_steps=2, **SETTINGS)
    Trainer(model, arguments, train_dataset=rows).train()
    assert only_the_adapter_moved(model, before)
    ended = snapshot(model)
    Trainer(model, arguments, train_dataset=rows).train(
        resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2")
    )
    assert all(torch.equal(p, ended[n]) for n, p in model.named_parameters())
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(GPT2LMHeadModel(model.get_base_model().config), tmp_path / "adapter")
    mine = {n: p for n, p in again.named_parameters() if ".adaptome." in n}
    assert mine and all(torch.equal(p, ended[n]) for n, p in mine.items())


@pytest.mark.filterwarnings("ignore")
def test_sft_trainer_trains_the_adapter_alone(model, tmp_path):
    trl = pytest.importorskip("trl")
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[PAD]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", eos_token="[EOS]")
    rows = Dataset.from_dict({"text": ["the sea is blue and wide"] * 4})
    before = snapshot(model)
    arguments = trl.SFTConfig(
        str(tmp_path), save_strategy="no", max_length=12, gradient_checkpointing=False, **SETTINGS
    )
    trainer = trl.SFTTrainer(
        model.get_base_model(), arguments, train_dataset=rows, processing_class=tokenizer
    )
    trainer.train()
    assert only_the_adapter_moved(model, before)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
