"""The section of a recipe on its data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from adaptome.recipe.section import Section, named


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
        "image-list",
        "fmow",
        "fmow-triples",
        "dense",
        "modalities",
        "captioned",
        "stories",
        "coop",
        "clips",
        "speech",
        "auto-avsr",
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
    fewer: Literal["keep", "repeat", "error"] = Field(
        default="keep",
        description="labels of train with fewer rows than shots: keep what there is, repeat rows, or stop",
    )
    limit: int | None = Field(
        default=None, ge=1, description="draw at most so many rows of every split (for trials)"
    )


DataField = Annotated[DataSection, BeforeValidator(named, json_schema_input_type=str | DataSection)]
