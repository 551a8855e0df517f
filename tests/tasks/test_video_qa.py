"""Video question answering from files to answers: layouts of data sets, features, what is missing, training by stages, prediction."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import adaptome as ad
from adaptome.cli import main
from adaptome.core.errors import DataError, RecipeError
from adaptome.core.state import tensors_of
from adaptome.data import load_splits, makers
from adaptome.data.makers.sounding_scenes import questions, sounding_scenes
from adaptome.data.scenes.instruments import DEPTH_WIDTH, THINGS, VIDEO_WIDTH
from adaptome.recipe import load_recipe, stages_of
from adaptome.tasks import get_task
from adaptome.tasks.video_inputs import Modality, QuestionProcessor, in_batch, read_features, sampled
from adaptome.tasks.video_rows import normal, options_of, questions_taken
from adaptome.tasks.words import word_tokenizer
from adaptome.training import evaluate, load_run, run, run_stages
from tests.models.test_modular_qa import MODALITIES, TARGETS, blip2

WORDS = "words what is heard the cat dog sits runs a b c question answer : ? 1 2 3 4 frame option considering"
RGB, SOUND, POINTS = (Modality(n, k, w) for n, k, w in (("rgb", "frames", 16), ("audio", "segments", 12), ("points", "whole", 16)))  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Features of six videos, of which the last has no sound, and tables of questions."""
    root, draw = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    for name in ("rgb", "audio", "depth"):
        (root / name).mkdir()
    for number in range(6):
        np.savez(root / "rgb" / f"v{number}.npz", features=draw.normal(size=(6, 5, 16)).astype(np.float32))
        if number < 5:
            made = draw.normal(size=(2, 6, 12)).astype(np.float32)
            save_file({"features": torch.tensor(made)}, root / "audio" / f"v{number}.safetensors")
        np.savez(root / "depth" / f"v{number}.npz", draw.normal(size=(6, 16)).astype(np.float32))
    rows = [
        {"video": f"v{n}", "question": "What is heard?", "options": ["the cat", "the dog", "a b c"], "answer": ["The cat.", "the dog"][n % 2], "type": ["listen", "look"][n % 2]}
        for n in range(6)
    ]  # fmt: skip
    (root / "questions.json").write_text(json.dumps(rows))
    return root


def recipe(folder: Path, out: Path, names=("rgb", "audio", "depth"), **changes):
    methods = [{"name": "lora", "adapter": n, "targets": TARGETS, "r": 2, "alpha": 2, "train": [f"streams.{n}", *([f"fusion.maps.{n}"] if i else []), *(["fusion.bias"] if i == 1 else [])]} for i, n in enumerate(names)]  # fmt: skip
    ends = {"rgb": "npz", "audio": "safetensors", "depth": "npz"}
    content = {
        "model": {"composite": "modular-qa", "base": {"from_config": blip2()}, "modalities": {n: MODALITIES[n] for n in names}, "tokenizer": WORDS},
        "task": {"name": "video-qa", "features": {n: f"{folder}/{n}/{{video}}.{ends[n]}" for n in names}, "sets": "each"},
        "data": {"train": f"{folder}/questions.json", "validation": f"{folder}/questions.json"},
        "methods": methods,
        "training": {"max_steps": 2, "batch_size": 3, "device": "cpu", "logging_steps": 1, "turns": {"always": ["fusion"], "exit": 1.8}},
        "output": str(out),
    }  # fmt: skip
    task = {**content["task"], **changes.pop("task", {})}
    return load_recipe({**content, "task": task, **changes})


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "qa"
    result = run(recipe(folder, out), callbacks=[])
    assert {"accuracy", "accuracy@rgb", "accuracy@rgb+audio", "accuracy of listen", "accuracy of look@rgb"} <= set(result.metrics)  # fmt: skip
    assert "1 of 6 rows of train have no audio: they run without it." in result.notes
    assert any("turns/rgb" in entry for entry in result.history)
    return out


