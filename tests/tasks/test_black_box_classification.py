"""Classification by a black box: what it costs, what the network learns of descriptions, classes that come later, and generated texts with their switch."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch

from adaptome.blackbox import BLACK_BOXES, BlackBox
from adaptome.core.errors import BlackBoxError, DataError, RecipeError, TrainingError
from adaptome.recipe import load_recipe
from adaptome.training import evaluate, load_run, run, run_stages
from adaptome.training.building import prepared

TOPICS = {
    "sea": "wave tide sail harbour anchor whale",
    "sky": "cloud wing rocket storm comet kite",
    "food": "bread soup onion butter pepper cake",
    "law": "court judge verdict clause appeal witness",
    "song": "chorus violin rhythm melody drum ballad",
}
DESCRIPTIONS = {name: f"about {' '.join(words.split()[:4])}" for name, words in TOPICS.items()}
NETWORK = {"name": "linear-probe", "train": ["network"]}
FILLER = "the of a and to it was in on with".split()


class Words(BlackBox):
    """A fixed random vector for each word."""

    asked: list[str]

    def states(self, texts):
        type(self).asked += texts
        return [torch.stack([self.vector(word) for word in text.split()]) for text in texts]

    @staticmethod
    def vector(word):
        seed = int(hashlib.sha256(word.encode()).hexdigest()[:8], 16)
        return torch.randn(64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def words(monkeypatch):
    known = dict(BLACK_BOXES.all())
    monkeypatch.setattr(BLACK_BOXES, "_known", known)
    monkeypatch.setattr(Words, "asked", [], raising=False)
    return BLACK_BOXES.register("words")(Words)


def texts(topic, count, draw):
    made = []
    for _ in range(count):
        tokens = draw.sample(TOPICS[topic].split(), 2) + draw.choices(FILLER, k=3)
        draw.shuffle(tokens)
        made.append(" ".join(tokens))
    return made


@pytest.fixture
def data(tmp_path):
    draw, files = random.Random(0), {}
    seen = set()
    for split, count in (("train", 8), ("validation", 6), ("test", 12)):
        rows = []
        for topic in list(TOPICS)[:4]:
            rows += [{"text": t, "label": topic} for t in texts(topic, count, draw) if t not in seen]
        seen |= {row["text"] for row in rows}
        files[split] = str(tmp_path / f"{split}.jsonl")
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


def recipe(data, folder, **given):
    task = {
        "name": "black-box-classification",
        "black_box": {"name": "words"},
        "descriptions": DESCRIPTIONS,
        "cache": str(folder / "asked"),
    }
    content = {
        "model": {"composite": "cross-tune", "heads": 4, "feed_forward": 0, "match": "product", "dropout": 0.0},
        "task": {**task, **given.pop("task", {})}, "data": data, "method": NETWORK, "output": str(folder / "run"),
        "training": {"epochs": 8, "batch_size": 8, "learning_rate": 0.003, "device": "cpu", "warmup": 0},
    }  # fmt: skip
    return load_recipe({**content, **given})


def rows(file):
    return [json.loads(line)["text"] for line in Path(file).read_text(encoding="utf-8").splitlines()]


def test_a_run_asks_once_and_a_prediction_once_more(words, data, tmp_path):
    result = run(recipe(data, tmp_path), callbacks=[])
    every = {t for file in data.values() for t in rows(file)}
    assert len(words.asked) == len(set(words.asked)) == len(every) + 4
    assert result.metrics["accuracy"] > 0.8
    words.asked.clear()
    again = evaluate(tmp_path / "run")
    assert again["accuracy"] == pytest.approx(result.metrics["accuracy"]) and words.asked == []
    loaded = load_run(tmp_path / "run")
    found = loaded.task.predict(
        loaded.model, loaded.processor, ["the whale and a harbour", "the judge of a court"]
    )
    assert [one["label"] for one in found] == ["sea", "law"] and len(words.asked) == 2
    assert loaded.processor.store["the judge of a court"].grad_fn is None


def test_a_class_that_comes_later_is_recognised(words, data, tmp_path):
    run(recipe(data, tmp_path), callbacks=[])
    loaded = load_run(tmp_path / "run", [f"task.more={{song: {DESCRIPTIONS['song']}}}"])
    found = loaded.task.predict(loaded.model, loaded.processor, texts("song", 20, random.Random(5)))
    assert set(found[0]["scores"]) == set(TOPICS)
    assert sum(one["label"] == "song" for one in found) >= 10  # chance is 4


def test_the_descriptions_are_what_tells(words, data, tmp_path):
    run(recipe(data, tmp_path), callbacks=[])
    turned = dict(
        zip(list(TOPICS)[:4], [DESCRIPTIONS[t] for t in ("sky", "food", "law", "sea")], strict=True)
    )
    swapped = evaluate(tmp_path / "run", overrides=[f"task.descriptions={json.dumps(turned)}"])
    assert swapped["accuracy"] < 0.3


def test_a_budget_and_bad_rows_stop_a_run_before_it_asks(words, data, tmp_path):
    with pytest.raises(BlackBoxError, match=r"task\.budget is 10.*\n.*Nothing was asked"):
        run(recipe(data, tmp_path, task={"budget": 10}), callbacks=[])
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a wave", "label": "sea"}\n{"text": " ", "label": "sky"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2: 'text' is ' '"):
        run(recipe({**data, "train": str(bad)}, tmp_path), callbacks=[])
    assert words.asked == []


def test_descriptions_are_checked(words, data, tmp_path):
    (tmp_path / "told.json").write_text(json.dumps({"sea": ["the sea", "ships"], "skye": "the sky"}))
    result = run(recipe(data, tmp_path, task={"descriptions": str(tmp_path / "told.json")}, training={"max_steps": 1, "device": "cpu"}), callbacks=[])  # fmt: skip
    assert any("3 labels have no description" in note for note in result.notes)
    assert any(
        "1 descriptions are of no label of train: skye. Did you mean 'sky'?" in note for note in result.notes
    )
    assert "ships" in words.asked and "sky" in words.asked
    with pytest.raises(RecipeError, match="that of 'sea' is ''"):
        run(
            recipe(data, tmp_path, task={"descriptions": {"sea": ""}}, output=str(tmp_path / "other")),
            callbacks=[],
        )
    with pytest.raises(RecipeError, match="unknown key 'augmentation|generator"):
        recipe(data, tmp_path, augmentation={"generator": {"name": "spliced", "wrods": 3}})


def test_another_method_can_take_the_networks_place(words, data, tmp_path):
    one = recipe(data, tmp_path, method={"name": "lora", "r": 2, "targets": ["answer_map", "text_map"]}, training={"max_steps": 2, "device": "cpu"})  # fmt: skip
    result = run(one, callbacks=[])
    assert result.trainable_parameters == 2 * 2 * 2 * 64 + 65
    assert load_run(tmp_path / "run").task.predict(*_used(tmp_path / "run"), ["a wave"])[0]["label"] in TOPICS


def _used(folder):
    loaded = load_run(folder)
    return loaded.model, loaded.processor


# -- generated texts ------------------------------------------------------------------------------------------------------


def switched(data, folder, path):
    """Stages teacher, real and augmented, of which validation chooses."""
    whole = recipe(data, folder).model_dump(mode="json", exclude_defaults=True)
    same = {"start": "base", "method": NETWORK}
    whole["stages"] = [
        {"name": "teacher", "evaluation": {"split": "validation"}}, {"name": "real", **same},
        {"name": "augmented", **same, "augmentation": {"generator": {"name": "file", "path": str(path)}, "per_label": 12, "teacher": "teacher", "threshold": 0.7}},
    ]  # fmt: skip
    whole["choose"], whole["training"]["epochs"] = ["real", "augmented"], 6
    return load_recipe(whole)


def flipped(path, wrong, each=8):
    """Texts of which the first `wrong` of every topic have another topic's label."""
    draw, topics = random.Random(9), list(TOPICS)[:4]
    lines = [
        {"text": text, "label": topics[(place + (number < wrong)) % 4]}
        for place, topic in enumerate(topics)
        for number, text in enumerate(texts(topic, each, draw))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_switch_keeps_out_what_is_wrong(words, data, tmp_path):
    found = run_stages(switched(data, tmp_path, flipped(tmp_path / "all.jsonl", 8)), callbacks=[])
    assert found.chosen == "2-real" and found.last is found.stages["2-real"]
    assert load_run(tmp_path / "run").recipe.output.folder.endswith("2-real")
    kept = []
    teacher = str(tmp_path / "run" / "1-teacher")
    for wrong in (0, 4, 8):
        generator = {"name": "file", "path": str(flipped(tmp_path / f"{wrong}.jsonl", wrong))}
        one = recipe(
            data,
            tmp_path / str(wrong),
            augmentation={"generator": generator, "per_label": 8, "teacher": teacher, "threshold": 0.7},
        )
        task, _, splits, _ = prepared(one, load_run)
        kept.append(len(splits["train"]) - 32)
        held = [
            json.loads(line)
            for line in (tmp_path / str(wrong) / "run" / "generated.jsonl")
            .read_text(encoding="utf-8")
            .splitlines()
        ]
        assert sum(row["kept"] for row in held) == kept[-1] and {"teacher", "score", "why"} <= {*held[0]}
        assert splits["train"].where(32).endswith("generated.jsonl, kept text 1") if kept[-1] else True
    assert kept[0] > kept[1] > kept[2] == 0 and kept[0] >= 16


def test_what_was_generated_is_not_asked_again(words, data, tmp_path, monkeypatch):
    from adaptome.blackbox.generators.offline import Spliced

    asked = []
    theirs = Spliced.texts
    monkeypatch.setattr(
        Spliced, "texts", lambda self, label, *a: (asked.append(label), theirs(self, label, *a))[1]
    )
    one = recipe(data, tmp_path, augmentation={"generator": "spliced", "per_label": 5}, training={"max_steps": 1, "device": "cpu"})  # fmt: skip
    first = run(one, callbacks=[])
    again = run(
        one.model_copy(update={"output": one.output.model_copy(update={"overwrite": True})}), callbacks=[]
    )
    assert asked == sorted(list(TOPICS)[:4])
    told = next(note for note in first.notes if note.startswith("augmentation"))
    assert "of 20 texts by spliced" in told and told in again.notes


def test_several_processes_do_not_all_ask(words, data, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="Run the recipe once in a single process"):
        prepared(recipe(data, tmp_path, augmentation={"generator": "spliced"}), load_run)


def test_shots_are_so_many_of_each_label(data):
    from adaptome.data import load_splits

    made = load_splits(**data, shots=3, split_seed=1)
    assert (
        sorted(made["train"].rows["label"])
        == sorted(made["validation"].rows["label"])
        == sorted(list(TOPICS)[:4] * 3)
    )
    assert len(made["test"]) == len(rows(data["test"])) and not made.notes
    assert made["train"].rows["text"] != load_splits(**data, shots=3, split_seed=2)["train"].rows["text"]
    assert "have fewer than 50 rows" in load_splits(**data, shots=50).notes[0]
    with pytest.raises(DataError, match=r"no column 'label'"):
        load_splits(train=data["train"], validation=data["validation"], columns={"kind": "label"}, shots=3)


def test_words_alone_of_a_local_model(tmp_path, tokenizer_folder):
    """A masked language model of which only log-probabilities are seen."""
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    from adaptome.blackbox import get_black_box

    torch.manual_seed(0)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    ).eval()
    model.save_pretrained(tmp_path / "lm")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.save_pretrained(tmp_path / "lm")
    box = get_black_box("local", model=str(tmp_path / "lm"), output="logits", words=["cat", "film"])
    found = box.states(["anna sleeps", "a very good film"])
    batch = tokenizer("anna sleeps [MASK]", return_tensors="pt")
    told = model(**batch).logits[0, 3].log_softmax(-1)[tokenizer.convert_tokens_to_ids(["cat", "film"])]
    assert [tuple(one.shape) for one in found] == [(1, 2), (1, 2)]
    torch.testing.assert_close(found[0][0], told, rtol=1e-4, atol=1e-5)
    box = get_black_box("local", model=str(tmp_path / "lm"), layer=0)
    weights = {k: v.clone() for k, v in box.model.state_dict().items()}
    states = box.states(["anna sleeps in paris", "a film"])
    assert [len(one) for one in states] == [6, 4] and not any(one.requires_grad for one in states)
    assert all(torch.equal(v, weights[k]) for k, v in box.model.state_dict().items())
    with pytest.raises(BlackBoxError, match="has layers 0"):
        get_black_box("local", model=str(tmp_path / "lm"), layer=9).states(["a cat"])
