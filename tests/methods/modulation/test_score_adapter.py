"""The score adapter: its equation, its count, and what folds into a link predictor."""

import hashlib

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import HostError, MethodError
from adaptome.methods.modulation.score_adapter import fold_scores
from adaptome.models.link_prediction import ComplEx
from adaptome.models.query_answering import QueryAnswerer

N, R, K = 13, 6, 5


def predictor(**settings):
    torch.manual_seed(0)
    return ComplEx.sized(N, R, K, init_size=0.7, **settings).double()


def moved(model, std=0.1):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ad.parameters_of(model).values():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


@pytest.mark.parametrize(
    "inputs", [("predicate",), ("subject", "object"), ("subject", "predicate", "object")]
)
def test_scores_follow_the_equation(inputs):
    model = predictor()
    subjects, relations = torch.tensor([[3, 1], [0, 12]]), torch.tensor([[2], [5]])
    phi = model(subjects, relations)
    ad.attach(model, "score-adapter", inputs=inputs, targets="=")
    moved(model)
    (adapter,) = ad.adapters(model)["default"].adapters.values()
    entities, table = model.entities.weight, model.relations.weight
    pair = torch.zeros(2, 2, N, 2, dtype=torch.float64)
    for i, j, o in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(N)).tolist():
        given = {
            "subject": entities[subjects[i, j]],
            "predicate": table[relations[i, 0]],
            "object": entities[o],
        }
        for name in inputs:
            pair[i, j, o] += adapter.W[name] @ given[name] + adapter.b[name]
    torch.testing.assert_close(model(subjects, relations), phi * (1 + pair[..., 0]) + pair[..., 1])


def test_without_inputs_the_score_itself_is_mapped():
    model = predictor()
    phi = model(torch.tensor([3]), torch.tensor([2]))
    ad.attach(model, "score-adapter", inputs=[], targets="=")
    moved(model)
    W, b = (p for p in ad.parameters_of(model).values())
    wanted = phi * (1 + phi * W[0] + b[0]) + phi * W[1] + b[1]
    torch.testing.assert_close(model(torch.tensor([3]), torch.tensor([2])), wanted)
    assert ad.trainable(model).count == 4


#: N, R with inverse relations, and what the embeddings of rank 1000 hold (counted from the papers' data sets)
GRAPHS = {
    "FB15k": (14_951, 2_690, 35_282_000, 0.0113, 0.0340),
    "FB15k-237": (14_505, 474, 29_958_000, 0.0134, 0.0401),
    "NELL995": (63_361, 400, 127_522_000, 0.0031, 0.0094),
}


@pytest.mark.parametrize("graph", GRAPHS)
def test_counts_at_full_size(graph):
    entities, relations, frozen, one, three = GRAPHS[graph]
    with torch.device("meta"):
        model = QueryAnswerer(ComplEx.sized(entities, relations, 1000), normalization="sigmoid")
    plan = ad.plan(model, "score-adapter")
    assert (plan.trainable, plan.base) == (4_002, frozen)
    assert round(100 * plan.trainable / frozen, 4) == one
    plan = ad.attach(model, "score-adapter", inputs=["subject", "predicate", "object"])
    assert plan.trainable == 12_006 == ad.trainable(model).count
    assert round(100 * plan.trainable / frozen, 4) == three  # the paper's 0.03 %, for FB15k


@pytest.mark.parametrize("bias", [False, True])
def test_a_map_of_the_predicate_folds_into_the_relations(bias):
    model = predictor(bias=bias)
    if bias:
        nn.init.normal_(model.bias)
    ad.attach(model, "score-adapter", targets="=")
    moved(model)
    plain = fold_scores(model)
    subjects, relations = torch.arange(N).repeat_interleave(R), torch.arange(R).repeat(N)
    torch.testing.assert_close(plain(subjects, relations), model(subjects, relations), rtol=0, atol=1e-5)
    assert type(plain) is ComplEx and not ad.adapters(plain)
    assert not torch.equal(plain.relations.weight, model.relations.weight)


def test_other_maps_do_not_fold():
    model = predictor()
    ad.attach(model, "score-adapter", inputs=["predicate", "object"], targets="=")
    with pytest.raises(MethodError, match="inputs=\\['predicate'\\]"):
        fold_scores(model)


def test_the_embeddings_are_the_same_bytes_after_fifty_steps():
    model = QueryAnswerer(predictor(), normalization="sigmoid")
    ad.attach(model, "score-adapter")

    def digest():
        tables = (model.predictor.entities.weight, model.predictor.relations.weight)
        return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tables)).hexdigest()

    before, start = digest(), {k: v.clone() for k, v in ad.parameters_of(model).items()}
    optimizer = torch.optim.Adagrad([p for p in model.parameters() if p.requires_grad], lr=0.1)
    numbers = torch.arange(12).view(4, 3) % R
    for _ in range(50):
        model(torch.full((4,), 7), numbers, numbers.flip(0), torch.arange(4)[:, None])["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert digest() == before
    assert all(not torch.equal(p, start[k]) for k, p in ad.parameters_of(model).items())


def test_it_is_refused_elsewhere_and_with_inputs_it_does_not_have():
    with pytest.raises(HostError, match="it works on predictor; this is a linear"):
        ad.attach(nn.Sequential(nn.Linear(4, 3)), "score-adapter", targets="0")
    for wrong in (["predicate", "predicate"], ["relation"]):
        with pytest.raises(MethodError, match="different ones of subject, predicate, object"):
            ad.ScoreAdapter(inputs=wrong)


@pytest.mark.parametrize("method", ["lora", "bitfit", "linear-probe"])
def test_other_methods_find_the_tables_or_say_why_not(method):
    model = QueryAnswerer(predictor(), normalization="sigmoid")
    how = {
        "lora": {"targets": "predictor.relations"},
        "linear-probe": {"train": "predictor.relations"},
        "bitfit": {"targets": "predictor.relations"},
    }[method]
    if method == "bitfit":
        with pytest.raises(HostError):
            ad.attach(model, method, **how)
        return
    ad.attach(model, method, **how)
    numbers = torch.arange(12).view(4, 3) % R
    model(torch.full((4,), 7), numbers, numbers.flip(0), torch.arange(4)[:, None])["loss"].backward()
    ad.check_gradients(model)
