"""Methods side by side: the table, its uncertainty and its files, going on after an interruption, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import TrainerCallback

import adaptome as ad
from adaptome.cli import main
from adaptome.compare import Comparison, Row, compare
from adaptome.compare.page import page, verdict
from adaptome.core.errors import MethodError, RecipeError, TargetError, TrainingError
from adaptome.recipe import load_recipe
from adaptome.training import load_run, run

RECIPE = """
model:
  from_config: {model_type: bert, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4}
  tokenizer: minilm
task: text-classification
data: {train: train.jsonl, test_fraction: 0.25}
training: {max_steps: 3, batch_size: 4, learning_rate: 0.01, logging_steps: 1}
output: out
compare:
  seeds: [0, 1]
  methods:
    - {label: LoRA (attention), name: lora, r: 2, targets: attention}
    - {name: series, size: 3, targets: down, learning_rate: 0.02}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    rows = [
        {"text": f"the {('cat', 'sun')[i % 2]} {i}", "label": ("animal", "star")[i % 2]} for i in range(32)
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found = compare("recipe.yaml")
    return folder, found


@pytest.fixture(autouse=True)
def _inside(place, monkeypatch):
    monkeypatch.chdir(place[0])


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *words])
    return stopped.value.code or 0


def test_every_row_is_the_mean_of_runs_that_can_be_used(place):
    found = place[1]
    assert [row.label for row in found.rows] == ["LoRA (attention)", "series"]
    for row, folder in zip(found.rows, ("LoRA-attention", "series"), strict=True):
        runs = [json.loads(Path(f"out/{folder}/seed-{s}/metrics.json").read_text()) for s in (0, 1)]
        values = [one["metrics"]["accuracy"] for one in runs]
        assert row.values == values and row.mean == pytest.approx(sum(values) / 2)
        assert row.parameters == runs[0]["trainable_parameters"]
        half = 12.7062 * abs(values[0] - values[1]) / 2  # t(0.975, 1), and the deviation of a mean of two
        assert row.high - row.mean == pytest.approx(half, rel=1e-4)
    assert (found.metric, found.split, found.greater_is_better) == ("accuracy", "test", True)
    loaded = load_run("out/series/seed-1")
    assert loaded.recipe.training.learning_rate == 0.02 and loaded.recipe.training.seed == 1
    assert ad.adapters(loaded.model)["default"].method.name == "series"
    assert found.best.mean == max(row.mean for row in found.rows)


