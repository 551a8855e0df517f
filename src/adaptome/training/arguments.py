"""A recipe's training section as transformers' TrainingArguments."""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from adaptome.core.errors import MissingExtraError, RecipeError
from adaptome.optim import POWER, PowerCourse
from adaptome.recipe import Recipe
from adaptome.tasks import Prepared, Task

logger = logging.getLogger(__name__)

#: what TrainingArguments calls gradient checkpointing: transformers renamed it after 5.17
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)
_TRACKERS = {"tensorboard": "train", "wandb": "wandb", "mlflow": "mlflow"}


def training_arguments(recipe: Recipe, task: Task, prepared: Prepared) -> dict[str, Any]:
    """Arguments for TrainingArguments, or for TRL's SFTConfig when the task trains with it.

    Raises:
        RecipeError: settings that do not go together.
        MissingExtraError: a tracker that is not installed.
    """
    training = recipe.training
    folder = Path(recipe.output.folder)
    if training.bf16 and training.device != "cpu":
        _tell_emulated()
    made: dict[str, Any] = {
        "output_dir": str(folder / "checkpoints"),
        "num_train_epochs": training.epochs,
        "max_steps": -1 if training.max_steps is None else training.max_steps,
        "per_device_train_batch_size": training.batch_size,
        "per_device_eval_batch_size": recipe.evaluation.batch_size or training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation,
        "learning_rate": training.learning_rate,
        "optim": _optimizer(training.optimizer, training.device, bool(training.fsdp)),
        # the trainer makes a course of its own itself, see `trainer_of`
        "lr_scheduler_type": "constant" if training.scheduler == POWER else training.scheduler,
        "lr_scheduler_kwargs": {} if training.scheduler == POWER else dict(training.scheduler_settings),
        "warmup_steps": training.warmup,
        "weight_decay": training.weight_decay,
        "adam_beta1": training.betas[0],
        "adam_beta2": training.betas[1],
        "max_grad_norm": training.max_grad_norm,
        "bf16": training.bf16,
        CHECKPOINTING: training.gradient_checkpointing,
        "seed": training.seed,
        "data_seed": training.seed,
        "logging_steps": training.logging_steps,
        "save_total_limit": training.keep_checkpoints,
        "dataloader_num_workers": training.workers,
        "use_cpu": training.device == "cpu",
        "remove_unused_columns": prepared.remove_unused_columns,
        "dataloader_pin_memory": torch.cuda.is_available() and training.device != "cpu",
        "disable_tqdm": True,  # transformers' bar writes its logs to standard output
        "report_to": _trackers(training.report_to, folder),
    }
    if prepared.in_order:
        made["train_sampling_strategy"] = "sequential"
    elif training.length_grouping and prepared.length_column:
        made |= {"train_sampling_strategy": "group_by_length", "length_column_name": prepared.length_column}
    if prepared.label_names is not None:
        made["label_names"] = list(prepared.label_names)
    if training.fsdp:
        made |= {"fsdp": True, "fsdp_config": dict(training.fsdp) if isinstance(training.fsdp, dict) else {}}
    validated = prepared.get("validation") is not None and "validation" not in prepared.only_asked
    made |= _when(recipe, task, validated)
    if task.trainer == "sft":
        made |= task.sft_arguments()  # type: ignore[attr-defined]
    return made


def course_of(recipe: Recipe) -> PowerCourse | None:
    """The course of the learning rate where it is the project's own; None where it is one of transformers'.

    Raises:
        RecipeError: a setting that it does not have or admit.
    """
    training = recipe.training
    if training.scheduler != POWER:
        return None
    try:
        return PowerCourse(**training.scheduler_settings)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"training.scheduler_settings of {POWER}: {error}. It has power, from 0, and floor, from 0 to 1.") from error  # fmt: skip


