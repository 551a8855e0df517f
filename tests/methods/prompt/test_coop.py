"""CoOp: context vectors among words (arXiv:2109.01134), and soft prompts between hard ones."""

import copy

import pytest
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

import adaptome as ad
from adaptome.core.errors import MethodError, StateError
from adaptome.methods.prompt.coop import placeholders, texts
from tests.methods.helpers import shake
from tests.methods.prompt.models import IDS, TEXT, tiny

START, END, PAD = [30], [31], 0
NAMES = [[5], [6, 7], [8, 9, 10]]
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def clip():
    torch.manual_seed(0)
    config = CLIPTextConfig(**{**TEXT, "bos_token_id": 30, "eos_token_id": 31})
    model = CLIPTextModel(config).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model


def contexts(model, name="default"):
    return next(iter(ad.adapters(model)[name].adapters.values())).C


def with_longer_table(model, rows):
    """The bare model with the vectors as rows of its table, from id 32 on."""
    model = copy.deepcopy(model)
    table = model.get_input_embeddings()
    longer = nn.Embedding.from_pretrained(torch.cat([table.weight, rows.detach()]))
    model.set_input_embeddings(longer)
    return model


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("classes", [1, 3])
def test_it_is_clip_with_the_vectors_as_words(position, classes):
    model, p = clip(), 4
    ad.attach(model, "coop", p=p, classes=classes, seed=0)
    shake(model, 0.5)
    inputs = texts(model, NAMES, START, END, PAD, position)
    with torch.no_grad():
        seen = model(**inputs).pooler_output
    rows = []
    for number, name in enumerate(NAMES):
        own = [32 + (number if classes > 1 else 0) * p + j for j in range(p)]
        middle = {"end": own + name, "front": name + own, "middle": own[:2] + name + own[2:]}[position]
        rows.append(START + middle + END)
    with torch.no_grad():
        for row, want in zip(rows, seen, strict=True):
            alone = with_longer_table(clip(), contexts(model))(torch.tensor([row])).pooler_output[0]
            torch.testing.assert_close(want, alone, **CLOSE)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (3, p + 3 + 2)


def test_only_the_used_contexts_have_a_gradient_and_other_text_is_the_bases():
    model = clip()
    ad.attach(model, "coop", p=2, classes=3)
    inputs = texts(model, NAMES, START, END, PAD)
    model(
        input_ids=inputs["input_ids"][:1], attention_mask=inputs["attention_mask"][:1]
    ).pooler_output.square().sum().backward()
    assert contexts(model).grad[:2].all() and not contexts(model).grad[2:].any()
    plain = torch.tensor([[30, 5, 6, 31]])
    assert torch.equal(model(plain).pooler_output, clip()(plain).pooler_output)


def test_it_starts_from_words_bit_for_bit():
    model = clip()
    ad.attach(model, "coop", p=4, classes=3)
    ad.prompt_from(model, [9, 8, 7, 6])
    assert torch.equal(contexts(model), clip().get_input_embeddings().weight[[9, 8, 7, 6] * 3])
    inputs = texts(model, NAMES, START, END, PAD)
    words = inputs["input_ids"].clone()
    words[:, 1:5] = torch.tensor([9, 8, 7, 6])
    assert torch.equal(model(**inputs).pooler_output, clip()(words, inputs["attention_mask"]).pooler_output)
    with pytest.raises(MethodError, match="p=2"):
        ad.prompt_from(model, [1, 2])


def test_soft_prompts_stand_between_hard_ones_in_a_decoder_and_generate():
    model = tiny("llama", torch.float32)
    ad.attach(model, "coop", p=3, placeholders=32, seed=0)
    shake(model, 0.5)
    assert placeholders(model).tolist() == [[32, 33, 34]]
    ids = torch.cat([IDS[:, :3], placeholders(model).expand(2, -1), IDS[:, 3:]], 1)
    other = with_longer_table(tiny("llama", torch.float32), contexts(model))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, other(ids).logits)
    how = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(model.generate(ids, **how), model.generate(ids, use_cache=False, **how))


def test_the_state_at_the_last_soft_prompt_is_blind_to_what_follows():
    model = tiny("llama")
    ad.attach(model, "coop", p=2)
    start = torch.cat([IDS, placeholders(model).expand(2, -1)], 1)
    longer = torch.cat([start, IDS.flip(1)], 1)
    with torch.no_grad():
        one, two = (model.model(ids).last_hidden_state[:, 8] for ids in (start, longer))
    torch.testing.assert_close(one, two, **CLOSE)


def test_two_tables_of_vectors_have_ids_of_their_own():
    model = tiny("llama")
    ad.attach(model, "coop", "image", p=2, seed=0)
    ad.attach(model, "coop", "text", p=2, placeholders=-2000, seed=1)
    ids = torch.cat([placeholders(model, "image"), IDS[:1], placeholders(model, "text")], 1)
    model(ids).logits.square().sum().backward()
    assert contexts(model, "image").grad.any() and contexts(model, "text").grad.any()
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(embedded[0, :2], contexts(model, "image")) and torch.equal(
        embedded[0, -2:], contexts(model, "text")
    )


def test_mistakes_are_told():
    model = clip()
    with pytest.raises(MethodError, match="reach those that labels use"):
        ad.attach(model, "coop", p=4, placeholders=-102)
    ad.attach(model, "coop", p=4, classes=2)
    with pytest.raises(MethodError, match="2 contexts and was given 3 names"):
        texts(model, NAMES, START, END, PAD)
    ad.attach(model, "lora", "other")
    with pytest.raises(MethodError, match="lora, which has no placeholders"):
        placeholders(model, "other")
    with pytest.raises(StateError):
        placeholders(model, "nothing")


def test_counts_are_the_papers():
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(hidden_size=512))
    assert ad.plan(model, "coop").trainable == 16 * 512 == 8_192
    assert ad.plan(model, "coop", classes=100).trainable == 819_200
