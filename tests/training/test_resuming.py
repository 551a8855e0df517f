"""Runs that go on with changed settings: applied and told, or refused key by key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import TrainerCallback

from adaptome.core.errors import TrainingError
from adaptome.recipe import Recipe
from adaptome.training import run
from adaptome.training.resuming import APPLIED, REFUSED, refusal, rows_of
from tests.training.test_runs import animals, classify, jsonl, tokenizers

__all__ = ["tokenizers"]  # the fixture
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "train.md"


class Stop(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 13:
            raise KeyboardInterrupt


class Watch(TrainerCallback):
    """The learning rates of the steps, and what the trainer logs and evaluates by."""

    def __init__(self):
        self.rates, self.decay, self.steps = {}, None, None

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        self.rates[state.global_step] = optimizer.param_groups[0]["lr"]
        self.decay = [group["weight_decay"] for group in optimizer.param_groups]
        self.steps = state.logging_steps, state.eval_steps, state.save_steps


@pytest.fixture
def interrupted(tmp_path, tokenizers):
    """A run stopped in its second epoch, of 9 steps each, and a function that goes on with it."""
    with pytest.raises(KeyboardInterrupt):
        run(classify(tmp_path, tokenizers), callbacks=[Stop()])

    def resume(callbacks=(), **changes):
        training = {"resume": True, **changes.pop("training", {})}
        return run(classify(tmp_path, tokenizers, training=training, **changes), callbacks=list(callbacks))

    return resume


def test_what_can_be_applied_is_applied_and_told(interrupted):
    watch = Watch()
    changes = {
        "learning_rate": 0.5,
        "weight_decay": 0.1,
        "epochs": 4,
        "logging_steps": 5,
        "scheduler": "constant",
        "warmup": 0,
    }
    result = interrupted([watch], training=changes)
    first = min(watch.rates)
    assert first == 9 and result.steps == 36
    assert set(watch.rates.values()) == {0.5}
    assert set(watch.decay) == {0.0, 0.1} and watch.steps[0] == 5
    told = [note for note in result.notes if note.startswith("resumed with ")]
    assert "resumed with training.learning_rate: 0.02 then, 0.5 now; it holds from the next step on." in told
    assert {note.split(":")[0].removeprefix("resumed with training.") for note in told} == set(changes)


def test_a_longer_run_bends_the_learning_rates_course(interrupted):
    watch = Watch()
    interrupted([watch], training={"epochs": 4, "warmup": 0})
    assert watch.rates[9] == pytest.approx(0.02 * (1 - 9 / 36))
    assert watch.rates[35] == pytest.approx(0.02 / 36)


def test_the_other_keys_are_refused_one_by_one(interrupted, tmp_path):
    before = sorted(p.name for p in (tmp_path / "out").rglob("*"))
    with pytest.raises(TrainingError) as raised:
        interrupted(
            training={"batch_size": 8, "seed": 3, "learning_rate": 0.5, "optimizer": "sgd"},
            methods=[{"name": "lora", "r": 4, "targets": "attention", "dropout": 0.1}],
            task={"name": "text-classification", "max_length": 64},
        )
    lines = str(raised.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:-1]] == [
        "task.max_length", "methods.0.r", "training.batch_size", "training.optimizer", "training.seed",
    ]  # fmt: skip
    assert "256 then, 64 now" in lines[1]
    assert "output.overwrite=true" in lines[-1]
    assert sorted(p.name for p in (tmp_path / "out").rglob("*")) == before


def test_other_rows_and_labels_are_refused_whether_a_key_says_so_or_not(interrupted, tmp_path):
    file = Path(animals(tmp_path))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    more = jsonl(
        tmp_path / "more.jsonl", [*rows, *({"text": f"a bird {i}", "label": "bird"} for i in range(20))]
    )
    with pytest.raises(TrainingError, match=r"labels: \['cat', 'dog'\] then, \['bird', 'cat', 'dog'\] now"):
        interrupted(data={"train": more, "test_fraction": 0.2})
    with pytest.raises(
        TrainingError, match=r"data \(data.split_seed\): the train split has other rows .*: \d+ rows then"
    ):
        interrupted(data={"split_seed": 5, "test_fraction": 0.2})
    moved = jsonl(tmp_path / "moved.jsonl", rows)
    assert any(
        "data.train" in note for note in interrupted(data={"train": moved, "test_fraction": 0.2}).notes
    )


def test_a_default_that_is_written_out_is_no_change(interrupted):
    result = interrupted(
        methods=[
            {"name": "lora", "r": 2, "targets": "attention", "dropout": 0.1, "alpha": 16, "layers": None}
        ],
        task={"name": "text-classification", "max_length": 256},
    )
    assert not any("resumed" in note for note in result.notes)


def test_a_file_that_was_edited_is_other_data(interrupted, tmp_path, monkeypatch):
    import tests.training.test_runs as runs

    def edited(folder, count=48):
        file = Path(animals(folder, count))
        file.write_text(file.read_text().replace("the dog", "a dog"))
        return str(file)

    monkeypatch.setattr(runs, "animals", edited)
    with pytest.raises(TrainingError, match="data: the train split has other rows than the run began with"):
        interrupted()


def test_early_stopping_takes_the_new_patience(tmp_path, tokenizers):
    patient = {"epochs": 6, "early_stopping": 5}
    with pytest.raises(KeyboardInterrupt):
        run(classify(tmp_path, tokenizers, training=patient), callbacks=[Stop()])
    seen = []

    class See(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            seen.append(1)

    impatient = {**patient, "early_stopping": 1, "resume": True, "learning_rate": 1e-9}
    result = run(classify(tmp_path, tokenizers, training=impatient), callbacks=[See()])
    assert result.steps < 54 and len(seen) <= 3


def test_without_a_checkpoint_everything_is_as_the_recipe_says(tmp_path, tokenizers):
    class AtOnce(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(classify(tmp_path, tokenizers), callbacks=[AtOnce()])
    result = run(classify(tmp_path, tokenizers, training={"resume": True, "batch_size": 8}), callbacks=[])
    assert result.steps == 10 and not any("resumed" in note for note in result.notes)


def test_special_cases_of_keys():
    assert refusal("training.loraplus_ratio", 4.0, 8.0) is None
    assert "other groups" in refusal("training.loraplus_ratio", None, 8.0)
    assert refusal("training.scheduler", "linear", "cosine") is None
    assert "state" in refusal("training.scheduler", "linear", "reduce_lr_on_plateau")
    assert refusal("something.new", 1, 2) == "it is not known to be safe"
    assert refusal("objective.label_smoothing", 0, 0.1) is None
    assert refusal("start.run", None, "runs/other")


def test_rows_are_known_by_their_content_and_order(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": ["a", "bc", None], "label": [0, 1, 1]})
    same = datasets.Dataset.from_dict({"label": [5, 0, 1, 1], "text": ["z", "a", "bc", None]}).select(
        [1, 2, 3]
    )
    assert rows_of(rows) == rows_of(same)
    assert rows_of(rows.select([1, 0, 2])) != rows_of(rows)
    assert rows_of(rows.select([0, 1])) != rows_of(rows)
    image = datasets.Features({"image": datasets.Image()})
    here, there, other = (
        datasets.Dataset.from_dict({"image": [path]}, features=image)
        for path in ("/a/cats/1.png", "/b/cats/1.png", "/b/dogs/1.png")
    )
    assert rows_of(here) == rows_of(there) != rows_of(other)


def test_the_guide_tables_every_key():
    text = GUIDE.read_text(encoding="utf-8")
    table = text[text.index("| key | a change |") :]
    for key, told in {**APPLIED, **REFUSED}.items():
        row = next((line for line in table.splitlines() if f"`{key}`" in line), None)
        assert row is not None, key
        assert told in row, key


def test_every_key_of_training_is_decided():
    for key in Recipe.model_fields["training"].annotation.model_fields:
        if key != "resume":
            assert refusal(f"training.{key}", 1, 2) != "it is not known to be safe", key