def _optimizer(name: str, device: str, sharded: bool) -> str:
    """The optimizer's name; a paged one, which keeps its state in memory that CUDA manages, only where there is CUDA.

    torch's AdamW runs as one kernel over all tensors, not as a loop over them with several operations each; but not over shards.
    """
    if name.startswith("paged_") and (device == "cpu" or not torch.cuda.is_available()):
        logger.warning(
            "training.optimizer=%s pages its state through CUDA, which is not here; taking adamw_torch.", name
        )
        name = "adamw_torch"
    return "adamw_torch_fused" if name == "adamw_torch" and not sharded else name


def _tell_emulated() -> None:
    """Warn where bf16 is emulated: torch says that such a GPU supports it."""
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        logger.warning(
            "training.bf16=true: %s has no bf16 of its own and emulates it, slowly. training.bf16=false computes in float32, model.dtype=float16 in half "
            "precision, which may overflow.", torch.cuda.get_device_name(),
        )  # fmt: skip


def best_metric(recipe: Recipe, task: Task) -> tuple[str, bool]:
    """The metric that says which checkpoint is best, and whether more of it is better."""
    metric = recipe.training.metric or task.primary_metric
    return metric, greater_is_better(metric, task)


def stream_metric(recipe: Recipe, task: Task) -> tuple[str, bool]:
    """The metric that the tasks of a stream are scored by, and whether more of it is better."""
    metric = recipe.training.metric or task.headline
    return metric, greater_is_better(metric, task)


def greater_is_better(metric: str, task: Task) -> bool:
    """Whether more of a metric is better: the task knows its own, the others are told by their names."""
    if metric == task.primary_metric:
        return task.greater_is_better
    return "loss" not in metric and "perplexity" not in metric


def _when(recipe: Recipe, task: Task, validated: bool) -> dict[str, Any]:
    """When to evaluate and to save; keeping the best needs both at the same steps."""
    training = recipe.training
    save, evaluate = training.save_steps, training.eval_steps
    if not validated:
        if training.early_stopping:
            raise RecipeError(
                "training.early_stopping needs a validation split: give data.validation or data.validation_fraction."
            )
        return {"eval_strategy": "no", **_at("save", save)}
    if training.early_stopping and not training.keep_best:
        raise RecipeError(
            "training.early_stopping needs training.keep_best=true: it counts evaluations since the best one."
        )
    if not training.keep_best:
        return {**_at("eval", evaluate), **_at("save", save)}
    evaluate, save = evaluate or save, save or evaluate
    if evaluate and save and save % evaluate:
        raise RecipeError(
            f"training.save_steps={save} is no multiple of training.eval_steps={evaluate}: what is best could not be kept.\n"
            f"  Write save_steps={evaluate * max(1, round(save / evaluate))}, or keep_best=false."
        )
    metric, greater = best_metric(recipe, task)
    best = {
        "load_best_model_at_end": True,
        "metric_for_best_model": f"eval_{metric}",
        "greater_is_better": greater,
    }
    return {**_at("eval", evaluate), **_at("save", save), **best}


def _at(what: str, steps: int | None) -> dict[str, Any]:
    return (
        {f"{what}_strategy": "epoch"}
        if steps is None
        else {f"{what}_strategy": "steps", f"{what}_steps": steps}
    )


def _trackers(names: list[str], folder: Path) -> list[str]:
    """The trackers asked for, which write to the run's folder and to no server unless told so."""
    for name in names:
        if name in _TRACKERS and importlib.util.find_spec(name) is None:
            raise MissingExtraError(name, _TRACKERS[name])
    if "tensorboard" in names:
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "tensorboard"))
    if "wandb" in names:
        os.environ.setdefault("WANDB_MODE", "offline")
        os.environ.setdefault("WANDB_DIR", str(folder))
    if "mlflow" in names:
        os.environ.setdefault("MLFLOW_TRACKING_URI", (folder / "mlruns").resolve().as_uri())
    return names
