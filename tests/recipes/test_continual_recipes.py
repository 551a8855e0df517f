"""The recipes of ConPET: its count at full size, the paper's on small models and data in its forms, and the demonstration in a few steps."""

import json

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaModel

import adaptome as ad
from adaptome.recipe import load_recipe, stages_of
from adaptome.recipe.shipped import shipped_recipes
from adaptome.training import predict, run_continual, run_stages

SMALL = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 24, "vocab_size": 30522}  # fmt: skip
WORDS = "Marie Curie was born in Warsaw .".split()


def test_conpet_trains_as_many_numbers_as_the_paper_at_full_size():
    with torch.device("meta"):
        model = LlamaModel(LlamaConfig())  # its defaults are LLaMA-7B's
        base = sum(p.numel() for p in model.parameters())
    section = load_recipe("conpet-fewrel").methods[0]
    plan = ad.plan(model, section.name, targets=section.targets, **section.settings)
    assert plan.trainable == 2_097_152
    assert (
        base + 32_000 * 4096
    ) / plan.trainable > 3_000  # with the head of the language model, as the paper counts


def data_sets(folder):
    spans = {"h": ["x", "", [[0, 1]]], "t": ["y", "", [[5]]]}
    for name in ("fewrel", "fewnerd", "ontonotes"):
        (folder / name).mkdir()
    for number, name in enumerate(("train_wiki", "val_wiki")):
        told = {f"P{8 * number + n}": [{"tokens": [*WORDS, str(n), str(i)], **spans} for i in range(20)] for n in range(8)}  # fmt: skip
        (folder / f"fewrel/{name}.json").write_text(json.dumps(told))
    for name in ("train", "dev", "test"):
        types = [f"a-{n}" for n in range(14)]
        (folder / f"fewnerd/{name}.txt").write_text("\n".join(f"Paris\t{t}\n" for t in types * 3))
        lines = [f"0\t2\t{' '.join(WORDS)}\t/t{n}" for n in range(18)] * 3
        (folder / f"ontonotes/{name}.txt").write_text("\n".join(lines))


@pytest.mark.parametrize("name, steps", [("conpet-fewrel", 6), ("conpet-fewnerd", 6), ("conpet-ontonotes", 4)])  # fmt: skip
def test_a_recipe_of_the_paper_learns_two_tasks(name, steps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data_sets(tmp_path)
    content = yaml.safe_load(shipped_recipes()[name].text)
    content["model"] = {"from_config": SMALL, "tokenizer": "minilm"}
    content["training"] |= {"max_steps": 2, "device": "cpu"}
    content["continual"]["strategy"]["batches"] = 1
    result = run_continual(load_recipe(content), [])
    assert result.steps == steps and len(result.continual["tasks"]) == 2
    assert result.split == "test" and set(result.continual["matrices"]) == {"task", "class"}


def test_the_demonstration_of_conpet_in_a_few_steps(tmp_path):
    few = [f"stages.{n}.training.max_steps=1" for n in (0, 1)] + ["evaluation.batch_size=100"]
    data = "stages.1.data={name: 'made:relations', limit: 200}"
    recipe = load_recipe("conpet-demo", [*few, data, f"output={tmp_path}"])
    assert [stage.continual is not None for _, stage in stages_of(recipe)] == [False, True]
    made = run_stages(recipe, []).last
    assert len(made.continual["tasks"]) == 5 and made.continual["steps"] == [1, 2, 2, 2, 2]
    (told,) = predict(tmp_path, ["<h>Brado</h> walked briefly under <t>Corri</t> ."])
    assert told["label"] in {label for own in made.continual["classes"] for label in own}
    page = (tmp_path / "report.html").read_text()
    assert "stream: class-incremental" in page and "Each task as the others came" in page
