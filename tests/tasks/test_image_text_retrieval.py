"""Image-text retrieval from recipe to vectors: the demonstration, files of other sets, families of models, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torchmetrics.retrieval import RetrievalHitRate
from transformers import PreTrainedTokenizerFast
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import adaptome as ad
from adaptome.cli import main
from adaptome.core.errors import DataError, RecipeError
from adaptome.data import load_splits
from adaptome.data.makers.scene_pairs import scene_captions, scene_questions
from adaptome.data.scenes.pairs import draw_pair, pair_at_random
from adaptome.data.splits import Splits, Table, to_split
from adaptome.recipe import load_recipe
from adaptome.tasks import get_task
from adaptome.tasks.captioned_rows import (
    Asked,
    CaptionedRows,
    asked_of,
    require_alike,
    shaped,
    sorted_captions,
    texts_of,
)
from adaptome.tasks.image_classification import to_rgb
from adaptome.tasks.picture_processors import load_picture_processor, source_of
from adaptome.tasks.retrieval_scores import composed, recalls
from adaptome.tasks.scene_words import scene_words_tokenizer
from adaptome.tasks.summaries import LvlmRows
from adaptome.training import evaluate, load_run, run, run_stages
from adaptome.training.building import read

FEW = ["stages.0.training.max_steps=2", "stages.1.training.max_steps=2", "stages.1.training.batch_size=8", "stages.1.training.gradient_cache=4"]  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Pictures in a folder with the tables of four sets."""
    root, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    (root / "images").mkdir()
    drawn = [pair_at_random(rng) for _ in range(4)]
    for number, scene in enumerate(drawn):
        Image.fromarray(draw_pair(scene)).save(root / "images" / f"{number}.png")
    rows = {str(i): {"filename": f"{i}.png", "caption": s.short(), "negative_caption": s.swapped()} for i, s in enumerate(drawn)}  # fmt: skip
    (root / "swap_att.json").write_text(json.dumps(rows))
    pair = {
        "id": 0,
        "image_0": "0",
        "image_1": "1",
        "caption_0": drawn[0].short(),
        "caption_1": drawn[1].short(),
    }
    (root / "examples.jsonl").write_text(json.dumps(pair) + "\n")
    karpathy = [{"filename": f"{i}.png", "split": "test", "sentences": [{"raw": s.short()}, {"raw": s.long()}]} for i, s in enumerate(drawn)]  # fmt: skip
    (root / "dataset.json").write_text(json.dumps({"images": karpathy, "dataset": "scenes"}))
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "vladva"
    made = run_stages(
        load_recipe(
            "vladva-demo",
            [
                *FEW,
                "data.limit=16",
                "stages.1.data={name: made:scene-captions, limit: 16}",
                "training.device=cpu",
                f"output={out}",
            ],
        ),
        callbacks=[],
    )
    told = made.last.metrics
    assert {"recall_1", "t2i_recall_5", "i2t_recall_10", "composed", "answered", "recall_1_before", "composed_before", "loss/next-token"} <= set(told)  # fmt: skip
    assert made.last.method == "lora+trainable-tokens" and 0 <= told["recall_1"] <= 1
    assert made.last.trainable_parameters < 0.4 * made.last.total_parameters
    return out / "2-embedder"


def test_figures_are_those_of_the_vectors(trained):
    found, loaded = evaluate(trained), load_run(trained)
    asked = loaded.task.inputs(read(loaded.recipe, loaded.task)["test"].rows)
    pictures, texts = [one.images[0] for one in asked], [one.texts[0] for one in asked]
    v = loaded.task.embed(loaded.model, loaded.processor, pictures)
    t = loaded.task.embed(loaded.model, loaded.processor, texts, 5)
    assert np.allclose(np.linalg.norm(v, axis=1), 1, atol=1e-5) and v.shape == t.shape == (16, 96)
    assert found["t2i_recall_5"] == pytest.approx(_hit(t @ v.T, np.eye(16, dtype=bool), 5))


