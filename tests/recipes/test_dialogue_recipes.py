"""The recipes of StudyAbroadGPT: counts at full size, the published steps, both in a few steps, and the adapter handed from phase to phase."""

from __future__ import annotations

import io
import json

import datasets
import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

import adaptome as ad
from adaptome.cli import main
from adaptome.core import packed
from adaptome.data.makers import make
from adaptome.recipe import load_recipe, stages_of
from adaptome.training import load_run, run_stages
from adaptome.training.page import finished_runs, page

MISTRAL = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32768}  # fmt: skip
SMALL = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 128, "vocab_size": 258}  # fmt: skip


@pytest.mark.parametrize(("r", "trained"), [(16, 41_943_040)])
def test_the_adapter_has_the_papers_size_and_the_recipe_its_steps(r, trained):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mistral", **MISTRAL))
    assert sum(p.numel() for p in model.parameters()) == 7_248_023_552
    recipe = load_recipe("studyabroadgpt")
    section = recipe.methods[0]
    plan = ad.attach(model, section.name, targets=section.targets, **section.settings)
    assert section.settings["r"] == r and plan.trainable == trained and len(plan.entries) == 224
    (_, first), (_, second) = stages_of(recipe)
    batches = [one.training.batch_size * one.training.gradient_accumulation for one in (first, second)]
    assert batches == [8, 32]
    assert [one.training.max_steps for one in (first, second)] == [2274 // 8, 2 * (2274 // 32)] == [284, 142]
    assert second.start.how == "adapter" and second.model == first.model


def sharegpt(rows):
    named = {"user": "human", "assistant": "assistant"}
    return [{"conversations": [{"from": named[m["role"]], "value": m["content"]} for m in row]} for row in rows]  # fmt: skip


def test_the_papers_recipe_in_two_steps_a_phase(tmp_path, monkeypatch):
    """Its optimizer, bf16 and recomputing as they are; every adapter is reached through the recomputed blocks of the frozen base."""
    made = make("made:advice", 0)
    hub = datasets.DatasetDict({split: datasets.Dataset.from_list(sharegpt(made[split].columns["messages"][:12])) for split in ("train", "test")})  # fmt: skip
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config=None, revision=None: hub)
    few = [
        "model.name=null", f"model.from_config={json.dumps(SMALL)}", "model.tokenizer=bytes", "task.chat_template=human-assistant", "task.max_length=128",
        "task.max_new_tokens=4", "task.near_duplicates=null", "training.batch_size=2", "training.device=cpu", "evaluation.examples=1",
        *(f"stages.{i}.training.{key}" for i in (0, 1) for key in ("max_steps=2", "gradient_accumulation=1")),
        f"output={tmp_path}/run",
    ]  # fmt: skip
    result = run_stages(load_recipe("studyabroadgpt", few), callbacks=[])
    for one in result.stages.values():
        assert one.steps == 2 and one.metrics["rouge_l"] >= 0 and "rouge_l_gain_low" in one.metrics
    model = load_run(result.last.folder).model
    layer = model.model.layers[0].mlp.up_proj
    assert packed.is_packed(layer) and layer.weight.quant_state.nested
    assert all(value.abs().sum() > 0 for name, value in ad.parameters_of(model).items() if name.endswith("B"))


# -- the demonstration ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The demonstration with three steps a stage, memory told beforehand by the command."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    few = [f"stages.{i}.training.{key}" for i in range(3) for key in ("max_steps=3", "eval_steps=3", "logging_steps=1")]  # fmt: skip
    few += [f"stages.{i}.task={{name: dialogue, max_new_tokens: 8}}" for i in (1, 2)]
    few += [f"stages.{i}.data={{name: 'made:{name}', limit: 32}}" for i, name in ((1, "advice-synthetic"), (2, "advice"))]  # fmt: skip
    few += ["data.limit=32", "evaluation.examples=1"]
    with pytest.raises(SystemExit) as ended:
        main(["train", "studyabroadgpt-demo", "--memory", *few, "task.max_new_tokens=8", f"output={folder}", "training.batch_size=4"])  # fmt: skip
    assert ended.value.code == 0
    return folder


def test_memory_is_told_before_and_measured_after(finished):
    for run in finished_runs(finished):
        told, seen = run.result["foretold_memory_bytes"], run.result["peak_memory_bytes"]
        assert 0.5 * seen < told < 2 * seen
    shown = page(finished_runs(finished), "x").html()
    assert "foretold, MiB" in shown and "Training loss of each run" in shown and "fell by" in shown


def test_the_second_phase_begins_where_the_first_ended(finished):
    """The adapter alone is handed on: the same tensors, the same logits, and an optimizer and a schedule that begin anew."""
    first, second = finished / "2-synthetic", finished / "3-curated"
    recipe = load_recipe(second / "recipe.yaml")
    assert recipe.start.run == str(first) and recipe.start.how == "adapter"
    one = load_run(first)
    tokens = torch.randint(2, 258, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = one.model(tokens).logits
    again = load_run(first)
    own, other = ad.parameters_of(one.model), ad.parameters_of(again.model)
    assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)
    with torch.no_grad():
        assert torch.equal(again.model(tokens).logits, logits)
    moved = ad.parameters_of(load_run(second).model)
    assert not all(torch.equal(own[name], moved[name]) for name in own)
    history = json.loads((second / "metrics.json").read_text())["history"]
    rates = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    assert (
        max(rates) == pytest.approx(recipe.training.learning_rate)
        and rates[0] == 0
        and rates[-1] < max(rates)
    )


def test_a_finished_run_can_be_talked_to_and_asked(finished, monkeypatch, capsys):
    given = io.StringIO("How do I start a master in Aldora with a loan?\n")
    given.isatty = lambda: False
    monkeypatch.setattr("sys.stdin", given)
    for words in (["chat", str(finished), "--json", "--max-new-tokens", "5"], ["predict", str(finished), "Which test?", "--json"]):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[0])["role"] == "assistant" and "Which test?" in out


def test_the_data_of_the_phases_is_the_recipes():
    content = yaml.safe_load(load_recipe("studyabroadgpt-demo").to_yaml())
    assert [stage["data"] for stage in content["stages"][1:]] == ["made:advice-synthetic", "made:advice"]