# -- rows ----------------------------------------------------------------------------------------------------------------


def split_of(tmp_path, name: str, content) -> object:
    file = tmp_path / name
    if name.endswith(".csv"):
        with file.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, content[0])
            writer.writeheader()
            writer.writerows(content)
    else:
        file.write_text(json.dumps(content))
    return questions_taken(load_splits(train=str(file), validation_fraction=0)["train"])


def test_nextqa_as_it_comes(tmp_path):
    row = {"video": 4010069381, "frame_count": 369, "question": "how do the two man play", "answer": 3, "qid": 6, "type": "CH", "a0": "roll", "a1": "tap", "a2": "strum", "a3": "hit", "a4": "pat"}  # fmt: skip
    split = split_of(tmp_path, "val.csv", [row])
    assert split.rows[0]["options"] == ["roll", "tap", "strum", "hit", "pat"]
    assert split.rows[0]["answer"] == "hit" and split.rows[0]["video"] == "4010069381" and split.rows[0]["type"] == "CH"  # fmt: skip
    assert split_of(tmp_path, "seen.json", [row]).rows[0]["answer"] == "hit"
    with pytest.raises(DataError, match=r"val.csv, line 2: answer is '7'.*5 options"):
        split_of(tmp_path, "val.csv", [{**row, "answer": 7}])


def test_music_avqa_as_it_comes(tmp_path):
    row = {"video_id": "00000093", "question_id": 31, "type": '["Audio-Visual", "Counting"]', "question_content": "How many <Object> are there?", "templ_values": '["violins"]', "anser": "two"}  # fmt: skip
    found = split_of(tmp_path, "avqa-val.json", [row]).rows[0]
    assert found["question"] == "How many violins are there?" and found["answer"] == "two"
    assert found["type"] == "Audio-Visual Counting" and found["video"] == "00000093"
    with pytest.raises(DataError, match="more places than templ_values"):
        split_of(tmp_path, "avqa-val.json", [{**row, "templ_values": "[]"}])


def test_sqa3d_as_it_comes(tmp_path):
    row = {"scene_id": "scene0380_00", "situation": "I am facing the door. ", "question": "What is left?", "answers": ["a chair"], "question_id": 1}  # fmt: skip
    found = split_of(tmp_path, "sqa.json", [row]).rows[0]
    assert found["question"] == "I am facing the door. What is left?" and found["answer"] == "a chair"
    assert found["video"] == "scene0380_00"


def test_options_and_answers_in_other_forms():
    assert options_of("a| b |c") == ["a", "b", "c"] and options_of("") is None and options_of(None) is None
    assert normal("Two  Violins.") == "two violins"
    words = word_tokenizer(["the", "cat", "1", "?"])
    assert words("The cat 11?")["input_ids"] == [3, 4, 5, 5, 6] and words("dog")["input_ids"] == [2]


# -- features ------------------------------------------------------------------------------------------------------------


def test_frames_are_taken_evenly():
    assert sampled(8, 4) == [1, 3, 5, 7] and sampled(4, 4) == [0, 1, 2, 3] and sampled(1, 3) == [0, 0, 0]
    assert sampled(2, 4) == [0, 0, 1, 1]


def test_pictures_are_of_the_times_that_features_are_of(tmp_path):
    for number in range(8):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    processor = QuestionProcessor(None, 4, lambda pictures: [int(one[0, 0, 0]) for one in pictures])
    assert processor.frames(tmp_path, 4) == sampled(8, 4)
    assert processor.frames(tmp_path / "3.png", 2) == [3, 3]


