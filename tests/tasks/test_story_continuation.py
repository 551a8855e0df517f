"""The task story-continuation end to end on the demonstration with few steps: scored, shown, used; its readers, scores and faults."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from adaptome.cli._app import build
from adaptome.core.errors import DataError, ModelError
from adaptome.data.load import load_splits
from adaptome.data.makers import make
from adaptome.data.makers.pixel_stories import FIGURES, GROUNDS, PLACES, Frame, read_frame
from adaptome.recipe import load_recipe
from adaptome.tasks.picture_scores import Asked, get_score
from adaptome.tasks.picture_scores.stories import character_scores, frechet, truths
from adaptome.tasks.story_continuation import frames_of
from adaptome.training import load_run, run_stages

FEW = ["training.device=cpu", "data.limit=12", "stages.0.training.max_steps=1", "training.max_steps=2", "training.logging_steps=1", "evaluation.examples=2", "stages.0.evaluation.split=none"]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "demo"
    return folder, run_stages(load_recipe("storydalle-demo", [*FEW, f"output={folder}"]), callbacks=[])


def test_prompt_tuning_trains_the_retrofit_and_embeddings_alone(finished):
    folder, result = finished
    assert {"loss", "right", "figure", "ground", "place"} <= set(result.last.metrics)
    kept = load_file(folder / "2-story" / "adapter" / "adapter.safetensors")
    roots = {
        name.split(".")[0] if not name.startswith("decoder.") else name.rsplit(".", 1)[0]
        for name in (k.split(":")[-1].removeprefix("trained.") for k in kept)
    }
    assert {"sources", "story", "prompt"} <= {r.split("/")[-1] for r in roots}
    base, loaded = load_run(folder / "1-base"), load_run(folder / "2-story")
    for name, parameter in loaded.model.decoder.blocks.named_parameters():
        assert torch.equal(parameter, base.model.decoder.blocks.get_parameter(name))
    looks = [look.attention.out_proj.weight for look in loaded.model.sources.values()]
    assert all(weight.any() for weight in looks)  # they began at zero, and have learned
    page = (folder / "2-story" / "report.html").read_text("utf-8")
    assert "it stands at the" in page


def test_a_picture_is_continued_from_the_command_line(finished, tmp_path):
    folder, _ = finished
    frame = Frame("cross", "red", "yellow", "blue", "upper left")
    Image.fromarray(frame.draw()).save(tmp_path / "first.png")
    words = [
        "predict",
        str(folder / "2-story"),
        str(tmp_path / "first.png"),
        "the ground turns green and it stands at the lower left",
        "it stands at the upper right",
    ]
    result = CliRunner().invoke(build(), [*words, "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    (picture,) = (tmp_path / "out").glob("*-story.png")
    assert Image.open(picture).size[0] == 3 * Image.open(picture).size[1]  # the source and two frames
    loaded = load_run(folder / "2-story")
    (made,) = loaded.task.predict(loaded.model, loaded.processor, [(tmp_path / "first.png", words[3:])])
    assert len(made["frames"]) == 2 and made["frames"][0].size == (24, 24)
    for wrong, said in (([str(tmp_path / "first.png")], "no captions"), (["a caption"], "is no file")):
        with pytest.raises(DataError, match=said):
            loaded.task.given(wrong)


def test_a_frame_is_read_as_it_was_drawn():
    for figure in FIGURES:
        for place in PLACES:
            frame = Frame(figure, "red", "yellow", "blue", place)
            assert read_frame(frame.draw()) == frame
    assert read_frame(np.zeros((24, 24, 3), np.uint8)) is None
    tables = make("made:pixel-stories", 3)
    again = make("made:pixel-stories", 3)
    row = 5
    strip = tables["test"].columns["frames"][row]
    assert (strip == again["test"].columns["frames"][row]).all()
    seen = [read_frame(np.asarray(one)) for one in frames_of(strip)]
    captions, parts = tables["test"].columns["captions"][row], tables["test"].columns["parts"][row]
    assert all(
        f"{s.figure} {s.colour} {s.second} {s.ground}/{s.place}" == part
        for s, part in zip(seen[1:], parts, strict=True)
    )
    assert f"turns {seen[1].ground}" in captions[0] and not any(g in c for g in GROUNDS for c in captions[1:])
    assert seen[0].ground != seen[1].ground and all(
        s.place in c for s, c in zip(seen[1:], captions, strict=True)
    )


def test_stories_are_scored_by_rule():
    frame = Frame("hat", "red", "yellow", "blue", "lower left")
    pictures = [
        Image.fromarray(f.draw())
        for f in (
            frame,
            Frame("hat", "red", "yellow", "green", "lower left"),
            Frame("box", "red", "yellow", "blue", "upper left"),
        )
    ]
    pictures.append(Image.new("RGB", (24, 24)))
    told = ["hat red yellow blue/lower left"] * 4
    found = get_score("pixel-stories").score(pictures, Asked([""] * 4, {"parts": told}))
    assert found == {"right": 0.25, "figure": 0.5, "ground": 0.5, "place": 0.5}


def test_fid_and_characters():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 4))
    assert frechet(features, features) == pytest.approx(0, abs=1e-6)
    assert frechet(features, features + 2) == pytest.approx(16, rel=1e-6)
    wide = frechet(features, 3 * (features - features.mean(0)) + features.mean(0))
    assert wide == pytest.approx(4 * np.trace(np.cov(features, rowvar=False)), rel=1e-6)  # (3 - 1)^2 tr S
    held = truths([[0], [0, 1], []], 2)
    said = np.array([[1, 0], [1, 0], [0, 1]], bool)
    assert character_scores(said, held) == pytest.approx(
        {"char_f1": 2 * 2 / (2 * 2 + 1 + 1), "frame_accuracy": 1 / 3}
    )


def test_supplied_models_score_frames(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)) for _ in range(12)]
    asked = Asked([""] * 12, {"characters": [[0]] * 12}, pictures)
    assert get_score({"name": "fid", "model": str(tmp_path)}).score(pictures, asked)["fid"] == pytest.approx(
        0, abs=1e-4
    )
    found = get_score({"name": "characters", "model": str(tmp_path)}).score(pictures, asked)
    assert 0 <= found["char_f1"] <= 1 and 0 <= found["frame_accuracy"] <= 1
    with pytest.raises(DataError, match="column `characters`"):
        get_score({"name": "characters", "model": str(tmp_path)}).score(pictures, Asked([""] * 12))


def write(folder, count=3):
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", (8, 8), (50 * i, 0, 0)).save(folder / f"{i}.png")
    strip = np.zeros((24, 8, 3), np.uint8)
    strip[8:16] = 200
    Image.fromarray(strip).save(folder / "strip.png")
    return folder


def read(path, told):
    path.write_text(json.dumps(told))
    return load_splits(train=str(path), validation_fraction=0.0, format="stories")["train"]


def test_stories_are_read_from_lists(tmp_path):
    folder = write(tmp_path / "s")
    rows = read(folder / "a.json", [{"frames": ["0.png", "1.png", "strip.png"], "captions": ["b", "c"]}]).rows
    frames = frames_of(rows[0]["frames"])
    assert (
        rows[0]["captions"] == ["b", "c"]
        and np.asarray(frames[2]).shape == (8, 8, 3)
        and np.asarray(frames[2]).min() == 200
    )
    didemo = read(
        folder / "b.json", {"7": {"desc_to_frame": [["a", "0.png"], ["b", "1.png"], ["c", "2.png"]]}}
    ).rows
    assert didemo[0]["captions"] == ["b", "c"] and len(didemo[0]["frames"]) == 3
    for wrong, said in (
        ([{"frames": ["0.png"], "captions": []}], "at least one frame more"), ([{"frames": ["0.png", "9.png"], "captions": ["a"]}], "no frame '9.png'"),
        ([{"frames": ["0.png", "1.png"], "captions": ["a", "b", "c"]}], "3 captions for 2 frames"), ([], "no stories"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=said):
            read(folder / "wrong.json", wrong)


def test_flintstones_are_read_as_they_come(tmp_path):
    names = [f"s_01_e_01_shot_{i:06d}_{i + 74:06d}" for i in range(6)]
    (tmp_path / "video_frames_sampled").mkdir()
    for i, name in enumerate(names[:5]):
        np.save(tmp_path / "video_frames_sampled" / f"{name}.npy", np.full((3, 8, 8, 3), 10 * i, np.uint8))
    (tmp_path / "flintstones_annotations_v1-0.json").write_text(
        json.dumps([{"globalID": n, "description": f"clip {i}"} for i, n in enumerate(names)])
    )
    (tmp_path / "train-val-test_split.json").write_text(json.dumps({"train": names, "val": [], "test": []}))
    splits = load_splits(train=str(tmp_path), validation_fraction=0.0, format="stories")
    rows = splits["train"].rows
    assert (
        len(rows) == 1
        and rows[0]["captions"] == [f"clip {i}" for i in range(1, 5)]
        and "1 stories left out" in " ".join(splits.notes)
    )
    assert [int(np.asarray(f)[0, 0, 0]) for f in frames_of(rows[0]["frames"])] == [0, 10, 20, 30, 40]
    (tmp_path / "train-val-test_split.json").write_text(json.dumps({"train": [], "val": [], "test": names}))
    splits = load_splits(test=str(tmp_path), format="stories")
    assert splits["test"].rows[0]["captions"] == [f"clip {i}" for i in range(1, 5)]
    with pytest.raises(DataError, match="no 5 clips of an episode"):  # those of test are none of train
        load_splits(train=str(tmp_path), format="stories")
    (tmp_path / "train-val-test_split.json").write_text(json.dumps({"train": names, "test": names}))
    with pytest.raises(DataError, match="no clips of 'val'. It has: train, test"):
        load_splits(train=str(tmp_path), validation=str(tmp_path), format="stories")
    (tmp_path / "video_frames_sampled" / f"{names[1]}.npy").write_bytes(b"\x80\x04pickle")
    with pytest.raises(DataError, match="no array that can be read"):
        frames_of(rows[0]["frames"])


def test_faults_of_data_and_vocabulary_are_told(tmp_path, finished):
    from adaptome.tasks import get_task
    from adaptome.training.building import spec

    folder = write(tmp_path / "s")
    uneven = read(folder / "a.json", [{"frames": ["0.png", "1.png"], "captions": ["b"]}, {"frames": ["0.png", "1.png", "2.png"], "captions": ["b", "c"]}])  # fmt: skip
    task = get_task("story-continuation")
    with pytest.raises(DataError, match="story 2: 2 captions, where the stories before have 1"):
        task._check(uneven)
    with pytest.raises(DataError, match="a caption is missing"):
        task._check(read(folder / "b.json", [{"frames": ["0.png", "1.png"], "captions": [" "]}]))
    recipe = load_recipe("storydalle-demo", ["model.words=100"])
    task = get_task("story-continuation", new_words=["pororo"])
    processor = task.load_processor(spec(recipe))
    assert "pororo" in processor.tokenizer.get_vocab()
    with pytest.raises(ModelError, match="Set model.words"):
        task.load_model(spec(recipe), processor)
