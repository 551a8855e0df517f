"""Layers that are skipped at random (LayerDrop) are no dead adapters."""

from __future__ import annotations

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, Wav2Vec2Config, Wav2Vec2ForCTC

import adaptome as ad
from adaptome.callbacks import after_backward
from adaptome.core.errors import GradientError


def wav2vec2(layerdrop: float) -> Wav2Vec2ForCTC:
    config = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24, vocab_size=8, conv_dim=(8, 8),
        conv_kernel=(4, 4), conv_stride=(2, 2), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, layerdrop=layerdrop,
        num_feat_extract_layers=2, mask_time_prob=0.0,
    )  # fmt: skip
    return Wav2Vec2ForCTC(config).train()


def steps(model, run, count: int, total: int) -> list[bool]:
    settled = []
    for step in range(1, count + 1):
        model.zero_grad()
        run(model).backward()
        settled.append(after_backward(model, step, total))
    return settled


def sound(model):
    return model(torch.randn(2, 64), labels=torch.tensor([[1, 2], [3, 4]])).loss


def test_speech_models():
    torch.manual_seed(0)
    model = wav2vec2(0.4)
    ad.attach(model, "lora", targets="all-linear")
    assert steps(model, sound, 8, 100)[-1]


def test_a_run_of_two_steps_tells_nothing_of_layers_that_are_skipped():
    torch.manual_seed(0)
    model = wav2vec2(0.95)
    ad.attach(model, "lora", targets="all-linear")
    assert steps(model, sound, 2, 2) == [False, False]


def test_a_model_that_skips_none_is_judged_by_its_last_step():
    model = wav2vec2(0.0)
    ad.attach(model, "lora", targets="all-linear")
    model.wav2vec2.encoder.layers[2].forward = lambda x, *args, **kwargs: x
    with pytest.raises(
        GradientError, match=r"(?s)no gradient reached 6 of \d+ adapters in 2 steps.*layers\.2"
    ):
        steps(model, sound, 2, 2)


def test_encoders_and_decoders():
    config = BartConfig(
        d_model=16, encoder_layers=6, decoder_layers=6, encoder_ffn_dim=24, decoder_ffn_dim=24, encoder_attention_heads=2,
        decoder_attention_heads=2, vocab_size=32, pad_token_id=0, encoder_layerdrop=0.2, decoder_layerdrop=0.2,
    )  # fmt: skip
    torch.manual_seed(1)
    model = BartForConditionalGeneration(config).train()
    ad.attach(model, "lora", targets="all-linear")
    ids = torch.randint(3, 32, (2, 5))
    assert steps(model, lambda m: m(input_ids=ids, labels=ids).loss, 8, 100)[-1]
