"""One small model of each family, whose blocks differ in where norms, sums and dropout stand; in float64, in eval mode."""

from __future__ import annotations

import functools
import warnings

import torch
import transformers as T
from torch import Tensor, nn

SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
GPT = dict(n_embd=16, n_layer=2, n_head=2, vocab_size=32, bos_token_id=1, eos_token_id=2)
IMAGE = dict(image_size=8, patch_size=4)
AST = dict(**SIZES, max_length=40, num_mel_bins=32)

FAMILIES = {
    "bert": lambda: T.BertModel(T.BertConfig(**SIZES, vocab_size=32), add_pooling_layer=False),
    "roberta": lambda: T.RobertaModel(T.RobertaConfig(**SIZES, vocab_size=32), add_pooling_layer=False),
    "gpt2": lambda: T.GPT2Model(T.GPT2Config(**GPT)),
    "llama": lambda: T.LlamaModel(T.LlamaConfig(**SIZES, vocab_size=32)),
    "bloom": lambda: T.BloomModel(T.BloomConfig(hidden_size=16, n_layer=2, n_head=2, vocab_size=32)),
    "opt": lambda: T.OPTModel(
        T.OPTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=24, vocab_size=32, word_embed_proj_dim=16)
    ),
    "gpt-j": lambda: T.GPTJModel(T.GPTJConfig(**GPT, rotary_dim=4)),
    "t5": lambda: T.T5EncoderModel(T.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=32)),
    "vit": lambda: T.ViTModel(T.ViTConfig(**SIZES, **IMAGE), add_pooling_layer=False),
    "clip": lambda: T.CLIPVisionModel(T.CLIPVisionConfig(**SIZES, **IMAGE)),
    "swin": lambda: T.SwinModel(
        T.SwinConfig(embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=2, image_size=16, patch_size=4, drop_path_rate=0.0),
        add_pooling_layer=False,
    ),
    "ast": lambda: T.ASTModel(T.ASTConfig(**AST)),
    "wav2vec2": lambda: T.Wav2Vec2Model(
        T.Wav2Vec2Config(**SIZES, conv_dim=(8, 8), conv_stride=(4, 4), conv_kernel=(4, 4), num_feat_extract_layers=2,
                         num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)
    ),
}  # fmt: skip


class Sublayer(nn.Module):
    """A module of one map."""

    def __init__(self, width: int):
        super().__init__()
        self.map = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x)


@functools.cache
def _prototype(family: str) -> nn.Module:
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        model = FAMILIES[family]()
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "original" not in name:
                    value.add_(0.1 * torch.randn_like(value))
    return model.double().eval()


def family(name: str) -> nn.Module:
    """A fresh copy."""
    model = _fresh(name)
    model.load_state_dict(_prototype(name).state_dict())
    return model


def _fresh(name: str) -> nn.Module:
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FAMILIES[name]().double().eval()


def inputs(name: str) -> dict[str, Tensor]:
    """What the family's model is called with: two samples."""
    generator = torch.Generator().manual_seed(5)
    if name in ("vit", "clip", "swin"):
        size = 16 if name == "swin" else 8
        return {"pixel_values": torch.randn(2, 3, size, size, dtype=torch.float64, generator=generator)}
    if name in ("ast", "wav2vec2"):
        shape = (2, 40, 32) if name == "ast" else (2, 160)
        return {"input_values": torch.randn(*shape, dtype=torch.float64, generator=generator)}
    return {"input_ids": torch.randint(32, (2, 6), generator=generator)}


def run(model: nn.Module, name: str) -> Tensor:
    """The last hidden state without gradient."""
    with torch.no_grad():
        return model(**inputs(name)).last_hidden_state
