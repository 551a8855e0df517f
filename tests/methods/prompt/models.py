"""Tiny transformers of every kind that prompts are checked on, in float64, with weights large enough that attention is not flat."""

from __future__ import annotations

import torch
import transformers as t
from torch import nn

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
WORDS = {"vocab_size": 32, "bos_token_id": 1, "eos_token_id": 2}
SIDES = {"image_size": 16, "patch_size": 8}
BART = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
}
TEXT = {**WORDS, **SIZE, "max_position_embeddings": 40}

DECODERS = {
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**TEXT, num_key_value_heads=2)),
    "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**TEXT, num_key_value_heads=2, sliding_window=3)),
    "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**TEXT, num_key_value_heads=2)),
    "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**TEXT, num_key_value_heads=2, head_dim=8)),
    "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**WORDS, n_embd=16, n_layer=2, n_head=4)),
    "gptj": lambda: t.GPTJForCausalLM(t.GPTJConfig(**WORDS, n_embd=16, n_layer=2, n_head=2, rotary_dim=4)),
    "opt": lambda: t.OPTForCausalLM(t.OPTConfig(**TEXT, ffn_dim=24, word_embed_proj_dim=16)),
    "bloom": lambda: t.BloomForCausalLM(t.BloomConfig(**WORDS, hidden_size=16, n_layer=2, n_head=4)),
}  # fmt: skip
ENCODERS = {
    "bert": lambda: t.BertForSequenceClassification(t.BertConfig(**TEXT)),
    "roberta": lambda: t.RobertaForSequenceClassification(t.RobertaConfig(**TEXT, pad_token_id=0)),
    "distilbert": lambda: t.DistilBertForSequenceClassification(
        t.DistilBertConfig(vocab_size=32, dim=16, n_layers=2, n_heads=4, hidden_dim=24)
    ),
}
TWO_SIDED = {
    "t5": lambda: t.T5ForConditionalGeneration(
        t.T5Config(vocab_size=32, d_model=16, d_kv=4, num_heads=4, num_layers=2, d_ff=24, decoder_start_token_id=2)
    ),
    "bart": lambda: t.BartForConditionalGeneration(t.BartConfig(vocab_size=32, encoder_ffn_dim=24, decoder_ffn_dim=24, forced_eos_token_id=None, **BART)),
}  # fmt: skip
IMAGES = {
    "vit": lambda: t.ViTModel(t.ViTConfig(**SIZE, **SIDES)),
    "deit": lambda: t.DeiTModel(t.DeiTConfig(**SIZE, **SIDES)),
    "clip": lambda: t.CLIPVisionModel(t.CLIPVisionConfig(**SIZE, **SIDES)),
    "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, **SIDES)),
    "ast": lambda: t.ASTModel(t.ASTConfig(**SIZE, max_length=40, num_mel_bins=32)),
    "swin": lambda: t.SwinModel(t.SwinConfig(image_size=16, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)),
}  # fmt: skip
ALL = {**DECODERS, **ENCODERS, **TWO_SIDED, **IMAGES}

IDS = torch.tensor([[1, 9, 4, 17, 30, 5, 11], [1, 8, 8, 3, 21, 19, 6]])


def tiny(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A model, always the same one."""
    torch.manual_seed(0)
    model = ALL[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3) if parameter.dim() > 1 else parameter.add_(
                0.1 * torch.randn_like(parameter)
            )
    return model.to(dtype)


def picture(name: str) -> torch.Tensor:
    """An input of an image model, or a sound of the one for sounds."""
    generator = torch.Generator().manual_seed(3)
    shape = (2, 40, 32) if name == "ast" else (2, 3, 16, 16)
    return torch.randn(shape, dtype=torch.float64, generator=generator)
