"""Deepfake detection from recipe to answer: made data, pairs, predictions on pictures and videos."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptome.core.errors import DataError
from adaptome.data.faces.forgeries import TRAINED, UNSEEN
from adaptome.data.load import load_splits
from adaptome.data.makers.faces import table, videos
from adaptome.data.splits import Splits, to_split
from adaptome.recipe import load_recipe
from adaptome.tasks import get_task
from adaptome.tasks.pairing import chosen, paired_share, videos_of
from adaptome.training import evaluate, load_run, predict, run, run_stages

TINY = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32, "patch_size": 16}  # fmt: skip


def frames(seed: int = 0, people: int = 4, each: int = 2, dataset: str = "a", forgeries=TRAINED):
    return videos(np.random.default_rng(seed), dataset, people, each, forgeries)


def write(rows: list[dict], root: Path) -> None:
    for number, row in enumerate(rows):
        path = root / str(row["video"]) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(row["image"]).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("frames")
    write(frames(0, dataset="train"), root)
    write(frames(1, 2, dataset="seen"), root)
    write(frames(2, 2, dataset="denoise", forgeries={"denoise": UNSEEN["denoise"]}), root)
    return root


def recipe(folder: Path, out: Path, **task):
    return load_recipe(
        {
            "model": {"composite": "feature-classifier", "encoder": {"from_config": TINY}},
            "task": {"name": "deepfake-detection", **task},
            "data": {"train": f"{folder}/train", "validation": f"{folder}/seen", "test": f"{folder}/denoise"},
            "method": "norm-tuning",
            "objective": ["model", {"name": "align-uniform"}],
            "training": {"max_steps": 3, "batch_size": 8, "device": "cpu", "logging_steps": 1, "learning_rate": 0.01},
            "output": str(out),
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "gend"
    result = run(recipe(folder, out, augment=True), callbacks=[])
    assert result.trainable_parameters == 3 * 2 * 16 + 2 * 16 + 2 and 0 <= result.metrics["auroc"] <= 1
    logged = [log for log in result.history if "loss/align-uniform" in log]
    assert logged and all(-4.01 <= log["loss/align-uniform"] <= 0.4 for log in logged)
    told = "train: 24 fake frames of 12 videos, 8 real frames of 4 videos; 100% of the fake videos stand with"
    assert any(note.startswith(told) for note in result.notes), result.notes
    return out


def test_a_run_is_scored_on_several_sets(trained, folder):
    found = evaluate(trained, overrides=[f"data.test=[{folder}/denoise]"])
    assert "auroc@denoise" not in found and 0 <= found["eer"] <= 1
    write(frames(5, 2, dataset="other"), folder)
    many = evaluate(trained, overrides=[f"data.test=[{folder}/denoise, {folder}/other]"])
    assert many["auroc"] == pytest.approx((many["auroc@denoise"] + many["auroc@other"]) / 2)
    assert many["auroc@denoise"] == pytest.approx(found["auroc"])
    assert set(many) >= {
        "eer@other",
        "map@other",
        "tpr_at_0.1@other",
        "tpr_at_0.01",
        "frame_auroc",
        "accuracy",
    }


def test_training_frames_are_drawn_anew_in_every_epoch(folder, tmp_path, monkeypatch):
    from adaptome.data.augment import AugmentedPictures

    seen: list[tuple[int, int]] = []
    plain = AugmentedPictures.__getitem__
    monkeypatch.setattr(
        AugmentedPictures, "__getitem__", lambda self, i: seen.append((self.epoch, int(i))) or plain(self, i)
    )
    told = recipe(folder, tmp_path / "run", augment=True)
    training = told.training.model_copy(update={"max_steps": None, "epochs": 2.0})
    run(told.model_copy(update={"training": training}), callbacks=[])
    assert sorted(seen) == [(epoch, row) for epoch in (0, 1) for row in range(32)]


def test_the_adapter_restores_the_run_and_is_small(trained):
    first, second = load_run(trained), load_run(trained)
    pictures = [row["image"] for row in frames(7, 1)]
    answers = [run.task.predict(run.model, run.processor, pictures) for run in (first, second)]
    assert answers[0] == answers[1]
    assert sum(f.stat().st_size for f in (trained / "adapter").rglob("*") if f.is_file()) <= 500_000


def test_predictions_on_pictures_folders_and_videos(trained, tmp_path):
    av = pytest.importorskip("av")
    rows = frames(8, 1, each=5)[:5]
    for number, row in enumerate(rows):
        (tmp_path / "film").mkdir(exist_ok=True)
        Image.fromarray(row["image"]).save(tmp_path / "film" / f"{number}.png")
    one = [predict(trained, [str(tmp_path / "film" / f"{n}.png")])[0] for n in range(5)]
    whole, array = predict(trained, [str(tmp_path / "film"), rows[0]["image"]], batch_size=2)
    assert whole["frames"] == 5 and whole["score"] == whole["scores"][whole["label"]]
    mean = np.mean([answer["scores"]["fake"] for answer in one])
    assert whole["scores"]["fake"] == pytest.approx(mean, abs=1e-5) and array["scores"] == one[0]["scores"]
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for row in rows:
            for packet in stream.encode(av.VideoFrame.from_ndarray(row["image"], format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    clip = predict(trained, [str(tmp_path / "clip.mp4")])[0]
    assert clip["frames"] == 5 and clip["label"] in ("real", "fake")


def test_the_threshold_and_the_faces_of_a_detector(trained, tmp_path):
    Image.fromarray(frames(9, 1)[0]["image"]).resize((96, 96)).save(tmp_path / "a.png")
    script = tmp_path / "detect.py"
    script.write_text("import sys\nfor p in sys.argv[1:]: print('[{\"box\": [10, 10, 60, 60]}]')\n")
    (tmp_path / "boxes.jsonl").write_text(json.dumps({"file": "a.png", "box": [10, 10, 60, 60]}) + "\n")
    picture = str(tmp_path / "a.png")

    def asked(*changes: str):
        loaded = load_run(trained, changes)
        return loaded.task.predict(loaded.model, loaded.processor, [picture])[0]

    plain, found = asked(), asked(f"task.detector={sys.executable} {script}")
    assert found["scores"] != plain["scores"]
    assert asked(f"task.boxes={tmp_path / 'boxes.jsonl'}") == found
    fake = plain["scores"]["fake"]
    assert asked(f"task.threshold={fake - 0.01}")["label"] == "fake"
    assert asked(f"task.threshold={fake + 0.01}")["label"] == "real"
    script.write_text("import sys\nfor p in sys.argv[1:]: print('[]')\n")
    with pytest.raises(DataError, match="no face in any of the 1 frames"):
        asked(f"task.detector={sys.executable} {script}")


def split_of(rows: list[dict], name: str = "train"):
    return to_split([table(rows, name)], name)


def test_pairs_and_their_control_have_the_same_real_videos_and_as_many_fakes():
    split = split_of(frames(0, people=7, each=1))
    whole = videos_of(split)
    paired, control = (videos_of(chosen(split, how, seed=1)) for how in ("paired", "unpaired"))
    assert {v for v, (real, _) in paired.items() if real} == {v for v, (real, _) in control.items() if real}
    assert len(paired) == len(control) == 3 + 3 * 3
    assert (paired_share(whole), paired_share(paired), paired_share(control)) == (1.0, 1.0, 0.0)
    assert videos_of(chosen(split, "paired", seed=2)) != paired
    with pytest.raises(DataError, match="two sources that have both"):
        chosen(split_of(frames(0, people=1, each=1)), "paired")


def test_pairing_is_an_option_of_the_task():
    splits = Splits({"train": split_of(frames(0, people=6, each=1))})
    prepared = get_task("deepfake-detection", pairing="unpaired").prepare(splits, None)
    assert len(prepared["train"]) == 3 + 9 and "0% of the fake videos stand" in prepared.notes[0]


def test_a_video_in_two_splits_and_a_set_of_one_class_are_told():
    rows = frames(0, 3, 2)
    task = get_task("deepfake-detection")
    with pytest.raises(
        DataError, match=r"the video 'a/texture/002' are in both train and test.\n.*data.group"
    ):
        task.prepare(
            Splits({"train": split_of(rows[:-1]), "test": split_of(rows[-1:] + rows[:1], "test")}), None
        )
    real = [row for row in frames(1, 2, 1, "b") if row["label"] == "real"]
    with pytest.raises(DataError, match="all videos of b in the test split are real"):
        task.prepare(Splits({"train": split_of(rows), "test": split_of(real, "test")}), None)


def test_the_frames_of_folders_of_classes_are_videos_of_their_own():
    rows = [{k: row[k] for k in ("image", "label")} for row in frames(0, 3, 2)]
    prepared = get_task("deepfake-detection").prepare(Splits({"train": split_of(rows)}), None)
    assert len(set(prepared["train"]["videos"])) == len(rows) and set(prepared["train"]["sets"]) == {0}


SMALL = "adaptome.data.makers.faces.forged_faces.__defaults__", (6, 3)


def test_made_faces_are_the_same_for_the_same_seed_and_people_are_apart(monkeypatch):
    monkeypatch.setattr(*SMALL)
    one, two, other = (load_splits("made:forged-faces", split_seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(one["test"].rows[5]["image"], two["test"].rows[5]["image"])
    assert not np.array_equal(one["test"].rows[5]["image"], other["test"].rows[5]["image"])
    sources = {name: set(split.rows["source"]) - {"real"} for name, split in one.items()}
    assert sources["train"] == sources["validation"] == set(TRAINED)
    assert sources["test"] == set(TRAINED) | set(UNSEEN)
    tested = set(zip(one["test"].rows["dataset"], one["test"].rows["source"], strict=True))
    fakes = {(name, source) for name, source in tested if source != "real"}
    assert fakes == {("known", name) for name in TRAINED} | {(name, name) for name in UNSEEN}
    groups = [set(split.rows["group"]) for split in one.values()]
    assert not groups[0] & groups[1] | groups[1] & groups[2] | groups[0] & groups[2]


def test_the_demo_takes_a_few_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("adaptome.data.makers.faces.face_patterns.__defaults__", (200, 40))
    monkeypatch.setattr(*SMALL)
    told = [
        f"output={tmp_path}/demo",
        "training.device=cpu",
        "training.max_steps=2",
        "stages.1.training.max_steps=2",
    ]
    result = run_stages(load_recipe("gend-demo", told), callbacks=[])
    detector = result.stages["2-detector"]
    assert detector.trainable_parameters == 9 * 2 * 64 + 2 * 64 + 2 and "auroc@generate" in detector.metrics
    answer = predict(tmp_path / "demo", [frames(0, 1)[0]["image"]])[0]
    assert answer["label"] in ("real", "fake")


def test_the_papers_recipe_is_valid_and_other_methods_take_its_place(folder, tmp_path):
    encoder = json.dumps(
        {
            "from_config": {
                "model_type": "clip_vision_model",
                **{k: v for k, v in TINY.items() if k != "model_type"},
            }
        }
    )
    sets = [
        f"data.train={folder}/train",
        f"data.validation={folder}/seen",
        f"data.test=[{folder}/seen/../denoise]",
    ]
    small = [
        f"model.encoder={encoder}",
        "training.max_steps=2",
        "training.workers=0",
        "training.batch_size=8",
        "training.device=cpu",
    ]
    (tmp_path / "processor").mkdir()
    (tmp_path / "processor" / "preprocessor_config.json").write_text(
        '{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}'
    )
    told = [*sets, *small, f"model.tokenizer={tmp_path / 'processor'}", f"output={tmp_path / 'paper'}"]
    result = run(load_recipe("gend-clip", told), callbacks=[])
    assert (
        result.steps == 2
        and result.trainable_parameters == 4 * 2 * 16 + 2 * 16 + 2
        and "map" in result.metrics
    )
    content = recipe(folder, tmp_path / "lora").model_dump(mode="json", exclude_defaults=True)
    content["methods"] = [{"name": "lora", "targets": "encoder.attention", "r": 1}]
    content["training"] |= {"scheduler": "cosine_with_restarts", "scheduler_settings": {"num_cycles": 3}}
    assert run(load_recipe(content), callbacks=[]).method == "lora"
