"""Pictures told by the texts of classes, from a split file to an answer: shots, halves of the classes, other data sets, methods of every kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import adaptome as ad
from adaptome.cli import main
from adaptome.core.errors import DataError, ModelError
from adaptome.recipe import load_recipe
from adaptome.tasks.class_groups import Group, scored
from adaptome.training import evaluate, load_run, predict, run

WIDTHS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CLIP = {
    "model_type": "clip", "projection_dim": 8, "vision_config": {**WIDTHS, "image_size": 16, "patch_size": 8},
    "text_config": {**WIDTHS, "vocab_size": 30522, "max_position_embeddings": 32, "bos_token_id": 101, "eos_token_id": 102, "pad_token_id": 0},
}  # fmt: skip
CLASSES = ["abyssinian", "bengal_cat", "pug", "beagle"]


def split_file(folder: Path, name: str, classes: list[str], train: int = 3, test: int = 2) -> Path:
    """A data set in CoOp's layout: pictures of one colour a class, in the folder `images`."""
    rng, content = np.random.default_rng(len(classes)), {}
    for key, count in (("train", train), ("val", 2), ("test", test)):
        content[key] = []
        for number, label in enumerate(classes):
            for i in range(count):
                file = folder / "images" / f"{label}_{key}_{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.full((20, 16, 3), 40 * number + 20) + rng.integers(0, 20, (20, 16, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(file)
                content[key].append([file.name, number, label])
    (folder / f"split_zhou_{name}.json").write_text(json.dumps(content))
    return folder / f"split_zhou_{name}.json"


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    return split_file(tmp_path_factory.mktemp("data") / "oxford_pets", "OxfordPets", CLASSES)


