"""Recipes carried out on small models: what is written, read back, evaluated and predicted, and what is refused."""

import json
import logging
import os
import string
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import adaptome as ad
from adaptome.core.errors import DataError, MissingExtraError, RecipeError, TrainingError
from adaptome.recipe import load_recipe
from adaptome.training import evaluate, last_checkpoint, load_run, predict, run
from adaptome.training.arguments import training_arguments
from adaptome.training.checkpoint import checkpoints
from adaptome.training.predictions import inputs_of

WORDS = ["the", "a", "cat", "dog", "runs", "sleeps", "eats", "in", "out", "of", "house", "garden"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Tokenizers that know words, and characters with an end of sequence."""
    made = {}
    for name, tokens in {
        "words": WORDS,
        "letters": list(string.ascii_lowercase + string.digits + " :"),
    }.items():
        vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *tokens])}
        fast = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        if name == "words":
            fast.pre_tokenizer = pre_tokenizers.Whitespace()
        else:
            fast.pre_tokenizer = pre_tokenizers.Split("", "isolated")
            fast.decoder = decoders.Fuse()
        wrapped = PreTrainedTokenizerFast(
            tokenizer_object=fast, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", cls_token="<eos>"
        )
        made[name] = str(tmp_path_factory.mktemp("tokenizer") / name)
        wrapped.save_pretrained(made[name])
    return made


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def animals(tmp_path, count=48):
    rows = [
        {
            "text": f"the {('cat', 'dog')[i % 2]} {WORDS[4 + i % 3]} {['in', 'out', 'of'][i % 3]} {i}",
            "label": ("cat", "dog")[i % 2],
        }
        for i in range(count)
    ]
    return jsonl(tmp_path / "animals.jsonl", rows)


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}


def classify(tmp_path, tokenizers, **changes):
    base = {
        "model": {
            "from_config": {"model_type": "bert", "vocab_size": 20, **SMALL},
            "tokenizer": tokenizers["words"],
        },
        "task": "text-classification",
        "data": {"train": animals(tmp_path), "test_fraction": 0.2},
        "methods": [{"name": "lora", "r": 2, "targets": "attention", "dropout": 0.1}],
        "training": {
            "epochs": 2,
            "batch_size": 4,
            "learning_rate": 0.02,
            "logging_steps": 2,
            "device": "cpu",
        },
        "output": str(tmp_path / "out"),
    }
    for key, value in changes.items():
        base[key] = (
            {**base[key], **value} if isinstance(base.get(key), dict) and isinstance(value, dict) else value
        )
    return load_recipe(base)


def test_a_run_leaves_an_adapter_its_metrics_and_itself(tmp_path, tokenizers, capfd):
    result = run(classify(tmp_path, tokenizers, evaluation={"predictions": True}))
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "adapter", "checkpoints", "data.json", "examples.json", "metrics.json", "predictions.jsonl", "recipe.yaml", "report.html", "scores.json", "task.json",
    ]  # fmt: skip
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(result.to_dict()))
    assert result.split == "test" and set(result.metrics) == {"loss", "accuracy", "macro_f1", "mcc"}
    assert result.method == "lora" and result.trainable_parameters == 4 * 2 * (16 + 16) + 16 * 2 + 2
    assert result.peak_memory_bytes > 1e6 and result.seconds > 0
    assert 0 < result.share_of_bound < 1
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert losses and losses[-1] < losses[0]
    assert capfd.readouterr().out == ""  # standard output is the caller's


def test_a_run_is_repeatable_and_its_recipe_repeats_it(tmp_path, tokenizers):
    first = run(classify(tmp_path, tokenizers))
    again = load_recipe(tmp_path / "out" / "recipe.yaml", [f"output.folder={tmp_path / 'again'}"])
    second = run(again)
    assert second.metrics == first.metrics
    stored = [tmp_path / name / "adapter" / "adapter.safetensors" for name in ("out", "again")]
    assert stored[0].read_bytes() == stored[1].read_bytes()


def test_a_finished_run_is_evaluated_and_predicts(tmp_path, tokenizers):
    result = run(classify(tmp_path, tokenizers, evaluation={"predictions": True}))
    out = tmp_path / "out"
    assert evaluate(out) == pytest.approx(result.metrics)
    assert evaluate(out, "train")["accuracy"] >= 0.5
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    right = [line["truth"] == line["prediction"]["label"] for line in lines]
    assert sum(right) / len(right) == pytest.approx(result.metrics["accuracy"])
    assert "animals.jsonl, line" in lines[0]["where"]
    assert predict(out, ["the cat runs", "a dog sleeps"]) == predict(
        str(out), ["the cat runs", "a dog sleeps"], 1
    )
    with pytest.raises(RecipeError, match=r"no other split.*train, validation, test"):
        evaluate(out, "other")


def test_a_resumed_run_ends_as_the_whole_one(tmp_path, tokenizers):
    whole = run(classify(tmp_path, tokenizers, output=str(tmp_path / "whole")))
    stopped = classify(tmp_path, tokenizers)

    class Stop(__import__("transformers").TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 13:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stopped, callbacks=[Stop()])
    assert not (tmp_path / "out" / "metrics.json").exists()
    resumed = run(classify(tmp_path, tokenizers, training={"resume": True}))
    assert resumed.metrics == whole.metrics and resumed.steps == whole.steps
    files = [tmp_path / name / "adapter" / "adapter.safetensors" for name in ("whole", "out")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_finished_run_is_not_overwritten_unasked(tmp_path, tokenizers):
    quick = {"training": {"max_steps": 2}}
    run(classify(tmp_path, tokenizers, **quick))
    with pytest.raises(TrainingError, match=r"output\.overwrite=true"):
        run(classify(tmp_path, tokenizers, **quick))
    (tmp_path / "out" / "notes.txt").write_text("mine")
    run(classify(tmp_path, tokenizers, **quick, output={"folder": str(tmp_path / "out"), "overwrite": True}))
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    mistaken = classify(
        tmp_path, tokenizers, **quick, output={"folder": str(tmp_path / "out"), "overwrite": True}
    )
    mistaken.data.train = str(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError):
        run(mistaken)
    assert evaluate(tmp_path / "out")  # nothing of the finished run was removed


def test_the_checkpoints_of_an_unfinished_run_are_not_passed_over(tmp_path, tokenizers):
    class Stop(__import__("transformers").TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    saving = {"training": {"max_steps": 4, "save_steps": 2, "eval_steps": 2}}
    assert last_checkpoint(tmp_path / "out") is None
    with pytest.raises(KeyboardInterrupt):
        run(classify(tmp_path, tokenizers, **saving), callbacks=[Stop()])
    assert last_checkpoint(tmp_path / "out") == tmp_path / "out" / "checkpoints" / "checkpoint-2"
    with pytest.raises(TrainingError, match=r"up to step 2\.\n  Go on with training\.resume=true"):
        run(classify(tmp_path, tokenizers, **saving))
    saving["training"]["resume"] = True
    assert run(classify(tmp_path, tokenizers, **saving)).steps == 4
    assert last_checkpoint(tmp_path / "out") is None  # finished: there is nothing to go on from


def test_several_methods_train_together(tmp_path, tokenizers):
    methods = [{"name": "lora", "r": 2, "targets": "attention"}, {"name": "norm-tuning", "adapter": "norms"}]
    result = run(classify(tmp_path, tokenizers, methods=methods, training={"max_steps": 3}))
    assert result.method == "lora+norm-tuning"
    assert sorted(p.name for p in (tmp_path / "out" / "adapter").iterdir()) == ["default", "norms"]
    loaded = load_run(tmp_path / "out")
    assert ad.active(loaded.model) == ["default", "norms"]
    assert evaluate(tmp_path / "out") == pytest.approx(result.metrics)


def test_early_stopping_keeps_the_best(tmp_path, tokenizers):
    recipe = classify(tmp_path, tokenizers, training={"epochs": 12, "early_stopping": 2, "eval_steps": 2})
    result = run(recipe)
    assert result.best_step is not None and result.best_step < result.steps < 12 * 9
    kept = [step for step, _ in checkpoints(tmp_path / "out" / "checkpoints")]
    assert result.best_step in kept and len(kept) == 2


def test_a_causal_model_is_tuned_on_completions(tmp_path, tokenizers):
    rows = [{"prompt": f"say {i}:", "completion": " yes" if i % 2 else " no"} for i in range(30)]
    recipe = load_recipe(
        {
            "model": {
                "from_config": {"model_type": "llama", "vocab_size": 45, "num_key_value_heads": 2, **SMALL},
                "tokenizer": tokenizers["letters"],
            },
            "task": {"name": "causal-lm", "max_length": 24, "max_new_tokens": 4},
            "data": {"train": jsonl(tmp_path / "say.jsonl", rows), "validation_fraction": 0.2},
            "methods": [{"name": "dora", "r": 2, "targets": ["q", "v"]}],
            "training": {
                "epochs": 2, "batch_size": 2, "gradient_accumulation": 2, "learning_rate": 0.02, "device": "cpu",
                "gradient_checkpointing": True,
            },
            "evaluation": {"predictions": True},
            "output": str(tmp_path / "out"),
        }
    )  # fmt: skip
    result = run(recipe)
    assert set(result.metrics) == {"loss", "perplexity", "token_accuracy"} and result.split == "validation"
    assert evaluate(tmp_path / "out") == pytest.approx(result.metrics)
    assert [set(p) for p in predict(tmp_path / "out", ["say 3:"])] == [{"prompt", "completion"}]
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert {line["truth"] for line in lines} <= {" yes", " no"}
    files = {p.suffix for p in (tmp_path / "out" / "checkpoints").rglob("*") if p.is_file()}
    assert files == {".json", ".safetensors", ""}


# -- arguments ---------------------------------------------------------------------------------------------------


class Task:
    trainer, greater_is_better, primary_metric = "trainer", True, "accuracy"


class Prepared:
    length_column, remove_unused_columns, label_names, in_order = "length", True, None, False
    only_asked = frozenset()

    def __init__(self, *splits):
        self.splits = splits

    def get(self, name):
        return name if name in self.splits else None


def settings_of(tmp_path, tokenizers, *splits, **training):
    recipe = classify(tmp_path, tokenizers, training=training)
    return training_arguments(recipe, Task(), Prepared(*(splits or ("train", "validation"))))


def test_keeping_the_best_evaluates_and_saves_together(tmp_path, tokenizers):
    def when(**training):
        made = settings_of(tmp_path, tokenizers, **training)
        return made["eval_strategy"], made.get("eval_steps"), made["save_strategy"], made.get("save_steps")

    assert when() == ("epoch", None, "epoch", None)
    assert when(eval_steps=5) == when(save_steps=5) == ("steps", 5, "steps", 5)
    assert when(eval_steps=5, save_steps=10) == ("steps", 5, "steps", 10)
    assert when(save_steps=10, keep_best=False) == ("epoch", None, "steps", 10)
    with pytest.raises(RecipeError, match="Write save_steps=10"):
        when(eval_steps=5, save_steps=12)


@pytest.mark.parametrize("generation", [(6, 0), (7, 5), (8, 0)])
def test_bf16_that_a_gpu_emulates_is_told(tmp_path, tokenizers, monkeypatch, caplog, generation):
    """P100 and T4: torch says that they support it."""
    for name, value in (
        ("is_available", True),
        ("get_device_capability", generation),
        ("get_device_name", "Tesla"),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    settings_of(tmp_path, tokenizers, bf16=True, device="auto")
    assert ("Tesla has no bf16 of its own" in caplog.text) is (generation < (8, 0))
    caplog.clear()
    settings_of(tmp_path, tokenizers, bf16=True, device="cpu")
    assert not caplog.text


def test_settings_that_do_not_go_together_are_refused(tmp_path, tokenizers):
    with pytest.raises(RecipeError, match="validation split"):
        settings_of(tmp_path, tokenizers, "train", early_stopping=2)
    with pytest.raises(RecipeError, match="keep_best"):
        settings_of(tmp_path, tokenizers, early_stopping=2, keep_best=False)
    assert settings_of(tmp_path, tokenizers, "train")["eval_strategy"] == "no"


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_tracker_names_its_extra(tmp_path, tokenizers, tracker, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=tracker):
        settings_of(tmp_path, tokenizers, report_to=[tracker])


def test_trackers_write_into_the_runs_folder(tmp_path, tokenizers, monkeypatch):
    for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_MODE", "WANDB_DIR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    settings_of(tmp_path, tokenizers, report_to=["tensorboard", "wandb", "mlflow"])
    made = {
        name: os.environ.pop(name) for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_DIR", "MLFLOW_TRACKING_URI")
    }
    assert os.environ.pop("WANDB_MODE") == "offline"
    assert all(str(tmp_path / "out") in place for place in made.values())


def test_tensorboard_gets_the_curves(tmp_path, tokenizers, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "curves"))
    run(classify(tmp_path, tokenizers, training={"max_steps": 4, "report_to": ["tensorboard"]}))
    assert any(b"train/loss" in p.read_bytes() for p in (tmp_path / "curves").iterdir())


# -- refusals ----------------------------------------------------------------------------------------------------


def test_no_methods_and_twice_the_same_name_are_refused(tmp_path, tokenizers):
    with pytest.raises(RecipeError, match="methods is empty"):
        run(classify(tmp_path, tokenizers, methods=[]))
    twice = [{"name": "lora", "adapter": "a", "targets": "attention"}, {"name": "ia3", "adapter": "a"}]
    with pytest.raises(RecipeError, match=r"methods\.1\.adapter"):
        run(classify(tmp_path, tokenizers, methods=twice))


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(TrainingError, match=r"recipe\.yaml, task\.json, adapter missing"):
        predict(tmp_path, ["x"])


def test_a_split_that_is_not_there_is_told(tmp_path, tokenizers):
    recipe = classify(
        tmp_path,
        tokenizers,
        data={"test_fraction": 0.0},
        evaluation={"split": "test"},
        training={"max_steps": 1},
    )
    with pytest.raises(RecipeError, match=r"evaluation\.split=test"):
        run(recipe)


def test_progress_off_a_terminal_goes_to_the_log(tmp_path, tokenizers, caplog):
    with caplog.at_level(logging.INFO, "adaptome.training.progress"):
        run(classify(tmp_path, tokenizers, training={"max_steps": 2}))
    assert "step 2 of 2: loss" in caplog.text


def test_inputs_are_read_from_each_tasks_columns():
    datasets = pytest.importorskip("datasets")

    def inputs(**columns):
        return inputs_of(datasets.Dataset.from_dict(columns))

    assert inputs(text=["a"], label=[0]) == ["a"]
    assert inputs(text=["a"], text_pair=["b"]) == [("a", "b")]
    assert inputs(tokens=[["a", "b"]], tags=[["O", "O"]]) == [["a", "b"]]
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert inputs(messages=[chat]) == [chat[:1]]
    with pytest.raises(RecipeError, match="label"):
        inputs(label=[0])


def test_peak_memory_sees_an_allocation():
    if torch.cuda.is_available():
        pytest.skip("measures the accelerator here")
    # In a process of its own: where the peak cannot be set back, one that was high before hides the allocation.
    code = (
        "import torch; from adaptome.training.memory import PeakMemory; peak = PeakMemory(); before = peak.bytes();"
        "block = torch.ones(16_000_000); print(peak.bytes() - before)"
    )
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(grown) > 32e6
