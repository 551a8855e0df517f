"""Scripts written for PEFT, of which the import alone is changed; PEFT then reads what they wrote, and computes the same."""

import sys

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import GPT2Config, GPT2LMHeadModel

from .test_trainers import SETTINGS, WORDS

SETUP = """
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

config = LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
model = get_peft_model(base(), config)
model.print_trainable_parameters()
"""

TRAINER = (
    SETUP
    + """
rows = Dataset.from_dict({"input_ids": [[2, 3, 4, 5, 1]] * 4, "labels": [[2, 3, 4, 5, 1]] * 4})
arguments = TrainingArguments("run", save_steps=2, **settings)
trainer = Trainer(model, arguments, train_dataset=rows)
trainer.train()
trainer.save_model("adapter")
again = get_peft_model(base(), config)
Trainer(again, arguments, train_dataset=rows).train(resume_from_checkpoint="run/checkpoint-2")
"""
)

SFT = (
    SETUP
    + """
from trl import SFTConfig, SFTTrainer

rows = Dataset.from_dict({"text": ["the sea is blue and wide"] * 4})
arguments = SFTConfig("run", max_length=12, gradient_checkpointing=False, bf16=False, save_steps=2, **settings)
trainer = SFTTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer())
trainer.train()
trainer.save_model("adapter")
"""
)

DREAMBOOTH = """
import torch
from peft import LoraConfig, get_peft_model

model = get_peft_model(base(), LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
for _ in range(3):
    loss = model(latents, steps, prompt).sample.square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
model.save_pretrained("adapter")
"""


def gpt2():
    torch.manual_seed(0)  # its embeddings are tied to its head
    settings = dict(
        n_embd=16, n_layer=1, n_head=2, vocab_size=len(WORDS), n_positions=16, eos_token_id=1, bos_token_id=1
    )
    return GPT2LMHeadModel(GPT2Config(**settings)).eval()


def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, cross_attention_dim=8, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[PAD]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", eos_token="[EOS]")


DENOISED = {
    "latents": torch.randn(2, 4, 8, 8),
    "steps": torch.tensor([3, 50]),
    "prompt": torch.randn(2, 6, 8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("script", "base"),
    [(TRAINER, gpt2), (SFT, gpt2), (DREAMBOOTH, unet)],
    ids=["trainer", "sft", "dreambooth"],
)
def test_a_script_with_its_import_changed(script, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if script is SFT:
        pytest.importorskip("trl")
    names = {"base": base, "settings": SETTINGS, "tokenizer": tokenizer, **DENOISED}
    exec(script.replace("from peft import", "from adaptome.peft import"), names)
    inputs = tuple(DENOISED.values()) if base is unet else (torch.tensor([[2, 3, 4]]),)
    model = names["model"].eval()
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(base(), "adapter").eval()(*inputs)[0]
        torch.testing.assert_close(model(*inputs)[0], theirs, rtol=0, atol=1e-5)
        assert not torch.allclose(base()(*inputs)[0], theirs)
    if script is not DREAMBOOTH:
        written = {path.name for path in (tmp_path / "run" / "checkpoint-2").iterdir()}
        assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= written
        assert not written & {"model.safetensors", "pytorch_model.bin"}
    if script is TRAINER:
        ours = [{n: p for n, p in names[k].named_parameters() if p.requires_grad} for k in ("model", "again")]
        assert ours[0] and all(torch.equal(p, ours[1][n]) for n, p in ours[0].items())


def test_it_is_pefts_model_to_who_asks():
    from adaptome.peft import LoraConfig, PeftModelForCausalLM, get_peft_model

    model = get_peft_model(gpt2(), LoraConfig(target_modules=["c_attn"], task_type="CAUSAL_LM"))
    assert isinstance(model, peft.PeftModel) and isinstance(model, PeftModelForCausalLM)
    assert type(model) is PeftModelForCausalLM and sys.modules["peft"] is peft


@pytest.mark.filterwarnings("ignore")
def test_dpo_takes_the_base_for_its_reference(tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    from adaptome.peft import LoraConfig, get_peft_model

    model = get_peft_model(
        gpt2(), LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    )
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    rows = Dataset.from_dict(
        {"prompt": ["the sea is"] * 4, "chosen": ["blue and wide"] * 4, "rejected": ["the the the"] * 4}
    )
    arguments = trl.DPOConfig(
        str(tmp_path), save_strategy="no", max_length=12, gradient_checkpointing=False, **SETTINGS
    )
    trainer = trl.DPOTrainer(model, None, arguments, train_dataset=rows, processing_class=tokenizer())
    trainer.train()
    after = dict(model.named_parameters())  # with TRL's copy of the adapter as it was, 'ref'
    moved = {n for n, p in before.items() if not torch.equal(p, after[n])}
    assert moved and all(".adaptome.default." in n for n in moved)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert abs(losses[0] - 0.6931) < 1e-3 and losses[-1] < losses[0]  # ln 2 where it still is its reference