def test_it_answers_as_before_where_the_adapters_are_off(trained):
    loaded = load_run(trained)
    picture = draw_pair(pair_at_random(np.random.default_rng(5)))
    ask = ([picture] * 2, ["what colour is the circle ?", "describe the picture :"])
    base = load_run(trained.parent / "1-writer")
    ad.merge(base.model, keep=False)
    with ad.disabled(loaded.model):
        off = loaded.task.answers(loaded.model, *ask)
    assert off == base.task.answers(base.model, *ask)
    assert all(isinstance(one, str) for one in loaded.task.answers(loaded.model, *ask))


def test_other_sets_files_are_scored(trained, scenes):
    crepe = evaluate(trained, overrides=["data.name=null", f"data.test={scenes}/swap_att.json", "data.paths=images/{filename}", "data.limit=null"])  # fmt: skip
    assert set(crepe) >= {"composed"} and crepe["composed"] in (0, 0.25, 0.5, 0.75, 1)
    pairs = evaluate(
        trained, overrides=["data.name=null", f"data.test={scenes}/examples.jsonl", "data.limit=null"]
    )
    assert set(pairs) == {"text_score", "image_score", "group_score"}
    found = evaluate(trained, overrides=["data.name=null", f"data.test={scenes}/dataset.json", "data.paths=images/{filename}", "data.limit=null"])  # fmt: skip
    assert found["i2t_recall_10"] == 1.0 and found["t2i_recall_5"] == 1.0  # of 8 texts and 4 pictures


def test_predict_and_embed_on_a_command_line(trained, scenes, tmp_path, capsys):
    picture, texts = (
        str(scenes / "images" / "0.png"),
        ["a red circle and a blue square", "a blue circle and a red square"],
    )

    def told(*words: str) -> str:
        with pytest.raises(SystemExit) as done:
            main(list(words))
        out = capsys.readouterr()
        assert done.value.code in (0, None), out.err
        return out.out

    line = told("predict", str(trained), picture, *texts)
    assert all(text in line for text in texts) and picture in line
    told("predict", str(trained), picture, "what colour is the circle ?")
    kept = tmp_path / "vectors.npz"
    told("embed", str(trained), str(scenes / "images"), "--output", str(kept))
    with np.load(kept, allow_pickle=False) as held:
        assert held["vectors"].shape == (4, 96) and len(held["names"]) == 4
    fresh = told("embed", str(trained), str(scenes / "images"), "--search", texts[0], "--top", "2")
    assert fresh == told("embed", str(trained), str(kept), "--search", texts[0], "--top", "2")
    assert len(fresh.splitlines()) == 2
    table = tmp_path / "vectors.parquet"
    told("embed", str(trained), str(kept), *texts, "-o", str(table))
    near = json.loads(told("embed", str(trained), str(table), "--search", picture, "--top", "1", "--json"))
    assert near[0]["input"] == picture and near[0]["similarity"] == pytest.approx(1, abs=1e-4)


def test_embed_tells_what_it_cannot_do(trained, tmp_path, capsys):
    (tmp_path / "other.npz").write_bytes(b"no")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04torn")
    np.savez(tmp_path / "narrow.npz", names=np.array(["a"]), vectors=np.ones((1, 3), np.float32))
    for words, told in (
        ([str(tmp_path / "none.png")], "no such picture"),
        ([str(tmp_path / "other.npz")], "holds no vectors"),
        ([str(tmp_path / "torn.npz")], "holds no vectors"),
        ([str(tmp_path / "narrow.npz"), "a red circle " * 30], "they are of different runs"),
        ([str(tmp_path)], "holds no picture"),
    ):
        with pytest.raises(SystemExit) as done:
            main(["embed", str(trained), *words])
        assert done.value.code == 1 and told in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        main(["embed", str(trained), "a", "-o", str(tmp_path / "x.pkl")])
    assert done.value.code == 2


def test_recall_is_torchmetrics_hit_rate_and_ties_reach_nothing():
    rng = np.random.default_rng(0)
    images, owners = rng.normal(size=(6, 4)), np.array([0, 0, 1, 2, 3, 4, 5, 5])
    texts = images[owners] + 1.5 * rng.normal(size=(8, 4))
    found = recalls(images, texts, owners)
    s = (texts / np.linalg.norm(texts, axis=1, keepdims=True)) @ (
        images / np.linalg.norm(images, axis=1, keepdims=True)
    ).T
    own = owners[:, None] == np.arange(6)
    for k in (1, 5):
        assert found[f"t2i_recall_{k}"] == pytest.approx(_hit(s, own, k))
        assert found[f"i2t_recall_{k}"] == pytest.approx(_hit(s.T, own.T, k))
    level = recalls(np.ones((6, 4)), np.ones((8, 4)), owners)
    assert level["t2i_recall_1"] == 0 and level["i2t_recall_1"] == 0


