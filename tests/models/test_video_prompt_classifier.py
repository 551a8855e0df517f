"""video-prompt-classifier: starts as CLIP, log-odds of texts, streams that are missing, contexts, order of frames."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

import adaptome as ad
from adaptome.core.errors import ModelError
from adaptome.models import composite_models
from adaptome.models.context_words import is_cut, prompt_ids, text_vectors
from adaptome.models.video_prompt_classifier import log_odds, masked_softmax
from adaptome.tasks.byte_tokenizer import byte_tokenizer

pytest.importorskip("transformers")
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
CLIP = {
    "model_type": "clip", "projection_dim": 12, "vision_config": {**SMALL, "image_size": 16, "patch_size": 8},
    "text_config": {**SMALL, "vocab_size": 258, "max_position_embeddings": 32, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 0},
}  # fmt: skip
TOKENS = byte_tokenizer()
WORDS = ["up", "down now", "still"]


def built(**settings):
    torch.manual_seed(0)
    settings = {"frames": 4, "labels": 3, "context": 2, **settings}
    model = composite_models()["video-prompt-classifier"].from_settings(encoder={"from_config": CLIP}, **settings).eval()  # fmt: skip
    context = settings["context"]
    model.set_classes(*(prompt_ids(TOKENS, [p + w for w in WORDS], context) for p in ("", "no ")), bool(context))  # fmt: skip
    return model


def clips(count: int = 2, frames: int = 4, streams: int = 3):
    return torch.randn(count, streams, frames, 3, 16, 16, generator=torch.Generator().manual_seed(1))


IDS = prompt_ids(TOKENS, ["ab", "c"])


@pytest.mark.parametrize("frames", [1, 3, 4])
def test_it_starts_as_clip(frames):
    model, x = built(), clips(frames=frames)
    ad.attach(model, "aim", targets="encoder.vision_model.blocks", train=["prompts", "time"])
    with torch.no_grad():
        seen = model(x, input_ids=IDS)
        for number in range(3):
            pictures = model.encoder.get_image_features(x[:, number].flatten(0, 1)).pooler_output
            expected = F.normalize(pictures.view(2, frames, -1).mean(1), dim=-1)
            torch.testing.assert_close(seen["stream_vectors"][:, number], expected, atol=1e-5, rtol=0)
        words = F.normalize(model.encoder.get_text_features(IDS).pooler_output, dim=-1)
    torch.testing.assert_close(seen["text_embeds"], words, atol=1e-5, rtol=0)


def test_the_order_of_frames_counts_once_places_in_time_have_vectors():
    model, x = built(), clips()
    ad.attach(model, "aim", targets="encoder.vision_model.blocks", train=["time"])
    backwards = x.flip(2)
    with torch.no_grad():
        torch.testing.assert_close(model(x)["logits"], model(backwards)["logits"])
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and (".T." in name or name.startswith("time.")):
                parameter.add_(torch.randn_like(parameter) * 0.5)
        assert not torch.allclose(model(x)["logits"], model(backwards)["logits"], atol=1e-3)


def test_log_odds():
    plus, minus = torch.randn(4, 3), torch.randn(4, 3)
    share = torch.stack([plus, minus]).softmax(0)[0]
    torch.testing.assert_close(log_odds(torch.stack([plus, minus])), torch.logit(share), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(log_odds(torch.stack([minus, plus])), -log_odds(torch.stack([plus, minus])))
    model, x = built(), clips()
    alone = built(negative=False)
    with torch.no_grad():
        texts, vectors = model.classes(), model(x)["stream_vectors"]
        plain = vectors @ F.normalize(text_vectors(alone.encoder, alone.positive, alone.prompts.vectors[0]), dim=-1).T / 0.01  # fmt: skip
        torch.testing.assert_close(alone(x)["stream_logits"], plain, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(model.scores(vectors, texts[:1]), vectors @ texts[0].T / 0.01, atol=1e-3, rtol=1e-4)  # fmt: skip


@pytest.mark.parametrize("fusion", ["confidence", "learned", "attention"])
def test_missing_streams(fusion):
    model, x = built(fusion=fusion, temperature=0.3), clips()
    there = torch.tensor([[True, True, False, True], [True, False, False, False]])
    with torch.no_grad():
        seen = model(x, available=there, input_ids=IDS)
        other = x.clone()
        other[:, 2] = 7.0  # what a missing stream holds is not looked at
        torch.testing.assert_close(seen["logits"], model(other, available=there, input_ids=IDS)["logits"])
        assert torch.equal(seen["stream_weights"] > 0, there)
        torch.testing.assert_close(seen["stream_weights"].sum(1), torch.ones(2))
        torch.testing.assert_close(seen["logits"][1], seen["stream_logits"][1, 0], atol=1e-4, rtol=1e-4)
        if fusion != "attention":
            whole = model(x, input_ids=IDS)
            left = whole["stream_weights"][0] * there[0]
            torch.testing.assert_close(seen["stream_weights"][0], left / left.sum())
    with pytest.raises(ModelError, match="none of the streams"):
        model(x, available=torch.zeros(2, 4, dtype=torch.bool))


def test_the_attention_over_streams_starts_without_effect():
    model, x = built(fusion="attention"), clips()
    with torch.no_grad():
        seen = model(x, input_ids=IDS)
        mean = F.normalize(seen["stream_vectors"].mean(1), dim=-1)
        torch.testing.assert_close(seen["logits"], model.scores(mean, model.classes()))


def test_gradients_reach_context_and_no_text_encoder():
    model = built()
    ad.attach(model, "aim", targets="encoder.vision_model.blocks", train=["prompts", "time"])
    model(clips(), input_ids=IDS, labels=torch.tensor([0, 2]))["loss"].backward()
    assert model.prompts.vectors.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.encoder.text_model.parameters())
    plain = built(context=0)
    first = plain.classes()
    plain.train()
    assert torch.equal(first, plain.classes()) and not hasattr(plain, "prompts")


def test_counts_at_full_size():
    from adaptome.recipe import load_recipe
    from adaptome.tasks import get_task
    from adaptome.training.building import planned

    base = {"intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_size": 768, "patch_size": 16}  # fmt: skip
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    clip = {"model_type": "clip", "projection_dim": 512, "vision_config": base, "text_config": text}
    recipe = load_recipe("fineclipper-dfew", [f"model.encoder={json.dumps({'from_config': clip})}"])
    task = get_task(recipe.task.name, **recipe.task.settings)
    with torch.device("meta"):
        model = task.load_model(recipe.model)
    method = recipe.methods[0]
    assert planned(recipe, task, model, method, []).trainable == 2 * 10_651_392 + 12_288 + 57_344
    alone = load_recipe("fineclipper-dfew", ["method.sets=[]"]).methods[0]
    assert planned(recipe, task, model, alone, []).trainable == 10_651_392 + 12_288 + 57_344


def test_prompts():
    ids = prompt_ids(TOKENS, ["ab", "c"], context=2)
    assert ids.shape == (2, 6) and (ids[:, 0] == 0).all() and ids[0, -1] == 1 and (ids[1, 4:] == 1).all()
    short = prompt_ids(TOKENS, ["abcdef"], context=2, longest=7)
    assert short.shape == (1, 7) and short[0, -1] == 1
    assert is_cut(TOKENS, "x" * 31, 32) and not is_cut(TOKENS, "x" * 30, 32)
    with pytest.raises(ModelError, match="leave no room"):
        prompt_ids(TOKENS, ["a"], context=30, longest=32)


def test_a_saved_model_is_the_same(tmp_path):
    model, x = built(fusion="learned"), clips()
    model.save_pretrained(tmp_path / "m")
    again = composite_models()["video-prompt-classifier"].from_pretrained(tmp_path / "m").eval()
    with pytest.raises(ModelError, match="knows no classes yet"):
        again(x)
    again.set_classes(model.positive, model.opposite, True)
    with torch.no_grad():
        assert torch.equal(model(x)["logits"], again(x)["logits"])


def test_what_cannot_be_is_told():
    with pytest.raises(ModelError, match="BertModel has no text_model"):
        composite_models()["video-prompt-classifier"].from_settings(encoder={"from_config": {"model_type": "bert", **SMALL}})  # fmt: skip
    with pytest.raises(ModelError, match="'description' last"):
        built(streams=["description", "frames"])
    with pytest.raises(ModelError, match="a clip of 5 frames; model.frames allows 4"):
        built()(clips(frames=5))
    with pytest.raises(ModelError, match="trained for 3 classes; these are 2"):
        built().set_classes(IDS, IDS, True)


def test_memory_grows_with_frames_and_streams():
    def held(frames, streams):
        names = ["frames", "parsing", "landmarks"][:streams]
        model, total = built(streams=names), [0]
        ad.attach(model, "aim", targets="encoder.vision_model.blocks")

        def pack(tensor):
            total[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(clips(frames=frames, streams=streams))
        return total[0]

    one = held(2, 1)
    assert 1.5 < held(4, 1) / one < 2.1 and 1.5 < held(2, 2) / one < 2.1


def test_weights():
    told = masked_softmax(torch.tensor([[1.0, 5.0, 1.0]]), torch.tensor([[True, False, True]]))
    torch.testing.assert_close(told, torch.tensor([[0.5, 0.0, 0.5]]))


def test_logits_are_told_finely_under_autocast():
    model = built(streams=["frames"], fusion="learned")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, texts = model(clips(streams=1)), model.classes()
    plus, minus = (found["stream_vectors"][:, 0] @ one.T / 0.01 for one in texts)
    torch.testing.assert_close(found["logits"], plus - minus, atol=1e-4, rtol=1e-5)
