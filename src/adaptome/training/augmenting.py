"""Generated texts among a run's training rows: written once, kept on disk, and sifted by a teacher.

The two stages of CrossTune's labelling (Luo et al. 2024, arXiv:2403.12468): a text is written for a label from the label's description and its real
examples; it is kept where a teacher, trained on the real examples alone, gives it the same label with enough certainty. Whether a run is the
better for it is told by validation rows (`choose` of a recipe with stages), never by test rows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptome.blackbox.generators import get_generator
from adaptome.core.errors import DataError, TrainingError
from adaptome.core.files import write_atomic
from adaptome.data import Split, Splits
from adaptome.data.splits import Table, to_split
from adaptome.recipe import AugmentationSection, Recipe
from adaptome.tasks import Task
from adaptome.training.folder import GENERATED

#: a generated text: text, label, key of what was asked, and what became of it
Row = dict[str, Any]


def augmented(recipe: Recipe, task: Task, splits: Splits, teacher: Any) -> Splits:
    """The splits with what the recipe has generated in train, in the rows' two columns text and label.

    Args:
        teacher: folder of a run -> it, ready to be used (`runs.load_run`).

    Raises:
        DataError: the training rows are no texts with labels. TrainingError: the teacher knows other labels.
    """
    told = recipe.augmentation
    if told is None:
        return splits
    if "train" not in splits:
        raise DataError("augmentation: the data has no train split to add to.")
    splits.require("text", "label")
    train = splits["train"]
    examples: dict[str, list[str]] = {}
    names = getattr(train.rows.features["label"], "names", None)
    for text, label in zip(train.rows["text"], train.rows["label"], strict=True):
        examples.setdefault(names[label] if names and isinstance(label, int) else str(label), []).append(text)
    descriptions: dict[str, list[str]] = getattr(task, "descriptions_of", lambda labels: {})(sorted(examples))
    path = Path(recipe.output.folder) / GENERATED
    rows = written(told, path, examples, descriptions)
    seen = {" ".join(text.split()).casefold() for split in splits.values() for text in split.rows["text"]}
    for row in rows:
        key = " ".join(row["text"].split()).casefold()
        row["kept"], row["why"] = (False, "repeated") if not key or key in seen else (True, "")
        seen.add(key)
    if told.teacher is not None:
        _sift(told, rows, sorted(examples), teacher)
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    kept = [row for row in rows if row["kept"]]
    why = Counter(row["why"] for row in rows if not row["kept"])
    left = "".join(f", {count} left out as {reason}" for reason, count in sorted(why.items()))
    note = f"augmentation: of {len(rows)} texts by {told.generator.name} {len(kept)} are kept{left}."
    made = Splits({**splits, "train": _with_rows(train, kept, path, names) if kept else train}, splits.notes)
    made.notes.append(note)
    return made


def written(
    told: AugmentationSection, path: Path, examples: dict[str, list[str]], descriptions: dict[str, list[str]]
) -> list[Row]:
    """What the generator writes for every label. A label that the file has texts of, asked the same way, is not asked again."""
    held: dict[str, list[Row]] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            held.setdefault(row["asked"], []).append(row)
    generator = get_generator(told.generator.name, **told.generator.settings)
    rows: list[Row] = []
    for label, texts in sorted(examples.items()):
        description = " ".join(descriptions.get(label, []))
        asked = {**told.generator.model_dump(mode="json"), "label": label, "description": description, "examples": texts, "count": told.per_label, "seed": told.seed}  # fmt: skip
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
        if key not in held:
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise TrainingError(
                    f"augmentation: the texts of {label!r} are not written yet, and every one of several processes would ask for them.\n"
                    f"  Run the recipe once in a single process (training.max_steps=1 will do): {path} keeps the texts."
                )
            made = generator.texts(label, description, texts, told.per_label, told.seed)
            held[key] = [{"text": text, "label": label, "asked": key} for text in made]
            path.parent.mkdir(parents=True, exist_ok=True)
            every = [row for some in held.values() for row in some]
            write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in every))
        rows += held[key]
    return rows


def _sift(told: AugmentationSection, rows: list[Row], labels: Sequence[str], teacher: Any) -> None:
    """Leave out what the teacher gives another label, or gives its own with less than the threshold."""
    loaded = teacher(told.teacher)
    unknown = sorted({*labels} - {*(loaded.task.labels or ())})
    if unknown:
        raise TrainingError(
            f"augmentation.teacher: the run in {told.teacher} does not know the labels {', '.join(map(repr, unknown[:5]))}; it knows {loaded.task.labels}."
        )
    asked = [row for row in rows if row["kept"]]
    found = (
        loaded.task.predict(loaded.model, loaded.processor, [row["text"] for row in asked]) if asked else []
    )
    for row, one in zip(asked, found, strict=True):
        row |= {"teacher": one["label"], "score": one["score"]}
        if one["label"] != row["label"]:
            row |= {"kept": False, "why": "of another label"}
        elif one["score"] < told.threshold:
            row |= {"kept": False, "why": "uncertain"}


def _with_rows(train: Split, rows: list[Row], path: Path, names: Sequence[str] | None) -> Split:
    """The training rows, and these behind them."""
    import datasets
    import numpy as np

    labels: list[Any] = [row["label"] for row in rows]
    if names is not None:
        labels = [names.index(label) for label in labels]
    elif train.rows.features["label"].dtype.startswith("int"):
        labels = [int(label) for label in labels]
    table = Table(
        str(path),
        {"text": [row["text"] for row in rows], "label": labels},
        range(1, len(rows) + 1),
        "kept text",
    )
    new = to_split([table], "train").rows
    own = train.rows.select_columns(["text", "label"])
    joined = datasets.concatenate_datasets([own, new.cast(own.features)])
    origin = np.concatenate([train.origin, [[len(train.tables), i] for i in range(len(rows))]])
    return Split(joined, [*train.tables, table], origin)
