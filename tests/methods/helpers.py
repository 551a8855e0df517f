"""What the tests of methods share: one layer, adapters shaken off their start, and meta-device counts."""

from __future__ import annotations

import torch
from torch import nn

import adaptome as ad


def adapted(layer: nn.Module, method, seed: int = 0, **how):
    """A model of one layer with the method on it, in float64; (model, adapter)."""
    model = nn.Sequential(layer).double().eval()
    ad.attach(model, method, targets="0", seed=seed, **how)
    return model, next(iter(ad.adapters(model)["default"].adapters.values()))


def shake(model: nn.Module, scale: float = 0.3, seed: int = 1) -> None:
    """Move every trained number away from its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in ad.parameters_of(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * scale)


def checkpointing(model: nn.Module):
    """What lets a model of transformers recompute its activations; renamed after 5.20."""
    renamed = getattr(model, "activation_checkpointing_enable", None)
    return model.gradient_checkpointing_enable if renamed is None else renamed


def linear(fan_in: int = 12, fan_out: int = 20, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(fan_in, fan_out, bias=bias)


def batch(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def llama(hidden: int, mlp: int, layers: int, heads: int, kv: int, vocab: int = 32000) -> nn.Module:
    """A LLaMA of these sizes on the meta device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv,
        vocab_size=vocab, tie_word_embeddings=False, head_dim=128,
    )  # fmt: skip
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def llama2_7b() -> nn.Module:
    return llama(4096, 11008, 32, 32, 32)


def llama3_8b() -> nn.Module:
    return llama(4096, 14336, 32, 32, 8, 128256)


def llama32_3b() -> nn.Module:
    return llama(3072, 8192, 28, 24, 8, 128256)


def roberta(size: str = "base") -> nn.Module:
    from transformers import RobertaConfig, RobertaModel

    wide = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    with torch.device("meta"):
        return RobertaModel(
            RobertaConfig(vocab_size=50265, **(wide if size == "large" else {})), add_pooling_layer=False
        )
