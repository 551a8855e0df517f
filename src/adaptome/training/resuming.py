"""Going on with a run under changed settings: what can be applied is applied and told, what cannot is refused, key by key.

A run's folder keeps the recipe that it was begun with, and in `data.json` what its training rows were. `changed_settings` compares both
with what is to go on. A key that no table names is refused when it differs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from adaptome.core.errors import TrainingError
from adaptome.core.files import write_atomic
from adaptome.core.method import list_methods
from adaptome.data import Splits
from adaptome.recipe import Recipe
from adaptome.tasks import Task
from adaptome.training.checkpoint import last_good
from adaptome.training.folder import CHECKPOINTS, DATA, RECIPE, TASK

#: keys, or the sections they are in, that may change: what a change does
APPLIED: dict[str, str] = {
    "title": "names the reports",
    "model.attention": "computes the same another way",
    "objective": "is the loss from here on",
    "training.epochs": "moves the end, and the learning rate's course to it",
    "training.max_steps": "moves the end, and the learning rate's course to it",
    "training.learning_rate": "holds from the next step on",
    "training.scheduler": "gives the learning rate from the next step on",
    "training.scheduler_settings": "gives the learning rate from the next step on",
    "training.warmup": "counts from the run's first step; no warm-up begins anew",
    "training.weight_decay": "holds from the next step on",
    "training.loraplus_ratio": "holds from the next step on",
    "training.max_grad_norm": "holds from the next step on",
    "training.base_eval": "holds from the next step on",
    "training.turns.exit": "holds from the next epoch on",
    "training.turns.patience": "holds from the next epoch on",
    "training.bf16": "holds from the next step on",
    "training.gradient_checkpointing": "computes the same in less memory",
    "training.gradient_cache": "computes the same in less memory",
    "training.logging_steps": "holds from here on",
    "training.eval_steps": "holds from here on",
    "training.save_steps": "holds from here on",
    "training.keep_checkpoints": "holds from the next checkpoint on",
    "training.keep_best": "holds from the next evaluation on",
    "training.early_stopping": "is the new patience; evaluations without a better one stay counted",
    "training.fsdp": "stores and computes the same, sharded or not",
    "training.workers": "loads the same data",
    "training.device": "computes the same elsewhere",
    "training.report_to": "holds from here on",
    "evaluation": "is the final evaluation's",
    "data": "is applied when the rows to train on stay the same, and with keep_best those to validate on",
    "choose": "is read when the stages are done",
    "output": "is where the run goes on",
    "compare": "is read by `adaptome compare`",
}
#: keys that must stay: why
REFUSED: dict[str, str] = {
    "model": "the adapters were trained on that base",
    "task": "the rows are made into batches by it",
    "augmentation": "other rows would be trained on",
    "methods": "the checkpoint holds those adapters",
    "start": "the adapters began there",
    "training.optimizer": "the checkpoint holds the other one's state",
    "training.betas": "the checkpoint holds means of the other ones",
    "training.batch_size": "a step would be another number of rows, and the place in the data another",
    "training.gradient_accumulation": "a step would be another number of rows, and the place in the data another",
    "training.length_grouping": "it draws the order of the rows",
    "training.seed": "it draws the order of the rows",
    "training.turns": "the checkpoint holds what the adapters learned at their turns",
    "training.ema": "the checkpoint holds the mean so far",
    "training.metric": "the best checkpoint so far was chosen by the other one",
}
#: keys that say how to go on, and nothing of the run
_ASIDE = ("training.resume", "output.overwrite")
#: a scheduler with a state of its own
_STATEFUL = ("reduce_lr_on_plateau",)


def changed_settings(recipe: Recipe, folder: Path, task: Task, splits: Splits) -> list[str]:
    """What is told of a run that goes on with other settings than it was begun with; empty where none differ, or nothing is resumed.

    Args:
        recipe: what is to go on.
        folder: its output folder.
        task: the task, with the labels that it found.
        splits: the data as they are now.

    Raises:
        TrainingError: settings that cannot change differ, or the training rows or labels do; names every one.
    """
    begun = _begun(recipe, folder)
    if begun is None:
        return []
    then = _flat(_filled(_content(begun), _options(begun)))
    now = _flat(_filled(recipe.model_dump(mode="json"), task.to_dict()["options"]))
    changed = {
        key: (then.get(key), now.get(key))
        for key in dict.fromkeys([*now, *then])
        if then.get(key) != now.get(key) and key not in _ASIDE
    }
    refused = {key: why for key, values in changed.items() if (why := refusal(key, *values, task))}
    lines = [f"{key}: {_shown(changed[key])}; {why}." for key, why in refused.items()]
    lines += _other_rows(begun, recipe, task, splits, [key for key in changed if key.startswith("data.")])
    if lines:
        raise TrainingError(
            f"the run in {begun} cannot go on with other settings than it was begun with:\n  "
            + "\n  ".join(lines)
            + "\n  Give them as they were, or start anew: another output.folder, or output.overwrite=true without training.resume."
        )
    return [
        f"resumed with {key}: {_shown(values)}; it {_rule(APPLIED, key)[1]}."
        for key, values in changed.items()
    ]


def refusal(key: str, then: Any, now: Any, task: Task | None = None) -> str | None:
    """Why a key's change is refused; None where it is applied."""
    if task is not None and key.removeprefix("task.") in task.later_options:
        return None
    if key == "training.loraplus_ratio" and None in (then, now):
        return "the checkpoint's optimizer has its parameters in other groups"
    if key == "training.scheduler" and {then, now} & set(_STATEFUL):
        return "the checkpoint holds the other one's state"
    applied, refused = _rule(APPLIED, key), _rule(REFUSED, key)
    if applied[0] > refused[0]:
        return None
    return refused[1] or "it is not known to be safe"


