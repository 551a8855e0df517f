"""The tasks on knowledge graphs: what becomes of rows, how answers are scored, and a recipe of two stages from triples to answers."""

from __future__ import annotations

import json
from html import escape
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import adaptome as ad
from adaptome.cli import main
from adaptome.core.errors import DataError, ModelError, RecipeError
from adaptome.data import load_splits
from adaptome.graphs.query import STRUCTURES, structure_of
from adaptome.graphs.text import parse
from adaptome.recipe import load_recipe
from adaptome.recipe.schema import ModelSection
from adaptome.tasks import get_task, task_from_dict
from adaptome.training import evaluate, load_run, predict, run_stages
from adaptome.training.examples import read_examples

KINDS = list(STRUCTURES)
SPEC = ModelSection(composite="complex", rank=4)
SMALL = {"queries": 6, "eval_queries": 4, "max_answers": 60}


def town():
    return load_splits("made:family-town")


def prepared(**options):
    task = get_task("kg-queries", **{**SMALL, **options})
    splits = town()
    return task, task.prepare(splits, task.load_processor(SPEC))


# -- rows --------------------------------------------------------------------------------------------------------------


def test_triples_become_a_row_for_every_answer_in_train_and_for_every_query_elsewhere():
    task, data = prepared()
    train, test = data["train"], data["test"]
    assert {KINDS[k] for k in train["structures"]} == {"2i", "3i", "2in", "3in"}
    assert all(len(labels) == 1 for labels in train["labels"]) and len(train) > 4 * 6
    assert len(test) == 14 * 4
    assert {KINDS[k] for k in test["structures"]} == set(KINDS) - {"pni-set"}
    assert all(labels[0] >= 0 and -1 not in labels for labels in test["labels"])
    assert len(task.labels) > 250 and "works_for^-1" in task.options.relations


def test_options_choose_queries_and_what_is_learned_of_them():
    _, data = prepared(
        structures=["2i"], eval_structures=["1p", "pni"], negation="set", answers_per_query=1, mask_known=True
    )
    assert len(data["train"]) == 6
    assert any(len(labels) > 1 and max(labels[1:]) <= -2 for labels in data["train"]["labels"])
    assert {KINDS[k] for k in data["test"]["structures"]} == {"1p", "pni-set"}
    whole, few = (
        prepared(queries=100, structures=["2i"])[1],
        prepared(queries=100, structures=["2i"], share=0.01)[1],
    )
    queries = {
        (tuple(a), tuple(r)) for a, r in zip(few["train"]["anchors"], few["train"]["relations"], strict=True)
    }
    assert (
        len(queries) == 1
        and len(few["train"]) < len(whole["train"])
        and len(few["test"]) == len(whole["test"])
    )


