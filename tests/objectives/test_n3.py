"""The objective n3, against complex arithmetic."""

import pytest
import torch

from adaptome.core.errors import TrainingError
from adaptome.models.link_prediction import ComplEx, LinkPrediction
from adaptome.objectives import Seen, get_objective


def test_it_is_the_cube_of_the_moduli_of_every_triple():
    torch.manual_seed(0)
    model = LinkPrediction(ComplEx.sized(7, 4, 5, init_size=0.7).double())
    h, r, t = torch.tensor([0, 3, 6]), torch.tensor([1, 1, 3]), torch.tensor([5, 0, 2])
    outputs = model(h, r, labels=t)
    value = get_objective("n3").value(outputs, {}, Seen(model))
    tables = (model.predictor.entities, model.predictor.relations, model.predictor.entities)
    cubes = [
        torch.complex(*e(n).chunk(2, -1)).abs().pow(3).sum() for e, n in zip(tables, (h, r, t), strict=True)
    ]
    torch.testing.assert_close(value, sum(cubes) / 3)


def test_embeddings_of_zero_have_a_gradient_of_zero():
    model = LinkPrediction(ComplEx.sized(7, 4, 5, init_size=0.0))
    numbers = torch.tensor([0, 1])
    get_objective("n3").value(model(numbers, numbers, labels=numbers), {}, Seen(model)).backward()
    assert model.predictor.entities.weight.grad.eq(0).all()


def test_a_model_without_factors_is_told():
    with pytest.raises(TrainingError, match="output 'factors'"):
        get_objective("n3").value({"logits": torch.zeros(1)}, {}, Seen(torch.nn.Linear(1, 1)))
