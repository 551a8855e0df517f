"""Each strategy's equation, against one written down here in float64."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from adaptome.continual import get_strategy, strategies
from adaptome.continual.loop import Loop, as_of, masked
from adaptome.continual.losses import Anchor, ClassCrossEntropy, Former
from adaptome.continual.memory import shared_out
from adaptome.continual.strategies.agem import projected
from adaptome.continual.strategies.gem import nearest_agreeing
from adaptome.continual.strategies.lae import ensemble
from adaptome.continual.strategies.ogd import extended
from adaptome.continual.stream import by_labels
from adaptome.core.errors import RecipeError
from adaptome.objectives import Seen


def stream_of(rows=40, labels=4, size=2):
    numbers = [i % labels for i in range(rows)]
    return by_labels(numbers, numbers, [str(c) for c in range(labels)], size=size)


def loop_of(model, heads=(), **more):
    names = tuple(n for n, _ in model.named_parameters())
    stream = stream_of()
    return Loop(
        model, stream, names, heads, 4, seed=3, rounds=[(n,) for n in range(len(stream.parts))], **more
    )


def test_all_are_found():
    assert {
        "sequential",
        "joint",
        "replay",
        "ewc",
        "gem",
        "a-gem",
        "ogd",
        "lwf",
        "adapter-per-task",
        "lae",
    } <= set(strategies())
    with pytest.raises(RecipeError, match="Did you mean 'replay'"):
        get_strategy("replai")
    with pytest.raises(RecipeError, match=r"unknown key 'continual.strategy.budgte'"):
        get_strategy("replay", budgte=3)


# -- terms -------------------------------------------------------------------------------------------------------------


def test_the_cross_entropy_of_present_labels_leaves_the_others_alone():
    torch.manual_seed(0)
    head = nn.Linear(6, 5).double()
    x, labels = torch.randn(7, 6).double(), torch.tensor([3, 1, 3, 1, 1, 3, 0])
    value = ClassCrossEntropy([1, 3]).value({"logits": head(x)}, {"labels": labels}, Seen(head))
    z = head(x)[:6, [1, 3]]
    expected = -z.log_softmax(-1)[torch.arange(6), (labels[:6] == 3).long()].mean()
    torch.testing.assert_close(value, expected, check_dtype=False)
    value.backward()
    assert (head.weight.grad[[0, 2, 4]] == 0).all() and (head.weight.grad[[1, 3]] != 0).any()
    with torch.no_grad():
        head.weight[[0, 2, 4]] += 10
    again = ClassCrossEntropy([1, 3]).value({"logits": head(x)}, {"labels": labels}, Seen(head))
    assert torch.equal(value, again)


def test_ewc_pulls_by_the_fisher_information():
    model = nn.Linear(3, 2)
    loop = loop_of(model)
    kept = [
        {"fisher": {n: torch.rand_like(p) for n, p in model.named_parameters()}, "values": {n: torch.randn_like(p) for n, p in model.named_parameters()}}
        for _ in range(2)
    ]  # fmt: skip
    value = Anchor(loop, kept).value(None, {}, Seen(model))
    expected = sum(
        (k["fisher"][n].double() * (p.double() - k["values"][n].double()) ** 2).sum() / 2
        for k, (n, p) in itertools.product(kept, model.named_parameters())
    )
    torch.testing.assert_close(value.double(), expected)


def test_the_fisher_information_is_of_single_rows():
    model = nn.Linear(3, 1, bias=False)
    rows = torch.randn(40, 3)
    strategy, loop = get_strategy("ewc", samples=100), loop_of(model)
    loop.gradient = lambda chosen, what: rows[chosen].mean(0)
    strategy.end(loop)
    own = rows[list(loop.stream.parts[0].train)]
    torch.testing.assert_close(strategy.tasks[0]["fisher"]["weight"][0], own.square().mean(0))


def test_lwf_follows_the_old_labels():
    own, led = torch.randn(5, 4).double(), torch.randn(5, 4).double()
    value = Former([0, 2], 2.0).value({"logits": own}, {}, Seen(nn.Identity(), teacher={"logits": led}))
    p, q = (torch.softmax(z[:, [0, 2]] / 2, -1) for z in (led, own))
    torch.testing.assert_close(value.double(), 4 * (p * (p / q).log()).sum(-1).mean(), atol=1e-6, rtol=1e-5)


# -- projections -------------------------------------------------------------------------------------------------------


def test_a_gem_projects_only_what_disagrees():
    g, r = torch.randn(9).double(), torch.randn(9).double()
    r = r if g @ r < 0 else -r
    assert abs(float(projected(g, r) @ r)) < 1e-12 and torch.equal(projected(g, -r), g)


def test_gem_finds_the_nearest_that_agrees():
    torch.manual_seed(1)
    g, G = torch.randn(6).double(), torch.randn(3, 6).double()
    z = nearest_agreeing(g, G)
    assert (G @ z >= -1e-9).all()
    best = np.inf  # over every set of constraints that hold with equality
    for active in itertools.chain.from_iterable(itertools.combinations(range(3), k) for k in range(4)):
        A = G[list(active)]
        other = g - A.T @ torch.linalg.solve(A @ A.T, A @ g) if active else g
        if (G @ other >= -1e-9).all():
            best = min(best, float((other - g).norm()))
    assert float((z - g).norm()) == pytest.approx(best, abs=1e-9)


def test_ogd_keeps_an_orthonormal_basis():
    basis = torch.zeros(0, 7).double()
    given = torch.randn(4, 7).double()
    for g in [*given, given[0] + given[1]]:
        basis = extended(basis, g)
    assert len(basis) == 4
    torch.testing.assert_close(basis @ basis.T, torch.eye(4).double())
    assert ((given - given @ basis.T @ basis).abs() < 1e-9).all()


# -- memories ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget, sizes, shares", [(10, [2, 9, 9], [2, 4, 4]), (7, [9, 9, 9], [3, 2, 2]), (99, [2, 3], [2, 3]), (2, [5, 5], [1, 1])])  # fmt: skip
def test_a_budget_is_used_up_exactly(budget, sizes, shares):
    assert shared_out(budget, sizes) == shares


def test_the_memory_is_balanced_and_exact_after_every_task():
    strategy, loop = get_strategy("replay", budget=10), loop_of(nn.Linear(2, 2))
    assert strategy.rows(loop) == loop.rows()
    for loop.at in range(2):
        strategy.end(loop)
        assert len(strategy.kept) == len(set(strategy.kept)) == 10
    assert sorted(map(len, strategy.memory.values())) == [2, 2, 3, 3]
    assert all(
        loop.stream.labels[row] == int(group.split()[1])
        for group, rows in strategy.memory.items()
        for row in rows
    )
    again = get_strategy("replay", budget=10)
    again.restore(strategy.state())
    mixed = strategy.rows(loop)
    assert mixed == again.rows(loop) and len(mixed) == 2 * len(loop.rows())
    assert set(mixed[len(loop.rows()) :]) == set(strategy.kept)


@pytest.mark.parametrize("name", ["replay", "gem", "a-gem"])
def test_a_budget_below_the_labels_is_refused(name):
    with pytest.raises(RecipeError, match="budget=3 is smaller than the stream's 4 labels"):
        get_strategy(name, budget=3).check(stream_of(), None)


# -- lae ---------------------------------------------------------------------------------------------------------------


class State:
    def __init__(self, step, steps=10):
        self.global_step, self.max_steps = step, steps


def two_layers():
    model = nn.Module()
    model.body, model.head, model.norm = nn.Linear(3, 4), nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)
    return model


def test_the_offline_adapters_follow_at_eta():
    model = two_layers()
    loop = loop_of(model, heads=("head.weight", "head.bias"), at=1)
    strategy = get_strategy("lae", decay=0.9)
    strategy.begin(loop)
    assert set(strategy.offline) == {"body.weight", "body.bias"}  # neither heads nor buffers
    b = {k: v.double() for k, v in strategy.offline.items()}
    with torch.no_grad():
        model.body.weight.add_(1.0)
    (course,) = strategy.callbacks(loop)
    for step in range(7):
        course.on_step_end(None, State(step), None)
    for name, value in strategy.offline.items():
        a = dict(model.named_parameters())[name].double()
        torch.testing.assert_close(value.double(), 0.9**7 * b[name] + (1 - 0.9**7) * a, atol=1e-6, rtol=0)
        assert not value.requires_grad
    again = get_strategy("lae")
    again.restore(strategy.state())
    assert again.offline == strategy.offline


def test_adapters_rest_for_the_first_share_of_later_tasks():
    model = two_layers()
    loop = loop_of(model, heads=("head.weight", "head.bias"))
    strategy = get_strategy("lae", freeze=0.6)
    assert strategy.callbacks(loop) == []  # the first task trains from its first step
    loop.at = 1
    (course,) = strategy.callbacks(loop)
    for step, trains in ((0, False), (5, False), (6, True), (9, True)):
        course.on_step_begin(None, State(step), None)
        assert model.body.weight.requires_grad is trains and model.head.weight.requires_grad
    course.on_step_begin(None, State(0), None)
    course.on_train_end(None, State(0), None)
    assert model.body.weight.requires_grad


def test_a_head_alone_has_no_second_expert():
    model = nn.Module()
    model.head = nn.Linear(4, 4)
    loop, strategy = loop_of(model, heads=("head.weight", "head.bias"), at=1), get_strategy("lae")
    strategy.begin(loop)
    assert strategy.callbacks(loop) == [] and not strategy.several


def test_the_surer_expert_wins():
    online, offline = (
        torch.tensor([[2.0, 0.0, 0.1], [0.0, 0.0, 5.0]]),
        torch.tensor([[0.0, 6.0, 0.0], [0.1, 0.0, 0.2]]),
    )
    both = ensemble(online, offline)
    torch.testing.assert_close(both.exp(), torch.maximum(online.softmax(-1), offline.softmax(-1)))
    assert both.argmax(-1).tolist() == [1, 2]  # the offline one on an old label, the online one on a new
    assert torch.equal(both, ensemble(offline, online))
    assert masked(online, [0, 1]).softmax(-1)[:, 2].tolist() == [0.0, 0.0]


def test_old_heads_must_not_decay():
    class Training:
        weight_decay = 0.01

    with pytest.raises(RecipeError, match="the heads of earlier tasks would decay"):
        get_strategy("lae").check(stream_of(), Training())


def test_looking_at_former_values_leaves_the_model_as_it_is():
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).train()
    before, x = model[0].weight.detach().clone(), torch.randn(4, 3)
    other = torch.randn(2, 3)
    found = as_of(model, {"0.weight": other}, x)
    torch.testing.assert_close(found, x @ other.T + model[0].bias)
    assert torch.equal(model[0].weight, before) and model[1].training and not found.requires_grad
