"""Queries answered by a link predictor: against the enumeration of all assignments, and the identities of fuzzy logic."""

import itertools

import pytest
import torch

import adaptome as ad
from adaptome.core.errors import ModelError
from adaptome.graphs.query import NEGATIVE, POSITIVE, STRUCTURES, Anchor, And, Not, Or, Project
from adaptome.models.fuzzy_logic import AND, OR, truth
from adaptome.models.link_prediction import ComplEx
from adaptome.models.query_answering import FORMS, QueryAnswerer

N, R, K = 11, 6, 5
NAMES = [name for name in STRUCTURES]
WITH_SEARCH = ("2p", "3p", "pi", "ip", "up", "inp", "pin", "pni", "pni-set")


def predictor(dtype=torch.float64, entities=N, rank=K):
    torch.manual_seed(0)
    return ComplEx.sized(entities, R, rank, init_size=0.7).to(dtype)


def answerer(model=None, **settings):
    made = QueryAnswerer(model or predictor(), **{"normalization": "sigmoid", "beam": N, **settings})
    return made.eval()


def batch(rows=4, entities=N, seed=1):
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.randint(entities, (rows, 3), generator=generator)
    return anchors, torch.randint(R, (rows, 3), generator=generator)


def brute(form, table, anchors, relations, answer, conjunction, disjunction):
    """The truth of one answer in plain Python: a variable is every entity in turn; table[r][s][o] is an atom's truth."""
    if isinstance(form, Project):
        atom = lambda s: float(table[relations[form.relation]][s][answer])  # noqa: E731
        flip = (lambda v: 1 - v) if form.negated else (lambda v: v)
        if isinstance(form.of, Anchor):
            return flip(atom(anchors[form.of.entity]))
        return max(
            conjunction(brute(form.of, table, anchors, relations, v, conjunction, disjunction), flip(atom(v)))
            for v in range(N)
        )
    if isinstance(form, Not):
        return 1 - brute(form.of, table, anchors, relations, answer, conjunction, disjunction)
    parts = [brute(p, table, anchors, relations, answer, conjunction, disjunction) for p in form.parts]
    join = conjunction if isinstance(form, And) else disjunction
    value = parts[0]
    for other in parts[1:]:
        value = join(value, other)
    return value


