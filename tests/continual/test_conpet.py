"""ConPET: the sampler's draws, the selector's growth, what several modules say together, and the cache."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from adaptome.continual import get_strategy
from adaptome.continual.loop import ROW, Loop
from adaptome.continual.losses import SelectedCrossEntropy
from adaptome.continual.modules import Cache, cut, whole
from adaptome.continual.sampling import mixed
from adaptome.continual.stream import by_labels
from adaptome.core.errors import RecipeError
from adaptome.objectives import Seen
from adaptome.training.predicting import predict_by

LABELS, SIZE, WIDTH = 6, 2, 5
TASKS = LABELS // SIZE


class Model(nn.Module):
    """A layer, which stands for the adapters, and a head."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.calls = nn.Linear(4, WIDTH), nn.Linear(WIDTH, LABELS), 0

    def forward(self, x, labels=None):
        self.calls += 1
        return Outputs(logits=self.head(torch.tanh(self.body(x))))


class Outputs(dict):
    """As transformers' outputs: a mapping that is made from keywords."""


class Training:
    batch_size = 8


def loop_of(model, at=0, **more):
    numbers = [i % LABELS for i in range(60)]
    stream = by_labels(numbers, numbers, [str(c) for c in range(LABELS)], size=SIZE)
    names = tuple(n for n, _ in model.named_parameters())
    heads = ("head.weight", "head.bias")
    rounds = [(n,) for n in range(TASKS)]
    return Loop(model, stream, names, heads, LABELS, 3, rounds, at, batch_size=8, **more)


def jitter(model):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))


def learned(model, tasks=TASKS, **settings):
    """A strategy that went through so many tasks, each phase of which moved everything."""
    strategy, loop = get_strategy("conpet-dynamic", **settings), loop_of(model)
    for loop.at in range(tasks):
        phases = strategy.phases(loop)
        for loop.phase in phases:
            strategy.begin(loop)
            jitter(model)
            strategy.end(loop)
    return strategy, loop


# -- the sampler -------------------------------------------------------------------------------------------------------


def test_old_tasks_are_drawn_alike_however_large_they_are():
    old = [list(range(5)), list(range(5, 500)), list(range(500, 540))]
    new = list(range(1000, 1030))
    made = np.array(mixed(new, old, 8, 2500, 1.0, np.random.default_rng(0))).reshape(2500, 8)
    assert ((made >= 1000).sum(1) == 4).all()  # half and half in every batch
    assert all(len(set(row[row >= 1000])) == 4 for row in made)  # no new row twice in one
    drawn = made[made < 1000]
    counts = [np.isin(drawn, task).sum() for task in old]
    assert len(drawn) == 10_000 and chisquare(counts).pvalue > 0.01
    assert chisquare(np.bincount(drawn, minlength=540)[500:540]).pvalue > 0.01  # and rows within a task


def test_new_rows_come_again_where_they_are_too_few():
    made = np.array(mixed([7], [[1]], 6, 3, 2.0, np.random.default_rng(0))).reshape(3, 6)
    assert ((made == 7).sum(1) == 4).all() and ((made == 1).sum(1) == 2).all()


@pytest.mark.parametrize("limit, counts", [("constant", [10, 10]), ("growing", [20, 30]), ("none", [5, 8])])
def test_the_number_of_batches(limit, counts):
    strategy = get_strategy("conpet-static", batches=10, limit=limit)
    loop = loop_of(Model(), epochs=2.0)
    assert strategy.rows(loop) == loop.rows() and not strategy.in_order(loop)  # epochs of its own rows
    for loop.at, count in zip((1, 2), counts, strict=True):
        rows = strategy.rows(loop)
        assert strategy.in_order(loop) and len(rows) == count * 2 * 8
        assert rows == strategy.rows(loop)  # the same when it is resumed
        new = {*loop.stream.parts[loop.at].train}
        assert sum(row in new for row in rows) == len(rows) // 2
        assert rows[: count * 8] != rows[count * 8 :]  # every epoch draws its own


def test_a_batch_that_cannot_mix_is_refused():
    class One:
        batch_size = 1

    with pytest.raises(RecipeError, match="a batch of 0 new and 1 old rows does not mix them"):
        get_strategy("conpet-static").check(loop_of(Model()).stream, One())


def test_dynamic_refuses_labels_in_two_tasks():
    numbers = [i % LABELS for i in range(60)]
    names = [str(c) for c in range(LABELS)]
    both = by_labels(numbers, numbers, names, groups=[["0", "1"], ["1", "2"]], overlap=True)
    with pytest.raises(RecipeError, match="labels that no other has"):
        get_strategy("conpet-dynamic").check(both, Training())


# -- the selector ------------------------------------------------------------------------------------------------------