def test_features_of_files_and_arrays(tmp_path):
    value = np.arange(6 * 5 * 16, dtype=np.float32).reshape(6, 5, 16)
    np.save(tmp_path / "plain.npy", value)
    found = read_features(str(tmp_path / "plain.npy"), RGB, "row 1", 3)
    assert torch.equal(found, torch.tensor(value[[1, 3, 5]]))
    assert torch.equal(found, read_features(value, RGB, "row 1", 3))
    assert read_features(value[:, 0], RGB, "row 1", 6).shape == (6, 1, 16)
    np.savez(tmp_path / "points.npz", features=value[0], coordinates=np.ones((5, 3)))
    coded = read_features(tmp_path / "points.npz", POINTS, "row 1", 3)
    assert float((coded - torch.tensor(value[0]))[0, 0]) == pytest.approx(0.01 * np.sin(1), abs=1e-5)
    assert read_features(np.ones((2, 6, 12)), SOUND, "row 1", 3).shape == (2, 6, 12)


def test_features_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "torn.safetensors").write_bytes(b"\x00" * 9)
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for name in ("torn.npz", "torn.safetensors", "objects.npy", "nowhere.npz"):
        with pytest.raises(DataError, match=name):
            read_features(str(tmp_path / name), RGB, "row 1", 4)
    np.savez(tmp_path / "two.npz", a=np.ones(1), b=np.ones(1))
    with pytest.raises(DataError, match="two.npz holds a, b; features are expected"):
        read_features(str(tmp_path / "two.npz"), RGB, "row 1", 4)
    with pytest.raises(DataError, match=r"row 1: rgb has the shape \[6, 5, 9\]; .* 16\] is expected"):
        read_features(np.ones((6, 5, 9)), RGB, "row 1", 4)
    with pytest.raises(DataError, match="NaN"):
        read_features(np.full((6, 5, 16), np.nan), RGB, "row 1", 4)


def test_a_batch_of_rows_that_differ_in_size_and_in_what_they_have():
    rows = [{"features": {"rgb": torch.ones(4, 5, 16), "audio": torch.ones(n, 6, 12)}, "raw": {}} for n in (1, 3)]  # fmt: skip
    rows.append({"features": {"rgb": torch.ones(4, 5, 16)}, "raw": {}})
    made = in_batch(rows, [RGB, SOUND])
    assert made["features"]["audio"].shape == (3, 3, 6, 12) and set(made["masks"]) == {"audio"}
    assert made["masks"]["audio"].any(-1).sum(1).tolist() == [1, 3, 3]
    assert made["available"]["audio"].tolist() == [True, True, False]
    rows[0]["raw"], rows[0]["features"] = {"rgb": torch.ones(4, 3, 8, 8)}, {}
    with pytest.raises(DataError, match="rgb: some rows have features, others the recording"):
        in_batch(rows, [RGB])


# -- runs ----------------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_predictions_and_a_row_without_sound_is_among_them(trained, folder):
    found, loaded = evaluate(trained), load_run(trained)
    rows = json.loads((folder / "questions.json").read_text())
    asked = loaded.task.inputs(loaded.task.shaped(load_splits(train=str(folder / "questions.json"), validation_fraction=0))["train"].rows)  # fmt: skip
    said = loaded.task.predict(loaded.model, loaded.processor, asked)
    right = [normal(one["label"]) == normal(row["answer"]) for one, row in zip(said, rows, strict=True)]
    assert found["accuracy"] == pytest.approx(np.mean(right))
    assert said[5]["modalities"] == ["rgb", "depth"] and said[0]["modalities"] == ["rgb", "audio", "depth"]
    assert sum(said[0]["scores"].values()) == pytest.approx(1, abs=1e-4)


def test_prediction_on_a_command_line(trained, folder, capsys):
    def said(*words) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["predict", str(trained), *map(str, words)])
        told = capsys.readouterr()
        return stopped.value.code or 0, " ".join((told.out + told.err).split())

    video, sound = f"rgb={folder}/rgb/v0.npz", f"audio={folder}/audio/v0.safetensors"
    code, answer = said(video, sound, "What is heard?", "the cat|the dog")
    assert code == 0 and "(without depth) What is heard?" in answer
    code, told = said(sound, "What is heard?")
    assert (
        code and "there is no rgb, without which nothing can be answered; audio alone is not enough" in told
    )
    code, told = said(video)
    assert code and "no question is given" in told
    picture = folder / "frame.png"
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(picture)
    assert said(picture, "What is heard?")[0] == 0  # generated, from pixels
    code, told = said(picture, picture, "What is heard?")
    assert code and "two inputs for rgb" in told


