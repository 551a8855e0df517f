"""The recipes of CQD-A: the demonstration as it ships with few steps, and the paper's on small data in the layout that it names."""

from __future__ import annotations

import json
import pickle
from collections import defaultdict
from pathlib import Path

import pytest

from adaptome.data.makers.family_town import family_graph, split_triples
from adaptome.graphs.betae import main as convert
from adaptome.graphs.graph import Graph, Vocabulary
from adaptome.graphs.query import STRUCTURES, to_nested
from adaptome.graphs.sampling import sample
from adaptome.recipe import load_recipe
from adaptome.training import run_stages

FEW = ["stages.0.training.epochs=1", "stages.1.training.max_steps=2", "training.device=cpu"]


def test_the_demonstration_runs_as_it_ships(tmp_path):
    few = [*FEW, "stages.1.training.eval_steps=1", "stages.1.task.queries=8", "stages.1.task.eval_queries=3"]
    result = run_stages(load_recipe("cqda-demo", [*few, f"output={tmp_path / 'r'}"]), callbacks=[])
    assert result.last.trainable_parameters == 102 and 0 < result.last.metrics["mrr"] < 1


def tuples(nested):
    return tuple(tuples(part) if isinstance(part, list) else part for part in nested)


def betae(folder: Path) -> None:
    """A town in the layout of BetaE's FB15k-237: pickles of queries and answers, and triples of numbers with their inverses."""
    folder.mkdir()
    parts = split_triples(family_graph(couples=14))
    names = Vocabulary.of(row for rows in parts.values() for row in rows)
    forward = [name for name in names.relations if not name.endswith("^-1")]
    names = Vocabulary(names.entities, tuple(f"{sign}{name}" for name in forward for sign in "+-"))
    graphs = {k: Graph(names, names.numbers(*zip(*rows, strict=True))) for k, rows in parts.items()}
    for split, file in (("train", "train"), ("validation", "valid"), ("test", "test")):
        rows = graphs[split].both_ways.tolist()
        (folder / f"{file}.txt").write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))

    def write(name, content):
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(content))

    write("id2ent", dict(enumerate(names.entities)))
    write("id2rel", dict(enumerate(names.relations)))
    seen = None
    for split, file in (("train", "train"), ("validation", "valid"), ("test", "test")):
        whole = graphs[split] if seen is None else seen + graphs[split]
        queries, easy, hard = defaultdict(set), defaultdict(set), defaultdict(set)
        for name in [n for n in STRUCTURES if n != "pni-set"]:
            for drawn in sample(name, 3, seen or whole, None if seen is None else whole):
                query = tuples(to_nested(drawn.query))
                queries[name].add(query)
                easy[query], hard[query] = set(drawn.easy), set(drawn.hard)
        write(f"{file}-queries", queries)
        if split == "train":
            write("train-answers", hard)
        else:
            write(f"{file}-easy-answers", easy)
            write(f"{file}-hard-answers", hard)
        seen = whole


def test_the_papers_recipe_reads_betaes_data_and_takes_two_steps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    betae(tmp_path / "FB15k-237-betae")
    assert convert(["FB15k-237-betae", "queries/FB15k-237"]) == 0
    names = json.loads(Path("queries/FB15k-237/vocabulary.json").read_text())
    recipe = load_recipe(
        "cqda-fb15k237",
        [
            *FEW,
            "model.rank=6",
            "stages.1.training.eval_steps=2",
            "stages.1.task.eval_beam=3",
            f"output={tmp_path / 'r'}",
        ],
    )
    first, last = run_stages(recipe, callbacks=[]).stages.values()
    assert first.trainable_parameters == 12 * (len(names["entities"]) + len(names["relations"]))
    assert last.trainable_parameters == 2 * 12 + 2
    assert {f"mrr_{name}" for name in STRUCTURES if name != "pni-set"} <= set(last.metrics)


@pytest.mark.slow
def test_the_demonstration_ends_where_it_should(tmp_path):
    result = run_stages(
        load_recipe("cqda-demo", ["training.device=cpu", f"output={tmp_path / 'r'}"]), callbacks=[]
    )
    assert result.last.metrics["mrr"] > 0.47 and result.last.metrics["mrr_negative"] > 0.3
