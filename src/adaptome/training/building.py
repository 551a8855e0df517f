"""What a run is built of: its task and data, its base, and the adapters on it, new or from the run it starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, set_seed

import adaptome as ad
from adaptome.core.carrying import carry
from adaptome.core.errors import RecipeError, TrainingError
from adaptome.core.files import atomic_folder
from adaptome.data import Splits, load_splits
from adaptome.objectives import Term
from adaptome.recipe import MethodSection, Recipe, load_recipe
from adaptome.tasks import Prepared, Task, get_task
from adaptome.training.augmenting import augmented
from adaptome.training.filling import sized
from adaptome.training.folder import ADAPTER, MERGED, METRICS, RECIPE, TASK
from adaptome.training.objectives import installed
from adaptome.training.repairing import calibration, full_model, repaired


def prepared(recipe: Recipe, teacher: Any = None) -> tuple[Task, Any, Splits, Prepared]:
    """The recipe's task, its processor, and the data as it was read and as the Trainer takes it.

    Args:
        teacher: loads the run that sifts generated texts (`runs.load_run`); without it none are generated.
    """
    task = get_task(recipe.task.name, **recipe.task.settings)
    processor = task.load_processor(spec(recipe))
    splits = read(recipe, task)
    if teacher is not None:
        splits = augmented(recipe, task, splits, teacher)
    data = task.prepare(splits, processor)
    data.notes = [*(note for note in splits.notes if note not in data.notes), *data.notes]
    return task, processor, splits, data


def read(recipe: Recipe, task: Task) -> Splits:
    """The recipe's data."""
    found = load_splits(
        **recipe.data.model_dump(), prefer=task.prefer, texts=task.texts, files=task.files, chats=task.chats
    )
    shaped: Splits = task.shaped(found)
    return shaped


def spec(recipe: Recipe) -> Any:
    """The recipe's model section, as tasks read it; a type checker sees that its fields are narrower.

    A run that goes on with the adapters of one which began at merged weights has these weights too.
    """
    start = recipe.start
    while start is not None and start.how != "merged":
        begun = Path(start.run) / RECIPE
        start = load_recipe(begun).start if begun.is_file() else None
    if start is None:
        return recipe.model
    name = str(Path(start.run) / MERGED)
    return recipe.model.model_copy(
        update={"name": name, "revision": None, "from_config": None, "composite": None, "tokenizer": None}
    )


def base_model(recipe: Recipe, task: Task, processor: Any) -> tuple[nn.Module, list[Term], list[str]]:
    """The base with its head and what its objectives train; what is drawn at random is the same whenever the recipe is.

    Returns:
        the model, the terms of its loss, and the modules that train beside the adapters for these.
    """
    set_seed(recipe.training.seed)
    model = task.load_model(spec(recipe), processor)
    return model, *installed(recipe, model)


def adapter_names(recipe: Recipe) -> list[str]:
    """Names of the adapters: the recipe's, else 'default' for the first and the method's for the others."""
    names: list[str] = []
    for index, section in enumerate(recipe.methods):
        name = section.adapter or ("default" if index == 0 else section.name)
        if name in names:
            raise RecipeError(
                f"methods: two adapters are called {name!r}. Name one: methods.{index}.adapter."
            )
        names.append(name)
    return names


def attach(
    recipe: Recipe, task: Task, model: nn.Module, also: list[str], processor: Any = None, rows: Any = None
) -> list[str]:
    """Put the recipe's methods on the model, in order; the task's head trains with the first that is new.

    Args:
        also: further modules that train with it.
        processor, rows: the task's processor and its training rows, for a method that begins at what quantising lost.

    Returns:
        how near each came to its budget, in words.
    """
    if not recipe.methods:
        raise RecipeError(
            "methods is empty: name at least one, e.g. method=lora. `adaptome methods` lists them."
            + (" Those of `compare` are for `adaptome compare`." if recipe.compare else "")
        )
    names, earlier, carried = adapter_names(recipe), _earlier(recipe, task), _carried(recipe, task)
    for name in earlier:
        _load(model, Path(str(recipe.start.run)) / ADAPTER, name, earlier)  # type: ignore[union-attr]
    heads = [] if earlier else [*task.head_patterns(model), *also]
    told = []
    for name, section in zip(names, recipe.methods, strict=True):
        if name in earlier:
            ad.set_trainable(model, name, not section.frozen)
            continue
        where = {**_where(section, heads), "dtype": _dtype(section), "seed": recipe.training.seed}
        if section.repair is None:
            plan = ad.attach(model, section.name, name, **where, **sized(section, rows))
        else:
            full = full_model(section, task, processor, spec(recipe))
            batches = calibration(task, rows, processor, section.repair.examples)
            plan, begun = repaired(section, name, model, full, batches, where)
            told.append(f"{section.name} {begun}")
        if name in carried:
            filled = carry(model, _adapter_folder(recipe, name), name, new=heads)
            told.append(f"{name} goes on from {recipe.start.run}: {filled} tensors; the head is new.")  # type: ignore[union-attr]
        heads = []
        told += [f"{section.name}: {note}" for note in plan.notes]
        told += [f"{section.name}, {plan.budget}"] if plan.budget else []
    ad.activate(model, names)
    return told


