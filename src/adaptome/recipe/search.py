"""The section of a recipe that says what to search for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from adaptome.recipe.section import Section


class RangeSection(Section):
    """Values of one setting that a search draws from: choices, or numbers from low to high."""

    choices: list[Any] | None = Field(default=None, min_length=1, description="a plain list stands for it")
    low: int | float | None = Field(default=None, description="the least value")
    high: int | float | None = Field(default=None, description="the greatest value")
    log: bool = Field(default=False, description="draw by order of magnitude")
    step: int | float | None = Field(default=None, gt=0, description="distance between values")
    type: Literal["float", "int"] | None = Field(
        default=None, description="default: int where low and high are whole numbers"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> RangeSection:
        ends = self.low is not None and self.high is not None
        if (self.choices is not None) == ends or (self.low is None) != (self.high is None):
            raise ValueError("give either choices (a list), or low and high")
        if self.low is not None and self.high is not None:
            if self.low > self.high or (self.log and self.low <= 0):
                raise ValueError(
                    f"low={self.low} and high={self.high}: low is at most high, and above 0 with log"
                )
            if self.log and self.step is not None:
                raise ValueError("log and step do not go together")
            whole = isinstance(self.low, int) and isinstance(self.high, int)
            if self.type == "int" and not whole:
                raise ValueError("type=int needs whole numbers as low and high")
            self.type = self.type or ("int" if whole else "float")
        return self


def _range(value: Any) -> Any:
    return {"choices": value} if isinstance(value, list) else value


RangeField = Annotated[RangeSection, BeforeValidator(_range, json_schema_input_type=list[Any] | RangeSection)]


class SearchSection(Section):
    """Settings to search for on the validation split: what `adaptome search` runs."""

    ranges: dict[str, RangeField] = Field(
        min_length=1,
        description="dotted key of the recipe: its values, e.g. training.learning_rate: {low: 5e-5, high: 5e-4, log: true}",
    )
    trials: int = Field(default=20, ge=1, description="runs in all, those of earlier calls counted")
    metric: str | None = Field(default=None, description="what is best; default: the task's")
    sampler: Literal["tpe", "gp", "random"] = Field(
        default="tpe",
        description="tree-structured Parzen estimator, Gaussian process (both Bayesian), or chance",
    )
    pruner: Literal["median", "halving", "none"] = Field(
        default="median", description="stop a run early that is behind the others at the same step"
    )
    warmup_trials: int = Field(default=5, ge=1, description="runs before anything is stopped early")
    seed: int = Field(default=0, ge=0, description="of the sampler")
    storage: str | None = Field(
        default=None,
        description="an Optuna storage URL, for several machines; default: search.db in the output folder",
    )
