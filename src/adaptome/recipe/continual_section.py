"""The section of a recipe on a stream of tasks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from adaptome.recipe.data_section import DataField
from adaptome.recipe.section import OpenSection, Section, named


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
    StrategySection, BeforeValidator(named, json_schema_input_type=str | StrategySection)
]


class ContinualSection(Section):
    """Tasks that arrive one after another, for `adaptome continual`."""

    stream: StreamSection
    strategy: StrategyField = StrategySection(name="sequential")
