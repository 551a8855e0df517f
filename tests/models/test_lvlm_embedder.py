"""A vision-language model as an embedder: where it starts, what it sees, what its losses reach, and its counts at full size."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import adaptome as ad
from adaptome.core.errors import ModelError
from adaptome.models.lvlm_embedder import NOTHING, LvlmEmbedder, variance_curve
from adaptome.objectives import Seen, get_objective
from adaptome.recipe import load_recipe

TEXT = {"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}  # fmt: skip
VISION = {"model_type": "clip_vision_model", "image_size": 12, "patch_size": 6, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 16}  # fmt: skip
LLAVA = {"model_type": "llava", "image_token_index": 3, "image_seq_length": 4, "vision_feature_layer": -1, "text_config": TEXT, "vision_config": VISION}  # fmt: skip
IMAGE_PROMPT, TEXT_PROMPT = [10, 11, 12], [13, 14]


def embedder(**settings) -> LvlmEmbedder:
    torch.manual_seed(0)
    return LvlmEmbedder.from_settings(
        lvlm={"from_config": LLAVA}, image_prompt=IMAGE_PROMPT, text_prompt=TEXT_PROMPT, **settings
    ).eval()


def batch(caption: tuple[int, ...] = (), pad: int = 0, rows: int = 2) -> dict[str, torch.Tensor]:
    """Four places of a picture, the prompt, a long caption and padding; and a text each."""
    torch.manual_seed(1)
    ids = torch.tensor([[3] * 4 + IMAGE_PROMPT + list(caption) + [0] * pad] * rows)
    slots = torch.tensor([[-1] * 4 + [0, 1, 2] + [-1] * (len(caption) + pad)] * rows)
    targets = torch.tensor([[NOTHING] * 7 + list(caption) + [NOTHING] * pad] * rows)
    mask = torch.ones_like(ids)
    if pad:
        mask[:, -pad:] = 0
    texts = torch.arange(20, 20 + 3 * rows).view(rows, 3)
    text_ids = torch.cat([texts, torch.tensor([TEXT_PROMPT] * rows)], 1)
    return {
        "input_ids": ids, "attention_mask": mask, "slots": slots, "summary": torch.full((rows,), 6), "targets": targets,
        "text_ids": text_ids[:, None], "text_mask": torch.ones_like(text_ids)[:, None],
        "text_slots": torch.tensor([[-1, -1, -1, 0, 1]] * rows)[:, None], "pixel_values": torch.randn(rows, 3, 12, 12),
    }  # fmt: skip


def adapted(model: LvlmEmbedder) -> LvlmEmbedder:
    ad.attach(model, "lora", targets="lvlm.model.language_model.all-linear", r=2)
    ad.attach(model, "trainable-tokens", "prompts", targets=["prompts.image", "prompts.text"])
    ad.activate(model, ["default", "prompts"])
    return model


def test_it_starts_as_the_hand_prompted_model_bit_for_bit():
    model, given = embedder(), batch((21, 22, 23))
    plain = model.lvlm.model(
        input_ids=given["input_ids"],
        attention_mask=given["attention_mask"],
        pixel_values=given["pixel_values"],
    ).last_hidden_state
    before = model(**given)
    assert torch.equal(before["image_embeds"], plain[:, 6])
    text = model.lvlm.model(input_ids=given["text_ids"][:, 0]).last_hidden_state[:, -1]
    assert torch.equal(before["text_embeds"], text)
    after = adapted(model)(**given)
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(".D.0"):
                value.add_(0.5)
    moved = model(**given)
    assert not torch.allclose(moved["image_embeds"], before["image_embeds"], atol=1e-3)


def test_the_summary_does_not_see_what_is_written_after_it():
    model = adapted(embedder())
    alone = model(**batch())["image_embeds"]
    for caption, pad in (((21, 22, 23), 0), ((40,), 3), ((), 5)):
        torch.testing.assert_close(model(**batch(caption, pad))["image_embeds"], alone, atol=1e-5, rtol=0)
    given = batch()
    left = {**given}
    for name, value in (("input_ids", 0), ("attention_mask", 0), ("slots", -1), ("targets", NOTHING)):
        left[name] = F.pad(given[name], (2, 0), value=value)
    left["summary"] = given["summary"] + 2
    left["position_ids"] = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)
    torch.testing.assert_close(model(**left)["image_embeds"], alone, atol=1e-5, rtol=0)


def test_each_long_token_is_told_once_the_first_by_the_summary():
    model, caption = embedder(), (21, 22, 23)
    given = batch(caption, pad=2)
    made = model(**given)
    assert made["caption_tokens"].tolist() == [3, 3]
    logits = model.lvlm(
        input_ids=given["input_ids"],
        attention_mask=given["attention_mask"],
        pixel_values=given["pixel_values"],
    ).logits
    told = logits[:, 6:9].log_softmax(-1)  # the summary stands at 6
    right = -told[:, torch.arange(3), list(caption)].sum(1)
    torch.testing.assert_close(made["caption_nll"], right)
    value = get_objective("next-token").value(made, given, Seen(model))
    torch.testing.assert_close(value, right.sum() / 6)


def test_the_contrastive_term_is_two_cross_entropies():
    term = get_objective("info-nce", left="image_embeds", right="text_embeds", temperature=0.1)
    torch.manual_seed(0)
    u, v = torch.randn(5, 8), torch.randn(5, 8)
    S = F.normalize(u, dim=-1) @ F.normalize(v, dim=-1).T / 0.1
    right = F.cross_entropy(S, torch.arange(5)) + F.cross_entropy(S.T, torch.arange(5))
    own = 2 * term.value({"image_embeds": u, "text_embeds": v}, {}, Seen(torch.nn.Identity()))
    other = 2 * term.value({"image_embeds": v, "text_embeds": u}, {}, Seen(torch.nn.Identity()))
    torch.testing.assert_close(own, right)
    torch.testing.assert_close(own, other)
    same = torch.ones(5, 8)
    level = 2 * term.value({"image_embeds": same, "text_embeds": same}, {}, Seen(torch.nn.Identity()))
    assert float(level) == pytest.approx(2 * math.log(5), rel=1e-6)


def test_each_term_reaches_the_prompts_that_it_should_and_nothing_frozen():
    model = adapted(embedder()).train()
    tables = {"image": model.prompts["image"], "text": model.prompts["text"]}
    contrast = get_objective("info-nce", left="image_embeds", right="text_embeds")
    for term, reached in ((contrast, {"image", "text"}), (get_objective("next-token"), {"image"})):
        model.zero_grad()
        given = batch((21, 22))
        term.value(model(**given), given, Seen(model)).backward()
        rows = [
            p.grad
            for n, p in model.named_parameters()
            if ".D." in n and p.grad is not None and bool(p.grad.any())
        ]
        assert len(rows) == len(reached), term.name
        assert {r.shape[0] for r in rows} == {tables[name].num_embeddings for name in reached}
        base = [n for n, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
        assert not base


def test_it_writes_as_the_base_where_the_adapters_are_off():
    model, given = embedder(), batch()
    asked = {"pixel_values": given["pixel_values"], "most": 6}
    base = model.answer(given["input_ids"], given["attention_mask"], **asked)
    adapted(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    changed = model.answer(given["input_ids"], given["attention_mask"], **asked)
    assert not torch.equal(changed, base)
    with ad.disabled(model):
        assert torch.equal(model.answer(given["input_ids"], given["attention_mask"], **asked), base)


def test_counts_at_full_size_are_those_of_the_paper():
    recipe = load_recipe("vladva-llava")
    with torch.device("meta"):
        model = LvlmEmbedder.from_settings(
            weights=False,
            lvlm={"from_config": {"model_type": "llava"}},
            image_prompt=[1] * 15,
            text_prompt=[1] * 15,
        )
    lora, prompts = recipe.methods
    assert ad.attach(model, lora.name, targets=lora.targets, **lora.settings).trainable == 39_976_960
    vision = ("vision_tower", "multi_modal_projector")
    assert not [
        n for n, p in model.named_parameters() if p.requires_grad and any(part in n for part in vision)
    ]
    plan = ad.attach(model, prompts.name, "prompts", targets=prompts.targets, **prompts.settings)
    assert plan.trainable == 2 * 15 * 4096 == 122_880


def test_counts_of_qwen2_vl_at_full_size():
    text = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936}  # fmt: skip
    vision = {"hidden_size": 1536, "embed_dim": 1280, "depth": 32, "num_heads": 16}
    with torch.device("meta"):
        model = LvlmEmbedder.from_settings(
            weights=False, lvlm={"from_config": {"model_type": "qwen2_vl", "text_config": text, "vision_config": vision}},
            image_prompt=[1], text_prompt=[1],
        )  # fmt: skip
    lora = load_recipe("vladva-llava").methods[0]
    assert ad.attach(model, lora.name, targets=lora.targets, **lora.settings).trainable == 18_464_768


def test_diagnostics_on_known_matrices():
    torch.manual_seed(0)
    low = torch.randn(50, 3) @ torch.randn(3, 20)
    curve = variance_curve(low)
    assert (
        curve[1] < 0.999 and curve[2] == pytest.approx(1, abs=1e-6) and bool((curve.diff() >= -1e-12).all())
    )
    model = embedder()
    flat = model.entropy(torch.zeros(2, 16))
    assert flat.tolist() == pytest.approx([math.log(64)] * 2, rel=1e-5)
    assert float(model.entropy(1e4 * model.lvlm.lm_head.weight[:1])[0]) < 0.1


def test_a_folder_holds_it_and_trained_prompts_keep_their_words(tmp_path):
    model = embedder()
    model.change_prompts([1, 2], [3])
    assert model.prompts["image"].num_embeddings == 2
    with torch.no_grad():
        model.prompts["image"].weight.fill_(0.1)
    with pytest.raises(ModelError, match="trained from other words"):
        model.change_prompts([1], [3])
    model.save_pretrained(tmp_path)
    again = LvlmEmbedder.from_pretrained(tmp_path)
    assert torch.equal(again.prompts["image"].weight, model.prompts["image"].weight)
    with pytest.raises(ModelError, match="neither can be empty"):
        LvlmEmbedder.from_settings(lvlm={"from_config": LLAVA})
