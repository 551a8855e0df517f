"""Each objective against its equation, written here again and by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import RecipeError, TrainingError
from adaptome.objectives import Schedule, Seen, get_objective, objectives
from adaptome.objectives.activation_density import density
from adaptome.objectives.align_uniform import alignment, uniformity
from adaptome.objectives.margin_softmax import MARGINS
from tests.core.models import Net

D = torch.float64


def value(name, outputs, batch=None, seen=None, **settings):
    objective = get_objective(name, **settings)
    model = nn.Linear(1, 1)
    seen = seen or Seen(model, objective.parts(model))
    return objective.value(outputs, batch or {}, seen)


def test_every_objective_says_what_it_is_and_what_its_settings_do():
    assert len(objectives()) >= 9
    for name, objective in objectives().items():
        assert objective.__doc__ and objective.name == name
        for key, field in objective.Settings.model_fields.items():
            assert field.description, f"{name}.{key}"


def test_unknown_names_and_settings_name_the_nearest():
    with pytest.raises(RecipeError, match=r"objective 'info-nse' is not known\. Did you mean 'info-nce'\?"):
        get_objective("info-nse")
    with pytest.raises(
        RecipeError, match=r"unknown key 'objective\.temprature' for info-nce\. Did you mean 'temperature'"
    ):
        get_objective("info-nce", temprature=1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_the_mean_over_the_labels_that_count(smoothing):
    o, y = torch.randn(7, 5, dtype=D), torch.tensor([0, 4, -100, 2, 2, -100, 1])
    logp = o.log_softmax(-1)
    kept = [
        (1 - smoothing) * -logp[n, c] - smoothing * logp[n].mean() for n, c in enumerate(y.tolist()) if c >= 0
    ]
    found = value("cross-entropy", {"logits": o}, {"labels": y}, label_smoothing=smoothing)
    torch.testing.assert_close(found.double(), torch.stack(kept).mean(), rtol=1e-5, atol=1e-6)
    with pytest.raises(TrainingError, match="no|none"):
        value("cross-entropy", {"scores": o}, {"labels": y})


def test_cross_entropy_divides_by_the_items_it_is_told():
    o, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 2])
    seen = Seen(nn.Linear(1, 1), items=torch.tensor(16))
    whole = nn.functional.cross_entropy(o, y, reduction="sum") / 16
    torch.testing.assert_close(value("cross-entropy", {"logits": o}, {"labels": y}, seen), whole)


@pytest.mark.parametrize("directions", ["both", "left", "right"])
def test_info_nce_by_loops(directions):
    u, v, t = torch.randn(5, 4, dtype=D), torch.randn(5, 4, dtype=D), 0.3
    un, vn = u / u.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)
    score = torch.exp(un @ vn.T / t)
    left = -sum(math.log(score[i, i] / score[i].sum()) for i in range(5)) / 5
    right = -sum(math.log(score[i, i] / score[:, i].sum()) for i in range(5)) / 5
    wanted = {"both": (left + right) / 2, "left": left, "right": right}[directions]
    found = value("info-nce", {"text_embeds": u, "image_embeds": v}, temperature=t, directions=directions)
    assert float(found) == pytest.approx(wanted, rel=1e-5)


def test_info_nces_temperature_trains_and_is_kept_below_its_limit():
    objective = get_objective("info-nce", learnable=True, temperature=0.5)
    model = nn.Linear(1, 1)
    parts = objective.parts(model)
    pair = {"text_embeds": torch.randn(4, 3), "image_embeds": torch.randn(4, 3)}
    objective.value(pair, {}, Seen(model, parts)).backward()
    assert parts.log_scale.grad is not None and parts.log_scale.grad != 0
    with torch.no_grad():
        parts.log_scale.fill_(100.0)
    assert float(parts()) == pytest.approx(100.0, rel=1e-5)


def unit(*angles):
    return torch.tensor([[math.cos(a), math.sin(a)] for a in angles], dtype=D)


def test_align_and_uniform_on_hand_cases():
    same = unit(0.3, 0.3, 0.3)
    assert float(alignment(same, torch.tensor([0, 0, 1]))) == 0 and float(uniformity(same)) == pytest.approx(
        0, abs=1e-9
    )
    poles = unit(0, math.pi)
    assert float(alignment(poles, torch.tensor([0, 1]))) == 0 and float(uniformity(poles)) == pytest.approx(
        -8
    )
    four, y = unit(0, 0, math.pi / 2, math.pi / 2), torch.tensor([0, 0, 1, 1])
    assert float(alignment(four, y)) == pytest.approx(0, abs=1e-12)
    assert float(uniformity(four)) == pytest.approx(math.log((2 + 4 * math.exp(-4)) / 6))
    one = unit(1.0)
    assert float(alignment(one, torch.tensor([0]))) == 0 == float(uniformity(one))
    opposite = unit(0, math.pi)
    assert float(alignment(opposite, torch.tensor([1, 1]))) == pytest.approx(4)


def test_uniformity_alone_spreads_and_alignment_alone_collapses():
    def distance(**shares):
        torch.manual_seed(0)
        z, y = torch.nn.Parameter(torch.randn(8, 3) * 0.1 + 1), torch.tensor([0, 1] * 4)
        before = torch.pdist(nn.functional.normalize(z, dim=-1)).mean().item()
        optimizer = torch.optim.SGD([z], lr=0.5)
        for _ in range(60):
            optimizer.zero_grad()
            value("align-uniform", {"embeddings": z}, {"labels": y}, **shares).backward()
            optimizer.step()
        rows = nn.functional.normalize(z.detach(), dim=-1)
        within = torch.pdist(rows[y == 0]).max().item()
        return before, torch.pdist(rows).mean().item(), within

    before, after, _ = distance(align=0.0, uniform=1.0)
    assert after > 2 * before
    _, _, within = distance(align=1.0, uniform=0.0)
    assert within < 0.02


@pytest.mark.parametrize("kind", ["arcface", "cosface", "adaface"])
def test_margins_by_hand(kind):
    torch.manual_seed(0)
    cosines, y, s = torch.rand(6, 4, dtype=D) * 1.8 - 0.9, torch.tensor([0, 1, 2, 3, 0, 1]), 16.0
    norms = torch.rand(6, dtype=D) * 30 + 5
    m, logits = MARGINS[kind], (cosines * s).clone()
    mean, deviation = 20 + 0.01 * (norms.mean() - 20), 100 + 0.01 * (norms.std() - 100)
    for n, c in enumerate(y.tolist()):
        theta = math.acos(cosines[n, c])
        if kind == "arcface":
            right = math.cos(theta + m) if theta + m <= math.pi else math.cos(theta) - m * math.sin(m)
        elif kind == "cosface":
            right = math.cos(theta) - m
        else:
            q = max(-1.0, min(1.0, float((norms[n] - mean) / (deviation + 1e-3)) * 0.333))
            right = math.cos(min(max(theta - m * q, 1e-6), math.pi - 1e-6)) - (m * q + m)
        logits[n, c] = s * right
    wanted = nn.functional.cross_entropy(logits, y)
    found = value("margin-softmax", {"logits": cosines, "norms": norms}, {"labels": y}, kind=kind, scale=s)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


def test_margins_need_cosines_and_survive_their_ends():
    with pytest.raises(TrainingError, match="needs cosines"):
        value("margin-softmax", {"logits": torch.full((2, 3), 4.0)}, {"labels": torch.tensor([0, 1])})
    ends = torch.tensor([[1.0, -1.0], [1.0, -1.0]], requires_grad=True)
    value("margin-softmax", {"logits": ends}, {"labels": torch.tensor([0, 1])}).backward()
    assert torch.isfinite(ends.grad).all()


def test_distillation_by_hand():
    o, t, T = torch.randn(5, 3, dtype=D), torch.randn(5, 3, dtype=D), 2.0
    p, q = (t / T).softmax(-1), (o / T).log_softmax(-1)
    seen = Seen(nn.Linear(1, 1), teacher={"logits": t})
    soft = T * T * (p * (p.log() - q)).sum(-1).mean()
    torch.testing.assert_close(
        value("distillation", {"logits": o}, {}, seen).double(), soft, rtol=1e-5, atol=1e-6
    )
    hard = nn.functional.cross_entropy(o, t.argmax(-1))
    torch.testing.assert_close(
        value("distillation", {"logits": o}, {}, seen, kind="hard").double(), hard, rtol=1e-5, atol=1e-6
    )
    with pytest.raises(TrainingError, match="the teacher gives"):
        value("distillation", {"logits": torch.randn(5, 4)}, {}, seen)


def test_density_is_what_zeros_say_and_its_smooth_form_follows_it():
    torch.manual_seed(0)
    o = torch.relu(torch.randn(4, 6, 10))
    exact = (o != 0).double().mean()
    assert float(density(o)) == pytest.approx(float(exact), rel=1e-5)
    mask = torch.tensor([[1, 1, 0, 0, 0, 0]] * 4)
    assert float(density(o, mask)) == pytest.approx(float((o[:, :2] != 0).double().mean()), rel=1e-5)
    smooth = get_objective("activation-density").phi(o).mean()
    assert abs(float(smooth) - float(exact)) < 0.02
    point = torch.tensor([0.0, 2e-4], requires_grad=True)
    get_objective("activation-density").phi(point).mean().backward()
    x, eps = 2e-4, 1e-7
    assert point.grad[0] == 0 and float(point.grad[1]) == pytest.approx(
        2 * eps * x / (x * x + eps) ** 2 / 2, rel=1e-4
    )


def test_orthogonality_within_and_between():
    model = Net()
    ad.attach(model, "lora", "first", r=3, targets="wide", seed=1)
    ad.attach(model, "lora", "second", r=2, targets="wide", seed=2)
    A, E = (ad.parameters_of(model, name)["wide.A"].detach() for name in ("first", "second"))
    seen = Seen(model)
    within = get_objective("orthogonality").value({}, {}, seen)
    wanted = ((A @ A.T - torch.eye(3)).square().sum() + (E @ E.T - torch.eye(2)).square().sum()) / 2
    torch.testing.assert_close(within, wanted)
    between = get_objective("orthogonality", kind="between").value({}, {}, seen)
    torch.testing.assert_close(between, (E @ A.T).square().sum())
    between.backward()
    with pytest.raises(TrainingError, match="finds no"):
        get_objective("orthogonality", matrix="Z").value({}, {}, seen)


def test_representation_alignment_by_hand_and_with_other_numbers_of_tokens():
    objective = get_objective("representation-alignment", module="wide", width=6, target_width=4, hidden=8)
    head = objective.parts(nn.Linear(1, 1))
    f, e = torch.randn(2, 5, 6), torch.randn(2, 5, 4)
    seen = Seen(nn.Linear(1, 1), head, {"wide": f})
    h = head(f)
    wanted = -torch.stack(
        [h[b, n] @ e[b, n] / (h[b, n].norm() * e[b, n].norm()) for b in range(2) for n in range(5)]
    ).mean()
    torch.testing.assert_close(objective.value({}, {"features": e}, seen), wanted)
    assert objective.value({}, {"features": torch.randn(2, 9, 4)}, seen).shape == ()
    grid = Seen(nn.Linear(1, 1), head, {"wide": torch.randn(2, 6, 3, 3)})
    assert objective.value({}, {"features": torch.randn(2, 9, 4)}, grid).shape == ()


def test_schedules():
    up = Schedule.model_validate("linear-up")
    assert [up.factor(p) for p in (0, 0.25, 1)] == [0, 0.25, 1]
    down = Schedule.model_validate({"shape": "cosine", "first": 2.0, "last": 0.0, "begin": 0.5})
    assert (
        down.factor(0.2) == 2 and down.factor(0.75) == pytest.approx(1) and down.factor(1) == pytest.approx(0)
    )
    step = Schedule.model_validate({"shape": "step", "first": 0.0, "last": 1.0, "begin": 0.3})
    assert [step.factor(p) for p in (0.29, 0.31)] == [0, 1]
    assert Schedule().factor(0.5) == 1
    for wrong in ("linear-sideways", "bent", {"begin": 0.9, "end": 0.1}):
        with pytest.raises(ValueError):
            Schedule.model_validate(wrong)


def test_masked_tokens_are_left_out_of_pooled_features():
    from adaptome.objectives import features

    states = torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    found = features({"last_hidden_state": states}, {"attention_mask": mask})
    torch.testing.assert_close(found[0], states[0, :2].mean(0))
    named = features(SimpleNamespace(hidden_states=(states * 0, states)), {}, "hidden_states")
    torch.testing.assert_close(named, states.mean(1))
