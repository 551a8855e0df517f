"""The section of a recipe on generated texts that train beside the data's own."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from adaptome.recipe.section import OpenSection, Section, named


class GeneratorSection(OpenSection):
    """What writes further texts of a class; further keys are its settings."""

    name: str = Field(description="file, spliced, local or endpoint, see `adaptome.blackbox.generators`")


GeneratorField = Annotated[
    GeneratorSection, BeforeValidator(named, json_schema_input_type=str | GeneratorSection)
]


class AugmentationSection(Section):
    """Generated texts among the training rows: those to which a teacher, too, gives the label they were written for."""

    generator: GeneratorField
    per_label: int = Field(default=100, ge=1, description="texts asked for of each label")
    teacher: str | None = Field(
        default=None,
        description="folder of a finished run, or an earlier stage's name, whose predictions must agree; default: nobody sifts",
    )
    threshold: float = Field(
        default=0.9, ge=0, le=1, description="probability from which the teacher is believed"
    )
    seed: int = Field(default=0, ge=0, description="of what the generator draws")
