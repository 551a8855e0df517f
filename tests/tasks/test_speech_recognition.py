"""Speech recognition from recipe to answer: files, rates, noise, error rates, and what is refused."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from adaptome.cli import main
from adaptome.core.errors import DataError, RecipeError
from adaptome.data import makers
from adaptome.data.makers.speech import syllables, talking_mouths
from adaptome.data.speech.drawn import RATE, spoken, voice
from adaptome.recipe import load_recipe
from adaptome.recipe.model_section import ModelSection
from adaptome.tasks import get_task
from adaptome.tasks.speech_features import Clip, SpeechCollator, cropped
from adaptome.tasks.speech_scores import error_rates
from adaptome.training import evaluate, load_run, run, run_stages
from tests.data.speech.test_clips import video
from tests.models.test_speech_recogniser import TINY

TEXTS = ["bamu sifo", "dino fasu", "numi", "sofa bidi", "fumo", "nasi du"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Talking heads as LRS has them, a table of sounds, and a list of features."""
    root, rng = tmp_path_factory.mktemp("speech"), np.random.default_rng(0)
    rows = []
    for number, text in enumerate(TEXTS):
        sound, frames = spoken(text, voice(rng), rng)
        split = root / ("train" if number < 4 else "test")
        split.mkdir(exist_ok=True)
        video(split / f"{number}.mp4", np.kron(frames, np.ones((2, 2), np.uint8)), sound / 32768)
        soundfile.write(split / f"{number}.wav", sound, RATE)
        (split / f"{number}.txt").write_text(f"Text:  {text.upper()}\n")
        np.save(split / f"{number}.npy", np.full((len(frames), 6), number, np.float32))
        rows.append(
            {"audio": f"{split.name}/{number}.wav", "video": f"{split.name}/{number}.npy", "text": text}
        )
    for name, part in (("train", rows[:4]), ("test", rows[4:])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return root


def recipe(folder: Path, out: Path, **changes):
    longer = {"from_config": {**TINY["audio"]["from_config"], "max_source_positions": 100}}
    content = {
        "model": {"composite": "speech-recogniser", **TINY, "audio": longer, "tokenizer": "bytes", "audio_rates": [4, 8], "video_rates": [2]},
        "task": {"name": "speech-recognition", "mouth": 20, "crop": 16, "augment": True, "train_snrs": [5], "snrs": [0], "max_new_tokens": 4},
        "data": {"train": f"{folder}/train", "test": f"{folder}/test", "validation_fraction": 0},
        "methods": [{"name": "omni-lora", "targets": ["llm.q", "llm.v"], "r": 2}, {"name": "lora", "adapter": "lips", "targets": ["video.q", "video.v"], "r": 2}],
        "training": {"max_steps": 2, "batch_size": 2, "device": "cpu", "base_eval": True, "betas": [0.9, 0.98]},
        "output": str(out),
    }  # fmt: skip
    return load_recipe({key: {**content[key], **changes[key]} if isinstance(content.get(key), dict) and key in changes else changes.get(key, content[key]) for key in content})  # fmt: skip


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "speech"
    result = run(recipe(folder, out), callbacks=[])
    asked = ["audio-4", "audio-8", "video-2", "audiovisual-4-2", "audiovisual-8-2"]
    labels = [*asked, *(f"{one}/0dB" for one in asked if one != "video-2")]
    rates = {f"{rate}@{label}" for rate in ("wer", "cer") for label in labels}
    assert set(result.metrics) == {"loss", "token_accuracy", "wer", "cer"} | rates
    mean = np.mean([result.metrics[f"wer@{label}"] for label in asked])
    assert result.metrics["wer"] == pytest.approx(mean)
    return out


def test_a_finished_run_is_scored_again_with_other_options(trained):
    found = evaluate(trained, overrides=["task.snrs=[]", "task.num_beams=2"])
    assert not any("dB" in name for name in found) and "wer@audio-8" in found


def test_a_users_files_at_a_chosen_rate(trained, folder, capsys):
    loaded = load_run(trained)
    clip = f"{folder}/test/4.mp4"
    answers = loaded.task.predict(loaded.model, loaded.processor, [clip, f"{folder}/test/4.wav"])
    assert [one["from"] for one in answers] == ["audiovisual-4-2", "audio-4"]
    with pytest.raises(SystemExit, match="0"):
        main(["predict", str(trained), clip, "--set", "task.recognise=audio", "--set", "task.audio_rate=8", "--json"])  # fmt: skip
    (told,) = json.loads(capsys.readouterr().out)
    assert told["from"] == "audio-8" and set(told["by"]) == {"audio-8"}
    names = [one.name for one in loaded.task.given([f"{folder}/test", f"{folder}/train/0.wav"])]
    there = [f"{folder}/test/{name}" for name in ("4.mp4", "4.npy", "5.mp4", "5.npy")]
    assert names == [*there, f"{folder}/train/0.wav"]
    pair = [(f"{folder}/test/5.wav", f"{folder}/test/5.mp4"), {"video": f"{folder}/test/5.mp4"}]
    assert [one["from"] for one in loaded.task.predict(loaded.model, loaded.processor, pair)] == ["audiovisual-4-2", "video-2"]  # fmt: skip


def test_a_clip_is_written_alike_alone_and_among_others(trained, folder):
    loaded = load_run(trained)
    clips = [f"{folder}/train/{n}.mp4" for n in range(3)]
    together = loaded.task.predict(loaded.model, loaded.processor, clips)
    alone = [loaded.task.predict(loaded.model, loaded.processor, [one])[0] for one in clips]
    assert together == alone


def test_what_cannot_be_recognised_is_told(trained, folder, tmp_path):
    loaded = load_run(trained)
    with pytest.raises(DataError, match="it has video, and task.recognise=audiovisual needs more"):
        mute = video(tmp_path / "mute.mp4", np.full((30, 32, 32), 90, np.uint8))
        other = load_run(trained, ["task.recognise=audiovisual"])
        other.task.predict(other.model, other.processor, [str(mute)])
    assert loaded.task.predict(loaded.model, loaded.processor, [str(mute)])[0]["from"] == "video-2"
    other = load_run(trained, ["task.audio_rate=5"])
    with pytest.raises(RecipeError, match=r"audio_rate=5 was not learned.*There are: \[4, 8\]"):
        other.task.predict(other.model, other.processor, [f"{folder}/train/0.wav"])
    long = {"array": np.zeros(40_000, np.int16), "sampling_rate": 16_000}
    with pytest.raises(DataError, match=r"lasts 2\.5 s, and the model hears 2 s"):
        loaded.task.predict(loaded.model, loaded.processor, [{"audio": long, "where": "it"}])


def test_sounds_alone_and_features_of_a_table(folder, tmp_path):
    tables = {"train": f"{folder}/train.jsonl", "test": f"{folder}/test.jsonl"}
    model = {"video": None, "video_features": 6}
    method = [{"name": "lora", "targets": ["llm.q"], "r": 2}]
    found = run(
        recipe(folder, tmp_path / "f", data=tables, model=model, methods=method), callbacks=[]
    ).metrics
    assert "wer@audiovisual-4-2" in found
    one = load_run(tmp_path / "f").task.predict  # features of a user
    loaded = load_run(tmp_path / "f")
    assert one(loaded.model, loaded.processor, [f"{folder}/test/4.npy"])[0]["from"] == "video-2"
    only = run(recipe(folder, tmp_path / "a", data=tables, model={"video": None}, methods=method, task={"snrs": []}), callbacks=[]).metrics  # fmt: skip
    assert set(only) >= {"wer@audio-4"} and not any("video" in name for name in only)


def prepared(folder: Path, **changes):
    from adaptome.training.building import prepared as prepare

    return prepare(recipe(folder, folder / "none", **changes))


def test_rows_change_in_training_alone_and_anew_in_every_epoch(folder):
    _, processor, _, data = prepared(folder)
    train, test = data["train"], data["test"]
    first = train[1]
    train.set_epoch(1)
    again = train[1]
    assert first["ids"] == again["ids"] == [*processor.tokenizer("dino fasu")["input_ids"], 1]
    assert not np.array_equal(first["audio"], again["audio"]) and first["video"].shape[1:] == (16, 16)
    train.set_epoch(0)
    assert np.array_equal(train[1]["audio"], first["audio"])
    test.set_epoch(1)
    assert np.array_equal(test[0]["video"], test[0]["video"])
    assert cropped(np.arange(400).reshape(1, 20, 20), 16)[0, 0, 0] == 42


def test_a_batch_masks_and_prompts(folder):
    _, processor, _, data = prepared(folder)
    batch = data.collator([data["test"][0], data["test"][1]])
    assert batch["audio"].shape == (2, 8, 200) and batch["begin"].shape == (2, 0)
    sounds = [len(data["test"][n]["audio"]) for n in (0, 1)]
    assert batch["audio_lengths"].tolist() == [n // 320 for n in sounds]
    assert batch["video_lengths"].tolist() == [n // 640 for n in sounds]
    assert (batch["labels"] == 1).sum(1).tolist() == [1, 1] and (batch["labels"] == -100).any()
    told = [processor.tokenizer.decode([i for i in row if i >= 0]) for row in batch["prompts"][0].tolist()]
    assert told[1] == "Transcribe video to text."
    assert isinstance(data.collator, SpeechCollator) and batch["video"].abs().max() < 4


def test_bad_rows_are_named(folder, tmp_path):
    rows = [{"audio": f"{folder}/train/0.wav", "video": f"{folder}/train/0.mp4", "text": text} for text in ("bamu", " ")]  # fmt: skip
    table = tmp_path / "t.jsonl"

    def write(*given: dict) -> dict:
        table.write_text("".join(json.dumps(row) + "\n" for row in given))
        return {"train": str(table), "test": None}

    data = prepared(folder, data=write(*rows))[3]
    assert len(data["train"]) == 1
    assert any("1 clips are left out, for their transcripts are empty" in note and "line 2" in note for note in data.notes)  # fmt: skip
    with pytest.raises(DataError, match="no clip is left"):
        prepared(folder, data=write(rows[1]))
    with pytest.raises(
        DataError, match=r"line 1: its sound lasts 0\.\d+ s, its pictures 0\.\d+ s.*task.tolerance"
    ):
        prepared(folder, data=write({**rows[0], "video": f"{folder}/train/2.mp4"}), task={"tolerance": 0.1})
    mute = video(tmp_path / "mute.mp4", np.full((30, 32, 32), 90, np.uint8))
    with pytest.raises(DataError, match="has no track of sound"):
        prepared(folder, data=write({**rows[0], "audio": str(mute)}))
    with pytest.raises(DataError, match="no column 'video'"):
        prepared(folder, data=write({key: rows[0][key] for key in ("audio", "text")}))
    soundfile.write(tmp_path / "long.wav", np.zeros(40_000), RATE)
    long = {"audio": str(tmp_path / "long.wav"), "text": "a"}
    alone = {"model": {"video": None}, "task": {"modalities": ["audio"]}}
    data = prepared(folder, data=write({**long}, {**long, "audio": rows[0]["audio"]}), **alone)[3]
    assert len(data["train"]) == 1 and any("longer than 2 s" in note for note in data.notes)
    with pytest.raises(DataError, match=r"lasts 2\.5 s, and the model hears 2 s"):
        prepared(folder, data={"train": f"{folder}/train.jsonl", "test": write(long)["train"]}, **alone)


def test_wrong_options_are_refused(folder):
    with pytest.raises(RecipeError, match="larger than the pictures"):
        prepared(folder, task={"crop": 40})
    with pytest.raises(RecipeError, match="needs video, and the model reads audio"):
        prepared(folder, model={"video": None}, task={"modalities": ["video"]})
    with pytest.raises(RecipeError, match="composite: speech-recogniser"):
        get_task("speech-recognition").load_processor(ModelSection(from_config=TINY["llm"]["from_config"]))


def test_error_rates_are_of_the_whole_and_not_means_of_lines():
    truths, found = ["a b c d", "E"], ["a b c d", "f g"]
    assert error_rates(truths, found)["wer"] == pytest.approx(2 / 5)  # the mean of lines would be 1
    assert error_rates(["Hello  World"], ["hello world"]) == {"wer": 0.0, "cer": 0.0}


def test_a_babble_needs_others(trained, folder):
    loaded = load_run(trained)
    clip = Clip(f"{folder}/test/4.wav", f"{folder}/test/4.mp4", asked=("audio",))
    with pytest.raises(DataError, match="Take task.noise=white"):
        loaded.task.predict(loaded.model, loaded.processor, [clip])


def test_the_demo_in_a_few_steps(tmp_path, monkeypatch):
    for name, make in (("syllables", syllables), ("talking-mouths", talking_mouths)):
        monkeypatch.setitem(makers._MAKERS, name, functools.partial(make, train=6, validation=2))
    told = ["training.max_steps=2", "training.batch_size=4", f"output={tmp_path}/demo"]
    own = ["stages.1.training.max_steps=2", "stages.1.data.limit=6"]
    found = run_stages(load_recipe("omni-avsr-demo", [*told, *own]), callbacks=[]).last
    assert {"wer@audiovisual-4-2", "wer@audio-8/0dB", "wer@video-4"} <= set(found.metrics)
    model = load_run(tmp_path / "demo").model
    assert model.rates("audio") == [4, 8] and torch.isfinite(model.marks).all()
