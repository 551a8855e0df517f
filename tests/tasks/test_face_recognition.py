"""Face recognition from recipe to answer: other people, quality that steers, alignment, protocols, predictions and galleries."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adaptome.cli import main
from adaptome.core.errors import DataError, RecipeError
from adaptome.core.steer import steered
from adaptome.data.faces.drawing import person, stored
from adaptome.data.load import load_splits
from adaptome.data.makers import _MAKERS, makers, people
from adaptome.data.makers.people import seen
from adaptome.recipe import load_recipe
from adaptome.tasks import get_task
from adaptome.tasks.base import Gallery
from adaptome.training import evaluate, load_run, predict, run, run_stages
from adaptome.training.ranking import ranked

SWIN = {"model_type": "face-swin", "image_size": 32, "patch_size": 8, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}  # fmt: skip
MODEL = {"composite": "face-recogniser", "encoder": {"from_config": SWIN}, "width": 16, "norm": "none"}


def write(root: Path, people: str, each: int = 3, seed: int = 0, times: int = 1, first: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for name in people.split():
        who = person(rng)
        for n in range(each):
            path = root / name / f"{first + n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(stored(seen(who, rng, times))).save(path)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("faces")
    write(root / "train", "anna bo cleo dan", times=2)
    write(root / "validation", "eva finn", seed=1)
    write(root / "test" / "Gallery", "gus hal ivy", 2, seed=2)
    write(root / "test" / "Probe", "gus hal jo", 2, seed=2, times=4, first=2)
    return root


def recipe(folder: Path, out: Path, method="petalface", **task):
    named = {"name": method, "targets": "encoder.qkv", "r": 2} if isinstance(method, str) else method
    return load_recipe(
        {
            "model": MODEL,
            "task": {"name": "face-recognition", "far": [0.1], "fpir": [0.5], "ranks": [1, 2], **task},
            "data": {part: f"{folder}/{part}" for part in ("train", "validation", "test")},
            "method": named,
            "objective": {"name": "margin-softmax", "kind": "cosface", "scale": 16},
            "training": {"epochs": 2, "batch_size": 6, "device": "cpu", "logging_steps": 1, "learning_rate": 0.01},
            "output": str(out),
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "faces"
    result = run(recipe(folder, out, metric="rank_1", sample=0.9), callbacks=[])
    told = set(result.metrics)
    assert told >= {"rank_1", "rank_2", "tar_at_0.1", "tpir_at_0.5", "auroc", "eer", "threshold"}
    assert not any("loss" in key for log in result.history for key in log if key.startswith("eval")) and "loss" not in told  # fmt: skip
    losses = [log["loss/margin-softmax"] for log in result.history if "loss/margin-softmax" in log]
    assert len(losses) == 4 and all(np.isfinite(losses))
    assert "train: 12 faces of 4 people, 3 to 3 of each." in result.notes
    assert "test: 12 faces of 4 people: 6 in the gallery and 6 probes, as their roles say." in result.notes
    return out


def test_a_run_is_evaluated_as_it_was_scored(trained):
    kept = json.loads((trained / "metrics.json").read_text())["metrics"]
    assert evaluate(trained) == pytest.approx(kept)
    person = evaluate(trained, overrides=["task.templates=person", "task.pool=quality"])
    assert person != pytest.approx(kept) and 0 <= person["rank_1"] <= 1
    with pytest.raises(
        DataError, match=r"task.metric=rank_3: this split does not give it. It gives .*rank_1, rank_2"
    ):
        evaluate(trained, overrides=["task.metric=rank_3"])


def test_quality_reaches_the_adapters_one_score_for_each_face(folder, trained):
    loaded = load_run(trained)
    faces = [folder / "train/anna/0.png", folder / "validation/eva/0.png"]
    scores: list[torch.Tensor] = []
    hook = loaded.model.encoder.register_forward_pre_hook(
        lambda module, args: scores.append(steered("quality"))
    )
    one, two = (loaded.task.predict(loaded.model, loaded.processor, [str(face)])[0] for face in faces)
    hook.remove()
    assert (
        all(score.shape == (1,) for score in scores) and len(scores) == 4
    )  # each picture and its mirror image
    assert one["quality"] == pytest.approx(float(scores[0]), abs=1e-5) and one["quality"] < two["quality"]
    both = loaded.task.predict(loaded.model, loaded.processor, [str(face) for face in faces])
    np.testing.assert_allclose([b["feature"] for b in both], [one["feature"], two["feature"]], atol=1e-5)
    pair = loaded.task.predict(loaded.model, loaded.processor, [tuple(map(str, faces))])[0]
    assert pair["score"] == pytest.approx(float(np.dot(one["feature"], two["feature"])), abs=1e-5)
    assert pair["label"] == ("same" if pair["score"] > pair["threshold"] else "different")


def test_stored_scores_steer_as_measured_ones(folder, tmp_path):
    files = sorted((folder / "train").rglob("*.png"))
    measuring = get_task("face-recognition")
    prepared(measuring, folder)
    scores = [measuring.quality.raw(str(f), measuring.reader(str(f))) for f in files]
    (tmp_path / "scores.csv").write_text("".join(f"{f},{s!r}\n" for f, s in zip(files, scores, strict=True)))
    stored_task = get_task(
        "face-recognition", quality="file", quality_file=str(tmp_path / "scores.csv"), quality_scale=measuring.options.quality_scale
    )  # fmt: skip
    rows = prepared(stored_task, folder, only_train=True)["train"]
    batch = [rows[i] for i in range(4)]
    processor = stored_task.load_processor(load_recipe(recipe(folder, tmp_path / "x").model_dump()).model)
    a, b = (task.collator(processor)(batch) for task in (measuring, stored_task))
    assert torch.equal(a["quality"], b["quality"]) and a["quality"].shape == (4,)
    assert (
        measuring.facts(a)["quality"] is a["quality"]
        and get_task("face-recognition", quality="none").facts({}) == {}
    )
    every = measuring.collator(processor)([{"image": str(f)} for f in files])["quality"]
    assert float(every.mean()) == pytest.approx(0.5, abs=1e-5)


def test_a_quality_that_is_no_number_is_refused(folder, tmp_path):
    task = get_task("face-recognition", quality="column", quality_scale=[1, 0])
    one = {"image": str(folder / "train/anna/0.png"), "quality": float("nan")}
    with pytest.raises(DataError, match=r"0.png: its quality is nan; expected a finite number"):
        task.quality(one, task.reader(one))


def prepared(task, folder, only_train=False):
    named = {part: f"{folder}/{part}" for part in ("train",) if only_train} or {
        part: f"{folder}/{part}" for part in ("train", "validation", "test")
    }
    splits = load_splits(**named, prefer=task.prefer, validation_fraction=0)
    model = load_recipe({"model": MODEL, "task": "face-recognition", "data": named, "method": "lora"}).model
    return task.prepare(splits, task.load_processor(model))


@pytest.mark.parametrize("method", ["lora", {"name": "linear-probe"}], ids=["lora", "linear-probe"])
def test_any_method_takes_petalfaces_place(folder, tmp_path, method):
    told = recipe(folder, tmp_path / "run", method, quality="none")
    result = run(told, callbacks=[])
    assert 0 <= result.metrics["auroc"] <= 1 and result.steps == 4


def test_people_of_train_may_not_be_scored_unless_they_are_others(folder, tmp_path):
    task = get_task("face-recognition")
    splits = load_splits(
        train=str(folder / "train"), test=str(folder / "train"), prefer=task.prefer, validation_fraction=0
    )
    with pytest.raises(
        DataError, match=r"'anna' is in train too \(.*2.png\), as are 4 of the 4 people of test"
    ):
        task.prepare(splits, None)
    get_task("face-recognition", overlap="allow").prepare(splits, None)
    two = load_splits(
        train=[str(folder / "train"), str(folder / "test/Probe")], prefer=task.prefer, validation_fraction=0
    )
    write(tmp_path / "more", "dan", seed=9)
    two = load_splits(
        train=[str(folder / "train"), str(tmp_path / "more")], prefer=task.prefer, validation_fraction=0
    )
    with pytest.raises(
        DataError, match="a person called 'dan' is in both .*train and .*more, and only you know"
    ):
        task.prepare(two, None)
    for how, count in (("same", 4), ("different", 5)):
        told = get_task("face-recognition", same_names=how)
        told.prepare(two, None)
        assert len(told.labels) == count


def test_pictures_without_landmarks_and_those_cut_short(folder, tmp_path):
    root = write(tmp_path / "train", "kim lou", 2)
    whole = (root / "kim/0.png").read_bytes()
    (root / "kim/9.png").write_bytes(whole[: len(whole) // 2])
    lines = [
        f"{f.relative_to(tmp_path)} 10 10 22 10 16 16 11 22 21 22"
        for f in root.rglob("*.png")
        if f.name != "1.png"
    ]
    (tmp_path / "points.txt").write_text("\n".join(lines) + "\n")
    splits = load_splits(train=str(root), prefer={"folder": "faces"}, validation_fraction=0)
    told = {"landmarks": str(tmp_path / "points.txt")}
    with pytest.raises(
        DataError, match=r"(?s)1.png: .*points.txt tells of no face in it.* 2 of the train split's 5 pictures"
    ):
        get_task("face-recognition", **told).prepare(splits, None)
    notes = (
        get_task("face-recognition", **told, without_face="skip", check_pictures=True)
        .prepare(splits, None)
        .notes
    )
    assert any("2 pictures of whose face" in n and "1.png" in n for n in notes)
    assert any("1 pictures cannot be decoded and are left out" in n and "9.png" in n for n in notes), notes
    task = get_task("face-recognition", **told, without_face="whole", check_pictures=True)
    task.prepare(splits, None)
    cut, kept = task.reader(str(root / "kim/0.png")), task.reader(str(root / "kim/1.png"))
    assert cut.face is not None and cut.picture.size != (32, 32) and kept.picture.size == (32, 32)


def test_settings_that_do_not_go_together_are_told(folder, tmp_path):
    with pytest.raises(RecipeError, match="task.quality=cnn-iqa needs task.quality_file"):
        _ = get_task("face-recognition", quality="cnn-iqa").quality
    with pytest.raises(RecipeError, match="is read with task.quality=file or cnn-iqa, not with sharpness"):
        _ = get_task("face-recognition", quality_file="x").quality
    task = get_task("face-recognition", quality="column")
    splits = load_splits(train=str(folder / "train"), prefer=task.prefer, validation_fraction=0)
    with pytest.raises(DataError, match="no column 'quality'"):
        task.prepare(splits, None)
    with pytest.raises(DataError, match=r"a.png has no counterpart"):
        (tmp_path / "a.png").touch()
        task.given([str(tmp_path / "a.png")])
    with pytest.raises(DataError, match="is a folder; to rank its pictures, --gallery"):
        task.given([str(tmp_path)])


def asked(capsys, *words) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["predict", *map(str, words)])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_command_line_compares_and_ranks(folder, trained, tmp_path, capsys):
    a, b, people = folder / "test/Gallery/gus/0.png", folder / "test/Probe/jo/2.png", folder / "test/Gallery"
    assert "same above" in asked(capsys, trained, a, b, "--output", tmp_path / "out")
    assert json.loads((tmp_path / "out/predictions.jsonl").read_text())["prediction"]["threshold"] == load_run(trained).task.threshold.__round__(6)  # fmt: skip
    (one,) = json.loads(asked(capsys, trained, a, "--gallery", people, "--json"))
    assert one["ranked"][0] == {"person": "gus", "file": str(a), "score": pytest.approx(1, abs=1e-4)}
    assert one["label"] == "gus" and {item["person"] for item in one["ranked"]} == {"gus", "hal", "ivy"}
    scores = [item["score"] for item in one["ranked"]]
    assert scores == sorted(scores, reverse=True)
    answer, first, second = asked(capsys, trained, a, "--gallery", people, "--top", 2).splitlines()
    assert answer.startswith("gus (1.000)") and first.split()[:2] == ["1.000", "gus"]
    place = next((trained / "galleries").iterdir())
    before = place.read_bytes()
    asked(capsys, trained, a, "--gallery", people, "--set", "task.quality_scale=[0,0]")
    changed = place.read_bytes()
    asked(capsys, trained, a, "--gallery", people)
    assert changed != before == place.read_bytes()  # by another recipe, embedded anew
    assert float(second.split()[0]) <= 1 and second.split()[1] in ("hal", "ivy")


def test_a_gallery_is_kept_and_what_changes_in_it_is_made_anew(folder, trained, tmp_path, caplog):
    root = write(tmp_path / "people", "mia ned", 1, seed=4)
    loaded = load_run(trained)
    probe, made = str(root / "mia/0.png"), list[int]()
    embedded = loaded.task.embedded
    loaded.task.embedded = lambda model, processor, faces, size: made.append(len(faces)) or embedded(model, processor, faces, size)  # fmt: skip

    def asked(stamp="one"):
        made.clear()
        gallery = Gallery(root, tmp_path / "kept", stamp)
        _, (answer,) = loaded.task.ranked(loaded.model, loaded.processor, [probe], gallery)
        return answer["ranked"], list(made)

    first, counts = asked()
    assert (
        counts == [2, 1] and first[0]["person"] == "mia" and first[0]["score"] == pytest.approx(1, abs=1e-4)
    )
    again, counts = asked()
    assert counts == [1] and again == first  # the probe alone
    write(tmp_path / "people", "pia", 1, seed=5)
    (root / "pia/bad.png").write_bytes(b"none")
    with caplog.at_level(logging.WARNING):
        third, counts = asked()
    assert counts == [1, 1] and {item["person"] for item in third} == {"mia", "ned", "pia"}
    assert "1 pictures of the gallery are left out" in caplog.text and "bad.png" in caplog.text
    (root / "ned/0.png").unlink()
    assert {item["person"] for item in asked()[0]} == {"mia", "pia"}
    assert asked("another model")[1] == [2, 1]
    place = next((tmp_path / "kept").iterdir())
    place.write_bytes(b"torn")
    assert asked("another model")[1] == [2, 1]
    with pytest.raises(DataError, match="no such folder"):
        ranked(trained, [probe], tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures"):
        ranked(trained, [probe], tmp_path / "empty")


def test_a_threshold_comes_from_validation_or_from_the_recipe():
    task = get_task("face-recognition")
    history = [
        {"step": 2, "eval_threshold": 0.3},
        {"step": 4, "eval_threshold": 0.5},
        {"loss": 1.0, "step": 4},
    ]
    task.learned({"history": history, "best_step": 2, "metrics": {"threshold": 0.9}})
    assert task.threshold == 0.3
    task.learned({"history": history, "best_step": None})
    assert task.threshold == 0.5
    task.learned({"history": [], "metrics": {"threshold": 0.9}})
    assert task.threshold == 0.9
    told = get_task("face-recognition", threshold=0.1)
    told.learned({"history": history})
    assert told.threshold == 0.1


def test_the_demonstration_takes_its_steps_and_answers(tmp_path, monkeypatch):
    small = {
        "sharp-people": lambda seed: people.sharp_people(seed, 12, 3, 4),
        "small-people": lambda seed: people.small_people(seed, 12, 2, 8, 6, 3),
    }
    for name, make in small.items():
        assert name in makers()
        monkeypatch.setitem(_MAKERS, name, make)
    told = load_recipe("petalface-demo", [f"output={tmp_path}/demo", "training.max_steps=2", "stages.1.training.max_steps=2", "training.device=cpu"])  # fmt: skip
    result = run_stages(told, callbacks=[])
    metrics = result.last.metrics
    assert {"rank_1", "tar_at_0.01", "auroc"} <= set(metrics)
    answers = predict(
        tmp_path / "demo", [(np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 9, np.uint8))]
    )
    assert answers[0]["label"] in ("same", "different")
    assert result.stages["2-small"].trainable_parameters < result.stages["1-large"].trainable_parameters / 5


def test_the_papers_recipe_takes_its_steps_on_small_stand_ins(tmp_path, monkeypatch):
    from adaptome.models.face_recogniser import FaceRecogniser

    monkeypatch.chdir(tmp_path)
    FaceRecogniser.from_settings(encoder={"from_config": SWIN}, width=16).save_pretrained(
        "petalface-webface4m"
    )
    root = tmp_path / "data" / "tinyface"
    write(root / "Training_Set", "1 2 3")
    for part, names, first in (("Gallery_Match", "1 2", 0), ("Probe", "1 2", 3)):
        write(root / "Testing_Set" / part, names, 2, first=first)
    write(root / "Testing_Set" / "Gallery_Distractor", "0", 2, seed=5)
    files = [f for f in root.rglob("*.png") if "Distractor" not in f.parts]
    points = "".join(f"{f.relative_to(root)} 10 10 22 10 16 16 11 22 21 22\n" for f in files)
    (root / "points.csv").write_text(points)
    told = [
        "training.max_steps=2",
        "training.batch_size=4",
        "training.device=cpu",
        "training.workers=0",
        "training.bf16=false",
    ]
    result = run(load_recipe("petalface-tinyface", told), callbacks=[])
    assert result.method == "petalface+lora" and {"rank_1", "rank_5", "rank_20"} <= set(result.metrics)
    assert any("4 people: 6 in the gallery and 4 probes" in note for note in result.notes), result.notes
    # 2 r (in + 3 in) of both blocks, r (in + out) of the embedding, and three people: nothing of the recogniser itself
    widths, tokens = (16, 32), 4 * 32
    assert result.trainable_parameters == sum(2 * 8 * 4 * w for w in widths) + 8 * (tokens + 16) + 3 * 16
