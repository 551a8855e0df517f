"""ComplEx and its training loss, against complex arithmetic."""

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import adaptome as ad
from adaptome.core.errors import ModelError
from adaptome.graphs.graph import Vocabulary
from adaptome.models.link_prediction import (
    ComplEx,
    LinkPrediction,
    conjugate,
    from_tables,
    modulus,
)

N, R, K = 9, 4, 5


def model(**settings):
    torch.manual_seed(0)
    return ComplEx.sized(N, R, K, init_size=0.7, **settings).double()


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


def test_moduli_and_conjugates():
    a = torch.randn(7, 2 * K, dtype=torch.float64)
    torch.testing.assert_close(modulus(a), as_complex(a).abs())
    torch.testing.assert_close(as_complex(conjugate(a)), as_complex(a).conj())


def test_the_loss_is_both_softmaxes():
    made = LinkPrediction(model()).train()
    h, r, t = torch.tensor([0, 3, 8]), torch.tensor([1, 1, 3]), torch.tensor([5, 0, 2])
    phi = dense(made.predictor)
    objects, subjects = F.cross_entropy(phi[h, r], t), F.cross_entropy(phi[:, r, t].T, h)
    torch.testing.assert_close(made(h, r, t)["loss"], objects + subjects)
    made.sides = "objects"
    torch.testing.assert_close(made(h, r, t[:, None])["loss"], objects)
    assert made(h, r).keys() == {"logits"}


NAMES = Vocabulary(tuple(f"e{i}" for i in range(N)), ("r", "r^-1", "s", "s^-1"))


@pytest.mark.parametrize("bias", [False, True])
def test_a_saved_predictor_is_read_back_bit_for_bit(bias, tmp_path):
    names = {"entities": list(NAMES.entities), "relations": list(NAMES.relations)}
    predictor = ComplEx.from_settings(**names, rank=K, bias=bias)
    predictor.save_pretrained(tmp_path / "p")
    other = ComplEx.from_pretrained(tmp_path / "p")
    assert other.vocabulary == NAMES and (other.bias is not None) == bias
    s, p = torch.arange(4), torch.arange(4)
    assert torch.equal(other(s, p), predictor(s, p))


@pytest.mark.parametrize("whose", ["cqd", "pykeen"])
def test_tables_of_other_libraries_are_understood(whose, tmp_path):
    predictor = model().float()
    tables = (predictor.entities.weight.data, predictor.relations.weight.data)
    if whose == "cqd":
        theirs = {f"embeddings.{i}.weight": t.clone() for i, t in enumerate(tables)}
    else:  # a complex number there is a pair of neighbours
        pairs = [torch.view_as_real(as_complex(t)).flatten(1).contiguous() for t in tables]
        kinds = ("entity", "relation")
        theirs = {f"{k}_representations.0._embeddings.weight": t for k, t in zip(kinds, pairs, strict=True)}
    save_file(theirs, tmp_path / "theirs.safetensors")
    s, p = torch.arange(4), torch.arange(4)
    torch.testing.assert_close(from_tables(tmp_path / "theirs.safetensors", NAMES)(s, p), predictor(s, p))


def test_tables_that_do_not_fit_are_told(tmp_path):
    save_file({"embeddings.0.weight": torch.zeros(3, 4)}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="the names are of"):
        from_tables(tmp_path / "a.safetensors", NAMES)
    (tmp_path / "a.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match="cannot be read"):
        from_tables(tmp_path / "a.safetensors", NAMES)


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
