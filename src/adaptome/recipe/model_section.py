"""The section of a recipe on its base model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from adaptome.core.errors import did_you_mean
from adaptome.recipe.section import OpenSection


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
