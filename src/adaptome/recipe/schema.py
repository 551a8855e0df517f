"""The recipe's schema: one pydantic model per section.

Every section refuses keys it does not know. The two that carry settings of something registered, `task` and
each entry of `methods`, pass unknown keys on to it; `validate_task` and `validate_methods` check them there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from adaptome.core.errors import did_you_mean
from adaptome.recipe.augmentation import AugmentationSection
from adaptome.recipe.search import RangeField, SearchSection
from adaptome.recipe.section import OpenSection, Section


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _terms(value: Any) -> Any:
    """One term may stand without its list; and what `objective` once held is told where it went."""
    if isinstance(value, dict) and "name" not in value:
        moved = {
            "label_smoothing": "objective: {name: cross-entropy, label_smoothing: 0.1}",
            "completion_only_loss": "task.completion_only_loss",
        }
        told = [f"{key} is written {moved[key]}" for key in value if key in moved]
        raise ValueError("it is a list of terms, each with its name" + "".join(f"; {line}" for line in told))
    return [value] if isinstance(value, str | dict) else value


def _foldered(value: Any) -> Any:
    return {"folder": value} if isinstance(value, str) else value


class QuantizationSection(OpenSection):
    """How the base's linear layers are stored; further keys are the scheme's settings (bits, group, tables, ...)."""

    scheme: str = Field(
        description="nf4, uniform or sketch; what calibrates is made by `adaptome quantize`, whose folder is then the model's name"
    )
    targets: str | list[str] = Field(
        default="all-linear", description="layers, written as a method's targets"
    )
    exclude: str | list[str] | None = Field(default=None, description="layers to leave out")


class ModelSection(OpenSection):
    """The base model: a name, a configuration to build it from with random weights, or a composite model with its settings."""

    composite: str | None = Field(
        default=None,
        description="a model of adaptome's own, made of parts; further keys are its settings (see `adaptome.models`)",
    )
    name: str | None = Field(
        default=None,
        description="hub id, local folder, or 'minilm' (the sentence encoder that comes as a package)",
    )
    revision: str | None = Field(default=None, description="branch, tag or commit on the hub")
    from_config: dict[str, Any] | None = Field(
        default=None,
        description="settings of a transformers configuration, with model_type: random weights, for tests",
    )
    tokenizer: str | None = Field(
        default=None,
        description="another folder or hub id for the tokenizer, image processor or feature extractor",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="float32", description="dtype of the base"
    )
    attention: str | None = Field(
        default=None, description="attn_implementation: sdpa, eager, flash_attention_2, ..."
    )
    quantization: QuantizationSection | None = Field(
        default=None, description="quantise the base once it is loaded, e.g. {scheme: nf4}"
    )

    @model_validator(mode="after")
    def _one_source(self) -> ModelSection:
        if self.composite is None and self.settings:
            raise ValueError(
                f"unknown key {next(iter(self.settings))!r}.{did_you_mean(next(iter(self.settings)), type(self).model_fields)}"
            )
        if self.composite is not None:
            if self.name is not None or self.from_config is not None:
                raise ValueError("give one of name, from_config and composite")
            return self
        if self.from_config is None and self.name is None:
            self.name = "minilm"
        elif self.from_config is not None and self.name is not None:
            raise ValueError("give either name or from_config, not both")
        if self.from_config is not None and "model_type" not in self.from_config:
            raise ValueError("from_config needs model_type, e.g. {model_type: bert, hidden_size: 64}")
        return self


class TaskSection(OpenSection):
    """What the model learns to do; further keys are the task's own options."""

    name: str = Field(
        description="text-classification, token-classification, causal-lm, reasoning, image- and audio-classification, ..."
    )


class FoldsSection(Section):
    """Data that comes in folds: one tests, one may validate, the others train."""

    column: str = Field(default="fold", description="the data's column of fold numbers or names")
    test: str | int | None = Field(
        default=None, description="default: the first; `adaptome train --folds` takes each in turn"
    )
    validation: str | int | None = Field(
        default=None,
        description="next: the fold after the test one; default: validation_fraction of the training folds",
    )


