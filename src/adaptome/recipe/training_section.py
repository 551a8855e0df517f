"""The sections of a recipe on training, evaluation and what is written."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from adaptome.recipe.section import Section


class TurnsSection(Section):
    """Adapters that take turns on every batch, and leave when their gradients grow."""

    always: list[str] = Field(
        default_factory=list,
        description="modules that train in every turn, of those the adapters train whole",
    )
    exit: float | None = Field(
        default=None,
        gt=0,
        description="one leaves when its gradients are so many times their mean so far; default: none does",
    )
    patience: int = Field(default=5, ge=1, description="epochs in which none leaves")


class TrainingSection(Section):
    """The loop; transformers' Trainer runs it."""

    epochs: float = Field(default=3.0, gt=0, description="passes over the training data")
    max_steps: int | None = Field(
        default=None,
        ge=0,
        description="stop after so many optimizer steps, whatever epochs says; 0: train nothing, score the model as the methods begin",
    )
    batch_size: int = Field(default=16, ge=1, description="examples per device and step")
    gradient_accumulation: int = Field(default=1, ge=1, description="batches summed into one optimizer step")
    learning_rate: float = Field(default=5e-4, gt=0, description="peak learning rate of adapters and head")
    loraplus_ratio: float | None = Field(
        default=None, gt=0, description="LoRA+: learning rate of B over that of A"
    )
    optimizer: str = Field(
        default="adamw_torch", description="any `optim` of transformers' TrainingArguments"
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="of Adam and its kin")
    scheduler: str = Field(
        default="linear",
        description="any `lr_scheduler_type` of transformers, or power: (1 - progress)^power, not below floor",
    )
    scheduler_settings: dict[str, Any] = Field(
        default_factory=dict, description="its own, e.g. {num_cycles: 3} of cosine_with_restarts"
    )
    warmup: float = Field(
        default=0.06, ge=0, description="below 1: share of all steps; otherwise a number of steps"
    )
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0, description="0: no clipping")
    base_eval: bool = Field(
        default=False, description="keep the frozen base in evaluation mode in training: none of its dropout"
    )
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="end with the running mean of what trains, of this decay (0.999)",
    )
    turns: TurnsSection | None = Field(
        default=None,
        description="train the adapters one after another on every batch, e.g. {always: [fusion], exit: 1.8}",
    )
    bf16: bool = Field(default=False, description="autocast to bfloat16")
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations: less memory, slower"
    )
    gradient_cache: int | None = Field(
        default=None,
        ge=1,
        description="run a batch in parts of so many examples, twice: its terms see all of it, memory holds a part",
    )
    length_grouping: bool = Field(default=True, description="batches of examples of similar length")
    seed: int = Field(default=0, ge=0, description="set before adapters and head are initialised")
    logging_steps: int = Field(default=20, ge=1)
    eval_steps: int | None = Field(default=None, ge=1, description="default: evaluate after every epoch")
    save_steps: int | None = Field(default=None, ge=1, description="default: a checkpoint after every epoch")
    keep_checkpoints: int = Field(default=2, ge=1, description="older ones are removed, the best one never")
    keep_best: bool = Field(default=True, description="end with the weights of the best evaluation")
    metric: str | None = Field(
        default=None, description="what best means; default: the task's primary metric"
    )
    early_stopping: int | None = Field(
        default=None, ge=1, description="stop after so many evaluations without a better one"
    )
    resume: bool | str = Field(
        default=False, description="true: from the last complete checkpoint, or a checkpoint's folder"
    )
    fsdp: bool | dict[str, Any] = Field(
        default=False, description="shard over processes; a mapping is accelerate's fsdp_config"
    )
    workers: int = Field(default=0, ge=0, description="processes that load data")
    device: Literal["auto", "cpu"] = "auto"
    report_to: list[str] = Field(default_factory=list, description="tensorboard, wandb, mlflow")


class EvaluationSection(Section):
    """The evaluation after training."""

    split: Literal["test", "validation", "none"] | None = Field(
        default=None, description="default: test, else validation"
    )
    batch_size: int | None = Field(default=None, ge=1, description="default: that of training")
    predictions: bool = Field(default=False, description="write every prediction to predictions.jsonl")
    examples: int = Field(
        default=6,
        ge=0,
        description="rows of the split that the report shows with their predictions; not where the model is sharded",
    )


class OutputSection(Section):
    """What is written, and where."""

    folder: str = Field(
        default="runs/adaptome", description="checkpoints, adapter, metrics and the recipe itself"
    )
    overwrite: bool = Field(default=False, description="start over in a folder that holds a finished run")
