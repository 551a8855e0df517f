"""`adaptome train`, `eval`, `predict` and `merge` on one small run."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import adaptome as ad
from adaptome.cli import main
from adaptome.cli.predict import _one_line
from adaptome.tasks.showing import answer

RECIPE = """
model:
  from_config: {model_type: bert, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4}
  tokenizer: minilm
task: text-classification
data: {train: train.jsonl, test_fraction: 0.25}
method: {name: lora, r: 4, targets: attention}
training: {epochs: 1, batch_size: 4, learning_rate: 0.01}
output: out
"""


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    return stopped.value.code or 0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    rows = [
        {"text": f"the {('cat', 'sun')[i % 2]} number {i}", "label": ("animal", "star")[i % 2]}
        for i in range(32)
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("train", "recipe.yaml", "training.max_steps=3") == 0
    return folder


@pytest.fixture(autouse=True)
def _inside(place, monkeypatch):
    monkeypatch.chdir(place)


def test_train_takes_overrides_and_writes_the_run():
    metrics = json.loads(Path("out/metrics.json").read_text(encoding="utf-8"))
    assert metrics["steps"] == 3
    assert Path("out/adapter/adaptome.json").is_file()


def test_train_as_json_and_as_a_table_tell_the_metrics_of_the_run(capsys):
    assert (
        run("train", "recipe.yaml", "output.folder=second", "training.max_steps=2", "method.r=2", "--json")
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(Path("second/metrics.json").read_text(encoding="utf-8"))
    assert run("train", "recipe.yaml", "output.folder=third", "training.max_steps=2", "method.r=2") == 0
    shown = capsys.readouterr().out
    assert f"{told['metrics']['accuracy']:.4f}" in shown
    assert f"{told['trainable_parameters']:,}" in shown


def test_train_tells_how_near_a_method_came_to_its_budget(capsys):
    words = ["output.folder=budgeted", "training.max_steps=1", "method.budget=1500"]
    assert run("train", "recipe.yaml", *words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    # two blocks of four maps, 32 + 32 numbers a rank on each: 512 a rank
    assert "note: lora, budget 1,500: r=3 gives 1,536 (+2.40 %)" in shown


def test_a_finished_run_is_not_overwritten(capsys):
    assert run("train", "recipe.yaml") == 1
    assert "output.overwrite=true" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "none.yaml"], "none.yaml"),
        (["train", "recipe.yaml", "training.epoch=2"], "epochs"),
        (["train", "recipe.yaml", "method.name=lorra"], "lora"),
        (["eval", "nowhere"], "adaptome train"),
        (["eval", "out", "--split", "tset"], "tset"),
        (["predict", "out", "--file", "none.txt"], "none.txt"),
        (["predict", "out", "--file", "blank.txt"], "no line"),
        (["merge", "out", "."], "not empty"),
    ],
)
def test_what_cannot_be_done_exits_with_1_and_a_reason(words, told, capsys):
    Path("blank.txt").write_text("\n \n", encoding="utf-8")
    assert run(*words) == 1
    shown = capsys.readouterr()
    assert told in shown.err
    assert shown.out == ""


@pytest.fixture
def interrupted(monkeypatch):
    """Training is interrupted at its third step, once."""
    from adaptome.training import AdaptomeTrainer

    step, left = AdaptomeTrainer.training_step, [1, 1, 0]

    def training_step(self, *given):
        if left and not left.pop(0):
            raise KeyboardInterrupt
        return step(self, *given)

    monkeypatch.setattr(AdaptomeTrainer, "training_step", training_step)


def test_an_interrupted_run_says_how_to_go_on_and_ends_as_the_whole_one(interrupted, capsys):
    changes = ["training.max_steps=3", "training.save_steps=1", "training.eval_steps=1"]
    assert run("train", "recipe.yaml", "output=cut", *changes) == 130
    shown = capsys.readouterr()
    assert shown.out == "" and "training.resume=true goes on from cut/checkpoints/checkpoint-2" in shown.err
    assert "Traceback" not in shown.err
    assert run("train", "recipe.yaml", "output=cut", *changes) == 1
    assert "training.resume=true" in capsys.readouterr().err
    assert run("train", "recipe.yaml", "output=cut", *changes, "training.resume=true") == 0
    assert run("train", "recipe.yaml", "output=whole", *changes) == 0
    files = [Path(name, "adapter", "adapter.safetensors").read_bytes() for name in ("cut", "whole")]
    assert files[0] == files[1]


def test_an_interruption_before_the_first_checkpoint_says_so(interrupted, capsys):
    assert run("train", "recipe.yaml", "output=early", "training.max_steps=3") == 130
    assert "before the first checkpoint" in capsys.readouterr().err
    assert run("train", "recipe.yaml", "output=early", "training.max_steps=1") == 0


@pytest.mark.parametrize(
    "words", [["train"], ["predict", "out"], ["predict", "out", "a", "--file", "b"], ["merge", "out"]]
)
def test_bad_usage_exits_with_2(words):
    assert run(*words) == 2


def test_predict_writes_what_it_prints(capsys):
    assert run("predict", "out", "the cat", "the sun", "--output", "found", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in Path("found/predictions.jsonl").read_text().splitlines()]
    assert lines == [{"input": text, "prediction": one} for text, one in zip(("the cat", "the sun"), printed, strict=True)]  # fmt: skip


def test_eval_gives_the_runs_own_metrics_again(capsys):
    assert run("eval", "out", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again == pytest.approx(
        json.loads(Path("out/metrics.json").read_text(encoding="utf-8"))["metrics"], rel=1e-5
    )
    assert run("eval", "out", "--split", "train") == 0
    assert "accuracy" in capsys.readouterr().out


def test_predictions_are_one_for_each_input(capsys):
    Path("inputs.txt").write_text("the sun\n\na cat\n", encoding="utf-8")
    assert run("predict", "out", "--file", "inputs.txt", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [set(p["scores"]) for p in found] == [{"animal", "star"}] * 2
    assert run("predict", "out", "the sun", "a cat") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[1] for line in lines] == ["the sun", "a cat"]
    assert [line.split(" ")[0] for line in lines] == [p["label"] for p in found]


def test_a_completion_of_several_lines_is_one_line_of_the_output():
    assert _one_line(answer({"completion": "3 + 4 = 7\r\n#### 7\t"})) == r"3 + 4 = 7\n#### 7\t"
    assert answer({"completion": r"\boxed{7}"}) == r"\boxed{7}" and answer({"completion": ""}) == "-"


def test_a_log_has_no_bars_in_it():
    """Run as a user runs it, with its output in a file: what the libraries would draw is for terminals."""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "adaptome", "predict", "out", "the sun"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "%|" not in done.stderr


def test_the_merged_model_needs_no_adaptome_and_predicts_the_same(capsys):
    assert run("predict", "out", "the sun", "--json") == 0
    before = json.loads(capsys.readouterr().out)[0]["scores"]
    assert run("merge", "out", "merged", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["worst"] < 1e-4
    model = AutoModelForSequenceClassification.from_pretrained("merged").eval()
    batch = AutoTokenizer.from_pretrained("merged")("the sun", return_tensors="pt")
    with torch.no_grad():
        scores = model(**batch).logits.softmax(-1)[0].tolist()
    after = {model.config.id2label[i]: score for i, score in enumerate(scores)}
    assert after == pytest.approx(before, abs=1e-5)


def test_a_model_of_adaptomes_own_is_not_merged_into_something_nobody_reads(capsys):
    assert (
        run("train", "recipe.yaml", "task.pooling=mean", "output.folder=pooled", "training.max_steps=1") == 0
    )
    capsys.readouterr()
    assert run("merge", "pooled", "merged-pooled") == 1
    assert "task.pooling=cls" in capsys.readouterr().err
    assert not Path("merged-pooled").exists()


def test_the_schema_of_recipes_is_printed_for_editors(capsys):
    assert run("train", "--schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"model", "task", "data", "training"} <= set(schema["properties"]) and schema[
        "additionalProperties"
    ] is False


def test_interpret_tells_the_most_changed_heads_and_directions(capsys):
    labels = {"*layer.0.attention": ["a", None, None, None]}
    Path("labels.json").write_text(json.dumps(labels), encoding="utf-8")
    words = ["interpret", "out", "--labels", "labels.json", "--top", "3", "--page", "heads.html"]
    assert run(*words, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["total"], len(told["heads"]), len(told["directions"])) == (8, 3, 3)
    assert told["directions"][0]["score"] > 0 and "<svg" in Path("heads.html").read_text(encoding="utf-8")
    assert run(*words, "--relative") == 0
    assert "The most changed of 8 heads" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--texts", "vocabulary"], 1, "has no map from its residual stream to texts"),
        (["--texts", "none.txt"], 1, "none.txt"),
        (["--texts", "inputs.txt", "--space", "./none"], 1, "--space ./none"),
        (["--space", "x"], 2, "--space needs --texts"),
        (["--score", "slices"], 1, "this is lora"),
        (["--score", "rank"], 2, "slices"),
        (["--adapter", "defualt"], 1, "Did you mean 'default'?"),
        (["--labels", "none.json"], 1, "none.json"),
    ],
)
def test_interpret_says_what_it_cannot_do(words, code, told, capsys):
    Path("inputs.txt").write_text("the sun\na cat\n", encoding="utf-8")
    assert run("interpret", "out", *words) == code
    assert told in capsys.readouterr().err.replace("\n", " ").replace("│", "").replace("  ", " ")


def test_convert_a_run_to_lora_with_its_own_data(capsys):
    assert run("convert", "out", "converted", "--json", "--batches", "2") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rank"] == 8 and told["output_error"] < 1e-4
    assert Path("converted/adapter_config.json").is_file()
    assert run("convert", "out", "low", "--rank", "1", "--max-error", "1e-6") == 1
    assert "nothing was written" in capsys.readouterr().err and not Path("low").exists()
    assert run("convert", "out", "low", "--rank", "1", "--max-error", "1e-6", "--force") == 0
    assert "error at the model's output" in capsys.readouterr().out
    assert run("convert", "out", "x", "--to", "peft-lorra") == 1
    assert "Did you mean 'peft-lora'" in capsys.readouterr().err


def test_convert_an_adapter_folder_on_its_base(capsys):
    assert run("merge", "out", "merged-base") == 0  # any model folder serves as a base
    model = AutoModelForSequenceClassification.from_pretrained("merged-base")
    ad.attach(model, "dora", r=2, targets="q")
    with torch.no_grad():
        for value in ad.parameters_of(model).values():
            value.add_(torch.randn_like(value), alpha=0.1)
    ad.save(model, "an-adapter")
    Path("texts.txt").write_text("the cat\nthe sun and the cat\n", encoding="utf-8")
    capsys.readouterr()
    assert (
        run(
            "convert",
            "an-adapter",
            "from-adapter",
            "--energy",
            "0.999",
            "--texts",
            "texts.txt",
            "--json",
            "--force",
        )
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["output_error"] is not None and len(told["layers"]) == 2
    assert run("convert", "an-adapter", "as-dora", "--to", "peft", "--json") == 0
    assert json.loads(capsys.readouterr().out)["format"] == "peft-dora"
    manifest = json.loads(Path("an-adapter/adaptome.json").read_text())
    manifest["base"]["id"] = "no-such-folder"
    Path("an-adapter/adaptome.json").write_text(json.dumps(manifest))
    assert run("convert", "an-adapter", "again") == 1
    assert "could not be loaded" in capsys.readouterr().err
    assert run("convert", "an-adapter", "again", "--base", "merged-base", "--rank", "4", "--force") == 0
    assert (
        run(
            "merge",
            "an-adapter",
            "half",
            "--base",
            "merged-base",
            "--dtype",
            "bfloat16",
            "--shard-size",
            "1MB",
        )
        == 0
    )
    half = AutoModelForSequenceClassification.from_pretrained("half", dtype="auto")
    assert half.dtype == torch.bfloat16 and "from a run that was stopped" not in capsys.readouterr().out
    assert run("merge", "an-adapter", "other", "--dtype", "int4") == 1