def test_what_a_run_cannot_do_without_is_refused_before_it_begins(folder, tmp_path):
    with pytest.raises(DataError, match=r"questions.json, item 6: there is no audio.*task.missing=without"):
        run(recipe(folder, tmp_path / "a", task={"missing": "error"}))
    with pytest.raises(DataError, match=r"item 1: there is no rgb, without which nothing can be answered; audio and depth alone are"):  # fmt: skip
        run(recipe(folder, tmp_path / "b", task={"features": {"rgb": "nowhere/{video}.npz", "audio": f"{folder}/audio/v0.safetensors", "depth": f"{folder}/depth/v0.npz"}}))  # fmt: skip
    with pytest.raises(RecipeError, match=r"names 'sound'.*no modality"):
        run(recipe(folder, tmp_path / "c", task={"features": {"sound": "x"}}))
    with pytest.raises(DataError, match=r"no column 'clip'"):
        run(recipe(folder, tmp_path / "d", task={"features": {"rgb": "{clip}.npz"}}))
    with pytest.raises(RecipeError, match=r"task.sets: \['rgb', 'dept'\].*Did you mean 'depth'"):
        run(recipe(folder, tmp_path / "e", task={"sets": [["rgb", "dept"]]}))
    made = get_task("video-qa", missing="skip", features={"rgb": f"{folder}/rgb/{{video}}.npz", "audio": f"{folder}/audio/{{video}}.safetensors"})  # fmt: skip
    processor = made.load_processor(recipe(folder, tmp_path, names=("rgb", "audio")).model)
    data = made.prepare(load_splits(train=str(folder / "questions.json"), validation_fraction=0), processor)
    assert len(data["train"]) == 5 and data.notes == ["1 of 6 rows of train have no audio: they are left out."]  # fmt: skip


def test_long_questions_are_cut_and_counted_and_odd_answers_refused(folder, tmp_path):
    """The authors' code cuts every question at 77 tokens, and says nothing."""
    own = recipe(folder, tmp_path, names=("rgb",))
    task = get_task("video-qa", max_length=8, answers="letters", features=own.task.settings["features"])
    processor = task.load_processor(own.model)
    splits = load_splits(train=str(folder / "questions.json"), validation_fraction=0)
    data = task.prepare(splits, processor)
    assert data.notes == ["6 of 6 questions of train exceed 8 tokens and were cut (task.max_length)."]
    row = data["train"][0]
    assert len(row["question"]) == 8 and processor.text(row["labels"]) == "a" and row["right"] == 0
    assert task.prompt("why", ["x", "y"]).startswith("Question: why Option A: x Option B: y Considering")
    rows = json.loads((folder / "questions.json").read_text())
    (tmp_path / "odd.json").write_text(json.dumps([{**rows[0], "answer": "a bird"}]))
    with pytest.raises(DataError, match=r"odd.json, item 1: the answer 'a bird' is none of its options"):
        task.prepare(load_splits(train=str(tmp_path / "odd.json"), validation_fraction=0), processor)
    (tmp_path / "mixed.json").write_text(json.dumps([rows[0], {**rows[1], "options": None}]))
    with pytest.raises(DataError, match="some rows of train have options, others have none"):
        task.prepare(load_splits(train=str(tmp_path / "mixed.json"), validation_fraction=0), processor)


