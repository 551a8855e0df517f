"""binary-cross-entropy and dice by pixel, against other computations in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from adaptome.core.errors import TrainingError
from adaptome.objectives import Seen, get_objective

SEEN = Seen(torch.nn.Identity())


def batch(channels: int = 2) -> tuple[dict, dict]:
    torch.manual_seed(0)
    labels = (torch.rand(3, 5, 7) < 0.2).to(torch.uint8)
    labels[1, :2] = 255
    names = ("logits", "logits_before", "logits_after")
    return {name: torch.randn(3, channels, 5, 7, dtype=torch.float64) for name in names}, {"labels": labels}


def test_of_two_logits_it_is_their_cross_entropy():
    outputs, given = batch()
    value = get_objective("binary-cross-entropy").value(outputs, given, SEEN)
    expected = F.cross_entropy(outputs["logits"], given["labels"].long(), ignore_index=255)
    torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("positive", ["balanced", 0.95])
def test_positive_pixels_are_weighed(positive):
    outputs, given = batch(1)
    value = get_objective("binary-cross-entropy", positive=positive).value(outputs, given, SEEN)
    known = given["labels"] != 255
    p, y = outputs["logits"][:, 0][known].sigmoid(), given["labels"][known].double()
    w = (y == 0).sum() / len(y) if positive == "balanced" else positive
    expected = -(w * y * p.log() + (1 - w) * (1 - y) * (1 - p).log()).mean()
    torch.testing.assert_close(value.double(), expected.double(), atol=1e-6, rtol=1e-6)


def test_dice_is_one_less_the_overlap_and_the_mean_of_the_outputs():
    outputs, given = batch()
    names = ["logits_before", "logits_after"]
    value = get_objective("dice", logits=names, smooth=2.0).value(outputs, given, SEEN)
    known, expected = given["labels"] != 255, []
    y = given["labels"][known].double()
    for name in names:
        p = outputs[name].softmax(1)[:, 1][known]
        expected.append(1 - (2 * (p * y).sum() + 2) / (p.sum() + y.sum() + 2))
    torch.testing.assert_close(value.double(), sum(expected) / 2, atol=1e-6, rtol=1e-6)


def test_ends_of_dice():
    labels = torch.ones(1, 2, 2, dtype=torch.uint8)
    sure = {"logits": torch.full((1, 1, 2, 2), 40.0)}
    dice = get_objective("dice")
    assert dice.value(sure, {"labels": labels}, SEEN) == pytest.approx(0, abs=1e-6)
    assert dice.value({"logits": -sure["logits"]}, {"labels": labels}, SEEN) == pytest.approx(1 - 1 / 5)
    assert dice.value({"logits": -sure["logits"]}, {"labels": labels * 0}, SEEN) == pytest.approx(0, abs=1e-6)


def test_shapes_that_do_not_go_together_are_told():
    outputs, given = batch()
    with pytest.raises(TrainingError, match=r"\[3, 2, 5, 7\] against labels of shape \[3, 4, 7\]"):
        get_objective("dice").value(outputs, {"labels": given["labels"][:, :4]}, SEEN)
    with pytest.raises(TrainingError, match="reads the model's output 'other'"):
        get_objective("dice", logits=["other"]).value(outputs, given, SEEN)
