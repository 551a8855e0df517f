"""The recipes for long chains of thought, two steps each, and the study of what is learned of the traces."""

from __future__ import annotations

import json

import datasets
import pytest

from adaptome.cli import main
from adaptome.compare.perturbation import asked_of, perturbation_study
from adaptome.core.errors import RecipeError
from adaptome.recipe import load_recipe
from adaptome.traces import MARKERS, framed
from adaptome.training import evaluate, load_run, run, run_stages

FAST = [
    "model.from_config.hidden_size=16", "model.from_config.intermediate_size=16", "model.from_config.num_hidden_layers=1",
    "stages.0.training.max_steps=1", "stages.1.training.max_steps=2", "stages.0.data.limit=12", "stages.1.data.limit=12",
    "stages.1.task.max_new_tokens=4", "stages.0.task.max_new_tokens=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    recipe = load_recipe("long-cot-demo", [*FAST, f"output={folder}/out"])
    lines: list[str] = []
    found = perturbation_study(recipe, ["shuffle:0.5", "digits:1"], 2, lines.append, [])
    return folder / "out", recipe, found, lines


def test_the_study_has_a_row_for_every_kind_and_share_and_the_base(study):
    folder, _, found, lines = study
    names = ["correct traces", "shuffle 50%", "digits 100%"]
    assert [row.label for row in found.rows] == names and all(len(row.values) == 2 for row in found.rows)
    assert [line for line in lines if "(6 of 6)" in line]
    told = json.loads((folder / "perturbed" / "perturbation.json").read_text())
    assert told["base"] == found.base and [row["label"] for row in told["rows"]] == names
    assert found.rows[1].lost == pytest.approx(found.rows[0].mean - found.rows[1].mean)
    page = (folder / "perturbed" / "perturbation.html").read_text()
    assert "shuffle 50%" in page and "By share" in page
    kept = load_recipe(folder / "perturbed" / "shuffle-50" / "seed-1" / "recipe.yaml")
    assert kept.task.settings["perturb"] == {"how": "shuffle", "share": 0.5, "seed": 1}
    assert kept.start.run == str(folder / "1-base")


def test_the_study_begun_again_trains_nothing(study, capsys, monkeypatch):
    folder, recipe, found, _ = study
    monkeypatch.setattr(
        "adaptome.compare.study.run", lambda *_: pytest.fail("a finished run was trained again")
    )
    again = perturbation_study(recipe, ["shuffle:0.5", "digits:1"], 2, callbacks=[])
    assert again == found


def test_after_the_study_the_recipe_is_trained_on_the_same_base_and_used(study, capsys):
    folder, recipe, _, _ = study
    resumed = recipe.model_copy(update={"training": recipe.training.model_copy(update={"resume": True})})
    result = run_stages(resumed, [])
    assert {"accuracy", "accuracy_before", "tokens", "well_formed"} <= result.last.metrics.keys()
    with pytest.raises(SystemExit) as stopped:
        main(["predict", str(folder), "a7 b+2 c-3 c?", "--json"])
    assert not stopped.value.code and "completion" in capsys.readouterr().out


def test_another_task_and_other_kinds_are_refused():
    with pytest.raises(RecipeError, match="learns no traces"):
        perturbation_study("gsm8k-lora")
    with pytest.raises(RecipeError, match=r"no perturbation 'shufle'\. Did you mean 'shuffle'"):
        asked_of(["shufle"])
    with pytest.raises(RecipeError, match="above 0 and at most 1"):
        asked_of(["delete:2"])
    assert len(asked_of([])) == 17


def test_the_papers_recipe_takes_two_steps_of_skythoughts_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chat = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    rows = [
        {
            "system": "Think.",
            "conversations": [
                {"from": "user", "value": f"Return your final response within \\boxed{{}}. What is {n}?"},
                {"from": "assistant", "value": framed([f"{n}.", "Wait, yes."], rf"\boxed{{{n}}}", MARKERS["sky"]).text},
            ],
        }
        for n in range(8)
    ]  # fmt: skip
    rows.append({"system": "Think.", "conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "no marks"}]})  # fmt: skip

    def load(name, config=None, revision=None):
        assert name == "NovaSky-AI/Sky-T1_data_17k"
        return datasets.DatasetDict(train=datasets.Dataset.from_list(rows))

    monkeypatch.setattr(datasets, "load_dataset", load)
    qwen = "{model_type: qwen2, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1, vocab_size: 258}"
    recipe = load_recipe(
        "long-cot-qwen32b",
        ["model.name=null", f"model.from_config={qwen}", "model.tokenizer=bytes", "model.dtype=float32", "training.max_steps=2", "training.bf16=false",
         "training.gradient_accumulation=2", "training.device=cpu", "method.r=2", "task.max_new_tokens=4"],
    )  # fmt: skip
    from adaptome.tasks.byte_tokenizer import byte_tokenizer

    def with_chat(model):
        made = byte_tokenizer()
        made.chat_template = chat
        return made

    monkeypatch.setattr("adaptome.tasks.instructed.language_tokenizer", with_chat)
    result = run(recipe, [])
    assert result.steps == 2 and result.split is None
    assert any("1 of 9 traces of train were left out" in note for note in result.notes)
    (tmp_path / "math500.jsonl").write_text(
        json.dumps({"problem": "What is 3?", "answer": "3", "solution": "x"}) + "\n"
    )
    found = evaluate("runs/long-cot-qwen32b", "test", ["data={test: math500.jsonl, columns: {instruction: problem}}", "task.malformed=drop"])  # fmt: skip
    assert found["accuracy"] in (0.0, 1.0)
    assert load_run("runs/long-cot-qwen32b").task.options.system == "Think."
