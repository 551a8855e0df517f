"""The story decoder: counts of the paper, what the retrofit may change and what not, and drawing against the whole forward."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from adaptome.core.errors import RecipeError
from adaptome.models.picture_codes import CellCodes, CellSettings, VqCodes
from adaptome.models.picture_decoder import Block, Story
from adaptome.models.story_decoder import StoryDecoder, drawn
from adaptome.recipe import load_recipe

SMALL = {"layers": 4, "width": 16, "heads": 2, "words": 20, "text_length": 6, "cells": {"cells": 3, "levels": 2, "size": 2}, "sentence_width": 5, "source_layers": [1, 3], "prompts": 2, "prompt_dropout": 0.0}  # fmt: skip


def model(**more):
    torch.manual_seed(0)
    return StoryDecoder.from_settings(**{**SMALL, **more}).double().eval()


def story(seed=0, stories=2, frames=3):
    drawn = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(0, 20, (stories, frames, 6), generator=drawn),
        "codes": torch.randint(0, 8, (stories, frames, 9), generator=drawn), "source": torch.randint(0, 8, (stories, 9), generator=drawn),
        "sentences": torch.randn(stories, frames, 5, generator=drawn, dtype=torch.float64),
    }  # fmt: skip


def awake(made):
    for look in made.sources.values():
        torch.nn.init.normal_(look.attention.out_proj.weight, std=0.3)
    return made


def test_counts_are_the_papers():
    settings = {
        k: v
        for k, v in load_recipe("storydalle-pororo").model.settings.items()
        if k not in ("pictures", "sentences", "tokenizer")
    }
    with torch.device("meta"):
        made = StoryDecoder.from_settings(
            **{**settings, "words": 16384}, codes=16384, length=256, sentence_width=512
        )
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in made.named_children()}
    assert count["decoder"] == 1_291_081_728
    assert len(made.sources) == 14 and count["sources"] == 132_292_608
    assert count["story"] == 28_331_520 + 787_968 and count["prompt"] == 4_770_816
    new = count["sources"] + count["story"] + count["prompt"]
    assert new == 166_182_912 and sum(count.values()) == 1_457_264_640
    embeddings = sum(
        p.numel() for n, p in made.decoder.named_parameters() if "embedding" in n or "positions" in n
    )
    assert new + embeddings + 9 * 1536 == 217_019_904


def test_looks_change_nothing_at_the_start_and_without_prefix_it_is_the_base():
    made, given = model(prompts=0, sentence_width=None), story()
    made.retrofit = False
    base = made(**given)["logits"]
    made.retrofit = True
    assert torch.equal(made(**given)["logits"], base)
    made = model()
    given = story()
    prefix = made.prefix(given["input_ids"], given["sentences"])
    assert prefix.shape == (6, 2 + 1 + 6, 16)
    x = torch.cat([prefix, made.decoder.image(given["codes"].flatten(0, 1)[:, :-1])], 1)
    hidden, _ = made.run(x, {}, 0)  # the base on the same embeddings
    torch.testing.assert_close(made(**given)["logits"].flatten(0, 1), made.decoder.image_head(hidden[:, 8:]))


def test_it_is_its_equations():
    """One story of one frame, written out: positions, blocks, looks from the last text position on, and both losses."""
    made, given = awake(model()), story(stories=1, frames=1)
    d = made.decoder
    g = made.story(given["sentences"])[0]
    before = torch.cat([made.prompt(), g]) + d.text_positions.weight[:3]
    text = d.text_embedding(given["input_ids"][0, 0]) + d.text_positions.weight
    image = d.image_embedding(given["codes"][0, 0, :-1]) + d.image_positions.weight[:8]
    x, s = torch.cat([before, text, image]), d.image_embedding(given["source"][0]) + d.image_positions.weight

    def attention(layer, q_in, k_in, causal):
        split = [
            p(v).view(-1, 2, 8).transpose(0, 1)
            for p, v in ((layer.q_proj, q_in), (layer.k_proj, k_in), (layer.v_proj, k_in))
        ]
        scores = split[0] @ split[1].mT / 8**0.5
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), -torch.inf)
        return layer.out_proj((scores.softmax(-1) @ split[2]).transpose(0, 1).flatten(1))

    for i, block in enumerate(d.blocks):
        x = x + attention(block.attention, block.attention_norm(x), block.attention_norm(x), True)
        if i in (1, 3):
            look = made.sources[str(i)]
            added = attention(look.attention, look.query_norm(x), look.context_norm(s), False)
            x = x + added * (torch.arange(len(x)) >= 3 + 6 - 1).double()[:, None]
        x = x + block.fc2(F.gelu(block.fc1(block.mlp_norm(x))))
    x = d.norm(x)
    image_loss = F.cross_entropy(d.image_head(x[3 + 6 - 1 :]), given["codes"][0, 0])
    text_loss = F.cross_entropy(d.text_head(x[3 : 3 + 5]), given["input_ids"][0, 0, 1:])
    found = made(**given)
    torch.testing.assert_close(found["image_loss"], image_loss.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["text_loss"], text_loss.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["loss"], (image_loss + text_loss).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prompts", [0, 2])
def test_the_same_tokens_are_scored_however_many_prompts(prompts):
    made, given = model(prompts=prompts), story()
    assert made(**given)["logits"].shape == (2, 3, 9, 8)  # 9 codes, and 5 words after the first, a frame
    made.decoder.text_head.weight.data.zero_()
    made.decoder.image_head.weight.data.zero_()
    found = made(**given)
    assert found["image_loss"].item() == pytest.approx(torch.log(torch.tensor(8.0)).item(), rel=1e-5)
    assert found["text_loss"].item() == pytest.approx(torch.log(torch.tensor(20.0)).item(), rel=1e-5)


def test_the_source_reaches_pictures_and_no_text():
    made, given = awake(model()), story()
    other = {**given, "source": (given["source"] + 1) % 8}
    one, two = made(**given), made(**other)
    assert (
        torch.equal(one["text_loss"], two["text_loss"])
        and (one["logits"] - two["logits"]).abs().min(-1).values.max() > 0
    )
    seen = []
    for source in (given["source"], other["source"]):
        prefix = made.prefix(given["input_ids"], given["sentences"])
        hidden, _ = made.run(prefix, made.looked_at(source, 3), prefix.shape[1] - 1)
        seen.append(hidden)
    assert torch.equal(seen[0][:, :-1], seen[1][:, :-1]) and not torch.equal(seen[0][:, -1], seen[1][:, -1])


@pytest.mark.parametrize("causal", [True, False])
def test_a_story_token_has_read_the_captions_before_it(causal):
    torch.manual_seed(0)
    made = Story(16, 2, 5, causal).double()
    sentences = torch.randn(1, 3, 5, dtype=torch.float64)
    later = sentences.clone()
    later[:, 2] += 1
    one, two = made(sentences), made(later)
    assert torch.equal(one[:, :2], two[:, :2]) == causal and not torch.equal(one[:, 2], two[:, 2])


def test_sentence_vectors_have_no_dropout_whichever_side_is_padded():
    config = {"model_type": "bert", "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "hidden_dropout_prob": 0.5}  # fmt: skip
    made = model(sentences={"from_config": config}, sentence_width=None)
    ids, mask = torch.tensor([[5, 6, 7, 0]]), torch.tensor([[1, 1, 1, 0]])
    plain = made.sentence_embeddings(ids, mask)
    made._sentences.clear()
    made.train()
    assert made.training and torch.equal(made.sentence_embeddings(ids, mask), plain)
    made._sentences.clear()
    assert torch.equal(made.sentence_embeddings(ids.roll(1), mask.roll(1)), plain)


def test_drawing_code_by_code_is_the_forward():
    """Greedy codes are what the whole forward's logits say of them, position by position, to 1e-9."""
    made, given = awake(model()), story()
    codes = made.draw(given["input_ids"], given["source"], sentences=given["sentences"], top_k=1)
    logits = made(**{**given, "codes": codes})["logits"]
    assert torch.equal(logits.argmax(-1), codes)
    before = made.prefix(given["input_ids"], given["sentences"])
    looks = made.looked_at(given["source"], 3)
    hidden, caches = made.run(before, looks, before.shape[1] - 1)
    for place in range(3):
        torch.testing.assert_close(
            made.decoder.image_head(hidden[:, -1]), logits.flatten(0, 1)[:, place], rtol=0, atol=1e-9
        )
        x = made.decoder.image(codes.flatten(0, 1)[:, place : place + 1], place)
        hidden, caches = made.run(x, looks, 0, caches)