def _hit(score, right, k: int) -> float:
    where = torch.arange(len(score)).repeat_interleave(score.shape[1])
    flat = (torch.tensor(np.ascontiguousarray(one)).flatten() for one in (score, right))
    return float(RetrievalHitRate(top_k=k)(*flat, indexes=where))


def test_compositional_scores():
    def rows(*s, right=1):
        return [{"similarity": np.array(s), "right": right}]

    assert composed(rows([0.9, 0.1], [0.2, 0.8])) == {"text_score": 1, "image_score": 1, "group_score": 1}
    assert composed(rows([0.9, 0.1], [0.95, 0.99])) == {"text_score": 1, "image_score": 0, "group_score": 0}
    assert composed([*rows([0.5, 0.4]), *rows([0.4, 0.5]), *rows([0.5, 0.5])]) == {
        "composed": pytest.approx(1 / 3)
    }
    assert composed(rows([0.5, 0.2, 0.3], right=2)) == {"composed": 0}  # both right ones must be above
    assert composed(rows([0.5, 0.2], right=0)) == {}


def test_captions_are_told_apart_by_length_and_drawn_anew():
    rows = Table(
        "x.jsonl", {"image": np.zeros((2, 8, 8, 3), np.uint8), "text": [["a b", "c d e f g"], ["h"]]}, [1, 2]
    )
    split = to_split([rows], "train")
    found, notes = sorted_captions(split, lambda text: len(text.split()), 4, 5)
    assert found[0].short == ["a b"] and found[0].long == ["c d e f g"] and found[1].long == [] and not notes
    whole, _ = sorted_captions(split, lambda text: len(text.split()), None, 5)  # to evaluate on
    assert whole[0].short == ["a b", "c d e f g"] and whole[0].long == []
    _, notes = sorted_captions(split, lambda text: len(text.split()), 4, 3)
    assert len(notes) == 1 and "line 1" in notes[0]
    empty = to_split(
        [Table("x.jsonl", {"image": np.zeros((1, 8, 8, 3), np.uint8), "text": [""]}, [7])], "train"
    )
    with pytest.raises(DataError, match="line 7: no caption"):
        sorted_captions(empty, len, 4, 5)
    assert texts_of([{"from": "human", "value": "what ?"}, {"from": "gpt", "value": "this"}]) == ["this"]
    rows = _rows()
    own = [
        found[0]._replace(
            short=["a red circle", "a blue square", "a cross"], long=["the circle", "the cross"]
        )
    ]
    drawn = CaptionedRows(split.select([0]), rows, own, to_rgb, True, seed=1)
    seen = []
    for epoch in range(6):
        drawn.set_epoch(epoch)
        seen.append((drawn[0]["texts"][0]["ids"], drawn[0]["targets"]))
        assert seen[-1][0] == drawn[0]["texts"][0]["ids"]
    assert len({tuple(ids) for ids, _ in seen}) > 1 and len({tuple(t) for _, t in seen}) > 1
    plain = CaptionedRows(split.select([0]), rows, own, to_rgb, False)[0]
    assert len(plain["texts"]) == plain["captions"] == 3


def _source(config: dict, tokenizer: str = "scene-words"):
    recipe = load_recipe({"model": {"from_config": config, "tokenizer": tokenizer}, "task": "image-text-retrieval", "data": "made:scene-captions", "method": "lora"})  # fmt: skip
    return recipe.model


def _demo():
    return load_recipe("vladva-demo").model.from_config


def _rows(**options) -> LvlmRows:
    processor = load_picture_processor(source_of(_source(_demo())))
    return LvlmRows(processor, "picture in one word :", "text in one word :", **options)