def test_written_queries_are_read_as_lines_or_as_nested_lists(tmp_path):
    names = {"entities": ["anna", "bo", "cy"], "relations": ["likes", "likes^-1"]}
    (tmp_path / "vocabulary.json").write_text(json.dumps(names))
    rows = [
        {"query": "? : likes(anna, ?) and not likes(bo, ?)", "easy": ["bo"], "hard": ["cy", "anna"]},
        {"query": "[[0, [0]], [1, [0, -2]]]", "easy": ["1"], "hard": ["2", "0"]},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text(json.dumps(rows[0]) + "\n")
    task = get_task("kg-queries", vocabulary=str(tmp_path / "vocabulary.json"), eval_structures=["2in"])
    splits = load_splits(str(tmp_path), validation_fraction=0)
    data = task.prepare(splits, None)
    assert data["test"]["labels"][:] == [[2, 0, -3]] and data["test"]["relations"][:] == [[0, 0, 0]]
    one, two = ([row for row in data["train"]][i::3] for i in (0, 0))
    assert one == two and sorted(labels[0] for labels in data["train"]["labels"]) == [0, 0, 1, 1, 2, 2]
    # each reading gives the same three rows
    assert [r for r in data["train"]][:3] == [r for r in data["train"]][3:]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"query": "? : like(anna, ?)", "hard": ["bo"]}, "line 1: .*Did you mean 'likes'"),
        ({"query": "[[0, [0]]", "hard": ["bo"]}, "line 1: .*neither a query nor a nested list"),
        ({"query": "not (likes(anna, ?) and likes(bo, ?))", "hard": ["bo"]}, "none of the structures"),
        ({"query": "likes(anna, ?)", "hard": ["bob"]}, "no entity 'bob'"),
        (
            {"query": "likes(anna, ?)", "hard": ["bo"]},
            "no query of the structures 2i, 2in, 3i, 3in is in the train data",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_told_with_its_line(row, told, tmp_path):
    (tmp_path / "v.json").write_text('{"entities": ["anna", "bo"], "relations": ["likes", "likes^-1"]}')
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    task = get_task("kg-queries", vocabulary=str(tmp_path / "v.json"))
    with pytest.raises(DataError, match=told):
        task.prepare(load_splits(train=str(tmp_path / "train.jsonl"), validation_fraction=0), None)


def test_an_unknown_structure_and_unknown_names_are_told():
    with pytest.raises(RecipeError, match="no structure is called '2ip'. Did you mean 'ip'"):
        get_task("kg-queries", structures=["2ip"])
    task = get_task("kg-queries")
    with pytest.raises(RecipeError, match="prepare the data first"):
        task.load_model(SPEC)
    with pytest.raises(RecipeError, match="no folder of a link predictor. Train one first"):
        task.load_processor(ModelSection(name="nowhere"))
    task.prepare(town(), None)
    with pytest.raises(RecipeError, match="unknown key 'model.ranks' for complex. Did you mean 'rank'"):
        task.load_model(ModelSection(composite="complex", ranks=4))


def test_a_split_with_names_of_its_own_is_told_with_its_line(tmp_path):
    (tmp_path / "train.tsv").write_text("anna\tlikes\tbo\nbo\tlikes\tcy\n")
    (tmp_path / "test.tsv").write_text("anna\tlikes\tbo\nanna\tlikes\tdan\n")
    task = get_task("link-prediction")
    splits = load_splits(str(tmp_path), prefer=task.prefer, validation_fraction=0)
    with pytest.raises(DataError, match=r"test\.tsv, line 2: the graph has no entity 'dan'"):
        task.prepare(splits, None)


# -- measures ----------------------------------------------------------------------------------------------------------


def test_measures_are_means_over_queries_then_structures():
    task = get_task("kg-queries")
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.1, 0.2, 0.3], [0.5, 0.6, 0.1]])
    kinds = torch.tensor([KINDS.index(name) for name in ("1p", "1p", "pni-set")])
    labels = torch.tensor([[0, -1], [0, 1], [2, -2 - 1]])
    rows = task.reduce((scores, kinds), labels)
    found = task.metrics(SimpleNamespace(predictions=rows.numpy()))
    # 1p: rank 1; ranks 2 and 2 (each passes over the other); pni: rank 2
    assert found["mrr_1p"] == pytest.approx((1 + 0.5) / 2) and found["mrr_pni"] == pytest.approx(0.5)
    assert found["mrr"] == pytest.approx(0.625) and found["hits_at_1"] == pytest.approx(0.25)
    assert found["mrr_positive"] == found["mrr_1p"] and found["mrr_negative"] == found["mrr_pni"]


def test_link_prediction_passes_over_other_triples_of_every_split():
    task = get_task("link-prediction")
    data = task.prepare(town(), None)
    names = task.vocabulary
    rows = {
        (h, r): labels
        for h, r, labels in zip(*(data["test"][c] for c in ("heads", "relations", "labels")), strict=True)
    }
    facts = np.concatenate(
        [names.numbers(s.rows["head"], s.rows["relation"], s.rows["tail"]) for s in town().values()]
    )
    assert len(data["train"]) == 2 * len(town()["train"])
    for (head, relation), labels in list(rows.items())[:40]:
        numbers = {n if n >= 0 else -2 - n for n in labels}
        forward = relation % 2 == 0
        pairs = facts[facts[:, 1] == (relation if forward else relation - 1)]
        assert numbers == set(pairs[pairs[:, 0 if forward else 2] == head][:, 2 if forward else 0].tolist())


# -- from triples to answers -------------------------------------------------------------------------------------------