def test_the_table_is_written_as_json_and_as_a_page(place):
    stored = json.loads(Path("out/comparison.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(place[1].to_dict()))
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 4 and "LoRA (attention)" in page and "95 %" in page


def test_a_row_is_what_training_that_recipe_alone_gives(place):
    alone = load_recipe(
        "recipe.yaml",
        ["method={name: series, size: 3, targets: down}", "training.learning_rate=0.02", "training.seed=1", "output.folder=alone"],
    )  # fmt: skip
    assert run(alone).metrics["accuracy"] == place[1].rows[1].values[1]


def test_begun_again_it_trains_nothing_that_is_done(place):
    class Trains(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            raise AssertionError("trained again")

    assert compare("recipe.yaml", callbacks=[Trains()]) == place[1]
    with pytest.raises(TrainingError, match="finished run"):
        compare(load_recipe("recipe.yaml", ["training.max_steps=4"]))


def test_an_interrupted_comparison_goes_on_where_it_stopped(place):
    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if "series" in args.output_dir and state.global_step == 2:
                raise KeyboardInterrupt

    changes = ["output.folder=again", "training.save_steps=1", "training.eval_steps=1", "compare.seeds=[0]"]
    with pytest.raises(KeyboardInterrupt):
        compare(load_recipe("recipe.yaml", changes), callbacks=[Stop()])
    begun = []
    found = compare(load_recipe("recipe.yaml", changes), tell=begun.append)
    assert begun == ["LoRA (attention), seed 0 (1 of 2)", "series, seed 0 (2 of 2)"]
    whole = compare(load_recipe("recipe.yaml", [*changes, "output.folder=whole"]))
    assert [row.values for row in found.rows] == [row.values for row in whole.rows]


def test_an_interrupted_command_says_how_to_go_on(monkeypatch, capsys):
    def stop(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("adaptome.compare.study.run", stop)
    assert command("recipe.yaml", "output.folder=broken-off") == 130
    shown = capsys.readouterr()
    assert "the same command goes on where it stopped" in shown.err and shown.out == ""


def test_a_budget_is_the_same_for_all(capsys):
    words = ["--method", "lora", "--method", "parallel", "--budget", "1000", "--seeds", "1"]
    assert command("recipe.yaml", "output.folder=budget", "training.max_steps=1", *words, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    head = 32 * 2 + 2
    counts = [row["parameters"] - head for row in told["rows"]]
    assert all(abs(count - 1000) < 400 for count in counts) and counts != [1000, 1000]
    assert told["rows"][0]["low"] is None and told["seeds"] == [0]


def test_the_command_shows_the_table(capsys):
    assert command("recipe.yaml") == 0
    shown = capsys.readouterr()
    assert "LoRA (attention)" in shown.out and "±" in shown.out and "est: " in shown.out
    assert "series, seed 1 (4 of 4)" in shown.err


def comparison(**values: list[float]) -> Comparison:
    """One of accuracies: the label's first word is the method."""
    rows = [
        Row(label, label.split("_")[0], None, 10, 0.1, 0.1, seen, sum(seen) / len(seen), 0.0, 1.0, 1.0, [])
        for label, seen in values.items()
    ]
    return Comparison("out", "reasoning", "accuracy", True, "test", list(range(len(rows[0].values))), rows)


def test_the_best_is_told_with_those_it_is_not_told_apart_from():
    """Seed by seed: a row that is a little worse with every seed is told apart, however far the seeds lie apart."""
    found = comparison(series_mlp=[0.2, 0.5, 0.8], series_attention=[0.19, 0.49, 0.79], lora=[0.3, 0.5, 0.6], prefix=[0.1, 0.1, 0.1])  # fmt: skip
    told = found.to_dict()
    assert told["ranking"] == ["series_mlp", "series_attention", "lora", "prefix"]
    assert told["not_told_apart"] == ["lora", "prefix"]
    assert told["by_method"] == {"series": ["series_mlp", "series_attention"]}
    assert verdict(told) == "Best: series_mlp. Not told apart from it: lora, prefix."
    shown = page(told).html()
    assert verdict(told) in shown and "The best row of each method that has several" in shown


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"a": [0.5, 0.6], "b": [0.4, 0.5]}, "Best: a, told apart from every other row."),
        ({"a": [0.5, 0.6], "b": [0.4, 0.65]}, "Best: a, told apart from no other row."),
        ({"a": [0.5], "b": [0.4]}, "Best: a. With one seed no difference is told from chance."),
        ({"a": [0.0, 0.0], "b": [0.0, 0.0]}, "No row is best: all have the same accuracy."),
        ({"a": [0.0, 0.0]}, "a alone was measured."),
    ],
)
def test_what_is_no_difference_is_not_called_one(values, told):
    assert verdict(comparison(**values).to_dict()).startswith(told)


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        (["compare=null"], RecipeError, "compare.methods"),
        (["compare.methods.1={name: lora, label: LoRA attention}"], RecipeError, "share a folder"),
        (["compare.methods.0.label=series"], RecipeError, r"two rows are called 'series'.*compare\.methods\.1\.label"),
        (["compare.methods.0.targets=nowhere"], TargetError, "nowhere"),
        (["compare.methods.1={name: norm-tuning}", "compare.budget=100"], MethodError, "no size"),
        (["evaluation.split=none"], RecipeError, "no split to score on"),
        (["compare.metric=f1", "output.folder=odd", "training.max_steps=1", "compare.seeds=[0]"], RecipeError, "accuracy, macro_f1"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_before_training(changes, error, told):
    with pytest.raises(error, match=told):
        compare(load_recipe("recipe.yaml", ["output.folder=refused", *changes]))
    assert not Path("refused").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("compare.methods.0.rr=2", r"compare\.methods\.0: lora has no setting 'rr'.*'r'"),
        ("compare.methods.0.learning_rat=2", "near 'learning_rat': 'learning_rate'"),
        ("compare.methods.0.learning_rate=-1", r"compare\.methods\.0\.learning_rate=-1"),
        ("compare.methods.0.name=lorra", "lora"),
        ("compare.seedz=3", "seeds"),
        ("compare.seeds=[]", r"compare\.seeds"),
    ],
)
def test_a_misspelt_comparison_names_the_key(change, told):
    with pytest.raises(RecipeError, match=f"(?s){told}"):
        load_recipe("recipe.yaml", [change])


def test_train_says_whose_the_methods_of_compare_are():
    with pytest.raises(RecipeError, match="`adaptome compare`"):
        run(load_recipe("recipe.yaml", ["output.folder=refused"]))
