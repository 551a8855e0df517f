"""Expression recognition from recipe to answer: clips in lists, streams from files, numbers of classes, what is missing, predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptome.core.errors import DataError
from adaptome.data.faces.expressions import MOTIONS, still
from adaptome.data.makers.expressions import clip
from adaptome.data.splits import Splits, Table, to_split
from adaptome.recipe import load_recipe
from adaptome.tasks import get_task
from adaptome.tasks.class_texts import class_texts, spoken
from adaptome.tasks.clip_rows import based
from adaptome.tasks.clips import without_words
from adaptome.tasks.metrics import recall_metrics
from adaptome.training import evaluate, load_run, predict, run, run_stages

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CLIP = {
    "model_type": "clip", "projection_dim": 8, "vision_config": {**SMALL, "image_size": 32, "patch_size": 16},
    "text_config": {**SMALL, "vocab_size": 258, "max_position_embeddings": 48, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 0},
}  # fmt: skip
CAPTIONS = ["smiling open raised smooth", "frowning closed level drawn"]
KINDS = ["happiness", "surprise", "anger"]


def write(root: Path, count: int = 12) -> None:
    """Clips as folders of frames with a list, numbers from 1; masks, landmarks and descriptions of some."""
    rng, lines, words = np.random.default_rng(0), [], {}
    for number in range(count):
        label, name = number % 3, f"{number:05}"
        row = clip(KINDS[label], rng, frames=3 + number % 4)
        for at, picture in enumerate(row["video"]):
            path = root / "frames" / name / f"{at}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
        if number % 4:
            (root / "parsing" / name).mkdir(parents=True)
            for at, mask in enumerate(row["parsing"]):
                Image.fromarray(mask).save(root / "parsing" / name / f"{at}.png")
        if number % 3:
            (root / "landmarks").mkdir(exist_ok=True)
            np.save(root / "landmarks" / f"{name}.npy", row["landmarks"])
            words[name] = f"{row['description']}. She shows Happiness."
        lines.append(f"frames/{name} {len(row['video'])} {label + 1}")
    (root / "words.json").write_text(json.dumps(words))
    (root / "set_1.txt").write_text("\n".join(lines[:6]) + "\nframes/nobody 4 1\n")
    (root / "set_2.txt").write_text("\n".join(lines[6:]) + "\n")
    (root / "frames" / "broken.mp4").write_bytes(b"no video")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    write(root)
    return root


def recipe(folder: Path, out: Path, **changes):
    task = {
        "name": "expression-recognition", "labels": KINDS, "frames": 4, "augment": True, "parsing": f"{folder}/parsing",
        "landmarks": f"{folder}/landmarks", "descriptions": f"{folder}/words.json",
    }  # fmt: skip
    return load_recipe(
        {
            "model": {"composite": "video-prompt-classifier", "encoder": {"from_config": CLIP}, "context": 2, "tokenizer": "bytes"},
            "task": {**task, **changes.pop("task", {})},
            "data": {"train": f"{folder}/set_1.txt", "validation": f"{folder}/set_2.txt", "test": f"{folder}/set_2.txt"},
            "method": {"name": "aim", "targets": "encoder.vision_model.blocks", "sets": ["frames", "parsing+landmarks"]},
            "objective": ["positive-negative"],
            "training": {"max_steps": 2, "batch_size": 4, "device": "cpu"},
            "output": str(out),
            **changes,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "clips"
    result = run(recipe(folder, out), callbacks=[])
    assert {"war", "uar"} <= set(result.metrics)
    told = "\n".join(result.notes)
    assert "labels are numbers from 1: 1 is happiness" in told
    assert "train: 1 of 7 clips cannot be read and were left out" in told and "nobody: no such file" in told
    assert "train: 2 of 6 clips have no parsing, such as" in told and "set_1.txt, line 1" in told
    assert "train: 2 of 6 clips have no landmarks" in told and "descriptions name a class" in told
    return out


def test_a_run_is_used_again(trained, folder):
    found = evaluate(trained)
    known = json.loads((trained / "metrics.json").read_text())["metrics"]
    assert found["war"] == pytest.approx(known["war"])
    first, second = (load_run(trained) for _ in range(2))
    given = [str(folder / "frames" / "00003"), str(folder / "frames" / "00004")]
    answers = [one.task.predict(one.model, one.processor, given, size) for one, size in ((first, 1), (second, 2))]  # fmt: skip
    for a, b in zip(*answers, strict=True):
        assert a["label"] == b["label"] and a["scores"] == pytest.approx(b["scores"], abs=1e-4)
    streams = [set(one["streams"]) for one in answers[0]]
    assert streams == [{"frames", "parsing"}, {"frames", "landmarks", "description"}]
    assert all(sum(one["streams"].values()) == pytest.approx(1, abs=1e-5) for one in answers[0])


def test_another_data_set_without_training(trained, folder):
    others = ["surprise", "sadness", "happiness", "anger"]
    with pytest.raises(DataError, match="label 'calm' of the test split"):
        (folder / "other.txt").write_text("frames/00001 4 calm\n")
        evaluate(trained, overrides=[f"task.zero_shot={json.dumps(others)}", f"data.test={folder}/other.txt"])
    (folder / "other.txt").write_text("frames/00000 3 happiness\nframes/00001 4 surprise\n")
    found = evaluate(
        trained, overrides=[f"task.zero_shot={json.dumps(others)}", f"data.test={folder}/other.txt"]
    )
    assert found["war"] in (0, 0.5, 1)
    loaded = load_run(trained, [f"task.zero_shot={json.dumps(others)}"])
    assert len(loaded.model.classes()[0]) == 4 and not loaded.model.in_context
    one = loaded.task.predict(loaded.model, loaded.processor, [str(folder / "frames" / "00001")])[0]
    assert list(one["scores"]) == others


def film(path: Path, pictures) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for picture in pictures:
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_predictions_on_videos(trained, folder, tmp_path, capsys):
    from adaptome.cli import main

    film(tmp_path / "face.mp4", clip("anger", np.random.default_rng(1), 9)["video"])
    with pytest.raises(SystemExit) as stopped:
        main(["predict", str(trained), str(tmp_path / "face.mp4"), "--output", str(tmp_path / "found")])
    assert not stopped.value.code
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in KINDS) and printed.count(" %") == 3 and "face.mp4" in printed
    assert Image.open(tmp_path / "found" / "face-strip.png").size == (4 * 32, 32)
    line = json.loads((tmp_path / "found" / "predictions.jsonl").read_text())
    assert line["prediction"]["frames"] == 4 and line["prediction"]["streams"] == {"frames": 1.0}
    array = clip("anger", np.random.default_rng(1), 2)
    whole = predict(trained, [{k: array[k] for k in ("video", "parsing", "landmarks", "description")}])[0]
    assert set(whole["streams"]) == {"frames", "parsing", "landmarks", "description"}


def test_what_cannot_be_read_is_named(trained, folder, tmp_path):
    with pytest.raises(DataError, match=r"broken\.mp4 cannot be read as a video"):
        predict(trained, [str(folder / "frames" / "broken.mp4")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no pictures"):
        predict(trained, [str(tmp_path / "empty")])
    task = load_run(trained).task
    with pytest.raises(DataError, match=r"no clip: .*nothing\.mp4"):
        task.given([str(tmp_path / "nothing.mp4")])
    given = [one.name.rpartition("/")[2] for one in task.given([str(folder / "frames"), str(folder / "frames" / "00002")])]  # fmt: skip
    assert given == [*(f"{n:05}" for n in range(12)), "broken.mp4", "00002"]
    with pytest.raises(DataError, match="set_1.txt, line 7.*nobody"):
        run(recipe(folder, tmp_path / "strict", task={"unreadable": "error"}), callbacks=[])
    with pytest.raises(DataError, match="task.parsing=.*nowhere"):
        run(recipe(folder, tmp_path / "nowhere", task={"parsing": "nowhere"}), callbacks=[])


def test_a_clip_without_a_face(trained, folder, tmp_path):
    (tmp_path / "boxes.jsonl").write_text(
        json.dumps({"file": str(folder / "frames" / "00001"), "frame": 0, "box": [4, 4, 28, 28]}) + "\n"
    )
    loaded = load_run(trained, [f"task.boxes={tmp_path}/boxes.jsonl"])
    clip_of = [str(folder / "frames" / name) for name in ("00001", "00002")]
    answer = loaded.task.predict(loaded.model, loaded.processor, clip_of[:1])[0]
    assert answer["frames"] == 4, "the one frame with a face stands for all"
    with pytest.raises(DataError, match="00002: no face in any of the"):
        loaded.task.predict(loaded.model, loaded.processor, clip_of[1:])


@pytest.mark.parametrize("method", [{"name": "lora", "targets": "encoder.vision_model.attention", "r": 2}, "linear-probe"])  # fmt: skip
def test_other_methods_and_other_streams(folder, tmp_path, method):
    changes = {
        "method": method,
        "task": {"streams": ["frames", "description"]},
        "objective": ["cross-entropy"],
    }
    result = run(recipe(folder, tmp_path / "run", **changes), callbacks=[])
    assert 0 <= result.metrics["uar"] <= 1 and load_run(tmp_path / "run").model.visual == ["frames"]


def test_metrics_on_classes_of_unequal_size():
    truth = np.array([0] * 6 + [1] * 3 + [2])
    told = np.array([0] * 6 + [1, 0, 0] + [1])
    assert recall_metrics(told, truth) == {"war": 0.7, "uar": pytest.approx((1 + 1 / 3 + 0) / 3)}


def test_texts_of_classes():
    positive, negative = class_texts(["Happy", "wonder"], {"wonder": ["big eyes", "an open mouth"]})
    assert (
        positive[0].startswith("an expression of Happy: lifted cheeks, ")
        and "no lifted cheeks" in negative[0]
    )
    assert positive[1] == "an expression of wonder: big eyes, an open mouth"
    assert negative[1] == "not an expression of wonder: no big eyes, no open mouth"
    assert class_texts(["neutral"])[1] == ["not an expression of neutral: no relaxed brows, no calm eyes, no closed relaxed mouth, muscle in tension"]  # fmt: skip
    assert class_texts(["x"])[0] == ["an expression of x"]
    assert class_texts(["mixed_joy"])[0] == ["an expression of mixed joy"]
    with pytest.raises(DataError, match="'wnder' is no label. Did you mean 'wonder'"):
        class_texts(["wonder"], {"wnder": []})
    with pytest.raises(DataError, match="may have {label}"):
        class_texts(["x"], positive="{name}")
    assert without_words("She is Happy, very happily", ["happy"]) == "She is, very happily"
    assert spoken(["Happiness", "sad", "calm"]) == [
        "Happiness",
        "sad",
        "calm",
        "happiness",
        "sadness",
        "happy",
    ]
    assert without_words("A happy man, not sad", spoken(["happiness", "sadness"])) == "A man, not"


def test_numbers_of_classes_from_0_and_1(tmp_path, folder):
    for numbers, first, told in (([1, 2, 3], None, [0, 1, 2]), ([0, 1, 2], None, [0, 1, 2]), ([1, 2, 2], 1, [0, 1, 1]), ([1, 2, 2], None, [1, 2, 2])):  # fmt: skip
        (tmp_path / "list.txt").write_text("".join(f"{folder}/frames/0000{i} {n}\n" for i, n in enumerate(numbers)))  # fmt: skip
        settings = {"labels": KINDS, "frames": 2, "first_label": first}
        one = recipe(folder, tmp_path / "x", task=settings)
        task = get_task("expression-recognition", **one.task.settings)
        from adaptome.data import load_splits

        splits = load_splits(train=str(tmp_path / "list.txt"), validation_fraction=0, prefer=task.prefer, files="video")  # fmt: skip
        made = task.prepare(splits, task.load_processor(one.model))
        assert made["train"].labels == told


def test_numbers_that_may_count_from_0_or_1_are_asked_about():
    def based_on(split, labels, names):
        found = to_split([Table("clips.txt", {"video": ["a"] * len(labels), "label": labels}, range(len(labels)))], split)  # fmt: skip
        return based(Splits({split: found}, []), names, None)

    with pytest.raises(
        DataError, match=r"from 1 to 2, of 3 classes: is happiness 0 or 1\? Say so: task.first_label"
    ):
        based_on("test", [1, 2], KINDS)
    splits, notes = based_on("test", [1, 2, 3], ["1", "2", "3"])  # a run whose classes are called by numbers
    assert list(splits["test"].rows["label"]) == [1, 2, 3] and notes == []


def test_the_demo_takes_two_steps(tmp_path, monkeypatch):
    from adaptome.data import load as loading
    from adaptome.data.makers import expressions

    sizes = {"made:expression-stills": (expressions.expression_stills, {"train": 12, "validation": 6}), "made:moving-expressions": (expressions.moving_expressions, {"train": 12, "validation": 6, "test": 6})}  # fmt: skip
    monkeypatch.setattr(loading, "make", lambda name, seed: sizes[name][0](seed, **sizes[name][1]))
    monkeypatch.setattr(expressions, "still", lambda rng: (still(rng)[0], CAPTIONS[int(rng.integers(2))]))
    short = ["training.max_steps=2", "stages.1.training.batch_size=4", "training.device=cpu", f"output={tmp_path}/demo"]  # fmt: skip
    results = run_stages(load_recipe("fineclipper-demo", short), callbacks=[])
    assert results.last.trainable_parameters == 2 * 2 * 3 * (2 * 64 * 16 + 16 + 64) + 4 * 64 + 2 * 6 * 4 * 64
    assert 0 <= results.last.metrics["war"] <= 1
    task = load_run(tmp_path / "demo").task
    assert task.classes == sorted(MOTIONS)
