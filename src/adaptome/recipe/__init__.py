"""Recipes: one typed description of a run, read from YAML.

    recipe = load_recipe("recipe.yaml", ["method.r=16", "training.epochs=2"])
    recipe.training.learning_rate

`load_recipe("esc50-conformer")` reads one that comes with adaptome; `shipped_recipes()` has them all.

A recipe names a model, a task, data, methods, an objective, the training, evaluation and output; whatever it
does not say has a default. `recipe_json_schema()` is the same schema for editors.
"""

from adaptome.core.errors import MissingExtraError

try:
    import pydantic  # noqa: F401
    import yaml  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingExtraError(str(error.name), "train") from error

from adaptome.recipe.augmentation import AugmentationSection
from adaptome.recipe.load import (
    load_recipe,
    recipe_from_yaml,
    recipe_json_schema,
    validate_methods,
    validate_task,
)
from adaptome.recipe.schema import (
    ComparedMethod,
    CompareSection,
    ContinualSection,
    DataSection,
    EvaluationSection,
    FoldsSection,
    MethodSection,
    ModelSection,
    ObjectiveSection,
    OutputSection,
    Recipe,
    StageSection,
    StartSection,
    TaskSection,
    TrainingSection,
    VariantSection,
)
from adaptome.recipe.search import RangeSection, SearchSection
from adaptome.recipe.shipped import ShippedRecipe, shipped_recipe, shipped_recipes
from adaptome.recipe.stages import stages_of

__all__ = [
    "AugmentationSection",
    "CompareSection",
    "ComparedMethod",
    "ContinualSection",
    "DataSection",
    "EvaluationSection",
    "FoldsSection",
    "MethodSection",
    "ModelSection",
    "ObjectiveSection",
    "OutputSection",
    "RangeSection",
    "Recipe",
    "SearchSection",
    "ShippedRecipe",
    "StageSection",
    "StartSection",
    "TaskSection",
    "TrainingSection",
    "VariantSection",
    "load_recipe",
    "recipe_from_yaml",
    "recipe_json_schema",
    "shipped_recipe",
    "shipped_recipes",
    "stages_of",
    "validate_methods",
    "validate_task",
]
