"""Prompts on bases that are not plain: quantised, offloaded by name, and inside other models."""

import pytest
import torch
from torch import nn

import adaptome as ad
from tests.methods.helpers import shake
from tests.methods.prompt.models import IDS, tiny

LANGUAGE = ["prompt-tuning", "p-tuning", "prefix-tuning", "llama-adapter", "coop"]


@pytest.mark.parametrize("method", LANGUAGE)
def test_a_quantised_base_trains_saves_and_loads(method, tmp_path):
    ao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")

    def fresh():
        model = tiny("llama", torch.float32)
        ao.quantize_(
            model,
            ao.Int8WeightOnlyConfig(),
            filter_fn=lambda m, name: isinstance(m, nn.Linear) and "head" not in name,
        )
        return model

    model, ids = fresh(), torch.cat([IDS, torch.full((2, 1), 32)], 1) if method == "coop" else IDS
    ad.attach(model, method, p=3, **({"placeholders": 32} if method == "coop" else {}))
    shake(model, 0.3)
    model(input_ids=ids).logits.square().sum().backward()
    ad.check_gradients(model)
    ad.save(model, tmp_path / "a")
    other = fresh()
    ad.load(other, tmp_path / "a")
    with torch.no_grad():
        assert torch.equal(other(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("method", LANGUAGE[:4])
def test_a_backbone_alone_keeps_its_name_and_its_hidden_states(method, tmp_path):
    model = tiny("llama", torch.float32).model
    ad.attach(model, method, p=3)
    shake(model, 0.3)
    states = model(input_ids=IDS, output_hidden_states=True).hidden_states
    assert [state.shape for state in states] == [(2, 7, 16)] * 3
    model.save_pretrained(tmp_path)
    base = type(tiny("llama").model).from_pretrained(tmp_path)
    assert base.config.architectures == ["LlamaModel"]
    with torch.no_grad(), ad.disabled(model):
        assert torch.equal(base(input_ids=IDS).last_hidden_state, model(input_ids=IDS).last_hidden_state)


def test_llava_takes_a_prompt_in_its_language_model():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    torch.manual_seed(0)
    config = LlavaConfig(
        text_config=LlamaConfig(vocab_size=40, bos_token_id=1, eos_token_id=2, **size),
        vision_config=CLIPVisionConfig(image_size=16, patch_size=8, **size), image_token_id=33,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    ids = torch.tensor([[1, 33, 33, 33, 33, 5, 6, 7]])
    inputs = {
        "input_ids": ids,
        "pixel_values": torch.randn(1, 3, 16, 16),
        "attention_mask": torch.ones_like(ids),
    }
    before = model(**inputs).logits
    ad.attach(model, "prompt-tuning", "prompt", p=3, targets="*language_model")
    ad.attach(model, "coop", "soft", p=2, placeholders=40, targets="*embed_tokens")
    shake_all(model)
    assert model(**inputs).logits.shape == before.shape
    how = {
        "max_new_tokens": 4,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
        "suppress_tokens": [33],
    }
    inputs["input_ids"] = torch.cat([ids[:, :-1], torch.tensor([[40, 41]])], 1)  # the last words are soft
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    assert torch.equal(model.generate(**inputs, **how), model.generate(**inputs, use_cache=False, **how))
    model(**inputs).logits.square().sum().backward()
    ad.check_gradients(model)


def shake_all(model):
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name in ("prompt", "soft"):
            for value in ad.parameters_of(model, name).values():
                value.add_(0.5 * torch.randn(value.shape, generator=generator))
