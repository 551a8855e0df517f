"""noise-prediction, v-prediction, flow-matching and dco against their equations, in float64."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from adaptome.core.errors import TrainingError
from adaptome.objectives import Seen, get_objective
from adaptome.objectives.denoising import min_snr


def outputs(requires_grad=False):
    generator = torch.Generator().manual_seed(0)
    said, target = (torch.randn(4, 2, 3, 3, generator=generator) for _ in range(2))
    alpha = torch.tensor([0.1, 0.5, 0.9, 0.999])
    return {"prediction": said.requires_grad_(requires_grad), "target": target, "alpha": alpha, "sigma": (1 - alpha**2).sqrt()}  # fmt: skip


def seen(predicts, teacher=None):
    return Seen(SimpleNamespace(predicts=predicts), teacher=teacher)


@pytest.mark.parametrize(("name", "predicts"), [("noise-prediction", "epsilon"), ("v-prediction", "v"), ("flow-matching", "flow")])  # fmt: skip
def test_the_loss_is_the_mean_squared_error_of_what_is_predicted(name, predicts):
    made = outputs()
    wanted = (made["prediction"] - made["target"]).square().mean()
    torch.testing.assert_close(get_objective(name).value(made, {}, seen(predicts)), wanted)
    prior = torch.tensor([False, True, False, True])
    errors = (made["prediction"] - made["target"]).square().flatten(1).mean(1)
    weighed = errors[[0, 2]].mean() + 0.3 * errors[[1, 3]].mean()
    found = get_objective(name, prior_weight=0.3).value(made, {"prior": prior}, seen(predicts))
    torch.testing.assert_close(found, weighed)
    with pytest.raises(TrainingError, match=rf"predicts {predicts}; this one predicts sample"):
        get_objective(name).value(made, {}, seen("sample"))


def test_another_kind_of_model_is_told_its_objective():
    with pytest.raises(TrainingError, match="Use v-prediction"):
        get_objective("noise-prediction").value(outputs(), {}, seen("v"))


@pytest.mark.parametrize(("name", "predicts"), [("noise-prediction", "epsilon"), ("v-prediction", "v")])
def test_min_snr_weighs_as_the_paper_does(name, predicts):
    made, total = outputs(), 0.0
    for i in range(4):
        snr = float(made["alpha"][i].double() ** 2 / made["sigma"][i].double() ** 2)
        weight = min(snr, 5) / (snr if predicts == "epsilon" else snr + 1)
        total += weight * float((made["prediction"] - made["target"])[i].double().square().mean()) / 4
    found = get_objective(name, min_snr=5).value(made, {}, seen(predicts))
    assert float(found) == pytest.approx(total, rel=1e-5)


def test_without_any_signal_the_weights_are_finite():
    alpha, sigma = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)  # fmt: skip
    assert min_snr(alpha, sigma, 5, "epsilon").tolist() == [1.0, 0.0]
    assert min_snr(alpha, sigma, 5, "v").tolist() == [0.0, 0.0]


def test_dco_begins_at_log_2_with_half_its_gradient():
    made = outputs(requires_grad=True)
    base = {k: v.detach().clone() for k, v in made.items()}
    loss = get_objective("dco", beta=40).value(made, {}, seen("epsilon", base))
    assert float(loss) == pytest.approx(math.log(2))
    (found,) = torch.autograd.grad(loss, made["prediction"])
    error = (made["prediction"] - made["target"]).square().flatten(1).mean(1).mean()
    (plain,) = torch.autograd.grad(error, made["prediction"])
    torch.testing.assert_close(found, 40 / 2 * plain)
    torch.testing.assert_close(get_objective("dco", beta=-1).value(made, {}, seen("epsilon")), error)
    assert get_objective("dco", beta=-1).needs().teacher is None


def test_dco_is_its_equation_away_from_the_start():
    made, base = outputs(), {k: v.clone() for k, v in outputs().items()}
    base["prediction"] = base["prediction"] * 0.9
    errors = [(o["prediction"] - o["target"]).double().square().flatten(1).mean(1) for o in (made, base)]
    wanted = torch.log1p(torch.exp(3 * (errors[0] - errors[1]))).mean()
    found = get_objective("dco", beta=3).value(made, {}, seen("epsilon", base))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-7)
