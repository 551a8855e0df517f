"""Tasks: what a model learns to do. One file each, found by its registration alone.

    task = get_task("text-classification", max_length=128)
    processor = task.load_processor(recipe.model)
    prepared = task.prepare(splits, processor)      # tokenised splits and their collator
    model = task.load_model(recipe.model, processor)
    ...train, with task.head_patterns(model) trained in full...
    task.metrics(trainer.predict(prepared["test"]))
    task.predict(model, processor, ["a sentence"])

A task in another package registers itself the same way and is named under the entry point `adaptome.tasks`.
"""

from adaptome.tasks.base import (
    ModelSpec,
    Prepared,
    Task,
    TaskOptions,
    get_task,
    register_task,
    task_from_dict,
    tasks,
)

__all__ = [
    "ModelSpec",
    "Prepared",
    "Task",
    "TaskOptions",
    "get_task",
    "register_task",
    "task_from_dict",
    "tasks",
]