class DataSection(Section):
    """Where the examples are. Paths are relative to the folder the command runs in."""

    name: str | None = Field(
        default=None,
        description="hub data set id, a folder or .npz file that holds every split, or data that is made: made:family-town",
    )
    config: str | None = Field(default=None, description="configuration of a hub data set")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub data set")
    train: str | list[str] | None = Field(
        default=None, description="file(s) of the split; with a hub id, the split's name"
    )
    validation: str | list[str] | None = Field(default=None, description="as train")
    test: str | list[str] | None = Field(default=None, description="as train")
    format: Literal[
        "auto",
        "jsonl",
        "json",
        "csv",
        "tsv",
        "parquet",
        "text",
        "conll",
        "triples",
        "fasta",
        "fewrel",
        "tacred",
        "fewnerd",
        "mentions",
        "ace",
        "frames",
        "change-pairs",
        "dense",
        "captioned",
        "imagefolder",
        "audiofolder",
        "npz",
        "hub",
    ] = Field(default="auto", description="auto: from the file's ending, or a folder's files")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="the task's name of a column: its name in the data, e.g. {text: sentence}",
    )
    paths: str | None = Field(
        default=None,
        description="pattern of the sound files of a table's rows, relative to it, e.g. ../audio/fold{fold}/{file}",
    )
    folds: FoldsSection | None = Field(
        default=None, description="take test (and validation) from a column of fold numbers"
    )
    encoding: str = Field(default="utf-8", description="of text files")
    delimiter: str | None = Field(
        default=None, description="of csv files, and between token and tag in CoNLL files"
    )
    tags: Literal["convert", "strict", "raw"] = Field(
        default="convert",
        description="CoNLL: convert IOB1 and BIOES tags to IOB2, refuse all but clean IOB2, or take tags as they are",
    )
    validation_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="share of train held out when no validation"
    )
    test_fraction: float = Field(
        default=0.0, ge=0, lt=1, description="share of train held out when no test is given"
    )
    split_by: Literal["hash", "seed"] = Field(
        default="hash", description="hash: by content, unaffected by the order of rows; seed: a random draw"
    )
    split_seed: int = Field(default=0, description="changes which rows are held out, and data that is made")
    group: str | None = Field(
        default=None, description="column whose equal values are held out together, e.g. video"
    )
    shots: int | None = Field(
        default=None,
        ge=1,
        description="keep so many rows of each label of train, and of validation (few-shot)",
    )
    limit: int | None = Field(
        default=None, ge=1, description="draw at most so many rows of every split (for trials)"
    )


class RepairSection(Section):
    """Begin at what quantising the base lost: qwha by its own start, lora by CLoQ, or by LoftQ without examples."""

    examples: int = Field(
        default=64,
        ge=0,
        description="training examples on whose inputs the error is measured; 0: by the weights alone",
    )
    full: str | None = Field(
        default=None,
        description="hub id or folder of the base before it was quantised; default: the recipe's own without quantization",
    )


class MethodSection(OpenSection):
    """One adaptation method; further keys are its settings (r, alpha, dropout, ...)."""

    name: str = Field(description="a registered method; `adaptome methods` lists them")
    adapter: str | None = Field(
        default=None, description="name of the adapter on the model; default 'default', then the method's"
    )
    targets: str | list[str] | None = Field(
        default=None, description="roles, module names, globs, or 're:' patterns"
    )
    exclude: str | list[str] | None = Field(
        default=None, description="modules to leave out, written as targets"
    )
    layers: str | int | list[int] | None = Field(
        default=None, description="layers to adapt, e.g. [0, 1] or '4-11'"
    )
    train: list[str] = Field(
        default_factory=list, description="further base modules trained in full and saved too"
    )
    per_layer: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="settings by module pattern"
    )
    budget: int | str | None = Field(
        default=None,
        description="trained numbers instead of a size: 20000, '1.5M', '0.1%' of the base, or 'lora:r=8'",
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, description="dtype of the adapter"
    )
    repair: RepairSection | None = Field(
        default=None, description="begin at what quantising the base lost, e.g. {examples: 64}: qwha, lora"
    )
    frozen: bool = Field(
        default=False, description="it comes from the run that `start` names, and does not go on training"
    )


class ObjectiveSection(OpenSection):
    """One term of the loss; further keys are its settings."""

    name: str = Field(
        description="model (the model's own loss), or a registered objective: cross-entropy, info-nce, ..."
    )
    weight: float = Field(default=1.0, description="factor on the term")
    schedule: str | dict[str, Any] = Field(
        default="constant",
        description="the weight's course: constant, linear-up, linear-down, cosine-up, cosine-down, or {shape, first, last, begin, end}",
    )
    label: str | None = Field(default=None, description="its name in logs; default: the objective's")