def test_a_selector_begins_as_the_one_before_with_a_row_more():
    model = Model()
    start = {k: v.detach().clone() for k, v in model.named_parameters()}
    strategy, loop = get_strategy("conpet-dynamic"), loop_of(model)
    assert strategy.phases(loop) == ("module",)
    for loop.at in range(TASKS):
        phases = strategy.phases(loop)
        for loop.phase in phases:
            before = {k: v.clone() for k, v in strategy.selector.items()}
            strategy.begin(loop)
            if loop.phase == "selector" and loop.at == 1:
                assert all(torch.equal(p, start[k]) for k, p in model.named_parameters())
            elif loop.phase == "selector":
                for name in ("head.weight", "head.bias"):
                    now = model.get_parameter(name)
                    assert torch.equal(now[: loop.at], before[name]) and torch.equal(
                        now[loop.at :], start[name][loop.at :]
                    )
                assert torch.equal(model.body.weight, before["body.weight"])
            else:  # a module begins afresh, not as the selector
                assert all(torch.equal(p, start[k]) for k, p in model.named_parameters())
            jitter(model)
            strategy.end(loop)
        if loop.at:
            assert strategy.selector["head.weight"].shape == (loop.at + 1, WIDTH)
    assert [m["head.weight"].shape[0] for m in strategy.modules] == [SIZE] * TASKS


def test_a_module_may_begin_with_the_selectors_adapter():
    model = Model()
    strategy, loop = learned(model, 2, from_selector=True)
    loop.at, loop.phase = 2, "module"
    strategy.begin(loop)
    assert torch.equal(model.body.weight, strategy.selector["body.weight"])
    assert torch.equal(model.head.weight, strategy.start["head.weight"])


# -- modules together --------------------------------------------------------------------------------------------------


def alone(model, strategy, loop, task, x):
    """The logits of one module, by its own weights."""
    with torch.no_grad():
        module = strategy.modules[task]
        hidden = torch.tanh(x @ module["body.weight"].T + module["body.bias"])
        return hidden @ module["head.weight"].T + module["head.bias"]


def predicted(model, strategy, loop, x, part=None):
    strategy.place(loop, 0)
    handle = predict_by(loop, strategy, part)
    try:
        with torch.no_grad():
            return model(x)["logits"]
    finally:
        handle.remove()


@pytest.mark.parametrize("active", [1, 2, TASKS])
def test_what_is_not_selected_is_null_and_the_rest_is_each_modules_own(active):
    torch.manual_seed(0)
    model = Model()
    strategy, loop = learned(model, active=active)
    x = torch.randn(40, 4)
    found = predicted(model, strategy, loop, x)
    assert ((found == -100).sum(1) == LABELS - active * SIZE).all()
    taken = set()
    for row in range(40):
        for task in range(TASKS):
            own = found[row, task * SIZE : (task + 1) * SIZE]
            if (own != -100).all():  # the same in its group as alone, and in its place
                taken.add(task)
                torch.testing.assert_close(own, alone(model, strategy, loop, task, x[row : row + 1])[0])
    assert taken == set(range(TASKS))
    if active == 1:
        logits = predicted_selector(strategy, x)
        chosen = (found != -100).nonzero()[::SIZE, 1] // SIZE
        assert torch.equal(chosen, logits.argmax(1))


def predicted_selector(strategy, x):
    s = strategy.selector
    return torch.tanh(x @ s["body.weight"].T + s["body.bias"]) @ s["head.weight"].T + s["head.bias"]


def test_all_modules_are_all_logits_side_by_side_and_an_oracle_gives_each_tasks_own():
    torch.manual_seed(1)
    model = Model()
    strategy, loop = learned(model, active=TASKS)
    assert not strategy.selector
    x = torch.randn(9, 4)
    parts = [alone(model, strategy, loop, task, x) for task in range(TASKS)]
    torch.testing.assert_close(predicted(model, strategy, loop, x), torch.cat(parts, 1))
    for task in range(TASKS):
        told = predicted(model, strategy, loop, x, part=task)
        torch.testing.assert_close(told[:, task * SIZE : (task + 1) * SIZE], parts[task])
        assert (told == -100).sum() == 9 * (LABELS - SIZE)


def test_prediction_costs_a_forward_for_the_selector_and_one_for_each_module_taken():
    torch.manual_seed(2)
    model = Model()
    strategy, loop = learned(model)
    model.calls = 0
    predicted(model, strategy, loop, torch.randn(1, 4))
    assert model.calls == 2  # whatever the number of tasks


# -- the loss of a module ----------------------------------------------------------------------------------------------


def batch_of(loop, size=8):
    rows = [row for part in loop.stream.parts[: loop.at + 1] for row in part.train[:size]][: 3 * size]
    generator = torch.Generator().manual_seed(5)
    table = torch.randn(60, 4, generator=generator)
    return {
        "x": table[rows],
        "labels": torch.tensor([loop.stream.labels[r] for r in rows]),
        ROW: torch.tensor(rows),
    }


def loss_of(strategy, loop, batch):
    outputs = loop.model(batch["x"])
    term = strategy.main(loop).objective
    assert isinstance(term, SelectedCrossEntropy)
    return term.value(outputs, batch, Seen(loop.model))


