"""Sentiment by sequences of features from archives to answers, with any of the modalities missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from sklearn.metrics import accuracy_score, f1_score

from adaptome.cli import main
from adaptome.core.errors import DataError
from adaptome.data.load import load_splits
from adaptome.recipe import load_recipe
from adaptome.tasks import get_task
from adaptome.tasks.modality_sets import AVAILABLE
from adaptome.tasks.sentiment_scores import sentiment_figures
from adaptome.training import load_run, run_stages
from tests.models.test_multimodal_transformer import FEATURES, TINY


def arrays(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    made = {name: rng.normal(size=(count, 5, width)).astype(np.float32) for name, width in FEATURES.items()}
    made["label"] = made["text"][:, :, 0].mean(1).reshape(count, 1, 1) * 2
    return made


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    rng, made = np.random.default_rng(0), {}
    for split, count in (("train", 12), ("valid", 6), ("test", 10)):
        made |= {f"{name}_{split}": array for name, array in arrays(rng, count).items()}
    made["audio_train"][0, 0, 0], made["audio_train"][1, 2, 1] = -np.inf, np.nan
    path = tmp_path_factory.mktemp("data") / "mosei.npz"
    np.savez(path, **made)
    save_file(made, path.with_suffix(".safetensors"))
    return path


@pytest.fixture(scope="module")
def trained(file, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "mosei"
    told = load_recipe("missing-modality-mosei").model_dump(mode="json", exclude_defaults=True)
    told["model"] |= TINY
    told["data"] = {"name": str(file)}
    told["training"] |= {"max_steps": 2, "batch_size": 4, "device": "cpu"}
    for stage in told["stages"]:
        stage.get("settings", stage).get("training", {}).pop("epochs", None)
    found = run_stages(load_recipe({**told, "output": str(out)}), callbacks=[])
    first, last = found.stages.values()
    assert "2 numbers of train were no finite ones and are 0." in first.notes
    sets = ["text", "audio", "vision", "audio+text", "text+vision", "audio+vision", "audio+text+vision"]
    assert {f"{k}@{s}" for k in ("mae", "corr", "acc7", "acc2", "f1") for s in sets} <= set(last.metrics)
    return out


def test_a_sets_figures_are_those_of_its_predictions(trained, file):
    found = json.loads((trained / "2-banks" / "metrics.json").read_text())["metrics"]
    loaded = load_run(trained)
    data = np.load(file)
    truth = data["label_test"].reshape(-1)
    for names in (["vision"], ["text", "audio"], list(FEATURES)):
        given = [{n: data[f"{n}_test"][i] for n in names} for i in range(10)]
        made = loaded.task.predict(loaded.model, loaded.processor, given, batch_size=4)
        key = "+".join(sorted(names))
        assert found[f"mae@{key}"] == pytest.approx(float(np.abs(np.array([one["value"] for one in made]) - truth).mean()), abs=1e-4)  # fmt: skip
        assert {one[AVAILABLE] for one in made} == {key}
    mean = np.mean([v for k, v in found.items() if k.startswith("mae@")])
    assert found["mae"] == pytest.approx(mean)


def test_figures_are_the_fields():
    rng = np.random.default_rng(1)
    true = np.concatenate([rng.uniform(-3, 3, 40), np.zeros(6)])
    found = true + rng.normal(0, 1.5, 46)
    made, felt = sentiment_figures(found, true), true != 0
    assert made["acc2"] == pytest.approx(accuracy_score(true[felt] > 0, found[felt] > 0))
    assert made["f1"] == pytest.approx(f1_score(true[felt] > 0, found[felt] > 0, average="weighted"))
    assert made["acc7"] == pytest.approx(np.mean(np.clip(found, -3, 3).round() == true.round()))
    assert made["corr"] == pytest.approx(np.corrcoef(found, true)[0, 1])
    assert sentiment_figures(np.ones(3), np.zeros(3)) == {"mae": 1, "corr": 0, "acc7": 0, "acc2": 0, "f1": 0}
    assert sentiment_figures(np.array([3.9]), np.array([3.0]))["acc7"] == 1


def test_a_command_takes_arrays_or_an_archive_with_some_of_the_modalities(trained, tmp_path, capsys):
    one = arrays(np.random.default_rng(2), 2)
    np.save(tmp_path / "words.npy", one["text"][0])
    np.savez(tmp_path / "two.npz", audio=one["audio"], vision=one["vision"], label=one["label"])
    save_file({"audio": one["audio"][0], "other": one["text"]}, tmp_path / "one.safetensors")
    words = [f"{tmp_path}/two.npz", f"{tmp_path}/one.safetensors", f"text={tmp_path}/words.npy"]
    with pytest.raises(SystemExit) as stopped:
        main(["predict", str(trained), *words, "--json"])
    told = capsys.readouterr().out
    assert not stopped.value.code and told.count('"value"') == 4
    assert told.count('"audio+vision"') == 2 and '"audio"' in told and '"text"' in told


def test_arrays_that_do_not_fit_are_told(trained, file, tmp_path):
    loaded = load_run(trained)
    with pytest.raises(
        DataError, match=r"text of input 1 has the shape \[5\]; expected numbers \[steps, features\]"
    ):
        loaded.task.predict(loaded.model, loaded.processor, [{"text": np.zeros(5)}])
    (tmp_path / "x.npz").write_bytes(b"torn")
    with pytest.raises(DataError, match="x.npz is not a whole .npz archive"):
        loaded.task.given([str(tmp_path / "x.npz")])
    (tmp_path / "x.safetensors").write_bytes(b"torn")
    with pytest.raises(DataError, match="x.safetensors is not a whole .safetensors file"):
        loaded.task.given([str(tmp_path / "x.safetensors")])
    np.savez(tmp_path / "p.npz", text=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="p.npz is not a whole .npz archive of plain arrays"):
        loaded.task.given([str(tmp_path / "p.npz")])  # never unpickled
    np.savez(tmp_path / "y.npz", text=np.zeros((2, 3, 6)), audio=np.zeros((3, 3, 5)))
    with pytest.raises(DataError, match=r"of as many clips; found text \[2, 3, 6\], audio \[3, 3, 5\]"):
        loaded.task.given([str(tmp_path / "y.npz")])


def test_safetensors_hold_splits_as_npz_does(file):
    one, other = (load_splits(str(path))["test"].rows.with_format("numpy") for path in (file, file.with_suffix(".safetensors")))  # fmt: skip
    assert set(one.column_names) == set(other.column_names) == {*FEATURES, "label"}
    assert np.array_equal(one["audio"], other["audio"])
    made = get_task("sentiment-regression").prepare(load_splits(str(file)), None)
    assert len(made["test"]) == 70 and made["test"][0]["label"] == pytest.approx(
        float(one[0]["label"].item())
    )
