"""The finder of activations, on tiny models of today's classes."""

import pytest
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from adaptome.core.activations import mlps
from adaptome.core.errors import TargetError

SIZES = {
    "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 20,
}  # fmt: skip
T5 = {
    "d_model": 8,
    "d_ff": 12,
    "d_kv": 4,
    "num_heads": 2,
    "vocab_size": 20,
    "num_layers": 2,
    "num_decoder_layers": 3,
}


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (lambda: RobertaForSequenceClassification(RobertaConfig(**SIZES)), ["roberta.encoder.layer.{}.intermediate.intermediate_act_fn"] * 3),
        (lambda: BertForSequenceClassification(BertConfig(**SIZES)), ["bert.encoder.layer.{}.intermediate.intermediate_act_fn"] * 3),
        (lambda: LlamaForCausalLM(LlamaConfig(**SIZES)), ["model.layers.{}.mlp.act_fn"] * 3),
        (lambda: T5ForConditionalGeneration(T5Config(**T5)), ["encoder.block.{}.layer.1.DenseReluDense.act"] * 2 + ["decoder.block.{}.layer.2.DenseReluDense.act"] * 3),
        (lambda: T5ForConditionalGeneration(T5Config(**T5, feed_forward_proj="gated-gelu")), ["encoder.block.{}.layer.1.DenseReluDense.act"] * 2 + ["decoder.block.{}.layer.2.DenseReluDense.act"] * 3),
    ],
    ids=["roberta", "bert", "llama", "t5", "t5-gated"],
)  # fmt: skip
def test_finds_exactly_the_activations(model, wanted):
    found, counts = [mlp.activation for mlp in mlps(model())], {}
    paths = []
    for pattern in wanted:
        counts[pattern] = counts.get(pattern, -1) + 1
        paths.append(pattern.format(counts[pattern]))
    assert found == paths


def test_a_model_without_any_says_what_to_do():
    with pytest.raises(TargetError, match="targets=down"):
        mlps(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
