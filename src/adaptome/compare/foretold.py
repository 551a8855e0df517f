"""What memory a run will take, told before it begins: its largest batch carried out on shapes, beside what is there already."""

from __future__ import annotations

from adaptome.compare.devices import resident, this_device
from adaptome.compare.shapes import Data, Memory, Shapes
from adaptome.recipe import Recipe
from adaptome.training.building import spec


def foretold_memory(recipe: Recipe) -> Memory:
    """Memory of a recipe's training at its worst moment, on this machine. Nothing is read of the weights.

    Args:
        recipe: without stages; what it starts from is there already.

    Raises:
        RecipeError, DataError: the recipe or its data cannot be used, or its optimizer's state is not known.
        ModelError: a step cannot be carried out on shapes.
        TargetError, MethodError, HostError: a method does not go with the model.
    """
    own = recipe.model_copy(update={"model": spec(recipe), "start": None})
    device = this_device()
    shapes = Shapes(own, Data(own), own.methods)
    libraries = device.taken if device.kernels == "gpu" else resident()
    return shapes.counted(shapes.batches()[0], device, libraries).memory