def test_a_chat_template_is_laid_around_prompts_and_questions():
    processor = load_picture_processor(source_of(_source(_demo())))
    processor.tokenizer.chat_template = (
        "{% for m in messages %}a {% for c in m.content %}{% if c.type == 'image' %}<image> {% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %} is{% endif %}"
    )
    rows = LvlmRows(processor, "picture :", "text :")
    picture = rows.picture(to_rgb(np.zeros((24, 24, 3), np.uint8)))
    words = rows.tokenizer.convert_ids_to_tokens
    own = rows.going_on(picture, "red circle")
    assert words(own["ids"]) == ["a", *["<image>"] * 16, "picture", ":", "is", "red", "circle", "</s>"]
    assert own["summary"] == 19 and own["slots"][17:20] == [0, 1, 2] and own["targets"][19] == -100
    assert words([t for t in own["targets"] if t != -100]) == ["red", "circle", "</s>"]
    text = rows.caption("a cross")
    assert words(text["ids"]) == ["a", "a", "cross", "text", ":", "is"] and text["slots"] == [-1] * 3 + [
        0,
        1,
        2,
    ]
    asked = rows.asked(picture, "what colour ?", "red")
    assert words(asked["ids"]) == [
        "a",
        *["<image>"] * 16,
        "what",
        "colour",
        "?",
        "is",
        "red",
        "</s>",
    ] and set(asked["slots"]) == {-1}
    with pytest.raises(RecipeError, match="text_prompt"):
        LvlmRows(processor, "picture :", "", chat=False)


IDEFICS = {
    "model_type": "idefics3", "image_token_id": 4, "scale_factor": 2, "pad_token_id": 0,
    "vision_config": {"model_type": "idefics3_vision", "image_size": 16, "patch_size": 4, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "text_config": {"model_type": "llama", "vocab_size": 80, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0},
}  # fmt: skip
QWEN = {
    "model_type": "qwen2_vl", "image_token_id": 4, "vision_start_token_id": 5, "vision_end_token_id": 6, "video_token_id": 7,
    "vision_config": {"embed_dim": 16, "depth": 1, "num_heads": 2, "hidden_size": 16, "patch_size": 4, "spatial_merge_size": 2, "mlp_ratio": 1},
    "text_config": {"vocab_size": 80, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}},
}  # fmt: skip


def _folder(folder: Path, kind: str) -> str:
    """Tokenizer and image processor of a small model of a family."""
    special = {
        "qwen2_vl": ["<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"],
        "idefics3": ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"],
    }[kind]
    plain = scene_words_tokenizer()
    words = [w for w, _ in sorted(plain.get_vocab().items(), key=lambda item: item[1])][4:]
    numbers = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", "<x>", *special, *words])}
    inner = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", additional_special_tokens=special).save_pretrained(folder)  # fmt: skip
    if kind == "qwen2_vl":
        Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=1024).save_pretrained(
            folder
        )
    else:
        Idefics3ImageProcessorPil(size={"longest_edge": 16}, max_image_size={"longest_edge": 16}, do_image_splitting=False).save_pretrained(folder)  # fmt: skip
        (folder / "processor_config.json").write_text(
            json.dumps({"processor_class": "Idefics3Processor", "image_seq_len": 4})
        )
    return str(folder)


@pytest.mark.parametrize("kind", ["idefics3", "qwen2_vl"])
def test_other_families_are_read_alone_and_in_batches_alike(kind, tmp_path):
    task = get_task("image-text-retrieval", image_prompt="picture in one word :", text_prompt="text in one word :", answer_tokens=3)  # fmt: skip
    section = _source({"idefics3": IDEFICS, "qwen2_vl": QWEN}[kind], _folder(tmp_path, kind))
    processor = task.load_processor(section)
    torch.manual_seed(0)
    model = task.load_model(section, processor)
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)) for size in ((16, 16, 3), (16, 32, 3))
    ]
    together = task.embed(model, processor, [*pictures, "a red circle", "a cross is above a square"])
    alone = np.concatenate([task.embed(model, processor, [one]) for one in (*pictures, "a red circle", "a cross is above a square")])  # fmt: skip
    np.testing.assert_allclose(together, alone, atol=2e-5)
    assert abs(together[0] @ together[1]) < 0.9999
    questions = ["what colour is the circle ?", "where ?"]
    assert task.answers(model, pictures, questions) == [task.answers(model, [p], [q])[0] for p, q in zip(pictures, questions, strict=True)]  # fmt: skip


