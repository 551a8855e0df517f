"""Tiny models that the core's tests share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import adaptome as ad


class Net(nn.Module):
    """Embedding, two linear layers of unequal sides, a norm and a classifier."""

    def __init__(self, seed: int = 0, hidden: int = 12):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(20, 8)
        self.wide, self.narrow = nn.Linear(8, hidden), nn.Linear(hidden, 8, bias=False)
        self.norm = nn.LayerNorm(8)
        self.classifier = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.classifier(self.norm(x + self.narrow(torch.relu(self.wide(x)))))


IDS = torch.tensor([[1, 5, 19, 0], [7, 7, 2, 3]])


def llama(tie: bool = False, layers: int = 2) -> nn.Module:
    """A Llama of 16 dimensions, always with the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=tie,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def bert(layers: int = 2) -> nn.Module:
    """A tiny BERT with a head for 3 classes, without dropout."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=2, num_labels=3,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def move(model: nn.Module, name: str = "default", seed: int = 5, std: float = 0.2) -> None:
    """Draw an adapter's trained tensors away from their start, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in ad.parameters_of(model, name).values():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator).to(parameter))


def run(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    """Its output (or logits), without gradient."""
    with torch.no_grad():
        output = model(ids)
    return output if isinstance(output, Tensor) else output.logits


def snapshot(model: nn.Module) -> dict[str, object]:
    """Everything an operation that failed must have left as it was: bits, classes, attributes, what trains."""
    return {
        "bits": {k: v.clone() for k, v in model.state_dict().items()},
        "classes": [type(m) for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "trains": [p.requires_grad for p in model.parameters()],
    }


def same(a: dict[str, object], b: dict[str, object]) -> bool:
    """Whether two snapshots are equal."""
    bits_a, bits_b = a["bits"], b["bits"]
    assert isinstance(bits_a, dict) and isinstance(bits_b, dict)
    return (
        bits_a.keys() == bits_b.keys()
        and all(torch.allclose(bits_a[k], bits_b[k], rtol=0, atol=0, equal_nan=True) for k in bits_a)
        and all(a[k] == b[k] for k in a if k != "bits")
    )