def test_codes_are_drawn_among_the_likeliest():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(400, 1)
    torch.manual_seed(0)
    assert set(drawn(logits, 2, 1.0, 1, None).tolist()) == {0, 1}
    assert set(drawn(logits, 4, 0.6, 1, None).tolist()) == {0, 1}
    assert set(drawn(logits, 4, 1.0, 1, None).tolist()) == {0, 1, 2, 3}
    # the share is of those that are left: the first has 0.5 of all, and 0.625 of two
    assert set(drawn(logits, 2, 0.55, 1, None).tolist()) == {0}
    twice = [
        drawn(logits[:4], 4, 1.0, 2, [torch.Generator().manual_seed(s) for s in (1, 2)]).tolist()
        for _ in range(2)
    ]
    assert twice[0] == twice[1]


def test_gradients_reach_the_looks_also_from_zero():
    """The released code kept these layers in a list, out of what trains and is saved; here they learn, and are in the state."""
    made, given = model(), story()
    made.requires_grad_(True)
    made(**given)["loss"].backward()
    assert all(look.attention.out_proj.weight.grad.any() for look in made.sources.values())
    assert {"sources.1.attention.q_proj.weight", "sources.3.attention.out_proj.bias"} <= set(
        made.state_dict()
    )


def test_pictures_become_codes_and_back():
    cells = CellCodes(CellSettings(cells=3, levels=3, size=2))
    codes = torch.randint(0, 27, (2, 9))
    assert torch.equal(cells.encode(cells.decode(codes)), codes) and cells.side == 6
    import diffusers

    torch.manual_seed(0)
    vq = VqCodes(diffusers.VQModel(block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=3, num_vq_embeddings=8, norm_num_groups=2, sample_size=8))  # fmt: skip
    pixels = torch.rand(2, 3, 8, 8) * 2 - 1
    found = vq.encode(pixels)
    assert found.shape == (2, 16) and vq.length == 16 and vq.count == 8
    wanted = vq.model(pixels).sample
    torch.testing.assert_close(vq.decode(found), wanted, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_told():
    for wrong, said in (({"cells": None}, "how pictures become codes"), ({"heads": 3}, "3 heads"), ({"source_layers": [4]}, "none of the blocks"), ({"prompts": 6}, "text_length is 6")):  # fmt: skip
        with pytest.raises(RecipeError, match=said):
            model(**wrong)


def test_a_block_has_the_sheets_size():
    assert sum(p.numel() for p in Block(16, 2).parameters()) == 12 * 16**2 + 13 * 16