def planned(recipe: Recipe, task: Task, model: nn.Module, section: MethodSection, also: list[str]) -> Any:
    """What one method alone would put on the model (an `ad.Plan`)."""
    return ad.plan(
        model, section.name, **_where(section, [*task.head_patterns(model), *also]), **section.settings
    )


def load_adapters(folder: Path, recipe: Recipe, model: nn.Module) -> None:
    """A finished run's adapters, on its base, active."""
    names = adapter_names(recipe)
    for name in names:
        _load(model, folder, name, names)
    ad.activate(model, names)


def write_merged(run: Path, loaded: Any) -> Path:
    """A finished run's base with its adapters merged, as a folder that transformers loads; made once.

    Args:
        run: its folder.
        loaded: gives the run ready to be used (`runs.load_run`); called where the folder is not there yet.

    Raises:
        MergeError: the adapters have no merged form.
    """
    folder = run / MERGED
    if folder.is_dir():
        return folder
    found = loaded(run)
    if isinstance(found.model, PreTrainedModel):  # layer by layer; gone on with when it was stopped
        ad.save_merged(found.model, folder, processor=found.processor)
        return folder
    ad.merge(found.model, keep=False)
    with atomic_folder(folder) as staging:
        found.task.save_base(found.model, found.processor, staging)
    return folder


def _earlier(recipe: Recipe, task: Task) -> list[str]:
    """The adapters that come whole, head and all, from the run the recipe starts from."""
    start = recipe.start
    if start is None or start.how == "merged":
        return []
    same, known = _same_head(start.run, task)
    if same:
        frozen = start.how == "frozen"
        named = zip(adapter_names(recipe), recipe.methods, strict=True)
        return [n for n, section in named if section.frozen or not frozen]
    if start.how == "adapter":
        return []
    raise RecipeError(
        f"start.how={start.how!r}: the run in {start.run} learned {known['name']}"
        + (f" with the labels {known['labels']}" if known["name"] == task.name else "")
        + f", this one learns {task.name}; its head would not fit.\n"
        "  Start from its weights (start.how=merged), or go on training its adapters under a new head (start.how=adapter)."
    )


def _carried(recipe: Recipe, task: Task) -> list[str]:
    """The adapters that go on from a run of another task or other labels, without its head."""
    start = recipe.start
    if start is None or start.how != "adapter" or _same_head(start.run, task)[0]:
        return []
    return adapter_names(recipe)


def _same_head(run: str, task: Task) -> tuple[bool, dict[str, Any]]:
    """Whether a finished run's head fits this task, and what that run learned."""
    if not (Path(run) / METRICS).is_file():
        raise TrainingError(
            f"{run}, which the run starts from, holds no finished run.\n  Give start.run the output folder of `adaptome train`."
        )
    known = json.loads((Path(run) / TASK).read_text(encoding="utf-8"))
    return (known["name"], known["labels"]) == (task.name, task.labels), known


def _adapter_folder(recipe: Recipe, name: str) -> Path:
    """Where the run that the recipe starts from keeps an adapter: a folder for each where it has several."""
    folder = Path(str(recipe.start and recipe.start.run)) / ADAPTER
    return folder / name if (folder / name).is_dir() else folder


def _load(model: nn.Module, folder: Path, name: str, names: list[str]) -> None:
    ad.load(model, folder / name if (folder / name).is_dir() else folder, name)


def _where(section: MethodSection, heads: list[str]) -> dict[str, Any]:
    return {
        "targets": section.targets,
        "exclude": section.exclude,
        "layers": section.layers,
        "train": [*section.train, *(head for head in heads if head not in section.train)],
        "per_layer": section.per_layer,
        "budget": section.budget,
    }


def _dtype(section: MethodSection) -> torch.dtype | None:
    found: torch.dtype | None = None if section.dtype is None else getattr(torch, section.dtype)
    return found
