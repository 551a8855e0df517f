"""Recipes: one typed description of a run, read from YAML.

    recipe = load_recipe("recipe.yaml", ["method.r=16", "training.epochs=2"])
    recipe.training.learning_rate

A recipe names a model, a task, data, methods, an objective, the training, evaluation and output; whatever it
does not say has a default. `recipe_json_schema()` is the same schema for editors.
"""

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
    DataSection,
    EvaluationSection,
    FoldsSection,
    MethodSection,
    ModelSection,
    ObjectiveSection,
    OutputSection,
    Recipe,
    TaskSection,
    TrainingSection,
)

__all__ = [
    "CompareSection",
    "ComparedMethod",
    "DataSection",
    "EvaluationSection",
    "FoldsSection",
    "MethodSection",
    "ModelSection",
    "ObjectiveSection",
    "OutputSection",
    "Recipe",
    "TaskSection",
    "TrainingSection",
    "load_recipe",
    "recipe_from_yaml",
    "recipe_json_schema",
    "validate_methods",
    "validate_task",
]