def test_rows_of_old_tasks_give_a_module_no_gradient_when_one_is_active():
    torch.manual_seed(3)
    model = Model()
    strategy, loop = learned(model, 2)
    loop.at, loop.phase = 2, "module"
    strategy.begin(loop)
    batch = batch_of(loop)
    own = batch["labels"] >= 2 * SIZE
    before = [{k: v.clone() for k, v in m.items()} for m in strategy.modules]
    loss = loss_of(strategy, loop, batch)
    loss.backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    z = model(batch["x"][own])["logits"][:, 2 * SIZE :]
    local = nn.functional.cross_entropy(z, batch["labels"][own] - 2 * SIZE, reduction="sum") / len(own)
    local.backward()  # the present module's own cross-entropy, over its own labels
    for p, grad in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(p.grad, grad)
    assert all(torch.equal(v, m[k]) for m, kept in zip(strategy.modules, before, strict=True) for k, v in kept.items())  # fmt: skip


@pytest.mark.parametrize("active", [1, 2, TASKS])
def test_the_loss_is_that_of_the_selected_modules(active):
    torch.manual_seed(4)
    model = Model()
    strategy, loop = learned(model, 2, active=active)
    loop.at, loop.phase = 2, "module"
    if active == 2:  # the present task's selector
        strategy.selector = {**strategy.start, "head.weight": torch.randn(3, WIDTH), "head.bias": torch.randn(3)}  # fmt: skip
    strategy.begin(loop)
    batch = batch_of(loop)
    found = loss_of(strategy, loop, batch)
    live = model(batch["x"])["logits"].detach().double()
    total = 0.0
    for row, label in enumerate(batch["labels"]):
        x, own = batch["x"][row : row + 1], int(label) // SIZE
        if active == TASKS:
            chosen = {0, 1, 2}
        else:
            order = predicted_selector(strategy, x)[0].argsort(descending=True).tolist() if active > 1 else []
            chosen = {*order[:active]} if own in order[:active] else {*order[: active - 1], own}
        z = torch.full((LABELS,), -100.0, dtype=torch.float64)
        for task in chosen:
            z[task * SIZE : (task + 1) * SIZE] = (
                live[row, task * SIZE :][:SIZE] if task == 2 else alone(model, strategy, loop, task, x)[0].double()
            )  # fmt: skip
        total -= float(z.log_softmax(0)[label])
    assert found.item() == pytest.approx(total / len(batch["labels"]), abs=1e-5)


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_a_second_epoch_runs_no_old_module():
    torch.manual_seed(5)
    model = Model()
    strategy, loop = learned(model, 2)
    loop.at, loop.phase = 2, "module"
    strategy.begin(loop)
    batch = batch_of(loop)
    first = loss_of(strategy, loop, batch)
    calls = strategy.cache.calls
    assert calls == 2  # one forward for each old module
    again = loss_of(strategy, loop, batch)
    assert strategy.cache.calls == calls and torch.equal(first, again)
    for task, known in strategy.cache.kept.items():
        for row, logits in known.items():
            x = batch["x"][batch[ROW].tolist().index(row)][None]
            torch.testing.assert_close(logits, alone(model, strategy, loop, task, x)[0])
            assert logits.dtype == torch.float32  # as it was computed
    (callback,) = strategy.callbacks(loop)
    other = get_strategy("conpet-dynamic")
    other.restore(strategy.state())
    type(callback)(other).restore(callback.kept())
    loss_of(other, loop, batch)
    assert other.cache.calls == 0  # a resumed run asks for nothing again


def test_a_module_that_is_trained_again_is_asked_again():
    cache = Cache()
    compute = lambda places: places[:, None].float()  # noqa: E731
    assert cache.get(0, [7, 9], compute).tolist() == [[0.0], [1.0]]
    cache.get(1, [7], compute)
    cache.forget(0)
    assert set(cache.kept) == {1}
    model = Model()
    strategy, loop = learned(model, 2)
    strategy.cache.get(1, [3], lambda places: torch.zeros(1, SIZE))
    loop.at, loop.phase = 1, "module"
    strategy.end(loop)
    assert 1 not in strategy.cache.kept and len(strategy.modules) == 2


def test_choices_made_in_training_do_not_reach_prediction():
    torch.manual_seed(6)
    model = Model()
    strategy, loop = learned(model, active=2)
    x = torch.randn(6, 4)
    before = predicted(model, strategy, loop, x)
    strategy.order = {row: [0, 1, 2] for row in range(60)}
    assert torch.equal(before, predicted(model, strategy, loop, x))


def test_a_module_keeps_the_heads_rows_of_its_own():
    model = Model()
    loop = loop_of(model)
    kept = cut(loop, [2, 3])
    assert kept["head.weight"].shape == (2, WIDTH) and kept["body.weight"].shape == (WIDTH, 4)
    start = {k: torch.zeros_like(p) for k, p in model.named_parameters()}
    made = whole(loop, kept, [2, 3], start)
    assert torch.equal(made["head.weight"][2:4], model.head.weight[2:4])
    assert made["head.weight"][:2].abs().sum() == made["head.weight"][4:].abs().sum() == 0
