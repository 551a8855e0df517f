"""ComplEx and its training loss, against complex arithmetic."""

import torch
from torch.nn import functional as F

import adaptome as ad
from adaptome.models.link_prediction import ComplEx, LinkPrediction, conjugate, modulus, n3

N, R, K = 9, 4, 5


def model(**settings):
    torch.manual_seed(0)
    return ComplEx(N, R, K, init_size=0.7, **settings).double()


def as_complex(embedding):
    return torch.complex(*embedding.chunk(2, -1))


def dense(predictor):
    """phi [N, R, N] by complex arithmetic."""
    e, r = as_complex(predictor.entities.weight), as_complex(predictor.relations.weight)
    return torch.einsum("sk,pk,ok->spo", e, r, e.conj()).real


def test_scores_are_the_real_part_of_the_trilinear_product():
    predictor = model()
    phi = dense(predictor)
    s, p = torch.tensor([[0, 8], [3, 3]]), torch.tensor([[1], [3]])
    torch.testing.assert_close(predictor(s, p), phi[s, p])
    o = torch.tensor([2, 5])
    torch.testing.assert_close(predictor.subjects(p[:, 0], o), phi[:, p[:, 0], o].T)


def test_a_bias_is_added_to_all_scores_of_its_relation():
    predictor = model(bias=True)
    torch.nn.init.normal_(predictor.bias)
    s, p = torch.tensor([1, 2, 2]), torch.tensor([3, 0, 1])
    torch.testing.assert_close(predictor(s, p), dense(predictor)[s, p] + predictor.bias[p][:, None])


def test_n3_is_the_cube_of_complex_moduli():
    a, b = torch.randn(2, 7, 2 * K, dtype=torch.float64)
    wanted = (as_complex(a).abs() ** 3).sum() / 7 + (as_complex(b).abs() ** 3).sum() / 7
    torch.testing.assert_close(n3(modulus(a), modulus(b)), wanted)
    torch.testing.assert_close(as_complex(conjugate(a)), as_complex(a).conj())
    zero = torch.zeros(1, 2 * K, requires_grad=True)
    n3(modulus(zero)).backward()
    assert zero.grad.eq(0).all()


def test_the_loss_is_both_softmaxes_and_the_regulariser():
    made = LinkPrediction(model(), regularization=0.3).train()
    h, r, t = torch.tensor([0, 3, 8]), torch.tensor([1, 1, 3]), torch.tensor([5, 0, 2])
    phi, e = dense(made.predictor), as_complex(made.predictor.entities.weight)
    p = as_complex(made.predictor.relations.weight)
    wanted = F.cross_entropy(phi[h, r], t) + F.cross_entropy(phi[:, r, t].T, h)
    cubes = sum((f.abs() ** 3).sum() for f in (e[h], p[r], e[t])) / 3
    torch.testing.assert_close(made(h, r, t)["loss"], wanted + 0.3 * cubes)
    torch.testing.assert_close(made.eval()(h, r, t)["loss"], wanted)
    made.sides = "objects"
    torch.testing.assert_close(made(h, r, t)["loss"], F.cross_entropy(phi[h, r], t))


def test_an_adapter_on_the_table_changes_candidates_too():
    predictor = model()
    ad.attach(predictor, "lora", targets="entities", r=2)
    with torch.no_grad():
        for parameter in ad.parameters_of(predictor).values():
            parameter.normal_(std=0.3)
    s, p = torch.tensor([1, 2]), torch.tensor([3, 0])
    table = predictor.entities(torch.arange(N))
    assert not torch.equal(table, predictor.entities.weight)
    before = predictor(s, p)
    torch.testing.assert_close(before, (torch.einsum("sk,sk,ok->so", as_complex(table[s]), as_complex(predictor.relations.weight[p]), as_complex(table).conj())).real)  # fmt: skip
    ad.merge(predictor)
    torch.testing.assert_close(predictor(s, p), before)
