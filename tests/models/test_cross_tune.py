"""CrossTune's network: its equation in float64, counts, exchangeable classes, padding, several descriptions, and classes that come later."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adaptome.core.errors import ModelError
from adaptome.models.cross_tune import CrossTune, padded


def network(seed=0, described=((3,), (5,), (2,)), **settings) -> CrossTune:
    """A network with random weights, in float64, that knows three classes."""
    torch.manual_seed(seed)
    made = CrossTune.from_settings(
        **{"width": 12, "labels": len(described), "heads": 3, "feed_forward": 7, "dropout": 0.0, **settings}
    )
    made.double().eval()
    for p in made.parameters():
        nn.init.normal_(p, std=0.5)
    made.describe([[torch.randn(m, 12) for m in one] for one in described])
    return made


def texts(*lengths):
    return [torch.randn(length, 12).double() for length in lengths]


def by_hand(model, x):
    """Scores [C] of one text's states [L, d], classes of one description each."""
    n, h = model.network, 3

    def norm(layer, v):
        return (v - v.mean(-1, keepdim=True)) / (
            v.var(-1, unbiased=False, keepdim=True) + 1e-5
        ).sqrt() * layer.weight + layer.bias

    scores = []
    for states, mask in zip(model.label_states.double(), model.label_mask, strict=True):
        e = states[mask].mean(0)
        told, q = norm(n.told_norm, x), n.query(norm(n.ask_norm, e))
        k, v = n.key(told), n.value(told)
        heads = []
        for i in range(h):
            part = slice(4 * i, 4 * i + 4)
            share = ((k[:, part] @ q[part]) / 2).softmax(0)
            heads.append(share @ v[:, part])
        v_c = e + n.out(torch.cat(heads))
        r = v_c + n.down(F.gelu(n.up(norm(n.inner_norm, v_c))))
        scores.append(norm(n.last_norm, r) @ n.scorer.weight[0] + n.scorer.bias[0])
    return torch.stack(scores)


def test_scores_follow_the_equation():
    model, rows = network(), texts(4, 6)
    states, mask = padded(rows)
    with torch.no_grad():
        found = model(states, mask)["logits"]
        expected = torch.stack([by_hand(model, row) for row in rows])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_counts_are_the_papers_form_and_do_not_grow_with_classes():
    d, f = 1024, 2048
    with torch.device("meta"):
        whole = CrossTune.from_settings(width=d, labels=4, heads=8, feed_forward=f)
        bare = CrossTune.from_settings(width=d, labels=40, heads=8, feed_forward=0)
    count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    assert count(whole) == 4_198_400 + 4_197_376 + 4 * 2 * d + d + 1
    assert count(bare) == 4_198_400 + 3 * 2048 + 1025


@pytest.mark.parametrize("settings", [{}, {"query": "tokens"}, {"match": "product"}, {"feed_forward": 0}])
def test_classes_are_exchangeable(settings):
    model = network(**settings)
    states, mask = padded(texts(4, 2, 5))
    before = model(states, mask)["logits"]
    told = [model.label_states[c][model.label_mask[c]] for c in range(3)]
    model.describe([[told[c]] for c in (2, 0, 1)])
    torch.testing.assert_close(model(states, mask)["logits"], before[:, [2, 0, 1]], rtol=0, atol=1e-6)
    model.describe([[told[0]], [told[0]]])
    same = model(states, mask)["logits"]
    torch.testing.assert_close(same[:, 0], same[:, 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"query": "tokens"},
        {"match": "product"},
        {"direction": "text"},
        {"direction": "text", "query": "tokens"},
    ],
)
def test_padding_changes_nothing(settings):
    model, rows = network(**settings), texts(3, 6)
    states, mask = padded(rows)
    wide = F.pad(states, (0, 0, 0, 5), value=9.0)
    told = model(wide, F.pad(mask, (0, 5)))["logits"]
    alone = torch.cat([model(row[None], torch.ones(1, len(row)))["logits"] for row in rows])
    torch.testing.assert_close(told, alone, rtol=0, atol=1e-5)


def test_several_descriptions_are_averaged():
    model = network(described=((3, 2), (4,)))
    states, mask = padded(texts(4, 2))
    both = model(states, mask)["logits"]
    one, two, other = (model.label_states[i][model.label_mask[i]] for i in range(3))
    model.describe([[one], [two], [other]])
    apart = model(states, mask)["logits"]
    torch.testing.assert_close(both[:, 0], apart[:, :2].mean(1))


def test_a_class_that_comes_later_needs_no_weights():
    model = network()
    states, mask = padded(texts(4, 2))
    told = [[model.label_states[c][model.label_mask[c]]] for c in range(3)]
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    before = model(states, mask)["logits"]
    model.describe([*told, [torch.randn(2, 12)]])
    after = model(states, mask)["logits"]
    assert after.shape == (2, 4)
    torch.testing.assert_close(after[:, :3], before, rtol=0, atol=1e-12)
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    with pytest.raises(ModelError, match="Only direction: label"):
        network(direction="text").describe([*told, *told])


def test_a_new_network_prefers_no_class_and_product_begins_as_the_cosine():
    torch.manual_seed(0)
    rows, names = texts(5, 3), [torch.randn(n, 12) for n in (2, 4)]
    plain = CrossTune.from_settings(width=12, heads=3, feed_forward=7)
    plain.describe([[n] for n in names])
    states, mask = padded([row.float() for row in rows])
    assert not plain(states, mask)["logits"].any()
    product = CrossTune.from_settings(width=12, heads=3, feed_forward=7, match="product").eval()
    product.describe([[n] for n in names])
    norm = lambda v: F.layer_norm(v, (12,))  # noqa: E731
    cosine = [
        [10 * F.cosine_similarity(norm(n.mean(0)), norm(row.float()).mean(0), dim=0) for n in names]
        for row in rows
    ]
    torch.testing.assert_close(product(states, mask)["logits"], torch.tensor(cosine), rtol=1e-4, atol=1e-4)


def test_it_is_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    made, names = (
        CrossTune.from_settings(width=12, heads=3, feed_forward=7),
        [torch.randn(n, 12) for n in (2, 4)],
    )
    for p in made.parameters():
        nn.init.normal_(p)
    made.save_pretrained(tmp_path / "net")
    back = CrossTune.from_pretrained(tmp_path / "net")
    states, mask = padded([row.float() for row in texts(5, 3)])
    told = []
    for one in (made, back):
        one.eval().describe([[n] for n in names])
        told.append(one(states, mask)["logits"])
    assert torch.equal(*told)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ModelError, match=r"heads=5 does not divide the width 12.*1, 2, 4"):
        CrossTune.from_settings(width=12, heads=5)
    with pytest.raises(ModelError, match="knows no classes"):
        CrossTune.from_settings(width=12, heads=3)(torch.randn(1, 2, 12), torch.ones(1, 2))
    with pytest.raises(ModelError, match=r"expected \[tokens, 12\]"):
        network().describe([[torch.randn(2, 8)]])
