"""Metrics of dense prediction: the relative gain over single-task models, saliency, surface normals."""

import numpy as np
import pytest

from adaptome.core.errors import DataError
from adaptome.tasks.metrics import delta_m, normals_metrics, saliency_metrics

TASKS = ("semseg", "human_parts", "sal", "normals")
#: the tables of arXiv:2210.03265, Swin-T on PASCAL-Context
SINGLE = dict(zip(TASKS, (67.21, 61.93, 62.35, 17.97), strict=True))


@pytest.mark.parametrize(
    "row, delta",
    [
        ((70.87, 59.54, 65.47, 17.47), 2.34),  # Polyhistor
        ((70.24, 59.12, 64.75, 17.40), 1.74),  # Polyhistor-Lite
        ((71.43, 60.73, 65.54, 17.77), 2.64),  # HyperFormer
        ((70.12, 57.73, 61.90, 18.96), -2.17),  # LoRA
        ((63.14, 52.37, 58.39, 20.89), -11.02),  # decoders alone
    ],
)
def test_delta_is_the_papers(row, delta):
    seen = delta_m(dict(zip(TASKS, row, strict=True)), SINGLE, ["normals"])
    assert seen == pytest.approx(delta, abs=0.01)  # the rows are rounded


def test_delta_names_what_does_not_fit():
    with pytest.raises(DataError, match="scores are of"):
        delta_m({"a": 1.0}, {"b": 1.0})
    with pytest.raises(DataError, match="no task 'depht'. Did you mean 'depth'"):
        delta_m({"depth": 1.0}, {"depth": 1.0}, ["depht"])


def test_saliency_takes_the_best_threshold():
    truth = np.zeros((2, 4, 4))
    truth[:, :2] = 1
    probability = np.where(truth > 0, 0.62, 0.58)  # right between 0.58 and 0.62 alone: 0.6 is a threshold
    assert saliency_metrics(probability, truth) == {"max_iou": 1.0, "max_f": pytest.approx(1.0)}
    half = np.zeros((1, 4, 4))
    half[:, :3] = 0.95
    found = saliency_metrics(half, truth[:1])  # 12 found, 8 of them right
    assert found["max_iou"] == pytest.approx(8 / 12)
    assert found["max_f"] == pytest.approx(1.3 * (8 / 12) * 1 / (0.3 * 8 / 12 + 1))
    assert (
        saliency_metrics(np.zeros((1, 2, 2)), np.zeros((1, 2, 2)))["max_iou"] == 1.0
    )  # nothing there, nothing found


def test_angles_have_a_mean_and_a_root_mean_square():
    truth = np.array([[0, 0, 1.0], [0, 0, 2.0], [0, 0, 0]])  # the last has no normal
    angles = np.radians([30, 60])
    predicted = np.array([[np.sin(a), 0, np.cos(a)] for a in angles] + [[1, 0, 0]]) * 3
    assert normals_metrics(predicted, truth) == {
        "mean": pytest.approx(45),
        "rmse": pytest.approx(np.sqrt(2250)),
    }
    with pytest.raises(DataError, match="no pixel"):
        normals_metrics(predicted[2:], truth[2:])