RECIPE = {
    "model": {"composite": "complex", "rank": 8},
    "task": "link-prediction",
    "data": "made:family-town",
    "method": "linear-probe",
    "training": {
        "optimizer": "adagrad", "learning_rate": 0.1, "scheduler": "constant", "warmup": 0, "batch_size": 256,
        "max_grad_norm": 0, "device": "cpu", "keep_best": False,
    },
    "stages": [
        {"name": "predictor", "objective": ["model", {"name": "n3", "weight": 0.01}], "training": {"epochs": 4}},
        {
            "name": "adapter", "start": "merged", "method": "score-adapter", "task": {"name": "kg-queries", **SMALL},
            "training": {"max_steps": 4},
        },
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "town"
    return folder, run_stages(load_recipe({**RECIPE, "output": str(folder)}), callbacks=[])


def test_two_stages_lead_from_triples_to_a_calibrated_predictor(trained):
    folder, result = trained
    first, last = result.stages.values()
    assert first.metrics["mrr"] > 3 / 300 and first.metrics["loss/n3"] > 0
    assert last.trainable_parameters == 2 * 16 + 2
    assert {"mrr", "mrr_positive", "mrr_negative", "mrr_pni", "hits_at_10"} <= set(last.metrics)
    # what the second stage calibrates is what the first one learned
    one, two = load_run(folder / "1-predictor"), load_run(folder / "2-adapter")
    numbers = torch.arange(4)
    ad.activate(two.model, [])
    with torch.no_grad():
        torch.testing.assert_close(
            one.model(numbers, numbers)["logits"], two.model.predictor(numbers, numbers)
        )
    assert one.task.vocabulary == two.task.vocabulary == two.processor
    assert task_from_dict(two.task.to_dict()).vocabulary == two.task.vocabulary


def test_a_finished_run_is_evaluated_with_other_options(trained):
    folder, result = trained
    stored = result.last.metrics
    again = evaluate(folder / "2-adapter")
    assert again["mrr"] == pytest.approx(stored["mrr"])
    other = evaluate(folder / "2-adapter", overrides=["task.eval_beam=1", "task.eval_structures=[2p]"])
    assert set(other) >= {"mrr", "mrr_2p"} and "mrr_1p" not in other
    assert evaluate(folder / "1-predictor")["mrr"] == pytest.approx(
        result.stages["1-predictor"].metrics["mrr"]
    )


def test_answers_come_with_the_edges_that_speak_for_them(trained, capsys):
    folder, _ = trained
    query = "? : parent_of(?a, ?) and works_for(?a, acme) and not lives_in(?, ashford)"
    (found,) = predict(folder / "2-adapter", [query])
    best = found["answers"][0]
    assert len(found["answers"]) == 5 and found["query"] == query
    edges = [step["edge"] for step in best["because"]]
    assert edges[0].startswith("works_for(") and edges[0].endswith(", acme)")
    between = edges[0].removeprefix("works_for(").removesuffix(", acme)")
    assert edges[1:] == [
        f"parent_of({between}, {best['entity']})",
        f"not lives_in({best['entity']}, ashford)",
    ]
    product = np.prod([step["truth"] for step in best["because"]])
    assert product == pytest.approx(best["truth"], abs=1e-4)
    with pytest.raises(SystemExit) as left:
        main(["predict", str(folder / "2-adapter"), query])
    assert left.value.code == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == query and printed[1].startswith(
        f"  {best['truth']:.3f}  {best['entity']}  because {edges[0]} "
    )
    assert predict(folder / "1-predictor", ["? : works_for(?, acme)"])[0]["answers"]
    with pytest.raises(DataError, match="Did you mean 'works_for'"):
        predict(folder / "2-adapter", ["? : works_fr(?, acme)"])


def test_reports_show_queries_of_several_structures_and_what_would_have_been_right(trained):
    folder, _ = trained
    names = load_run(folder / "2-adapter").task.vocabulary
    examples = read_examples(folder / "2-adapter")
    asked = [parse(one.shown.text, names) for one in examples]
    assert len({structure_of(query) for query in asked}) >= 5
    for one in examples:
        assert len(one.shown.ranked) == 5 and one.shown.ranked[0].note.startswith("because ")
        assert set(one.truth.split(" and ")[0].split(", ")) <= set(names.entities)
    for one in read_examples(folder / "1-predictor"):
        assert one.truth in names.entities and structure_of(parse(one.shown.text, names)) == "1p"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(escape(one.shown.text) in page for one in examples)


def test_min_max_without_the_object_is_refused_in_training(trained, tmp_path):
    content = {
        **RECIPE,
        "model": {"name": str(trained[0] / "1-predictor" / "merged")},
        "output": str(tmp_path / "r"),
    }
    content |= {
        "task": {"name": "kg-queries", "normalization": "min-max", **SMALL},
        "method": "score-adapter",
    }
    content["training"] = {**RECIPE["training"], "max_steps": 1}
    del content["stages"]
    from adaptome.training import run

    with pytest.raises(ModelError, match="never learn"):
        run(load_recipe(content), callbacks=[])
