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
from adaptome.recipe.continual_section import ContinualSection as ContinualSection
from adaptome.recipe.continual_section import StrategySection as StrategySection
from adaptome.recipe.continual_section import StreamSection as StreamSection
from adaptome.recipe.continual_section import StreamTask as StreamTask
from adaptome.recipe.data_section import DataField
from adaptome.recipe.data_section import DataSection as DataSection
from adaptome.recipe.data_section import FoldsSection as FoldsSection
from adaptome.recipe.model_section import ModelSection as ModelSection
from adaptome.recipe.model_section import QuantizationSection as QuantizationSection
from adaptome.recipe.search import RangeField, SearchSection
from adaptome.recipe.section import OpenSection, Section, named
from adaptome.recipe.training_section import EvaluationSection as EvaluationSection
from adaptome.recipe.training_section import OutputSection as OutputSection
from adaptome.recipe.training_section import TrainingSection as TrainingSection


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


class TaskSection(OpenSection):
    """What the model learns to do; further keys are the task's own options."""

    name: str = Field(
        description="text-classification, token-classification, causal-lm, reasoning, image- and audio-classification, ..."
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
ModelField = Annotated[ModelSection, BeforeValidator(named, json_schema_input_type=str | ModelSection)]
TaskField = Annotated[TaskSection, BeforeValidator(named, json_schema_input_type=str | TaskSection)]
MethodField = Annotated[MethodSection, BeforeValidator(named, json_schema_input_type=str | MethodSection)]
ComparedField = Annotated[ComparedMethod, BeforeValidator(named, json_schema_input_type=str | ComparedMethod)]
ObjectiveField = Annotated[
    ObjectiveSection, BeforeValidator(named, json_schema_input_type=str | ObjectiveSection)
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
