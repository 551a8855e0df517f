"""The trainer of a recipe's task, and the split that it is scored on in the end."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from adaptome.core.errors import RecipeError
from adaptome.objectives import Terms
from adaptome.recipe import Recipe
from adaptome.tasks import Prepared, Task
from adaptome.training.arguments import course_of, training_arguments
from adaptome.training.trainer import AdapterCheckpoints, AdaptomeTrainer
from adaptome.training.turns import Turns


def trainer_of(
    recipe: Recipe,
    task: Task,
    processor: Any,
    data: Prepared,
    model: nn.Module,
    callbacks: list[TrainerCallback],
    loss: Terms | None,
    only: str | None = None,
) -> AdapterCheckpoints:
    """The task's trainer; with `only`, one that evaluates this split and does not train."""
    settings = training_arguments(recipe, task, data)
    train, validation = data.get(only or "train"), data.get(only or "validation")
    if (only or "validation") in data.only_asked:
        validation = None
    for rows, size in (
        (train, settings["per_device_train_batch_size"]),
        (validation, settings["per_device_eval_batch_size"]),
    ):
        if rows is not None and hasattr(
            rows, "set_batch_size"
        ):  # it puts what can be one batch after one another
            rows.set_batch_size(size)
    if only:
        settings |= {
            "eval_strategy": "no",
            "save_strategy": "no",
            "load_best_model_at_end": False,
            "report_to": [],
        }
    if loss is not None and loss.trains():
        settings["ddp_find_unused_parameters"] = False  # what only the loss uses is no part of the forward
    shared = {
        "train_dataset": train,
        "eval_dataset": validation,
        "processing_class": processor,
        "callbacks": callbacks,
        "loraplus_ratio": recipe.training.loraplus_ratio,
        "base_eval": recipe.training.base_eval,
        "course": course_of(recipe),
        "gradient_cache": recipe.training.gradient_cache,
        "terms": loss,
        "aside": data.aside,
        "facts": task.facts if type(task).facts is not Task.facts else None,
        "counted": task.counted if type(task).counted is not Task.counted else None,
        "lossless": (only or "validation") in data.lossless,
    }
    turns = recipe.training.turns
    if turns is not None and only is None:
        shared["turns"] = Turns(turns.always, turns.exit, turns.patience)
    trainer: AdapterCheckpoints
    if task.trainer == "sft":
        from adaptome.training.sft import AdaptomeSFTTrainer, SFTConfig

        trainer = AdaptomeSFTTrainer(model, SFTConfig(**settings), **shared)
    else:
        trainer = AdaptomeTrainer(
            model,
            TrainingArguments(**settings),
            data_collator=data.collator,
            compute_metrics=task.metrics,
            preprocess_logits_for_metrics=task.reduce,
            **shared,
        )
    trainer.remove_callback(PrinterCallback)  # it prints every log to standard output
    return trainer


def final_split(recipe: Recipe, data: Prepared) -> str | None:
    """The split of the final evaluation: the one asked for, else test, else validation; None for none.

    Raises:
        RecipeError: the data has not the split that is asked for.
    """
    asked = recipe.evaluation.split
    if asked == "none":
        return None
    if asked is not None and data.get(asked) is None:
        raise RecipeError(
            f"evaluation.split={asked}: the data has no such split. Splits: {', '.join(data.splits)}."
        )
    return asked or next((name for name in ("test", "validation") if data.get(name) is not None), None)