@pytest.mark.parametrize("t_norm", ["product", "min"])
@pytest.mark.parametrize("name", NAMES)
def test_a_beam_of_all_entities_equals_the_enumeration_of_all_assignments(name, t_norm):
    conjunction = min if t_norm == "min" else lambda a, b: a * b
    disjunction = max if t_norm == "min" else lambda a, b: a + b - a * b
    model = answerer(t_norm=t_norm)
    anchors, relations = batch()
    with torch.no_grad():
        found = model.answer(STRUCTURES[name], anchors, relations)
        table = [model.truth(torch.arange(N), torch.full((N,), r)).tolist() for r in range(R)]
    wanted = [
        [brute(STRUCTURES[name], table, a, r, e, conjunction, disjunction) for e in range(N)]
        for a, r in zip(anchors.tolist(), relations.tolist(), strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=0)


def test_three_steps_follow_every_way_with_its_own_first_step():
    """With a beam of 3 of 11, each of the 9 ways must be joined with the truth of the parent it came from."""
    model = answerer(beam=3)
    anchors, relations = batch()
    with torch.no_grad():
        found = model.answer(STRUCTURES["3p"], anchors, relations)
        for row, (a, r) in enumerate(zip(anchors.tolist(), relations.tolist(), strict=True)):
            T = [model.truth(torch.arange(N), torch.full((N,), n)) for n in r]
            best = torch.zeros(N, dtype=torch.float64)
            for first in T[0][a[0]].topk(3).indices.tolist():
                for second in T[1][first].topk(3).indices.tolist():
                    best = torch.maximum(best, T[0][a[0], first] * T[1][first, second] * T[2][second])
            torch.testing.assert_close(found[row], best)


@pytest.mark.parametrize("name", POSITIVE)
def test_a_wider_beam_never_lowers_a_truth(name):
    anchors, relations = batch()
    with torch.no_grad():
        found = [answerer(beam=k).answer(STRUCTURES[name], anchors, relations) for k in (1, 2, 5, N)]
    for narrow, wide in itertools.pairwise(found):
        assert (wide >= narrow).all()
    assert name not in WITH_SEARCH or (found[-1] > found[0]).any()


@pytest.mark.parametrize("t_norm", ["product", "min"])
def test_conjunction_and_disjunction_are_dual(t_norm):
    a, b = torch.rand(2, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(1 - AND[t_norm](1 - a, 1 - b), OR[t_norm](a, b), rtol=0, atol=1e-6)


def test_identities_of_fuzzy_logic():
    (a, b), (p, q) = batch(1)[0][0, :2].tolist(), batch(1)[1][0, :2].tolist()
    one, two = Project(Anchor(0), 0), Project(Anchor(1), 1)
    anchors, relations = torch.tensor([[a, b]]), torch.tensor([[p, q]])
    model = answerer(t_norm="min")
    with torch.no_grad():
        alone = model.answer(one, anchors, relations)
        assert torch.equal(model.answer(Or((one, one)), anchors, relations), alone)
        for t_norm in AND:
            model = answerer(predictor(), t_norm=t_norm)
            torch.nn.init.zeros_(model.predictor.relations.weight[q : q + 1])
            model.predictor.bias = torch.nn.Parameter(torch.zeros(R, dtype=torch.float64))
            model.predictor.bias[q] = -1e9  # the second atom is never true
            alone = model.answer(one, anchors, relations)
            assert torch.equal(model.answer(And((one, Not(two))), anchors, relations), alone)


def test_rows_of_several_structures_come_back_in_order():
    model = answerer(beam=4)
    anchors, relations = batch(6)
    kinds = torch.tensor([9, 0, 3, 9, 2, 0])
    with torch.no_grad():
        mixed = model(kinds, anchors, relations)["logits"]
        for row, kind in enumerate(kinds.tolist()):
            alone = model.answer(FORMS[kind], anchors[row : row + 1], relations[row : row + 1])[0]
            torch.testing.assert_close(mixed[row], alone)


def test_large_batches_are_answered_in_pieces(monkeypatch):
    model = answerer(beam=4)
    anchors, relations = batch(7)
    with torch.no_grad():
        whole = model.answer(STRUCTURES["3p"], anchors, relations)
        monkeypatch.setattr("adaptome.models.query_answering.AT_ONCE", N * 4**2 * 2)
        torch.testing.assert_close(model.answer(STRUCTURES["3p"], anchors, relations), whole)


def test_the_beam_of_evaluation_may_be_another():
    model = QueryAnswerer(predictor(), normalization="sigmoid", beam=2, eval_beam=7)
    assert model.train().width == 2 and model.eval().width == 7


@pytest.mark.parametrize("normalization", ["sigmoid", "min-max", "softmax"])
def test_truth_lies_between_0_and_1(normalization):
    scores = 5 * torch.randn(4, 9)
    scores[2] = 1.5  # a row of equal scores must not divide by 0
    made = truth(scores, normalization)
    assert ((made >= 0) & (made <= 1)).all() and made.isfinite().all()
    if normalization == "min-max":
        assert made[0].max() == 1 and made[0].min() == torch.tensor(1e-2) and (made[2] == 1).all()


def test_the_normalization_must_be_said():
    with pytest.raises(TypeError, match="normalization"):
        QueryAnswerer(predictor())
    with pytest.raises(ModelError, match="sigmoid, min-max, softmax"):
        QueryAnswerer(predictor(), normalization="none")
    with pytest.raises(ModelError, match="at least one entity"):
        QueryAnswerer(predictor(), normalization="sigmoid", beam=0)


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logs", [True, False])
def test_the_loss_is_the_cross_entropy_of_each_answer(logs):
    model = answerer(log_scores=logs)
    scores = torch.rand(3, N, dtype=torch.float64)
    labels = torch.tensor([[4, -1, -1], [0, 7, -1], [2, -2 - 5, -2 - 6]])
    given = (scores + 1e-4).log() if logs else scores
    first = torch.nn.functional.cross_entropy(given[:1], torch.tensor([4]))
    second = torch.nn.functional.cross_entropy(given[[1, 1]], torch.tensor([0, 7]))
    left = [i for i in range(N) if i not in (5, 6)]  # known answers do not compete
    third = torch.nn.functional.cross_entropy(given[2:, left], torch.tensor([2]))
    torch.testing.assert_close(model.loss(scores, labels), (first + second + third) / 3)


# -- with the adapter --------------------------------------------------------------------------------------------------


def adapted(inputs=("predicate",), **settings):
    model = QueryAnswerer(predictor(), **{"normalization": "sigmoid", "beam": 4, **settings})
    ad.attach(model, "score-adapter", inputs=inputs)
    return model


@pytest.mark.parametrize("inputs", [("predicate",), ("subject", "predicate", "object"), ()])
def test_an_untrained_adapter_changes_no_bit_of_any_structure(inputs):
    plain, model = answerer(beam=4), adapted(inputs).eval()
    anchors, relations = batch()
    with torch.no_grad():
        for form in FORMS:
            assert torch.equal(model.answer(form, anchors, relations), plain.answer(form, anchors, relations))


def test_only_the_adapter_gets_a_gradient():
    model = adapted()
    anchors, relations = batch()
    kinds = torch.full((4,), NAMES.index("2in"))
    model(kinds, anchors, relations, labels=torch.tensor([[1], [2], [3], [4]]))["loss"].backward()
    assert model.predictor.entities.weight.grad is None and model.predictor.relations.weight.grad is None
    trained = ad.parameters_of(model)
    assert len(trained) == 2 and all(p.grad is not None and p.grad.any() for p in trained.values())


@pytest.mark.parametrize("name", ["2p", "3p", "pni", "up", "2in"])
def test_the_gradient_through_the_search_is_that_of_finite_differences(name):
    model = adapted(("subject", "predicate", "object")).train()
    anchors, relations = batch(3)
    labels = torch.tensor([[1], [2], [3]])
    kinds = torch.full((3,), NAMES.index(name))
    trained = list(ad.parameters_of(model).values())
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    # one direction over all that trains, a step too small to change which entities are tried
    ways = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in trained]
    loss = model(kinds, anchors, relations, labels)["loss"]
    slope = sum((g * w).sum() for g, w in zip(torch.autograd.grad(loss, trained), ways, strict=True))
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, way in zip(trained, ways, strict=True):
                parameter.add_(sign * 1e-6 * way)
            values.append(model(kinds, anchors, relations, labels)["loss"])
            for parameter, way in zip(trained, ways, strict=True):
                parameter.sub_(sign * 1e-6 * way)
    torch.testing.assert_close((values[0] - values[1]) / 2e-6, slope, rtol=1e-5, atol=1e-9)
    assert slope.abs() > 1e-6


def test_min_max_would_take_the_adapter_away_and_is_refused():
    anchors, relations = batch()
    with pytest.raises(ModelError, match="never learn"):
        adapted(normalization="min-max").answer(STRUCTURES["2i"], anchors, relations)
    model = adapted(("predicate", "object"), normalization="min-max")
    assert model.answer(STRUCTURES["2i"], anchors, relations).requires_grad
    # the reason: a map that is the same all along a row changes nothing
    scores = torch.randn(3, N, dtype=torch.float64)
    torch.testing.assert_close(truth(scores * 1.7 - 0.3, "min-max"), truth(scores, "min-max"))


def test_one_step_keeps_its_ranking_and_an_intersection_may_not():
    model = adapted().eval()
    (W,) = (p for n, p in ad.parameters_of(model).items() if ".W." in n)
    anchors, relations = batch(32)
    plain = answerer(beam=4)
    with torch.no_grad():
        W.copy_(0.2 * torch.randn(W.shape, generator=torch.Generator().manual_seed(0)))
        alpha = torch.nn.functional.linear(model.predictor.relations.weight, W[0])
        assert (1 + alpha > 0).all() and alpha.abs().max() > 0.2
        one, two = STRUCTURES["1p"], STRUCTURES["2i"]
        same = [m.answer(one, anchors, relations).argsort(-1) for m in (model, plain)]
        other = [m.answer(two, anchors, relations).argsort(-1) for m in (model, plain)]
    assert torch.equal(*same) and not torch.equal(*other)


# -- explanations ------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", [*POSITIVE, *NEGATIVE])
def test_an_explanation_names_entities_that_give_the_truth_of_the_answer(name):
    model = answerer(t_norm="min" if name in ("2u", "up") else "product")
    form = STRUCTURES[name]
    for row in range(3):
        anchors, relations = (t[row : row + 1] for t in batch(3))
        scores = model.answer(form, anchors, relations)[0]
        answer = int(scores.argmax())
        steps = model.explain(form, anchors, relations, answer)
        for step in steps:
            atom = model.truth(torch.tensor(step.before), torch.tensor(step.relation))[step.after]
            assert step.truth == pytest.approx(float(1 - atom if step.negated else atom))
        joined = min if name in ("2u", "up") else lambda values: torch.tensor(values).prod().item()
        assert joined([step.truth for step in steps]) == pytest.approx(float(scores[answer]), rel=1e-5)
        assert any(step.after == answer for step in steps)