CLIP = {
    "model_type": "clip", "projection_dim": 8,
    "text_config": {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 2},
    "vision_config": {"image_size": 24, "patch_size": 12, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
}  # fmt: skip


def test_a_pair_of_encoders_goes_through_the_same_task(tmp_path):
    recipe = load_recipe(
        {
            "model": {"from_config": CLIP, "tokenizer": "scene-words"}, "task": "image-text-retrieval", "data": {"name": "made:scene-captions", "limit": 8},
            "method": {"name": "lora", "targets": "encoders.all-linear", "r": 2},
            "objective": {"name": "info-nce", "left": "image_embeds", "right": "text_embeds"},
            "training": {"max_steps": 2, "batch_size": 8, "gradient_cache": 3, "device": "cpu"}, "output": str(tmp_path / "clip"),
        }
    )  # fmt: skip
    told = run(recipe, callbacks=[]).metrics
    assert "recall_1" in told and "composed" in told and "answered" not in told
    loaded = load_run(tmp_path / "clip")
    with pytest.raises(DataError, match="answers no questions"):
        loaded.task.answers(loaded.model, [], [])
    made = loaded.model.encoders.get_text_features(**loaded.processor.tokenizer("a red circle </s>", return_tensors="pt", return_token_type_ids=False))  # fmt: skip
    right = torch.nn.functional.normalize(made.pooler_output.detach(), dim=-1)[0]
    np.testing.assert_allclose(
        loaded.task.embed(loaded.model, loaded.processor, ["a red circle"])[0], right, atol=1e-5
    )


def test_what_is_missing_is_named(scenes, tmp_path):
    table = tmp_path / "rows.jsonl"
    table.write_text('{"image": "none.png", "text": "a"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl, line 1: no picture .*none.png"):
        shaped(load_splits(train=str(table), validation_fraction=0, files="image"))
    task = get_task("image-text-retrieval")
    with pytest.raises(DataError, match="1 pictures and 0 texts"):
        task.given([str(scenes / "images" / "0.png")])
    with pytest.raises(DataError, match="no such picture"):
        task.given(["none.png", "a"])
    with pytest.raises(RecipeError, match="reads no pictures with texts"):
        source_of(_source({"model_type": "bert"}))
    assert asked_of({"image": 1, "text": "a", "negative": ["b", "c"]}) == Asked([1], ["a", "b", "c"], None, 1)
    assert asked_of({"image": 1, "text": "a"}).texts == []
    pairs = to_split(
        [Table("w", {"image_0": ["a"], "image_1": ["b"], "caption_0": ["c"], "caption_1": ["d"]}, [1])],
        "train",
    )
    with pytest.raises(DataError, match="are a test"):
        task.prepare(Splits({"train": pairs}), None)


def test_made_scenes_are_what_is_said_of_them():
    made = scene_captions(0, train=4, validation=2, test=3)["test"]
    assert len({text[0] for text in made.columns["text"]}) == 3
    for text, wrong, long in zip(
        made.columns["text"], made.columns["negative"], made.columns["long"], strict=True
    ):
        assert sorted(text[0].split()) == sorted(wrong.split()) and text[0] != wrong
        assert len(long.split()) > len(text[0].split())
    again = scene_captions(0, train=4, validation=2, test=3)["test"]
    assert np.array_equal(again.columns["image"], made.columns["image"])
    words = scene_words_tokenizer()
    for question, answer in zip(*(scene_questions(1, train=40, validation=1)["train"].columns[c] for c in ("question", "answer")), strict=True):  # fmt: skip
        assert words.unk_token_id not in words(f"{question} {answer}")["input_ids"]
    assert len(words) <= 64


def test_questions_among_captions_are_told_where_they_are_scored():
    columns = {"image": np.zeros((2, 24, 24, 3), np.uint8), "text": ["a red circle", ""], "question": ["", "what shape ?"], "answer": ["", "circle"]}  # fmt: skip
    split = to_split([Table("x.jsonl", columns, [1, 2])], "test")
    found, _ = sorted_captions(split, len, None, 500)
    with pytest.raises(DataError, match="line 2: a question without captions"):
        require_alike("test", split, found)
    require_alike("test", split, found[1:])
