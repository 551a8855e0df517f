"""CQD-A: a hundred numbers that calibrate a link predictor's scores make it answer queries with negations, and most of that from 1 % of the queries.

claim      Arakelyan et al. 2023, arXiv:2301.12313: an affine map of the scores, chosen by the predicate and trained on four structures of
           queries, beats the same search on the scores as they are on average over all 14, makes negation work, helps structures it was not
           trained on, and keeps most of this with 1 % of the training queries
miniature  the recipe `cqda-demo`, end to end: a made-up town (about 270 entities, 24 relations with their inverses), a fifth of its edges held
           out; ComplEx of rank 25, then 102 numbers on 2i, 3i, 2in and 3in. Scored on 100 queries of each structure with at least one answer that
           needs an edge of the test part. `popular` asks the same search of a predictor that knows only how often a relation leads to an
           entity; LoRA of rank 4 on the relations' embeddings is trained as the adapter is, with the better of two learning rates. Seeds make the town, its split, the queries and
           the model
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from _harness import Table, main
from _town import Popular, scored

import adaptome as ad
from adaptome.data import load_splits
from adaptome.graphs.query import TRAINED
from adaptome.recipe import load_recipe, stages_of
from adaptome.training import load_run, run

#: queries in train: 1 % of them is 40
FEW = 0.01
#: the one with the best MRR on validation is reported, for the adapter and for LoRA
RATES = (0.1, 0.01)
LORA = {"name": "lora", "targets": "predictor.relations", "r": 4}


def add(table: Table, label: str, found: dict[str, float], parameters: int = 0) -> None:
    """Errors, 1 - MRR: over all structures, over those with negation, and over those that nothing was trained on."""
    unseen = [value for key, value in found.items() if key.startswith("mrr_") and key[4:] not in (*TRAINED, "positive", "negative")]  # fmt: skip
    table.add(f"all: {label}", 1 - found["mrr"], parameters)
    table.add(f"negation: {label}", 1 - found["mrr_negative"], parameters)
    table.add(f"untrained structures: {label}", 1 - sum(unseen) / len(unseen), parameters)


def measure(seed: int, table: Table) -> None:
    with tempfile.TemporaryDirectory() as folder:
        told = [
            f"data.split_seed={seed}",
            f"training.seed={seed}",
            f"output={folder}/run",
            "training.device=cpu",
        ]
        told += ["stages.1.task.eval_queries=100", f"stages.1.task.query_seed={seed}"]
        recipe = load_recipe("cqda-demo", told)
        (_, first), (_, second) = stages_of(recipe)
        run(first, callbacks=[])
        runs: dict[str, dict[str, Any]] = {
            "adapter": {}, "adapter, 1 % of the queries": {"share": FEW}, "lora": {}, "lora, 1 % of the queries": {"share": FEW},
        }  # fmt: skip
        for label, options in runs.items():
            tried = []
            for rate in RATES:
                content = second.model_dump(mode="json", exclude_defaults=True)
                content["task"] |= options
                content["training"] |= {"learning_rate": rate}
                content["output"] = f"{folder}/{label}, {rate}"
                if label.startswith("lora"):
                    content["methods"] = [LORA]
                tried.append(run(load_recipe(content), callbacks=[]))
            best = max(tried, key=lambda r: max(log.get("eval_mrr", 0.0) for log in r.history))
            add(table, label, best.metrics, best.trainable_parameters)
        loaded = load_run(Path(folder) / f"adapter, {RATES[0]}")
        splits = load_splits(**loaded.recipe.data.model_dump(), prefer=loaded.task.prefer)
        rows = loaded.task.prepare(splits, loaded.processor)["test"]
        ad.activate(loaded.model, [])
        add(table, "as they are", scored(loaded, rows))
        ad.detach(loaded.model)
        loaded.model.predictor = Popular(loaded.task, splits["train"].rows)
        add(table, "popular", scored(loaded, rows))


def judge(table: Table) -> dict[str, bool]:
    gain = {k: table.mean(f"{k}: as they are") - table.mean(f"{k}: adapter") for k in ("all", "negation")}
    few = {k: table.mean(f"{k}: as they are") - table.mean(f"{k}: adapter, 1 % of the queries") for k in gain}
    return {
        "all: the adapter below the scores as they are by a tenth, every seed": table.below("all: adapter", "all: as they are", by=0.1),
        "negation: likewise by a quarter": table.below("negation: adapter", "negation: as they are", by=0.25),
        "untrained structures: no worse on average": table.as_good("untrained structures: adapter", "untrained structures: as they are", 0.0),
        "all: below popular entities, every seed": table.below("all: adapter", "all: popular"),
        "1 % of the queries: below the scores as they are, every seed": table.below("all: adapter, 1 % of the queries", "all: as they are"),
        "all: the adapter below LoRA on the relations, every seed, with all queries and with 1 %": all(table.below(f"all: adapter{of}", f"all: lora{of}") for of in ("", ", 1 % of the queries")),
        "1 % of the queries: more than half of the gain, over all and with negation": all(few[k] > 0.5 * gain[k] for k in gain),
    }  # fmt: skip


if __name__ == "__main__":
    main(__doc__, "1 - MRR", measure, judge)