def _rule(table: Mapping[str, str], key: str) -> tuple[int, str]:
    """The entry of a table that a key falls under, with how many of its names fit: the longer one decides."""
    names = key.split(".")
    for length in range(len(names), 0, -1):
        found = table.get(".".join(names[:length]))
        if found is not None:
            return length, found
    return 0, "" if table is REFUSED else "is read by evaluation and prediction"


def write_data(folder: Path, splits: Splits) -> None:
    """Keep in the run's folder what its rows are."""
    told = {name: rows_of(splits[name].rows) for name in ("train", "validation") if name in splits}
    write_atomic(folder / DATA, json.dumps(told, indent=1))


def rows_of(rows: Any) -> dict[str, Any]:
    """The number of rows and a digest of their contents in order; files count by the ends of their paths, so that a folder may move."""
    digest = hashlib.sha256()
    names = sorted(rows.column_names)
    for part in rows.select_columns(names).with_format("arrow").iter(1000):
        for name in names:
            column = part.column(name).combine_chunks()
            digest.update(f"\0{name}\0{column.type}\0".encode())
            if pa.types.is_struct(column.type) and {"bytes", "path"} == {f.name for f in column.type}:
                digest.update(repr([_of_file(value) for value in column.to_pylist()]).encode())
                continue
            sink = _Digest(digest)
            batch = pa.record_batch([column], names=["x"])
            with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), batch.schema) as stream:
                stream.write_batch(batch)
    return {"rows": len(rows), "sha256": digest.hexdigest()}


class _Digest:
    """A file that is only hashed."""

    closed = False

    def __init__(self, digest: Any):
        self.digest, self.written = digest, 0

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.written += len(data)
        return len(data)

    def tell(self) -> int:
        return self.written

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        """Nothing is open."""


def _of_file(value: dict[str, Any] | None) -> Any:
    if value is None or value["bytes"] is not None or value["path"] is None:
        return None if value is None else hashlib.sha256(value["bytes"] or b"").hexdigest()
    return Path(value["path"]).parts[-2:]


def _begun(recipe: Recipe, folder: Path) -> Path | None:
    """The folder of the run that is resumed; None where training starts from the beginning."""
    asked = recipe.training.resume
    checkpoint = Path(asked) if isinstance(asked, str) else last_good(folder / CHECKPOINTS) if asked else None
    if checkpoint is None:
        return None
    begun = checkpoint.resolve().parent.parent if isinstance(asked, str) else folder
    return begun if (begun / RECIPE).is_file() else None


def _content(folder: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainingError(
            f"{folder / RECIPE} cannot be read, so what the run was begun with is not known: {error}"
        ) from error
    return found if isinstance(found, dict) else {}


def _options(folder: Path) -> dict[str, Any]:
    """The task's options as the run was begun with, defaults written out."""
    if not (folder / TASK).is_file():
        return {}
    return dict(json.loads((folder / TASK).read_text(encoding="utf-8"))["options"])


def _filled(content: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """A recipe with the task's options and the methods' settings written out, so that a default and its value are the same."""
    known = list_methods()
    methods = []
    for section in content.get("methods") or []:
        cls: Any = known.get(section.get("name"))
        own = {} if cls is None else {f.name: f.default for f in dataclasses.fields(cls)}
        methods.append(json.loads(json.dumps({**own, **section})))
    return {**content, "task": {**content.get("task", {}), **options}, "methods": methods}


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Leaves by dotted keys; a list of plain values is a leaf."""
    items: Iterator[tuple[Any, Any]]
    if isinstance(value, dict) and value:
        items = iter(value.items())
    elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
        items = iter(enumerate(value))
    else:
        return {key: value}
    made: dict[str, Any] = {}
    for name, inner in items:
        made |= _flat(inner, f"{key}.{name}" if key else str(name))
    return made


def _other_rows(begun: Path, recipe: Recipe, task: Task, splits: Splits, keys: list[str]) -> list[str]:
    """Lines on rows and labels that are not those of the run."""
    lines, because = [], f" ({', '.join(keys)})" if keys else ""
    if (begun / TASK).is_file():
        labels = json.loads((begun / TASK).read_text(encoding="utf-8")).get("labels")
        if labels != task.labels:
            lines.append(f"labels: {_shown((labels, task.labels))}; the head was trained on the first.")
    if not (begun / DATA).is_file():
        return lines
    then = json.loads((begun / DATA).read_text(encoding="utf-8"))
    for name in ("train", "validation") if recipe.training.keep_best else ("train",):
        now = rows_of(splits[name].rows) if name in splits else None
        if then.get(name) != now:
            sizes = [f"{found['rows']} rows" if found else "none" for found in (then.get(name), now)]
            lines.append(
                f"data{because}: the {name} split has other rows than the run began with: {sizes[0]} then, {sizes[1]} now."
            )
    return lines


def _shown(values: tuple[Any, Any]) -> str:
    short = [text if len(text) < 60 else f"{text[:57]}..." for text in map(repr, values)]
    return f"{short[0]} then, {short[1]} now"
