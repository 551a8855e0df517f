"""Audio classification on files and arrays, with spectrogram and waveform models, without torchaudio."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import DataError, RecipeError
from adaptome.data import load_splits
from adaptome.tasks import get_task, task_from_dict
from tests.sounds import AST, CLASSES, WAV2VEC2, archive, chirp, class_folders, esc50, write
from tests.tasks.tiny import spec

pytest.importorskip("soundfile")
TASK = "audio-classification"


@pytest.fixture
def ast():
    return spec(from_config=AST)


def prepared(source, model, **options):
    """(task, processor, data) of a source whose validation split is cut from train."""
    task = get_task(TASK, **options)
    processor = task.load_processor(model)
    splits = load_splits(source, validation_fraction=0.25, files=task.files)
    return task, processor, task.prepare(splits, processor)


def fit(model, data, steps=60, lr=3e-3):
    """Train all of the model on the train split, as one batch; returns the last loss."""
    batch = data.collator([data["train"][i] for i in range(len(data["train"]))])
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def test_it_learns_files_and_predicts_paths_and_arrays(tmp_path, ast):
    torch.manual_seed(0)
    task, processor, data = prepared(class_folders(tmp_path / "s"), ast, pooling="mean")
    assert (task.labels, data.remove_unused_columns) == (list(CLASSES), False)
    batch = data.collator([data["train"][i] for i in (0, 1)])
    assert batch["input_values"].shape == (2, 64, 32) and batch["input_values"].dtype == torch.float32
    assert batch["labels"].tolist() == [0, 0]
    built = task.load_model(ast, processor)
    assert task.head_patterns(built) == ["classifier"]
    with torch.no_grad():  # a table of zeros would not tell up from down
        built.encoder.embeddings.position_embeddings.normal_(std=0.2)
    assert fit(built, data) < 0.2
    path = write(tmp_path / "new.flac", chirp(1, seed=99))
    array = {"array": chirp(0, seed=99), "sampling_rate": 8000}
    found = task.predict(built, processor, [path, array], batch_size=1)
    assert [f["label"] for f in found] == ["up", "down"]
    assert set(found[0]) == {"label", "score", "scores"} and set(found[0]["scores"]) == set(CLASSES)


def test_the_input_is_the_extractors_own_of_the_resampled_clip(tmp_path, ast):
    from scipy.signal import resample_poly

    _, processor, data = prepared(archive(tmp_path / "a.npz", [0, 1]), ast)
    clip = (chirp(1, seed=1) * 32767).astype(np.int16) / 32768
    expected = processor(
        resample_poly(clip.astype(np.float32), 2, 1).astype(np.float32),
        sampling_rate=16000,
        return_tensors="np",
    )["input_values"][0]
    np.testing.assert_allclose(data["train"][1]["audio"], expected, atol=1e-5)
    assert data.notes[0] == (
        "clips are resampled from 8,000 Hz to 16,000 Hz: 2 of 2 in train, 2 of 2 in validation. Nothing is there above half the lower rate."
    )


def test_clips_that_are_cut_off_or_far_shorter_than_the_input_are_told(tmp_path):
    for i, seconds in enumerate((0.2, 0.3, 0.75, 0.4)):
        write(tmp_path / CLASSES[i % 2] / f"{i}.wav", chirp(i % 2, samples=int(16000 * seconds)), 16000)
    for frames, told in (
        (64, ["what lies beyond the 64 frames (0.64 s, task.max_length) that are read is cut off: 1 of 4 clips are longer."]),
        (75, []),  # the last frame ends with the clip
        (149, []),
        (160, ["the longest clip lasts 0.75 s, and every clip is padded to 160 frames (1.6 s, task.max_length): 75 would do."]),
    ):  # fmt: skip
        assert prepared(str(tmp_path), spec(from_config=AST | {"max_length": frames}))[2].notes == told
    assert prepared(str(tmp_path), spec(from_config=WAV2VEC2))[2].notes == []


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_waveforms_are_padded_with_a_mask_where_the_model_was_trained_with_one(tmp_path, norm):
    model = spec(from_config={**WAV2VEC2, "feat_extract_norm": norm, "do_stable_layer_norm": norm == "layer"})
    for i in range(4):
        write(tmp_path / CLASSES[i % 2] / f"{i}.wav", chirp(i % 2, samples=1600 + 400 * i))
    task, processor, data = prepared(str(tmp_path), model)
    rows = [data["train"][i] for i in range(3)]
    batch = data.collator(rows)
    lengths = [len(row["audio"]) for row in rows]
    assert batch["input_values"].shape == (3, max(lengths))
    assert ("attention_mask" in batch) == (norm == "layer")
    if norm == "layer":
        assert batch["attention_mask"].sum(1).tolist() == lengths
    built = task.load_model(model, processor)
    assert task.head_patterns(built) == ["projector", "classifier"]
    assert built(**batch).loss.isfinite()
    first = task.predict(built, processor, [row for row in split_paths(data)], batch_size=1)
    if norm == "layer":  # with a mask, the company in a batch changes nothing
        together = task.predict(built, processor, [row for row in split_paths(data)])
        for a, b in zip(first, together, strict=True):
            assert a["score"] == pytest.approx(b["score"], abs=1e-4)


def split_paths(data):
    split = data["train"].split
    return [split.where(row) for row in range(len(split))]


def test_seconds_cut_waveforms(tmp_path):
    _, _, data = prepared(class_folders(tmp_path), spec(from_config=WAV2VEC2), max_seconds=0.1)
    assert {len(data["train"][i]["audio"]) for i in range(9)} == {1600}


def test_whispers_encoder_is_no_head(tmp_path):
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))}  # fmt: skip
    model = spec(from_config={"model_type": "whisper", "d_model": 16, "num_mel_bins": 16, **sizes})
    task, processor, data = prepared(class_folders(tmp_path, each=2), model)
    built = task.load_model(model, processor)
    assert task.head_patterns(built) == ["projector", "classifier"]
    batch = data.collator([data["train"][0]])
    assert batch["input_features"].shape == (1, 16, 3000)
    assert built(**batch).logits.shape == (1, 2)
    with pytest.raises(RecipeError, match=r"task.max_length has no meaning for this kind of model"):
        get_task(TASK, max_length=10).load_processor(model)


def test_the_head_is_on_all_tokens_on_the_first_or_the_models_own(ast):
    x = torch.randn(3, 64, 32)
    for pooling in ("mean", "cls", "auto"):
        torch.manual_seed(0)
        task = get_task(TASK, pooling=pooling)
        task.labels = ["a", "b", "c"]
        built = task.load_model(ast).eval()
        with torch.no_grad():
            if pooling == "auto":
                states = built.audio_spectrogram_transformer(x).last_hidden_state
                expected = built.classifier(states[:, :2].mean(1))
            else:
                states = built.encoder(x).last_hidden_state
                pooled = states.mean(1) if pooling == "mean" else states[:, 0]
                expected = pooled @ built.classifier.weight.T + built.classifier.bias
            torch.testing.assert_close(built(input_values=x).logits, expected)
        loss = built(input_values=x, labels=torch.tensor([0, 1, 2])).loss
        torch.testing.assert_close(loss, nn.functional.cross_entropy(expected, torch.tensor([0, 1, 2])))


def test_the_final_norm_trains_with_the_head(ast):
    task = get_task(TASK, pooling="mean")
    task.labels = ["a", "b"]
    built = task.load_model(ast)
    plan = ad.attach(built, "lora", targets="q", train=[*task.head_patterns(built), "encoder.layernorm"])
    lora, head, norm = 2 * 8 * 32, 16 * 2 + 2, 2 * 16
    assert plan.trainable == lora + head + norm
    batch = {"input_values": torch.randn(2, 64, 32), "labels": torch.tensor([0, 1])}
    built(**batch).loss.backward()
    trained = {n for n, p in built.named_parameters() if p.requires_grad}
    assert sum("layernorm.adaptome" in n for n in trained) == 2
    assert all(p.grad is not None for n, p in built.named_parameters() if n in trained and "layernorm" in n)


@pytest.mark.parametrize("kind", [AST, WAV2VEC2])
def test_a_base_in_bfloat16_takes_the_same_clips(tmp_path, kind):
    model = spec(from_config=kind, dtype="bfloat16")
    task, processor, data = prepared(class_folders(tmp_path, each=2), model)
    built = task.load_model(model, processor)
    ad.attach(built, "lora", targets="attention", train=task.head_patterns(built))
    built.train()
    built(**data.collator([data["train"][0], data["train"][1]])).loss.backward()
    ad.check_gradients(built)
    assert len(task.predict(built, processor, split_paths(data)[:2])) == 2


def test_metrics_from_the_definition():
    result = SimpleNamespace(predictions=np.array([[2.0, 1], [0, 1], [3, 1]]), label_ids=np.array([0, 0, 1]))
    found = get_task(TASK).metrics(result)
    assert found["accuracy"] == pytest.approx(1 / 3) and found["macro_f1"] == pytest.approx(0.25)


def test_clips_are_kept_up_to_a_limit(tmp_path, ast, monkeypatch):
    from adaptome.tasks import audio_classification

    read = []
    monkeypatch.setattr(
        audio_classification,
        "decode",
        lambda s, w, real=audio_classification.decode: read.append(w) or real(s, w),
    )
    for limit, again in ((1, 0), (0, 9)):
        _, _, data = prepared(class_folders(tmp_path), ast, cache=limit)
        first = [data["train"][i]["audio"] for i in range(9)]
        read.clear()
        second = [data["train"][i]["audio"] for i in range(9)]
        assert len(read) == again
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_task_survives_json(ast):
    task = get_task(TASK, max_length=48, positions="interpolate", labels=["b", "a"])
    task.labels = ["b", "a"]
    again = task_from_dict(json.loads(json.dumps(task.to_dict())))
    assert again.to_dict() == task.to_dict()


# -- what is refused -------------------------------------------------------------------------------------------------


def refused(source, model, **options):
    with pytest.raises((DataError, RecipeError)) as caught:
        prepared(source, model, **options)
    return str(caught.value)


def test_sounds_that_cannot_be_used_are_named_before_training(tmp_path, ast):
    folder = class_folders(tmp_path / "s", each=2)
    write(tmp_path / "s" / "up" / "none.wav", np.zeros(0, np.float32))
    assert "up/none.wav: the clip holds no samples; at least 25 ms are needed" in refused(folder, ast)
    write(tmp_path / "s" / "up" / "none.wav", np.zeros(80, np.float32))
    assert "up/none.wav: the clip lasts 10.0 ms; at least 25 ms" in refused(folder, ast)
    content = (tmp_path / "s" / "up" / "1.wav").read_bytes()
    (tmp_path / "s" / "up" / "none.wav").write_bytes(content[:-100])
    assert "up/none.wav is cut short" in refused(folder, ast)


def test_a_column_of_something_else_is_told(tmp_path, ast):
    def table(name, column, value):
        lines = [json.dumps({column: value, "label": "xy"[i % 2], "id": i}) for i in range(8)]
        (tmp_path / name).write_text("\n".join(lines))

    table("a.jsonl", "audio", 3)
    told = refused(str(tmp_path / "a.jsonl"), ast)
    assert "the column 'audio' holds Value('int64'); expected paths of sound files" in told
    table("b.jsonl", "file", "a.wav")
    told = refused(str(tmp_path / "b.jsonl"), ast)
    assert "the train split has no column 'audio'" in told and "Columns there: file, label, id" in told


def test_a_label_that_training_does_not_know_is_named(tmp_path, ast):
    class_folders(tmp_path / "train", each=2)
    class_folders(tmp_path / "test", each=1)
    write(tmp_path / "test" / "sideways" / "0.wav", chirp(0))
    told = refused(str(tmp_path), ast)
    assert "sideways/0.wav: label 'sideways' of the test split is not among the 2 labels of train" in told


def test_a_missing_file_names_its_row(tmp_path, ast):
    file = esc50(tmp_path)
    (tmp_path / "audio" / "3-1-A-0.wav").unlink()
    task = get_task(TASK)
    splits = load_splits(
        train=file,
        files="audio",
        paths="../audio/{filename}",
        columns={"label": "category"},
        validation_fraction=0,
    )
    with pytest.raises(
        DataError, match=r"esc50\.csv, line 11: there is no file .*3-1-A-0\.wav\. Near names: "
    ):
        task.prepare(splits, task.load_processor(ast))


def test_options_without_meaning_for_the_model_are_refused(tmp_path, ast):
    waves = spec(from_config=WAV2VEC2)
    for model, options, told in (
        (ast, {"max_seconds": 1.0}, "task.max_seconds has no meaning .* Give task.max_length, in frames"),
        (waves, {"max_length": 100}, "task.max_length has no meaning .* Give task.max_seconds"),
        (waves, {"pooling": "mean"}, "task.pooling has no meaning"),
        (waves, {"time_mask": 8}, "task.time_mask has no meaning"),
    ):
        with pytest.raises(RecipeError, match=told):
            get_task(TASK, **options).load_processor(model)


def test_an_extractor_of_another_model_is_refused(tmp_path, ast):
    task = get_task(TASK)
    task.labels = ["a", "b"]
    wide = get_task(TASK).load_processor(spec(from_config={**AST, "num_mel_bins": 64}))
    with pytest.raises(RecipeError, match="makes spectrograms of num_mel_bins=64, the model reads 32"):
        task.load_model(ast, wide)
    whisper = get_task(TASK).load_processor(spec(from_config={"model_type": "whisper", "num_mel_bins": 16}))
    with pytest.raises(RecipeError, match="makes input_features, the model reads input_values"):
        task.load_model(ast, whisper)
    with pytest.raises(RecipeError, match="vit has no feature extractor"):
        task.load_processor(spec(from_config={"model_type": "vit"}))
    with pytest.raises(RecipeError, match="the feature extractor '.*' could not be loaded"):
        task.load_processor(spec(name=str(tmp_path)))


def test_samples_without_a_rate_are_not_predicted(ast):
    task = get_task(TASK)
    task.labels = ["a", "b"]
    processor = task.load_processor(ast)
    with pytest.raises(DataError, match="samples without their rate"):
        task.predict(task.load_model(ast, processor), processor, [chirp(0)])