def recipe(data: Path | dict, out: Path, method="clip-svd", steps: int = 2, **task):
    if method == "clip-svd":
        method = {"name": "clip-svd", "targets": ["attention", "mlp"]}
    return load_recipe(
        {
            "model": {"composite": "prompted-classifier", "tokenizer": "minilm", "encoder": {"from_config": CLIP}},
            "task": {"name": "image-text-classification", **task},
            "data": data if isinstance(data, dict) else {"name": str(data), "shots": 2, "fewer": "error"},
            "method": method,
            "training": {"max_steps": steps, "batch_size": 4, "device": "cpu", "learning_rate": 0.01, "keep_best": False},
            "evaluation": {"examples": 0},
            "output": str(out),
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(pets, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "pets"
    result = run(recipe(pets, out, augment=True), callbacks=[])
    # every map of both towers, q, k, v, o and the two of the MLP, has a spectrum of 16
    assert result.trainable_parameters == 2 * 6 * 16
    assert 0 <= result.metrics["accuracy"] <= 1 and "accuracy_before" in result.metrics
    assert any(
        "'a photo of a abyssinian, a type of pet.' and so on, 4 classes" in note for note in result.notes
    )
    return out


def test_a_class_with_fewer_pictures_than_shots_is_told(pets, tmp_path):
    short = split_file(tmp_path / "dtd", "DescribableTextures", ["dotted", "woven"])
    content = json.loads(short.read_text())
    content["train"] = content["train"][2:]  # one picture of dotted, three of woven
    short.write_text(json.dumps(content))
    data = {"name": str(short), "shots": 2, "fewer": "error"}
    told = r"shots=2, and 1 labels of train have fewer rows: 'dotted' has 1\.\n  Take data\.shots=1 or fewer"
    with pytest.raises(DataError, match=told):
        run(recipe(data, tmp_path / "x"), callbacks=[])
    result = run(recipe({**data, "fewer": "repeat"}, tmp_path / "y", steps=1), callbacks=[])
    assert any("They are repeated" in note for note in result.notes)
    assert any("'dotted texture.'" in note for note in result.notes)


def test_the_first_half_of_the_classes_trains_and_both_are_scored(pets, tmp_path):
    out = tmp_path / "halves"
    one = run(recipe(pets, out, protocol="base-to-new"), callbacks=[])
    found = one.metrics
    assert one.trainable_parameters == 192 and found["accuracy"] == found["base"]
    b, n = found["base"], found["new"]
    assert found["harmonic_mean"] == pytest.approx(2 * b * n / (b + n) if b + n else 0)
    loaded = load_run(out)
    data = loaded.task.prepare(__import__("adaptome.training.building", fromlist=["read"]).read(loaded.recipe, loaded.task), loaded.processor)  # fmt: skip
    assert set(data["train"]["labels"]) == set(data["validation"]["labels"]) == {0, 1}
    assert [group.classes for group in loaded.task.groups] == [
        ("abyssinian", "bengal_cat"),
        ("pug", "beagle"),
    ]
    batch = data.collator([data["test"][i] for i in (0, 7)])
    logits = loaded.model(**batch)["logits"]
    assert torch.isinf(logits).tolist() == [[False, False, True, True], [True, True, False, False]]


def test_scores_of_groups_are_means_and_harmonic_ones():
    base, new = Group("base", "d", ("a", "b")), Group("new", "d", ("c",))
    guesses, labels, groups = np.array([0, 0, 2]), np.array([0, 1, 2]), np.array([0, 0, 1])
    assert scored(guesses, labels, groups, (base, new))["harmonic_mean"] == pytest.approx(2 * 0.5 / 1.5)
    sets = (Group("imagenet", "imagenet", ("a",)), Group("dtd", "dtd", ("b",)), Group("pets", "pets", ("c",)))
    found = scored(np.array([0, 0, 2]), np.array([0, 1, 2]), np.array([0, 1, 2]), sets)
    assert found == {"accuracy": 1.0, "accuracy@imagenet": 1.0, "accuracy@dtd": 0.0, "accuracy@pets": 1.0, "transfer": 0.5}  # fmt: skip


def test_other_sets_are_told_with_their_own_classes_and_prompts(pets, trained, tmp_path):
    other = split_file(tmp_path / "eurosat", "EuroSAT", ["forest", "river", "sea"])
    found = evaluate(
        trained, overrides=[f"data={{train: {pets}, validation: {pets}, test: [{pets}, {other}]}}"]
    )
    assert (
        found["transfer"] == found["accuracy@eurosat"] and found["accuracy"] == found["accuracy@oxford_pets"]
    )
    alone = evaluate(trained, overrides=[f"data.name={other}", "task.classes=data"])
    assert alone["accuracy"] == pytest.approx(found["transfer"])
    loaded = load_run(trained, ["task.classes=data"])
    splits = ad_read(loaded.recipe.model_copy(update={"data": loaded.recipe.data.model_copy(update={"name": str(other)})}), loaded.task)  # fmt: skip
    notes = loaded.task.prepare(splits, loaded.processor).notes
    assert any("'a centered satellite photo of forest.'" in note for note in notes)


def ad_read(recipe, task):
    from adaptome.training.building import read

    return read(recipe, task)


def test_context_words_stand_in_the_prompts_and_zero_shot_is_the_templates(pets, trained, tmp_path):
    coop = {"name": "coop", "p": 3}
    result = run(recipe(pets, tmp_path / "coop", coop, context={"words": 3}), callbacks=[])
    assert result.trainable_parameters == 3 * 16
    # the base does not know the vectors: it is asked by the hand-written prompt, as without a context
    before = evaluate(trained)
    with_svd = json.loads((trained / "metrics.json").read_text())["metrics"]
    assert result.metrics["accuracy_before"] == with_svd["accuracy_before"] and set(before) >= {"accuracy"}
    with pytest.raises(ModelError, match=r"no method on the token table fills them.\n  Train coop"):
        run(recipe(pets, tmp_path / "lora", "lora", context={"words": 3}), callbacks=[])
    own = {"words": 2, "own": True, "position": "middle"}
    own_result = run(recipe(pets, tmp_path / "own", {"name": "coop", "p": 2, "classes": 4}, context=own), callbacks=[])  # fmt: skip
    assert own_result.trainable_parameters == 4 * 2 * 16
    told = predict(tmp_path / "coop", [{"image": str(pets.parent / "images" / "pug_test_0.png"), "classes": ["x", "y"]}])  # fmt: skip
    assert set(told[0]["scores"]) == {"x", "y"}


def test_the_cache_holds_the_shots_and_zero_steps_train_nothing(pets, trained, tmp_path):
    plain = {"name": "tip-adapter", "train_keys": False}
    zero = run(recipe(pets, tmp_path / "zero", {**plain, "alpha": 0.0}, 0, classifier="head"), callbacks=[])
    assert zero.steps == 0 and zero.trainable_parameters == 0
    assert zero.metrics["accuracy"] == zero.metrics["accuracy_before"]
    cached = run(recipe(pets, tmp_path / "tip", {**plain, "alpha": 50.0}, 0, classifier="head"), callbacks=[])
    assert any(note == "8 training examples were taken up by head." for note in cached.notes)
    loaded = load_run(tmp_path / "tip")
    data = loaded.task.prepare(ad_read(loaded.recipe, loaded.task), loaded.processor)
    batch = data.collator([data["train"][i] for i in range(8)])
    (adapter,) = loaded.model.head.adaptome.values()
    with torch.no_grad():
        keys = loaded.model.image_features(batch["pixel_values"])
    assert torch.allclose(adapter.K, keys, atol=1e-5) and adapter.labels.tolist() == batch["labels"].tolist()
    trains = run(recipe(pets, tmp_path / "tip-f", "tip-adapter", classifier="head"), callbacks=[])
    assert trains.trainable_parameters == 8 * 8 and trains.steps == 2
    other = split_file(tmp_path / "eurosat", "EuroSAT", ["forest", "river"])
    sets = {"train": str(pets), "test": [str(pets), str(other)], "shots": 2}
    with pytest.raises(DataError, match="its rows are the classes of oxford_pets, and there are oxford_pets, eurosat"):  # fmt: skip
        run(recipe(sets, tmp_path / "two", plain, 0, classifier="head"), callbacks=[])
    adapter.begin_taking()
    with torch.no_grad(), ad.steer(labels=batch["labels"][:1]):
        loaded.model(batch["pixel_values"][:1])
    adapter.end_taking(whole=False)  # of examples that could not all be read the cache takes none
    assert torch.allclose(adapter.K, keys, atol=1e-5) and adapter._taken is None
    with pytest.raises(DataError, match="no others can be asked for"):
        predict(tmp_path / "tip", [{"image": np.zeros((16, 16, 3), np.uint8), "classes": ["x", "y"]}])


def test_predict_prints_probabilities_and_takes_new_names(pets, trained, capsys):
    picture = str(pets.parent / "images" / "pug_test_0.png")
    known = predict(trained, [picture])[0]
    assert list(known["scores"]) == CLASSES and sum(known["scores"].values()) == pytest.approx(1, abs=1e-5)
    for words, names in (([picture], set(CLASSES)), ([picture, "a tabby", "a wolf"], {"a tabby", "a wolf"})):
        with pytest.raises(SystemExit) as stopped:
            main(["predict", str(trained), *words])
        assert not stopped.value.code
        lines = capsys.readouterr().out.strip().splitlines()
        assert lines[0] == picture
        assert {line.split("  ")[-1] for line in lines[1:]} == names
        assert sum(float(line.split()[0]) for line in lines[1:]) == pytest.approx(1, abs=0.01)
    task = load_run(trained).task
    with pytest.raises(DataError, match="needs another beside it"):
        task.given([picture, "wolf"])
    with pytest.raises(DataError, match="all were taken for class names"):
        task.given(["wolf", "fox"])


def test_a_run_is_interpreted_by_its_own_texts(trained, tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("a dark picture\na bright picture\na dog\n")
    with pytest.raises(SystemExit) as stopped:
        main(["interpret", str(trained), "--texts", str(texts), "--json"])
    assert not stopped.value.code
    found = json.loads(capsys.readouterr().out)
    assert found["total"] == 4 and set(found["chance"]) <= {"text_model", "vision_model"} and found["chance"]
    assert any(direction["towards"] for direction in found["directions"])


def test_mistakes_in_prompts_and_files_are_told(pets, tmp_path):
    with pytest.raises(DataError, match=r"one \{\} is to stand where the class's name goes"):
        run(recipe(pets, tmp_path / "a", template="a photo"), callbacks=[])
    with pytest.raises(DataError, match=r"has 3\d tokens, and the text encoder has places for 32"):
        run(recipe(pets, tmp_path / "b", template="a " * 30 + "{}"), callbacks=[])
    broken = tmp_path / "split_zhou_X.json"
    broken.write_text('{"train": [["a.png", 0]]}')
    with pytest.raises(DataError, match=r"train, item 1: \['a.png', 0\] is not \[path, number, class name\]"):
        run(recipe(broken, tmp_path / "c"), callbacks=[])
    broken.write_text('{"train": [["a.png", 0, "x"]]}')
    with pytest.raises(DataError, match="its first picture, a.png, is in none of the folders"):
        run(recipe(broken, tmp_path / "d"), callbacks=[])


def test_a_run_without_adapters_active_is_zero_shot(trained, pets):
    loaded = load_run(trained)
    picture = [str(pets.parent / "images" / "pug_test_0.png")]
    after = loaded.task.predict(loaded.model, loaded.processor, picture)[0]["scores"]
    with ad.disabled(loaded.model):
        before = loaded.task.predict(loaded.model, loaded.processor, picture)[0]["scores"]
    assert before != after