class TrainingSection(Section):
    """The loop; transformers' Trainer runs it."""

    epochs: float = Field(default=3.0, gt=0, description="passes over the training data")
    max_steps: int | None = Field(
        default=None, ge=1, description="stop after so many optimizer steps, whatever epochs says"
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
    bf16: bool = Field(default=False, description="autocast to bfloat16")
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations: less memory, slower"
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


class ComparedMethod(MethodSection):
    """One row of a comparison: a method with what is its own."""

    label: str | None = Field(default=None, description="its name in the table; default: the method's")
    learning_rate: float | None = Field(default=None, gt=0, description="default: that of training")
    set: dict[str, Any] = Field(
        default_factory=dict,
        description="what else its runs have of their own, by key: {task.max_length: 512}",
    )


class VariantSection(Section):
    """Settings that rows of a comparison differ in beside their methods."""

    label: str = Field(min_length=1, description="its name in the table")
    set: dict[str, Any] = Field(default_factory=dict, description="by key: {data.limit: 100}; null unsets")


# `task: causal-lm` stands for `task: {name: causal-lm}`, and so on.
ModelField = Annotated[ModelSection, BeforeValidator(_named, json_schema_input_type=str | ModelSection)]
TaskField = Annotated[TaskSection, BeforeValidator(_named, json_schema_input_type=str | TaskSection)]
DataField = Annotated[DataSection, BeforeValidator(_named, json_schema_input_type=str | DataSection)]
MethodField = Annotated[MethodSection, BeforeValidator(_named, json_schema_input_type=str | MethodSection)]
ComparedField = Annotated[
    ComparedMethod, BeforeValidator(_named, json_schema_input_type=str | ComparedMethod)
]
ObjectiveField = Annotated[
    ObjectiveSection, BeforeValidator(_named, json_schema_input_type=str | ObjectiveSection)
]
OutputField = Annotated[OutputSection, BeforeValidator(_foldered, json_schema_input_type=str | OutputSection)]


class CompareSection(Section):
    """Methods side by side on the recipe's task: what `adaptome compare` runs, in place of `methods`."""

    methods: list[ComparedField] = Field(default_factory=list, description="one row of the table each")
    budget: int | str | list[int | str] | None = Field(
        default=None,
        description="the same count for every method that sets none of its own; of a list every method has a row for each",
    )
    variants: list[VariantSection] = Field(
        default_factory=list, description="every method has a row for each of these settings"
    )
    seeds: list[int] = Field(
        default_factory=lambda: [0, 1, 2],
        min_length=1,
        description="every method is trained with each of them",
    )
    seeded: list[str] = Field(
        default_factory=list, description="further keys that take a run's seed, as data.split_seed"
    )
    metric: str | None = Field(default=None, description="what is compared; default: the task's")
    throughput: bool = Field(
        default=False,
        description="measure examples a second and operations of every trained model, for a curve of the metric against them",
    )
    trials: int = Field(
        default=0,
        ge=0,
        description="runs by which every row's learning rate is searched for on the validation split; 0: none is",
    )
    learning_rates: RangeField | None = Field(
        default=None,
        description="where it is searched for; default: a tenth to ten times the row's, by magnitude",
    )
    pruner: Literal["median", "halving", "none"] = Field(
        default="median", description="stop a run of the search early that is behind; the same for every row"
    )


class StartSection(Section):
    """An earlier run that this one starts from."""

    run: str = Field(description="its output folder")
    how: Literal["adapter", "merged", "frozen"] = Field(
        default="adapter",
        description="its adapters, which go on training; its weights with them merged, as the base; or those of its adapters that "
        "`methods` says are frozen, beside new ones",
    )


class StageSection(OpenSection):
    """One of several runs in a row: the recipe's sections as they differ in it, and what it starts from."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="of its folder in the recipe's")
    start: Literal["adapter", "merged", "frozen", "base"] | None = Field(
        default=None,
        description="from the stage before: its adapters, which go on training; its weights with them merged; its adapters held "
        "frozen beside this stage's own; or nothing of it. Default: adapter where the stage names no method",
    )


class StreamTask(Section):
    """One task of a stream of data sets."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="for tables and folders")
    data: DataField


class StreamSection(Section):
    """How tasks arrive: by labels of one data set, by the values of a column, or as data sets or recipes of their own."""

    by: Literal["labels", "column", "data", "recipes"] = Field(description="what tells the tasks apart")
    size: int | None = Field(default=None, ge=1, description="of labels: how many a task")
    groups: list[list[str | int]] | None = Field(
        default=None, description="of labels: those of each task, in place of size"
    )
    overlap: bool = Field(default=False, description="of labels: one may come in several tasks")
    column: str | None = Field(default=None, description="of column: its name, e.g. domain")
    order: Literal["given", "random", "similar"] | list[str | int] = Field(
        default="given",
        description="given or random; of column also similar (each the nearest to the one before, by its texts) or the values in order",
    )
    seed: int = Field(default=0, ge=0, description="of a random order")
    tasks: list[StreamTask] = Field(
        default_factory=list, description="of data: each with its name and data section"
    )
    recipes: list[str] = Field(
        default_factory=list,
        description="of recipes: files, or names of those that come with adaptome; the data of each is a task",
    )
    labels: Literal["shared", "disjoint", "own"] = Field(
        default="shared",
        description="of column, data, recipes: tasks share the labels; each brings labels that no other has; or labels of one name in two "
        "tasks are two labels",
    )

    @model_validator(mode="after")
    def _belongs(self) -> StreamSection:
        own = {
            "size": ("labels",), "groups": ("labels",), "overlap": ("labels",), "seed": ("labels", "column"), "column": ("column",),
            "tasks": ("data",), "recipes": ("recipes",), "labels": ("column", "data", "recipes"),
        }  # fmt: skip
        for key, where in own.items():
            default = type(self).model_fields[key].get_default(call_default_factory=True)
            if self.by not in where and getattr(self, key) != default:
                raise ValueError(f"{key} belongs to by={' or '.join(where)}, and by is {self.by}")
        if self.by == "labels" and isinstance(self.order, list):
            raise ValueError("order is given or random; the labels of each task are written in groups")
        if self.by == "column" and self.column is None:
            raise ValueError("by=column needs the column's name")
        if self.order == "random" and self.by not in ("labels", "column"):
            raise ValueError("order=random belongs to by=labels and by=column")
        if self.order == "similar" and self.by != "column":
            raise ValueError("order=similar belongs to by=column")
        return self


class StrategySection(OpenSection):
    """What is done about forgetting; further keys are the strategy's settings."""

    name: str = Field(
        description="sequential, joint, replay, ewc, gem, a-gem, ogd, lwf, adapter-per-task, lae, conpet-static, conpet-dynamic"
    )


StrategyField = Annotated[
    StrategySection, BeforeValidator(_named, json_schema_input_type=str | StrategySection)
]


class ContinualSection(Section):
    """Tasks that arrive one after another, for `adaptome continual`."""

    stream: StreamSection
    strategy: StrategyField = StrategySection(name="sequential")


class Recipe(Section):
    """Model + task + data + methods + objective + training + evaluation + output; and stages, or what to compare."""

    title: str | None = Field(default=None, description="one line for reports")
    model: ModelField = ModelSection()
    task: TaskField
    data: DataField
    methods: list[MethodField] = Field(
        default_factory=list,
        description="attached in this order; `method:` gives a single one",
    )
    objective: Annotated[list[ObjectiveField], BeforeValidator(_terms)] = Field(
        default_factory=lambda: [ObjectiveSection(name="model")],
        min_length=1,
        description="the terms of the loss, summed; without `model` they stand in place of the model's own",
    )
    training: TrainingSection = TrainingSection()
    augmentation: AugmentationSection | None = Field(
        default=None, description="generated texts that train beside the data's own"
    )
    evaluation: EvaluationSection = EvaluationSection()
    output: OutputField = OutputSection()
    compare: CompareSection | None = Field(default=None, description="methods for `adaptome compare`")
    search: SearchSection | None = Field(default=None, description="settings for `adaptome search` to find")
    start: StartSection | None = Field(
        default=None, description="an earlier run to start from; default: the base"
    )
    stages: list[StageSection] = Field(
        default_factory=list, description="runs one after another, each with what differs from the recipe"
    )

    choose: list[str] = Field(
        default_factory=list,
        description="stages of which the best by validation stands for the run, the earlier where they are level; default: the last",
    )
    continual: ContinualSection | None = Field(
        default=None, description="a stream of tasks and a strategy, for `adaptome continual`"
    )

    @model_validator(mode="before")
    @classmethod
    def _data_of_the_stream(cls, given: Any) -> Any:
        """A stream of data sets or recipes brings the data."""
        section = given.get("continual") if isinstance(given, dict) else None
        stream = section.get("stream") if isinstance(section, dict) else None
        if isinstance(stream, dict) and stream.get("by") in ("data", "recipes"):
            return {"data": {}, **given}
        return given

    @model_validator(mode="after")
    def _frozen_from_somewhere(self) -> Recipe:
        stray = [m.name for m in self.methods if m.frozen]
        if stray and (self.start is None or self.start.how != "frozen"):
            raise ValueError(
                f"methods: {stray[0]} is frozen, and start.how=frozen names no run that it comes from"
            )
        if len({stage.name for stage in self.stages}) < len(self.stages):
            raise ValueError("stages: two of them have the same name")
        unknown = [name for name in self.choose if name not in {stage.name for stage in self.stages}]
        if unknown:
            raise ValueError(
                f"choose: no stage is called {unknown[0]!r}.{did_you_mean(unknown[0], [s.name for s in self.stages])}"
            )
        return self

    def to_yaml(self, full: bool = False) -> str:
        """The recipe as YAML that `recipe_from_yaml` reads back to an equal recipe.

        Args:
            full: write the defaults too, so that the run can be repeated when a default changes.
        """
        content = self.model_dump(mode="json", exclude_defaults=not full)
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