def test_open_answers_are_scored_by_greedy_decoding(folder, tmp_path):
    rows = [{k: v for k, v in row.items() if k != "options"} for row in json.loads((folder / "questions.json").read_text())]  # fmt: skip
    (tmp_path / "open.json").write_text(json.dumps(rows))
    data = {"train": str(tmp_path / "open.json"), "validation": str(tmp_path / "open.json")}
    method = {"name": "omni-lora", "layout": "T", "tasks": ["rgb", "audio"], "r": 2, "targets": TARGETS, "train": ["streams", "fusion", "base.language_model"]}  # fmt: skip
    training = {"max_steps": 12, "batch_size": 6, "learning_rate": 0.02, "device": "cpu", "keep_best": False, "eval_steps": 12}  # fmt: skip
    own = recipe(folder, tmp_path / "run", ("rgb", "audio"), data=data, methods=[method], training=training, task={"sets": "none", "beams": 1})  # fmt: skip
    result = run(own, callbacks=[])
    loaded = load_run(tmp_path / "run")
    asked = [{"question": row["question"], "video": row["video"]} for row in rows]
    said = loaded.task.predict(loaded.model, loaded.processor, asked)
    right = [one["label"] == normal(row["answer"]) for one, row in zip(said, rows, strict=True)]
    assert result.metrics["accuracy"] == pytest.approx(np.mean(right)) and any(right)
    loaded.task.options.beams = 3
    assert {one["label"] for one in loaded.task.predict(loaded.model, loaded.processor, asked)} <= {"the cat", "the dog", "the"}  # fmt: skip


def test_made_scenes_are_the_same_for_a_seed_and_their_answers_are_in_them():
    made = sounding_scenes(3, 8, 4, 4)["train"].columns
    again = sounding_scenes(3, 8, 4, 4)["train"].columns
    assert made["answer"] == again["answer"] and np.array_equal(made["audio"], again["audio"])
    assert sounding_scenes(4, 8, 4, 4)["train"].columns["answer"] != made["answer"]
    assert made["rgb"].shape == (8, 4, 16, VIDEO_WIDTH) and made["depth"].shape == (8, 4, 16, DEPTH_WIDTH)
    many = questions(np.random.default_rng(0), "test", 400).columns
    assert all(answer in options for answer, options in zip(many["answer"], many["options"], strict=True))
    listen = [a for a, t in zip(many["answer"], many["type"], strict=True) if t == "listen"]
    assert {listen.count(thing) > 15 for thing in THINGS} == {True}
    assert np.isfinite(many["audio"]).all()


def test_the_demo_recipe_adds_modalities_and_leaves_what_was_there(tmp_path, monkeypatch):
    monkeypatch.setitem(makers._MAKERS, "sounding-scenes", partial(sounding_scenes, train=16, validation=8, test=8))  # fmt: skip
    few = [f"stages.{n}.training.max_steps=2" for n in range(3)]
    recipe = load_recipe("crema-demo", [f"output={tmp_path}/demo", "evaluation.examples=0", *few])
    result = run_stages(recipe, callbacks=[])
    assert {"accuracy", "accuracy@rgb", "accuracy@rgb+audio"} <= set(result.last.metrics)
    _, second, third = (load_run(tmp_path / "demo" / name) for name, _ in stages_of(recipe))
    assert second.model.names == ["rgb", "audio"] and third.model.names == ["rgb", "audio", "depth"]
    assert list(ad.adapters(third.model)) == ["audio", "depth"]
    held, kept = (tensors_of(ad.adapters(one.model)["audio"]) for one in (second, third))
    assert held.keys() == kept.keys() and all(torch.equal(held[key], kept[key]) for key in held)
    assert any("queries" in key for key in held) and any("fusion" in key for key in held)
    row = sounding_scenes(1, 1, 1, 1)["test"].columns
    asked = [{"question": "which instrument is heard?", "options": list(THINGS), "rgb": row["rgb"][0], "audio": row["audio"][0]}]  # fmt: skip
    told = [one.task.predict(one.model, one.processor, asked)[0]["scores"] for one in (second, third)]
    assert told[0] == told[1]  # without depth, what the model said before it had any
