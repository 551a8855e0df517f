"""What a picture is to be made by: edges, blurs, maps, taken from a picture by an annotator. One class each, found by registration.

task: {name: controlled-generation, conditions: [canny, {name: blur, radius: 4}, {name: depth, model: Intel/dpt-large}]}        # in a recipe
"""

from adaptome.data.conditions.base import (
    CONDITIONS,
    Annotator,
    AnnotatorSettings,
    get_condition,
    register_condition,
)

__all__ = ["CONDITIONS", "Annotator", "AnnotatorSettings", "get_condition", "register_condition"]
